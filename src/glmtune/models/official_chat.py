"""`model.chat` and `model.stream_chat` with the official signatures and results.

The tokenizer's `template` decides the family whose rules apply. Text never becomes a control token, and tool
calls, which the official ChatGLM3 code runs with `eval`, are parsed.

Source: modeling_chatglm.py in https://huggingface.co/THUDM/chatglm-6b, THUDM/chatglm2-6b,
THUDM/chatglm3-6b and THUDM/glm-4-9b-chat.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.errors import DataError
from glmtune.log import tell_left_out
from glmtune.models.positions import positions_of
from glmtune.models.protocol import CausalLM, OfficialTokenizer
from glmtune.templates import TEMPLATES, Template, messages_from_dicts
from glmtune.templates.latest import leave_out_oldest
from glmtune.templates.messages import ChatDefaults, parse_call_arguments
from glmtune.templates.tidy import process_chatglm2, with_year

_HALF_CHARACTER = "�"
_TOP_K = ChatDefaults().top_k


class InvalidScoreLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Chooses a fixed token where any score is NaN or infinite, as the official code does."""

    def __init__(self, token: int = 5) -> None:
        """Set the id of the token, 5 in most official code."""
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V), replaced if any is not finite."""
        if not bool(torch.isnan(scores).any() or torch.isinf(scores).any()):
            return scores
        fixed = torch.zeros_like(scores)
        fixed[..., self.token] = 5e4
        return fixed


class OfficialChat:
    """Adds the official chat calls to a model that has `generate` and a forward pass with a cache.

    Settings left at None are the official ones of the family, `Template.chat`. Of a history longer than the
    model's context the oldest rounds are not sent, which is logged; the returned history still has them.
    """

    fallback_id = 5
    """The id of the token that replaces an answer's next one when the scores are not finite."""

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
        **kwargs: object,
    ) -> tuple[Any, list[Any]]:
        """Answer a query; return the answer and the new history.

        ChatGLM-6B's and ChatGLM2's history is a list of (question, answer), ChatGLM3's and GLM-4's a list of
        message dicts; their answer is a dict where the model calls a tool. `kwargs` go to `generate`.
        """
        style = _STYLES[_template(tokenizer)]
        messages = style.messages(query, history, role)
        prompt = _latest(tokenizer, messages, self.config.max_position_embeddings)
        if kwargs.get("max_new_tokens") is None:
            _check_room((max_length or style.template.chat.max_length) - len(prompt), len(prompt))
        input_ids = torch.tensor([prompt], device=self.device)
        sampling = style.sampling(top_p, temperature) if do_sample else {}
        settings = {
            "max_length": max_length or style.template.chat.max_length,
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
        past_key_values: Cache | None = None,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: LogitsProcessorList | None = None,
        return_past_key_values: bool = False,
        *,
        max_new_tokens: int | None = None,
        top_k: int | None = _TOP_K,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        **unknown: object,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the answer so far and the history with it, token by token.

        With `return_past_key_values` a third item is the cache; passed as `past_key_values` with the next
        query it saves the prefill of the history. Raises DataError at the first token if there is no room for
        an answer.
        """
        style = _STYLES[_template(tokenizer)]
        if past_key_values is None:
            messages = style.messages(query, history, role)
            prompt = _latest(tokenizer, messages, self.config.max_position_embeddings)
        else:
            prompt = style.continuation(tokenizer, query, history, role)
        sampling = style.sampling(top_p, temperature) if do_sample else {}
        finite = _with_finite_scores(logits_processor, self.fallback_id)
        processors = _processors(sampling, finite, top_k=top_k, repetition_penalty=repetition_penalty)
        cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        stops = eos_token_id or tokenizer.stop_ids
        stop_ids = frozenset([stops] if isinstance(stops, int) else stops)
        length = len(prompt) + self.count_cached(cache)
        steps = max_new_tokens or (max_length or style.template.chat.max_length) - length
        least = 1 + style.ends_with_stop  # the stop token is not shown
        _check_room(steps, length, least, is_given=bool(max_new_tokens))
        if unknown:
            raise TypeError(f"stream_chat() got an unexpected argument {next(iter(unknown))!r}")
        answer = tokenizer.text_stream()
        for token in _decode_ids(self, prompt, cache, processors, do_sample, stop_ids, steps):
            before = answer.text
            answer.add(token)
            # ChatGLM3's stream lags by a token, whose text could be the stop token's
            text = before if style.ends_with_stop else answer.text
            if not text or text.endswith(_HALF_CHARACTER):
                continue
            result = style.result(text, query, history, role)
            yield (*result, cache) if return_past_key_values else result

    def process_response(self, output: str, history: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """Process an answer's text as ChatGLM3's code does if there is a history, else as ChatGLM2's."""
        return process_chatglm2(output) if history is None else process_turns(output, history)


def process_turns(output: str, history: Sequence[Mapping[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """Return ChatGLM3's or GLM-4's answer and the history with it.

    A tool call is a dict of its name and parameters, an unreadable one of its name and its text (`content`).
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
        if not name:
            content = with_year(content)
        elif has_tools and (parameters := _parse_parameters(content)) is not None:
            content = {"name": name, "parameters": parameters}
        else:
            content = {"name": name, "content": content}
    return content, messages


def _parse_parameters(content: str) -> dict[str, Any] | None:
    """Parse GLM-4's JSON object, or the keyword arguments of ChatGLM3's tool_call(x=1) in a code block."""
    arguments = parse_call_arguments(content)
    if arguments is not None:
        return dict(arguments)
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
    """The rules of a family's official chat, and its format with the default settings."""

    template: Template
    ends_with_stop: ClassVar[bool] = False
    """True if the last id of an answer is a stop token, no part of its text."""

    def sampling(self, top_p: float | None, temperature: float | None) -> dict[str, float]:
        """Return the settings, with the family's for None."""
        return {
            "top_p": self.template.chat.top_p if top_p is None else top_p,
            "temperature": self.template.chat.temperature if temperature is None else temperature,
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
        """Return the ids of the new round alone."""
        number = len(history or ()) + 1
        # [1:]: without the space that sentencepiece puts in front of a text
        return tokenizer.encode_plain(f"\n\n[Round {number}]\n\n问：{query}\n\n答：")[1:]

    def result(
        self, text: str, query: str, history: Sequence[Any] | None, _role: str
    ) -> tuple[str, list[Any]]:
        response = self.template.shown(text)
        return response, [*(history or ()), (query, response)]


class _FirstStyle(_RoundsStyle):
    """ChatGLM-6B: as ChatGLM2, but every prefill takes the whole history."""

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
        """Return the ids of the new turn alone."""
        ids = _encode(tokenizer, [{"role": role, "content": query}])
        return ids[len(tokenizer.get_prefix_tokens()) :]  # officially the prefix comes again, amid the text

    def result(
        self, text: str, query: str, history: Sequence[Any] | None, role: str
    ) -> tuple[Any, list[Any]]:
        return process_turns(text, self.messages(query, history, role))


_STYLES: Mapping[str, _RoundsStyle | _TurnsStyle] = {
    "chatglm": _FirstStyle(TEMPLATES["chatglm"]),
    "chatglm2": _RoundsStyle(TEMPLATES["chatglm2"]),
    **{name: _TurnsStyle(TEMPLATES[name]) for name in ("chatglm3", "glm4", "glm4_base")},
}


def _with_finite_scores(given: LogitsProcessorList | None, fallback: int) -> LogitsProcessorList:
    return LogitsProcessorList([*(given or ()), InvalidScoreLogitsProcessor(fallback)])


def _processors(
    sampling: Mapping[str, float],
    given: LogitsProcessorList,
    *,
    top_k: int | None,
    repetition_penalty: float | None,
) -> LogitsProcessorList:
    """Return the processors that `generate` would apply, in its order."""
    processors = [RepetitionPenaltyLogitsProcessor(repetition_penalty)] if repetition_penalty else []
    processors += given
    if not sampling:
        return LogitsProcessorList(processors)
    top_p, temperature = sampling["top_p"], sampling["temperature"]
    processors += [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList(processors)


def _encode(tokenizer: OfficialTokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of a prompt as the official code has them, without a trained adapter's system text."""
    return tokenizer.encode_segments(tokenizer.segments(messages_from_dicts(messages)))


def _latest(tokenizer: OfficialTokenizer, messages: Sequence[Mapping[str, Any]], context: int) -> list[int]:
    """Return the ids of a prompt, without the oldest rounds if it is longer than the model's context."""
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
    """Raise DataError if fewer tokens than `least` may follow; `is_given`: limited by `max_new_tokens`."""
    if room < least and is_given:
        needed = f"max_new_tokens={least} or more"
        raise DataError(f"max_new_tokens: {room}, but at least {least} here", hint=needed)
    if room < least:
        raise DataError(
            f"query: {length:,} tokens with its history, which leaves no room for an answer: "
            f"{length + room:,} are allowed in all, and at least {least} must follow",
            hint="give a shorter history, a larger max_length, or max_new_tokens",
        )


def _decode_ids(
    model: CausalLM,
    prompt: Sequence[int],
    cache: Cache,
    processors: LogitsProcessorList,
    do_sample: bool,
    stop_ids: frozenset[int],
    steps: int,
) -> Iterator[int]:
    """Yield the ids of an answer, the stop token included; the cache holds all but the last."""
    seen = torch.tensor([prompt], device=model.device)  # (1, T), for the repetition penalty
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
