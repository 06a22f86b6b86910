"""Answers as text: streamed without half characters, or whole."""

from collections.abc import Generator, Sequence

from glmtune.conversation import answer_text
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.sampling import Sampling
from glmtune.log import tell
from glmtune.models.protocol import CausalLM
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
    stream, shown = tokenizer.text_stream(), ShownText(tokenizer.chat_format.tidy)
    written: list[str] = []
    # replacement characters at the end of a piece: half a character whose rest may follow, so they wait
    pending = ""

    def show(piece: str) -> str:
        piece = piece if written else piece.lstrip()  # no line breaks in front of the answer
        written.extend([piece] if piece else [])
        return shown.add(piece)

    for pairs in decode(model, [prompt], sampling, stop_ids=stop_ids, engine=engine):
        token = pairs[0][1]
        if token in stop_ids:
            break
        new = pending + show(stream.add(token))
        whole = new.rstrip(HALF_CHARACTER)
        pending = new[len(whole) :]
        if whole:
            yield whole
    else:
        tell(f"> the answer is cut at max_new_tokens, {sampling.max_new_tokens:,} tokens")
    if rest := pending + show(stream.finish()) + shown.finish():
        yield rest
    return "".join(written)


def complete_texts(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[str]:
    """Return the answers to several prompts, as people read them: without a thought in front."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answers = complete(model, prompts, sampling, stop_ids=stop_ids)
    texts = [answer_text(tokenizer, [i for i in ids if i not in stop_ids]) for ids in answers]
    return [tokenizer.chat_format.shown(text) for text in texts]
