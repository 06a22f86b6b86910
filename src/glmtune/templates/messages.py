"""What chat formats are made of: messages, segments, the format itself."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from glmtune.strict import parse_json

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[str, ...] = get_args(Role)
THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"
"""The tags around a thought inside an answer's text."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = field(default=None, compare=False, repr=False)
    """What its result names as `tool_call_id`; no chat format writes it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, whole: only a chat format takes it apart."""

    role: Role
    content: str
    metadata: str = ""
    """What follows the role on its line: a tool's name in an assistant turn that calls one in words of its
    own, such as code."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool descriptions, in a system turn."""
    loss: bool = True
    """Whether this turn, if it is the assistant's, is learned."""
    thought: str | None = None
    """In an assistant turn: the thought in front of its text, None where there is none beside it."""
    calls: tuple[Call, ...] = ()
    """In an assistant turn: the tools that it calls after its text; their results are the next turns."""
    call_id: str | None = field(default=None, compare=False, repr=False)
    """In an observation: the id of the call that it answers."""

    @property
    def is_call(self) -> bool:
        """Whether this turn waits for a tool's result."""
        return self.role == "assistant" and bool(self.calls or self.metadata)

    def split_thought(self) -> tuple[str, str]:
        """Its thought and its text; without a thought beside it, that between tags in front of the text."""
        if self.thought is not None:
            return self.thought, self.content
        before, mark, after = self.content.partition(THOUGHT_END)
        if not mark:
            return "", self.content
        return before.rpartition(THOUGHT_BEGIN)[2], after.rpartition(THOUGHT_END)[2]


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
    hides_control_tokens: bool = False
    """Whether the official tokenizer decodes control tokens as nothing; others spell them."""
    assistant_name: str = ""
    """How the tool instructions call the assistant, unless the model's folder has another name."""
    prefixes_prompt: bool = False
    """A source prefix goes in front of the whole prompt text, not of the first question."""
    splits_answers: bool = False
    """Each learned answer is a training example of its own; what comes before it is only its context."""
    thought_end: str = ""
    """What ends the thought in front of an answer; empty where the model does not think aloud."""
    learns_thoughts: bool = False
    """Whether an answer is learned with its thought."""
    tidy: Callable[[str], str] | None = None
    """What the official chat makes of an answer's text to show it; None: it is shown as it is written."""
    remembers_tidied: bool = False
    """Whether a conversation goes on from answers as they were shown, not as they were written."""

    def shown(self, text: str) -> str:
        """An answer's text as the official chat shows it."""
        return self.tidy(text) if self.tidy else text

    def remembered(self, text: str) -> str:
        """An answer's text as the official history keeps it."""
        return self.shown(text) if self.remembers_tidied else text


def parse_call_arguments(text: str) -> Mapping[str, Any] | None:
    """The JSON object of a text, None if it is none."""
    try:
        found = parse_json(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def is_learned(message: Message) -> bool:
    """Whether a turn is an answer that is learned."""
    return message.role == "assistant" and message.loss


def unwrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function's description without OpenAI's wrapper; a tool of another type as it is."""
    inner = tool.get("function")
    found = dict(inner if isinstance(inner, Mapping) else tool)
    if "name" in found and found.get("type") == "function":
        del found["type"]
    return found


def wrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function's description as OpenAI writes it; a tool of another type as it is."""
    if isinstance(tool.get("function"), Mapping):
        return dict(tool)
    found = unwrapped(tool)
    return {"type": "function", "function": found} if "name" in found else found


def control(text: str, is_target: bool = False) -> Segment:
    """A control token by its official spelling."""
    return Segment(text, is_control=True, is_target=is_target)


def pretty(value: object) -> str:
    """JSON as the tool descriptions have it: indented by four."""
    return json.dumps(value, ensure_ascii=False, indent=4)
