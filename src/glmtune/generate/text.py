"""Answers as text: streamed without half characters, or whole."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from glmtune.conversation import answer_text
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.sampling import Sampling
from glmtune.log import tell
from glmtune.models.protocol import CausalLM
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END, Message
from glmtune.templates.tidy import ShownText
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.tokenizers.stream import HALF_CHARACTER


def stream_text(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    engine: Engine | None = None,
) -> Generator[str, None, str]:
    """Yield the text of one answer piece by piece, as the official chat shows it; `engine` as in `decode`.

    The generator's return value is the text as the model wrote it, before the official tidying.
    """
    stop_ids = frozenset(tokenizer.stop_ids)
    with closing(decode(model, [prompt], sampling, stop_ids=stop_ids, engine=engine)) as steps:
        written, is_ended = yield from shown_pieces((pairs[0][1] for pairs in steps), tokenizer)
    if not is_ended:
        tell(f"> the answer is cut at max_new_tokens, {sampling.max_new_tokens:,} tokens")
    return written


def shown_pieces(tokens: Iterable[int], tokenizer: Tokenizer) -> Generator[str, None, tuple[str, bool]]:
    """Yield the text of an answer's tokens piece by piece, as the official chat shows it.

    The generator's return value is the text as the model wrote it, and True if a stop token ended it.
    """
    stop_ids = frozenset(tokenizer.stop_ids)
    stream, shown = tokenizer.text_stream(), ShownText(tokenizer.chat_format.tidy)
    written: list[str] = []
    # replacement characters at the end of a piece: half a character whose rest may follow, so they wait
    pending = ""

    def show(piece: str) -> str:
        piece = piece if written else piece.lstrip()  # no line breaks in front of the answer
        written.extend([piece] if piece else [])
        return shown.add(piece)

    is_ended = False
    for token in tokens:
        if token in stop_ids:
            is_ended = True
            break
        new = pending + show(stream.add(token))
        whole = new.rstrip(HALF_CHARACTER)
        pending = new[len(whole) :]
        if whole:
            yield whole
    if rest := pending + show(stream.finish()) + shown.finish():
        yield rest
    return "".join(written), is_ended


def begins_thought(tokenizer: Tokenizer) -> bool:
    """True if the chat format's prompt opens a thought, as GLM-Z1's does."""
    return tokenizer.segments([Message("user", "")])[-1].text.endswith(THOUGHT_BEGIN)


def find_thoughts(pieces: Iterable[str], *, is_open: bool) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of an answer, each with True if it belongs to the thought before the answer.

    A piece that holds the end of the thought is cut there. `is_open`: the prompt has begun the thought.
    """
    answer = ""
    for piece in pieces:
        before, answer = len(answer), answer + piece
        is_thought = is_open or answer.startswith(THOUGHT_BEGIN)
        end = answer.find(THOUGHT_END) + len(THOUGHT_END) if THOUGHT_END in answer else len(answer)
        if not is_thought or end <= before:
            yield piece, False
            continue
        yield answer[before:end], True
        if end < len(answer):
            yield answer[end:], False


def complete_texts(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[str]:
    """Return the answers to several prompts, as people read them: without a thought in front."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answers = complete(model, prompts, sampling, stop_ids=stop_ids)
    texts = [answer_text(tokenizer, [i for i in ids if i not in stop_ids]) for ids in answers]
    return [tokenizer.chat_format.shown(text) for text in texts]
