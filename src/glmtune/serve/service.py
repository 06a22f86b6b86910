"""Questions in a form of no particular interface, and the replies to them as they grow.

An interface reads its requests into a `Question`, and writes what the `GrowingReply` gives in its own form.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from glmtune.conversation import encode_messages
from glmtune.errors import ConfigError
from glmtune.generate.grammar import Grammar, Vocabulary
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling, read_sampling, usual_sampling
from glmtune.log import tell
from glmtune.serve.answer import AddedText, GrowingAnswer, Reason
from glmtune.serve.errors import ApiError, api_error
from glmtune.serve.limits import ServerLimits
from glmtune.serve.worker import TokenStream, Worker
from glmtune.templates.answer_stream import AnswerStream
from glmtune.templates.calls import functions_of
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that requests choose: the base, or one adapter on it."""

    name: str
    tokenizer: Tokenizer
    """With the texts that the model was taught."""
    adapter: str | None = None
    """The engine's name of the adapter; None: the engine's model as it is."""
    generation: Any = None  # Any: transformers' GenerationConfig, which has no types
    """The settings of the folder's generation_config.json."""

    def sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that were given, the model's own for the others."""
        chat = self.tokenizer.chat_format.chat
        return {**usual_sampling(chat, self.generation, given), **given}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation or text to be answered, and the way it is."""

    model: str
    """Name of a served model."""
    messages: Sequence[Mapping[str, Any]] = ()
    """A conversation in OpenAI's form."""
    prompt: str | Sequence[int] | None = None
    """In place of a conversation: a text that is only gone on with, or its ids."""
    tools: Sequence[Mapping[str, Any]] = ()
    is_one_call: bool = False
    """True: the answer ends with its first tool call."""
    must_call: bool = False
    """True: the answer is nothing but tool calls."""
    called: str | None = None
    """The tool that is called then; None: any of them."""
    streams_calls: bool = False
    """True: the arguments of a call are given as they come."""
    schema: Mapping[str, Any] | None = None
    """The JSON schema that the answer follows; it then calls no tool."""
    schema_field: str = "response_format"
    """The interface's name of it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the chat format, such as enable_thinking."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Sampling` that the request sets; the model's own count for the others."""
    max_new_tokens: int | None = None
    """None: as many as the server allows."""
    stops: Sequence[str] = ()
    num_answers: int = 1
    num_likeliest: int | None = None
    """As of `Request`."""


class GrowingReply:
    """The answers to a question; `async for written in reply` gives what each token adds.

    `close` must be called when it is no longer read: it frees what is still being answered.
    """

    def __init__(
        self,
        model: ServedModel,
        num_prompt_tokens: int,
        stream: TokenStream,
        answers: list[GrowingAnswer],
        ended: Sequence[Callable[["GrowingReply"], None]],
    ) -> None:
        """`ended`: called once, when the last answer has ended or the reply is given up."""
        self.model = model
        self.num_prompt_tokens = num_prompt_tokens
        self.answers = answers
        self.reasons: list[Reason | None] = [None] * len(answers)
        """The reason of each answer's end; None while it goes on, or if it was given up."""
        self.first_s: float | None = None
        """Seconds to the first token."""
        self._begun_s = perf_counter()
        self._stream = stream
        self._ended = ended
        self._is_ended = False

    @property
    def took_s(self) -> float:
        """Seconds since the question was handed to the worker."""
        return perf_counter() - self._begun_s

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers so far, the ones that ended them included."""
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of the thoughts among all these."""
        return sum(answer.num_thought_tokens for answer in self.answers)

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that were kept from before, and not read again; known from the first token on.

        Of several answers, those of the first.
        """
        return self.answers[0].num_cached

    async def __aiter__(self) -> AsyncIterator[AddedText]:
        """Yield what each token adds. Raises `ApiError` if an answer is broken off."""
        try:
            async for index, token in self._stream:
                if self.reasons[index]:  # drawn before the engine heard that this answer had ended
                    continue
                self.first_s = self.took_s if self.first_s is None else self.first_s
                written = self.answers[index].take(token)
                self.reasons[index] = written.reason
                if written.reason and not token.is_last:  # a stop text: the engine would go on
                    self._stream.cancel(index)
                yield written
        except Exception as error:
            raise api_error(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Give up the answers that have not ended."""
        # also after the last token: it does nothing then
        self._stream.cancel()
        if not self._is_ended:
            self._is_ended = True
            for note in self._ended:
                note(self)


class Service:
    """Answers questions to the served models with one worker."""

    def __init__(
        self,
        worker: Worker,
        models: Sequence[ServedModel],
        limits: ServerLimits,
        *,
        logs_prompts: bool = False,
    ) -> None:
        """`models`: the first is the base, or the only one; `logs_prompts`: log each conversation whole."""
        self.worker = worker
        self.ended: list[Callable[[GrowingReply], None]] = [_log_reply]
        """Called with each reply that has ended, or was given up."""
        self._logs_prompts = logs_prompts
        self.models = {model.name: model for model in models}
        self.limits = limits
        # one thread: a long conversation is encoded beside the event loop, and no two at once
        self._vocabularies: dict[str, Vocabulary] = {}  # by the model's name, used in that thread alone
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def model(self, name: str) -> ServedModel:
        """Return a served model. Raises `ApiError` 404 for an unknown name."""
        if name not in self.models:
            there = ", ".join(self.models)
            raise ApiError(
                404, f"model: {name!r:.80} is not served; there are {there}", param="model",
                code="model_not_found",
            )  # fmt: skip
        return self.models[name]

    async def ask(self, question: Question) -> GrowingReply:
        """Encode a question and hand it to the worker. Raises `ApiError` for one that cannot be answered."""
        model = self.model(question.model)
        # before any check, so that a refused one is in the log too
        if self._logs_prompts:
            tell(f"{model.name}: asked {question.prompt or question.messages!r}")
        if question.num_answers > self.limits.max_answers:
            raise ApiError(
                400, f"n: at most {self.limits.max_answers}, got {question.num_answers}", param="n"
            )
        ids = await self.encode(model, question)
        try:
            sampling = self._sampling(model, question, len(ids))
        except Exception as error:
            raise api_error(error) from error
        # the adapter's own: another chat format may end its turns by another token
        stop_ids = {*model.tokenizer.stop_ids, model.tokenizer.end_id}
        # a seed gives each answer one of its own, or all would be alike
        draws = [
            sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + i)
            for i in range(question.num_answers)
        ]
        limits = await self._limits(model, question, stop_ids)
        stream = self.worker.submit(
            [
                Request(ids, draw, stop_ids, model.adapter, question.num_likeliest, limit)
                for draw, limit in zip(draws, limits, strict=True)
            ]
        )
        try:
            await stream.accepted
        except Exception as error:
            raise api_error(error) from error
        except BaseException:  # the client is gone
            stream.cancel()
            raise
        answers = [
            GrowingAnswer(
                index,
                model.tokenizer,
                # a text that is only gone on with has neither thoughts nor calls
                AnswerStream(
                    model.tokenizer.chat_format, question.tools, streams_calls=question.streams_calls
                )
                if question.prompt is None
                else None,
                stops=question.stops,
                is_one_call=question.is_one_call,
            )
            for index in range(question.num_answers)
        ]
        return GrowingReply(model, len(ids), stream, answers, self.ended)

    async def encode(self, model: ServedModel, question: Question) -> list[int]:
        """Return the ids of a question. Raises `ApiError` for one that the chat format cannot express."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._encoder, partial(_encode, model.tokenizer, question))
        except Exception as error:
            raise api_error(error) from error

    async def _limits(
        self, model: ServedModel, question: Question, stop_ids: Collection[int]
    ) -> Sequence[Grammar | None]:
        """Return what each answer is limited to. Raises `ApiError` for a form that cannot be followed."""
        schema = question.schema
        if schema is None and not question.must_call:
            return [None] * question.num_answers
        functions = functions_of(question.tools)
        called = [question.called] if question.called is not None else list(functions)
        if question.must_call and (not called or called[0] not in functions):
            there = ", ".join(functions) or "none"
            raise ApiError(
                400, f"tool_choice: no such tool is offered; there are {there}", param="tool_choice"
            )

        def read() -> list[Grammar]:
            if model.name not in self._vocabularies:
                self._vocabularies[model.name] = Vocabulary(model.tokenizer, stop_ids)
            vocabulary = self._vocabularies[model.name]
            if schema is not None:
                return [vocabulary.json(schema, question.schema_field) for _ in range(question.num_answers)]
            chosen = {name: functions[name] for name in called}
            is_one = question.is_one_call or question.called is not None
            return [vocabulary.calls(chosen, is_one=is_one) for _ in range(question.num_answers)]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoder, read)
        except Exception as error:
            raise api_error(error) from error

    def _sampling(self, model: ServedModel, question: Question, num_prompt_tokens: int) -> Sampling:
        """Return the settings of the answers. Raises `ApiError` for a prompt that leaves no room for one."""
        context = self.worker.engine.context
        room = self.limits.max_new_tokens
        if context is not None:
            room = min(room, context - num_prompt_tokens)
        if room < 1:
            raise ApiError(
                400,
                f"messages: {num_prompt_tokens:,} tokens, and this model reads {context:,} with its answer",
                param="messages",
                code="context_length_exceeded",
            )
        asked = question.max_new_tokens
        if asked is not None and asked < 1:
            raise ConfigError(f"max_tokens: must be at least 1, got {asked}", hint="or leave it out")
        length = room if asked is None else min(asked, room)
        return read_sampling({**model.sampling(question.sampling), "max_new_tokens": length})


def _encode(tokenizer: Tokenizer, question: Question) -> list[int]:
    """Return a question's ids; text in it never becomes a control token."""
    if isinstance(question.prompt, str):
        return [*tokenizer.get_prefix_tokens(), *tokenizer.encode_plain(question.prompt)]
    if question.prompt is not None:
        return list(question.prompt)
    return encode_messages(
        tokenizer,
        question.messages,
        tools=question.tools or None,
        taught=tokenizer.taught,
        **question.options,
    )


def _log_reply(reply: GrowingReply) -> None:
    reasons = ", ".join(reason or "given up" for reason in reply.reasons)
    tell(
        f"{reply.model.name}: {reply.num_prompt_tokens:,} tokens read, {reply.num_tokens:,} written in "
        f"{reply.took_s:.1f} s: {reasons}"
    )
