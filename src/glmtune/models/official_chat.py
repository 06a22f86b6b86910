"""`model.chat` and `model.stream_chat` with the official signatures and results.

The tokenizer's `template` decides which family's rules apply. Text never becomes a control token, and tool
calls, which the official ChatGLM3 code runs with `eval`, are parsed.

Source: modeling_chatglm.py in https://huggingface.co/THUDM/chatglm-6b, THUDM/chatglm2-6b,
THUDM/chatglm3-6b and THUDM/glm-4-9b-chat.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.errors import DataError
from glmtune.log import tell_left_out
from glmtune.models.positions import positions_of
from glmtune.models.protocol import CausalLM
from glmtune.templates import TEMPLATES, Message, Segment, Template, messages_from_dicts
from glmtune.templates.latest import leave_out_oldest
from glmtune.templates.messages import parse_call_arguments
from glmtune.templates.tidy import process_chatglm2, with_year

_HALF_CHARACTER = "�"
_TOP_K = 50
"""What the official transformers version samples from when top_k is not given."""


class OfficialTokenizer(Protocol):
    """What the calls ask of a tokenizer; those of `glmtune` have it."""

    template: Any
    """The name of its chat format."""
    pad_token_id: int

    @property
    def stop_ids(self) -> list[int]:
        """Those at which an answer ends; raises while the chat format is open."""

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """What chat sends for these messages."""

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Their ids."""

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""

    def get_prefix_tokens(self) -> list[int]:
        """The ids that every text begins with."""

    def decode(self, token_ids: Any) -> Any:
        """The text of ids."""

    def text_stream(self) -> Any:
        """A text of ids that come one by one: `add`, `text`."""


class InvalidScoreLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Go on with one fixed token where a score is NaN or infinite, as the official code does."""

    def __init__(self, token: int = 5) -> None:
        """`token`: its id, 5 in most official code."""
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V), replaced where any is not finite."""
        if not bool(torch.isnan(scores).any() or torch.isinf(scores).any()):
            return scores
        fixed = torch.zeros_like(scores)
        fixed[..., self.token] = 5e4
        return fixed


class OfficialChat:
    """Adds the official chat calls to a model that has `generate` and a forward pass with a cache.

    Settings left at None are the official ones of the family: max_length 8192, top_p 0.8 and temperature 0.8,
    or ChatGLM-6B's 2048, 0.7 and 0.95. Of a history that fills all that the model was made for the oldest
    rounds are not sent, and that is told; the history that is returned has them.
    """

    fallback_id = 5
    """The token to go on with when the scores are not finite."""

    @torch.inference_mode()
    def chat(
        self: Any,
        tokenizer: OfficialTokenizer,
        query: str,
        history: Sequence[Any] | None = None,
        role: str = "user",
        max_length: int | None = None,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> tuple[Any, list[Any]]:
        """The answer and the new history.

        ChatGLM-6B's and ChatGLM2's history is a list of (question, answer), ChatGLM3's and GLM-4's a list of
        message dicts; their answer is a dict where the model calls a tool. `kwargs` go to `generate`.
        """
        style = _STYLES[_template(tokenizer)]
        messages = style.messages(query, history, role)
        prompt = _latest(tokenizer, messages, self.config.max_position_embeddings)
        if kwargs.get("max_new_tokens") is None:
            _check_room((max_length or style.max_length) - len(prompt), len(prompt))
        input_ids = torch.tensor([prompt], device=self.device)
        sampling = style.sampling(top_p, temperature) if do_sample else {}
        settings = {
            "max_length": max_length or style.max_length,
            "num_beams": num_beams,
            "do_sample": do_sample,
            "eos_token_id": tokenizer.stop_ids,
            "pad_token_id": tokenizer.pad_token_id,
            "logits_processor": _with_finite_scores(logits_processor, self.fallback_id),
            **sampling,
            **kwargs,
        }
        output = self.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **settings)
        answer = output[0, len(prompt) :].tolist()
        text = tokenizer.decode(answer[:-1] if style.ends_with_stop else answer)
        return style.result(text, query, history, role)

    @torch.inference_mode()
    def stream_chat(
        self: Any,
        tokenizer: OfficialTokenizer,
        query: str,
        history: Sequence[Any] | None = None,
        role: str = "user",
        past_key_values: Any = None,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: LogitsProcessorList | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the answer so far and the history with it, token by token.

        With `return_past_key_values` a third item is the cache; given back as `past_key_values` with the next
        query it saves reading the history again. `kwargs`: max_new_tokens, top_k, repetition_penalty,
        eos_token_id. Raises `DataError` at the first token where there is no room for an answer.
        """
        style = _STYLES[_template(tokenizer)]
        if past_key_values is None:
            messages = style.messages(query, history, role)
            prompt = _latest(tokenizer, messages, self.config.max_position_embeddings)
        else:
            prompt = style.continuation(tokenizer, query, history, role)
        sampling = style.sampling(top_p, temperature) if do_sample else {}
        processors = _processors(sampling, _with_finite_scores(logits_processor, self.fallback_id), kwargs)
        cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        stops = kwargs.pop("eos_token_id", None) or tokenizer.stop_ids
        stop_ids = frozenset([stops] if isinstance(stops, int) else stops)
        length = len(prompt) + self.count_cached(cache)
        given = kwargs.pop("max_new_tokens", None)
        steps = given or (max_length or style.max_length) - length
        least = 1 + style.ends_with_stop  # whose last token is not shown
        _check_room(steps, length, least, is_given=bool(given))
        if kwargs:
            raise TypeError(f"stream_chat() got an unexpected argument {next(iter(kwargs))!r}")
        answer = tokenizer.text_stream()
        for token in _tokens(self, prompt, cache, processors, do_sample, stop_ids, steps):
            before = answer.text
            answer.add(token)
            text = before if style.ends_with_stop else answer.text
            if not text or text.endswith(_HALF_CHARACTER):
                continue
            found = style.result(text, query, history, role)
            yield (*found, cache) if return_past_key_values else found

    def process_response(self, output: str, history: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """What the official code makes of an answer's text: with a history as ChatGLM3, else as ChatGLM2."""
        return process_chatglm2(output) if history is None else process_turns(output, history)


def process_turns(output: str, history: Sequence[Mapping[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """ChatGLM3's or GLM-4's answer and the history with it; a tool call is a dict of its name and parameters.

    A call that cannot be read is given as its name and its text in `content`.
    """
    messages = deepcopy([dict(message) for message in history])
    has_tools = bool(messages) and messages[0]["role"] == "system" and "tools" in messages[0]
    content: Any = ""
    for turn in output.split("<|assistant|>"):
        metadata, separator, content = turn.partition("\n")
        if not separator:
            metadata, content = "", turn
        name = metadata.strip()
        if not name:
            content = content.strip()
        messages.append({"role": "assistant", "metadata": metadata, "content": content})
        content = _tool_call(name, content, has_tools) if name else with_year(content)
    return content, messages


def _tool_call(name: str, content: str, has_tools: bool) -> dict[str, Any]:
    parameters = _parameters(content) if has_tools else None
    if parameters is None:
        return {"name": name, "content": content}
    return {"name": name, "parameters": parameters}


def _parameters(content: str) -> dict[str, Any] | None:
    """GLM-4's JSON object, or the keyword arguments of ChatGLM3's tool_call(x=1) in a code block."""
    found = parse_call_arguments(content)
    if found is not None:
        return dict(found)
    try:
        call = ast.parse("\n".join(content.split("\n")[1:-1]).strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
            return None
        words = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        repr(words)  # raises where an integer is too long to be written
        return words
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as literal_eval documents
        return None


def _template(tokenizer: OfficialTokenizer) -> str:
    assert tokenizer.stop_ids, "asks for a template while it is open"
    return str(tokenizer.template)


@dataclass(frozen=True, slots=True)
class _Style:
    """How a family's official chat goes; the fields behind its format are its defaults."""

    template: Template
    max_length: int = 8192
    top_p: float = 0.8
    temperature: float = 0.8
    ends_with_stop: ClassVar[bool] = False
    """Whether the last id of an answer is no part of its text."""

    def sampling(self, top_p: float | None, temperature: float | None) -> dict[str, float]:
        """The given settings, or else the family's."""
        return {
            "top_p": self.top_p if top_p is None else top_p,
            "temperature": self.temperature if temperature is None else temperature,
        }


class _RoundsStyle(_Style):
    """ChatGLM2: history is (question, answer) pairs, an answer is text."""

    def messages(self, query: str, history: Sequence[Any] | None, _role: str) -> list[dict[str, Any]]:
        rounds = [
            {"role": role, "content": content}
            for pair in history or ()
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        return [*rounds, {"role": "user", "content": query}]

    def continuation(
        self, tokenizer: OfficialTokenizer, query: str, history: Sequence[Any] | None, _role: str
    ) -> list[int]:
        """The new round alone, without the space that sentencepiece puts in front of a text."""
        number = len(history or ()) + 1
        return tokenizer.encode_plain(f"\n\n[Round {number}]\n\n问：{query}\n\n答：")[1:]

    def result(
        self, text: str, query: str, history: Sequence[Any] | None, _role: str
    ) -> tuple[str, list[Any]]:
        response = self.template.shown(text)
        return response, [*(history or ()), (query, response)]


class _FirstStyle(_RoundsStyle):
    """ChatGLM-6B: as ChatGLM2, but every question is read anew with all before it."""

    def continuation(
        self, tokenizer: OfficialTokenizer, query: str, history: Sequence[Any] | None, _role: str
    ) -> list[int]:
        raise TypeError("ChatGLM-6B cannot go on from past_key_values: its whole history is one context")


class _TurnsStyle(_Style):
    """ChatGLM3 and GLM-4: history is message dicts; the last id, a stop token, is not part of the answer."""

    ends_with_stop = True

    def messages(self, query: str, history: Sequence[Any] | None, role: str) -> list[dict[str, Any]]:
        return [*(history or ()), {"role": role, "content": query}]

    def continuation(
        self, tokenizer: OfficialTokenizer, query: str, _history: Sequence[Any] | None, role: str
    ) -> list[int]:
        """The new turn alone; the official code repeats the prefix here, in the middle of the text."""
        ids = _encode(tokenizer, [{"role": role, "content": query}])
        return ids[len(tokenizer.get_prefix_tokens()) :]

    def result(
        self, text: str, query: str, history: Sequence[Any] | None, role: str
    ) -> tuple[Any, list[Any]]:
        return process_turns(text, self.messages(query, history, role))


_STYLES: Mapping[str, _RoundsStyle | _TurnsStyle] = {
    "chatglm": _FirstStyle(TEMPLATES["chatglm"], max_length=2048, top_p=0.7, temperature=0.95),
    "chatglm2": _RoundsStyle(TEMPLATES["chatglm2"]),
    **{name: _TurnsStyle(TEMPLATES[name]) for name in ("chatglm3", "glm4", "glm4_base")},
}


def _with_finite_scores(given: LogitsProcessorList | None, fallback: int) -> LogitsProcessorList:
    return LogitsProcessorList([*(given or ()), InvalidScoreLogitsProcessor(fallback)])


def _processors(
    sampling: Mapping[str, float], given: LogitsProcessorList, settings: dict[str, Any]
) -> LogitsProcessorList:
    """What `generate` would apply, in its order; takes its words out of `settings`."""
    penalty, top_k = settings.pop("repetition_penalty", None), settings.pop("top_k", _TOP_K)
    processors = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty else []
    processors += given
    if not sampling:
        return LogitsProcessorList(processors)
    top_p, temperature = sampling["top_p"], sampling["temperature"]
    processors += [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList(processors)


def _encode(tokenizer: OfficialTokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of a prompt as the official code has them: without a text that a run has taught."""
    return tokenizer.encode_segments(tokenizer.segments(messages_from_dicts(messages)))


def _latest(tokenizer: OfficialTokenizer, messages: Sequence[Mapping[str, Any]], context: int) -> list[int]:
    """The ids of a prompt: the official ones, as far as the model was made for so many."""
    prompt = _encode(tokenizer, messages)
    if len(prompt) < context:
        return prompt
    latest, num_left_out = leave_out_oldest(
        messages, partial(_encode, tokenizer), context=context, max_new_tokens=context
    )
    if num_left_out:
        tell_left_out(num_left_out, context)
    return latest


def _check_room(room: int, length: int, least: int = 1, *, is_given: bool = False) -> None:
    """Raise `DataError` where fewer tokens than `least` may follow; `is_given`: by `max_new_tokens`."""
    if room < least and is_given:
        needed = f"max_new_tokens={least} or more"
        raise DataError(f"max_new_tokens: {room}, but at least {least} here", hint=needed)
    if room < least:
        raise DataError(
            f"query: {length:,} tokens with its history, which leaves no room for an answer: "
            f"{length + room:,} are allowed in all, and at least {least} must follow",
            hint="give a shorter history, a larger max_length, or max_new_tokens",
        )


def _tokens(
    model: CausalLM,
    prompt: Sequence[int],
    cache: Any,
    processors: LogitsProcessorList,
    do_sample: bool,
    stop_ids: frozenset[int],
    steps: int,
) -> Iterator[int]:
    """The ids of one answer, the stop token included; the cache ends before the last of them."""
    seen = torch.tensor([prompt], device=model.device)
    new = seen
    counter = positions_of(model)
    positions, following = (x + model.count_cached(cache) for x in counter.count_positions(seen))
    for _ in range(steps):
        logits = model(
            input_ids=new, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        scores = processors(seen, logits[:, -1].float())
        drawn = torch.multinomial(scores.softmax(-1), 1) if do_sample else scores.argmax(-1, keepdim=True)
        seen = torch.cat([seen, drawn], dim=1)
        new, positions, following = drawn, following, counter.advance_positions(following)
        token = int(drawn)
        yield token
        if token in stop_ids:
            return
