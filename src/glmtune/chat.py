"""Chat with a model: prompt from the history, streamed answer, reuse of earlier turns' keys and values."""

from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.conversation import encode_latest
from glmtune.generate.engine import Engine
from glmtune.generate.sampling import read_sampling, usual_sampling
from glmtune.generate.text import stream_text
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.log import tell_left_out
from glmtune.models.protocol import CausalLM
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer

REUSED_TOKENS = 8192
"""Tokens of earlier turns whose keys and values a chat keeps, so that they need no second prefill."""


class Chat:
    """A conversation with a model, in the chat format of its tokenizer.

    `system` and `source_prefix` are the texts the model was tuned with: a system message put first, and a
    text in front of the first question. When a conversation outgrows the model's context, its oldest rounds
    are not sent, with a note: the answer keeps room for `max_new_tokens`, but at most a quarter of the
    context. Like an engine, a chat belongs to one thread.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        source_prefix: str = "",
        compile_step: bool = False,
        **sampling: Any,  # Any: fields of `Sampling`, checked by `read_sampling`
    ) -> None:
        """`sampling`: fields of `Sampling`, such as temperature=0.8; `compile_step` as in `Engine`.

        Those left out are the model's own: of its generation_config.json, else of its family's official chat.
        Raises `ConfigError`, `DataError`.
        """
        self.model = model
        self.tokenizer = tokenizer
        usual = usual_sampling(tokenizer.chat_format.chat, model.generation_config, sampling)
        self.sampling = read_sampling({**usual, **sampling})
        self.taught = Taught(system, source_prefix)
        self._engine = Engine(model, reused_tokens=REUSED_TOKENS, compile_step=compile_step)
        if not self._engine.goes_on:
            self._engine.reuse.num_tokens = 0  # no turn could reuse the one before
        self._unfinished: Generator[str, None, str] | None = None
        self.clear()
        self._prompt("")  # a system message that the format cannot express is an error now, not later

    @classmethod
    def open(cls, path: str | Path, *, strength: float = 1.0, **options: Any) -> "Chat":  # Any: `Chat`'s own
        """Open a chat with a model, run or adapter, with the system message and prefix it was tuned with.

        `strength` as in `load_model`, `options`: keyword arguments of `Chat`. Raises `CheckpointError`,
        `ConfigError` and `DataError`.
        """
        location = resolve(path)
        options = {**asdict(location.taught), **options}
        tokenizer = tokenizer_of(location, template=None)
        model = load_location(location, template=None, dtype="auto", device="auto", strength=strength)
        return cls(model.eval(), tokenizer, **options)

    def __repr__(self) -> str:
        rounds = sum(message["role"] == "user" for message in self.messages)
        return f"<Chat: {self.tokenizer.template}, {rounds} round{'s' * (rounds != 1)}, {self.sampling!r}>"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation, in OpenAI's form; may be replaced."""
        return self._messages

    @messages.setter
    def messages(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._num_left_out = 0  # rounds left out of the last prompt: they stay out, so its prefill is reused

    def clear(self) -> None:
        """Forget the conversation and cancel an unfinished answer; the system message stays."""
        self._give_up()
        self._engine.is_length_told = False
        begun = self.taught.begin([])
        self.messages = [{"role": message.role, "content": message.content} for message in begun]

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer piece by piece, then add question and answer to the conversation.

        An answer that is not read to its end, or is interrupted by another question, is not added.
        """
        self._give_up()
        prompt = self._prompt(text)
        answer = self._unfinished = stream_text(
            self.model, self.tokenizer, prompt, self.sampling, engine=self._engine
        )
        try:
            written = yield from answer
        finally:
            answer.close()  # cancels the request if the caller stops reading
        if self._unfinished is not answer:  # another question has come in between
            return
        remembered = self.tokenizer.chat_format.remembered(written.strip())
        self._messages += [{"role": "user", "content": text}, {"role": "assistant", "content": remembered}]

    def _give_up(self) -> None:
        """Cancel the unfinished answer."""
        if self._unfinished:
            self._unfinished.close()
            self._unfinished = None

    def _prompt(self, text: str) -> list[int]:
        context = self._engine.context
        ids, num_left_out = encode_latest(
            self.tokenizer,
            [*self.messages, {"role": "user", "content": text}],
            context=context,
            max_new_tokens=self.sampling.max_new_tokens,
            num_left_out=self._num_left_out,
            source_prefix=self.taught.source_prefix,  # the messages hold the system text
        )
        if context and num_left_out > self._num_left_out:
            tell_left_out(num_left_out, context)
        self._num_left_out = num_left_out
        return ids
