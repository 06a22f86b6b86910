"""Answers as text: piece by piece without half characters, or whole."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from glmtune.conversation import answer_text
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.sampling import Sampling
from glmtune.models.chat_calls import settled_answer, shown_answer
from glmtune.templates import visible_text
from glmtune.tokenizers import GrowingText


def stream_text(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    engine: Engine | None = None,
) -> Iterator[str]:
    """Yield the text of one answer as it grows, as the official chat shows it; `engine` as in `decode`."""
    for _, piece in stream_answer(model, tokenizer, prompt, sampling, engine):
        yield piece


def stream_answer(
    model: Any, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, engine: Engine | None
) -> Generator[tuple[str, str], None, None]:
    """What the model has written so far, and what of it is new to show."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answer = GrowingText(tokenizer)
    written, shown = "", ""
    for pairs in decode(model, [prompt], sampling, stop_ids=stop_ids, engine=engine):
        token = pairs[0][1]
        if token in stop_ids:
            break
        written = answer.add(token).lstrip()
        settled = settled_answer(tokenizer.template, written)
        is_whole = not settled.endswith("\ufffd")  # else half a character: wait for the rest of its bytes
        if is_whole and len(settled) > len(shown):
            yield written, settled[len(shown) :]
            shown = settled
    rest = shown_answer(tokenizer.template, written)[len(shown) :]
    if rest:
        yield written, rest


def answer(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """Answer several prompts at once, for people to read; a thought in front of an answer is left out."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answers = complete(model, prompts, sampling, stop_ids=stop_ids)
    texts = [answer_text(tokenizer, [i for i in ids if i not in stop_ids]) for ids in answers]
    template = tokenizer.template
    return [shown_answer(template, visible_text(template, text)) for text in texts]
