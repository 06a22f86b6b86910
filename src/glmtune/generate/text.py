"""Answers as text: piece by piece without half characters, or whole."""

from collections.abc import Generator, Sequence

from glmtune.conversation import answer_text
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.sampling import Sampling
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
    """Yield the text of one answer as it grows, as the official chat shows it; `engine` as in `decode`.

    What the generator returns is the text as the model wrote it.
    """
    stop_ids = frozenset(tokenizer.stop_ids)
    stream, shown = tokenizer.text_stream(), ShownText(tokenizer.chat_format.tidy)
    written: list[str] = []
    held = ""  # signs of half characters: real ones, if no rest of one follows

    def show(piece: str) -> str:
        piece = piece if written else piece.lstrip()
        written.extend([piece] if piece else [])
        return shown.add(piece)

    for pairs in decode(model, [prompt], sampling, stop_ids=stop_ids, engine=engine):
        token = pairs[0][1]
        if token in stop_ids:
            break
        new = held + show(stream.add(token))
        whole = new.rstrip(HALF_CHARACTER)
        held = new[len(whole) :]
        if whole:
            yield whole
    if rest := held + show(stream.finish()) + shown.finish():
        yield rest
    return "".join(written)


def complete_texts(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[str]:
    """Answer several prompts at once, for people to read; a thought in front of an answer is left out."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answers = complete(model, prompts, sampling, stop_ids=stop_ids)
    texts = [answer_text(tokenizer, [i for i in ids if i not in stop_ids]) for ids in answers]
    return [tokenizer.chat_format.shown(text) for text in texts]
