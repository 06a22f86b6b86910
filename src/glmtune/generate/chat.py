"""Talking to a model: history, template, text that never splits a character."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glmtune.generate.engine import Engine, complete, decode
from glmtune.generate.sampling import Sampling
from glmtune.templates import messages_from_dicts, visible_text

REUSED_TOKENS = 8192
"""Of so many tokens of earlier turns a chat keeps keys and values, so as not to compute them again."""


class Chat:
    """A conversation with a model, in the template of its tokenizer.

    `system` and `source_prefix` are what the model was tuned with: a system message put first, and a text
    in front of the first question.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        source_prefix: str = "",
        **sampling: Any,
    ) -> None:
        """`sampling`: fields of `Sampling`, such as temperature=0.8. Raises `ConfigError`, `DataError`."""
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = Sampling(**sampling)
        self.system = system
        self.source_prefix = source_prefix
        self.messages: list[dict[str, Any]] = []
        self._engine = Engine(model, reused_tokens=REUSED_TOKENS)
        self.clear()
        self._prompt("")  # a system message that the format cannot express is an error now, not later

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer piece by piece, then remember question and answer.

        An answer that is abandoned half-way is not remembered.
        """
        answer = ""
        prompt = self._prompt(text)
        for piece in stream_text(self.model, self.tokenizer, prompt, self.sampling, engine=self._engine):
            answer += piece
            yield piece
        self.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer.strip()},
        ]

    def _prompt(self, text: str) -> list[int]:
        conversation = [*self.messages, {"role": "user", "content": text}]
        return encode_conversation(self.tokenizer, conversation, source_prefix=self.source_prefix)


def encode_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, source_prefix: str = ""
) -> list[int]:
    """The ids that ask for the next answer, with the text that a run put in front of its prompts."""
    segments = tokenizer.segments(messages_from_dicts(messages), source_prefix=source_prefix)
    ids: list[int] = tokenizer.encode_segments(segments)
    return ids


def stream_text(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    engine: Engine | None = None,
) -> Iterator[str]:
    """Yield the text of one answer as it grows; `engine` as in `decode`."""
    stop_ids = frozenset(tokenizer.stop_ids)
    ids: list[int] = []
    sent = ""
    for pairs in decode(model, [prompt], sampling, stop_ids=stop_ids, engine=engine):
        token = pairs[0][1]
        if token in stop_ids:
            break
        ids.append(token)
        text = answer_text(tokenizer, ids)
        is_whole = not text.endswith("\ufffd")  # else half a character: wait for the rest of its bytes
        if is_whole and len(text) > len(sent):
            yield text[len(sent) :]
            sent = text
    text = answer_text(tokenizer, ids)
    if len(text) > len(sent):
        yield text[len(sent) :]


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decoded answer without what the template puts before it (ChatGLM3's and GLM-4's line break)."""
    return str(tokenizer.decode(list(ids))).lstrip()


def answer(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """Answer several prompts at once; a thought in front of an answer is left out."""
    stop_ids = frozenset(tokenizer.stop_ids)
    answers = complete(model, prompts, sampling, stop_ids=stop_ids)
    texts = [answer_text(tokenizer, [i for i in ids if i not in stop_ids]) for ids in answers]
    return [visible_text(tokenizer.template, text) for text in texts]
