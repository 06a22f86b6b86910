"""What chat formats are made of: messages, segments, the format itself; messages read from dicts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from glmtune.errors import DataError

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[str, ...] = get_args(Role)
Loss = Literal["all_turns", "last_turn"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    metadata: str = ""
    """What follows the role on its line: a tool's name in an assistant turn that calls one."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool descriptions, in a system turn."""
    loss: bool = True
    """Whether this turn, if it is the assistant's, is learned."""
    arguments: Mapping[str, Any] | None = None
    """In an assistant turn without content: the arguments of the call of the tool that `metadata` names."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of plain text, or one control token by its official spelling."""

    text: str
    is_control: bool = False
    is_target: bool = False
    """Learned in training: an answer's text, or the token that ends it."""


Render = Callable[[Sequence[Message], bool, str], list[Segment]]


@dataclass(frozen=True, slots=True)
class Template:
    """A chat format."""

    render: Render
    """What chat sends: (messages, whether the assistant is asked to answer, the assistant's name)."""
    examples: Callable[[Sequence[Message], str], list[list[Segment]]]
    """The training examples of a conversation whose `loss` flags are set: (messages, assistant's name)."""
    stop_tokens: tuple[str, ...]
    """Control tokens at which an answer ends."""
    end_of_text: str
    """The control token that ends a text: eos."""
    control_tokens: tuple[str, ...]
    """Every control token after the plain vocabulary, in the order of their ids."""
    title: str
    """What people call the model."""
    assistant_name: str = ""
    """How the tool instructions call the assistant, unless the model's folder has another name."""
    prefixes_prompt: bool = False
    """A source prefix goes in front of the whole prompt text, not of the first question."""
    splits_answers: bool = False
    """Each learned answer is a training example of its own; what comes before it is only its context."""
    thought_end: str = ""
    """What ends the thought in front of an answer; empty where the model does not think aloud."""


def messages_from_dicts(
    rows: Sequence[Mapping[str, Any] | Message], place: str = "messages"
) -> list[Message]:
    """Messages from dicts with `role`, `content` and optionally `metadata`, `tools`, `loss`.

    Raises DataError naming the message that is wrong.
    """
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence):
        raise DataError(f"{place}: expected a list of messages, got {_kind(rows)}", hint=_MESSAGE_HINT)
    if not rows:
        raise DataError(f"{place}: no message", hint=_MESSAGE_HINT)
    return [_message(row, f"{place}[{index}]") for index, row in enumerate(rows)]


_MESSAGE_HINT = 'a message is like {"role": "user", "content": "..."}'
_MESSAGE_KEYS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "role": ((str,), "text"),
    "content": ((str,), "text"),
    "metadata": ((str, type(None)), "text"),
    "tools": ((list, tuple, type(None)), "a list of tool descriptions"),
    "loss": ((bool,), "true or false"),
}


def _message(row: Mapping[str, Any] | Message, place: str) -> Message:
    if isinstance(row, Message):
        return row
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: expected a message, got {_kind(row)}", hint=_MESSAGE_HINT)
    unknown = sorted(set(row) - set(_MESSAGE_KEYS))
    missing = [key for key in ("role", "content") if key not in row]
    if unknown or missing:
        what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise DataError(f"{place}: {what}", hint="the keys are " + ", ".join(_MESSAGE_KEYS))
    for key, value in row.items():
        kinds, wanted = _MESSAGE_KEYS[key]
        if not isinstance(value, kinds):
            raise DataError(f"{place}: {key!r} must be {wanted}, got {_kind(value)}", hint=_MESSAGE_HINT)
    return _checked(Message(**{key: value for key, value in row.items() if value is not None}), place)


def _checked(message: Message, place: str) -> Message:
    if message.role not in ROLES:
        raise DataError(f"{place}: unknown role {message.role!r}", hint="the roles are " + ", ".join(ROLES))
    if message.tools is not None and message.role != "system":
        raise DataError(
            f"{place}: tools in a turn of role {message.role!r}", hint="put them in the system turn"
        )
    if "\n" in message.metadata:
        raise DataError(
            f"{place}: a line break in 'metadata'", hint="metadata is one line, like a tool's name"
        )
    return message


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def parse_object(text: str) -> Mapping[str, Any] | None:
    """The JSON object of a text, None if it is none."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def is_learned(message: Message) -> bool:
    """Whether a turn is an answer that is learned."""
    return message.role == "assistant" and message.loss


def control(text: str, is_target: bool = False) -> Segment:
    """A control token by its official spelling."""
    return Segment(text, is_control=True, is_target=is_target)


def pretty(value: object) -> str:
    """JSON as the tool descriptions have it: indented by four."""
    return json.dumps(value, ensure_ascii=False, indent=4)
