"""The types of chat formats: messages, calls, segments, and the format itself (`Template`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from glmtune.strict import parse_json

if TYPE_CHECKING:
    from glmtune.templates.calls import CallReader

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[str, ...] = get_args(Role)
THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"
"""The tags around a thought inside an answer's text."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = field(default=None, compare=False, repr=False)
    """The `tool_call_id` of its result; no chat format writes it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole turn of a conversation; only a chat format splits it into segments."""

    role: Role
    content: str
    metadata: str = ""
    """Text behind the role on its line: the tool's name, in an assistant turn whose content is the call
    itself, such as code."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool descriptions, in a system turn."""
    loss: bool = True
    """True if an assistant turn is a training target; other turns never are."""
    thought: str | None = None
    """In an assistant turn: the thought in front of the text; None: the content may hold it in tags."""
    calls: tuple[Call, ...] = ()
    """In an assistant turn: the tool calls after its text; their results are the next turns."""
    call_id: str | None = field(default=None, compare=False, repr=False)
    """In an observation: the id of the call that it answers."""

    @property
    def is_call(self) -> bool:
        """True if this turn waits for a tool's result."""
        return self.role == "assistant" and bool(self.calls or self.metadata)

    def split_thought(self) -> tuple[str, str]:
        """Return (thought, text). If `thought` is None, it is taken from between tags in the content."""
        if self.thought is not None:
            return self.thought, self.content
        before, mark, after = self.content.partition(THOUGHT_END)
        if not mark:
            return "", self.content
        # GLM-Z1's prompt begins the thought, so an answer may have the end tag alone
        return before.rpartition(THOUGHT_BEGIN)[2], after.rpartition(THOUGHT_END)[2]


class Segment(NamedTuple):  # not a dataclass: a data set has millions, and these are made in half the time
    """A piece of plain text, or one control token by its official spelling."""

    text: str
    is_control: bool = False
    is_target: bool = False
    """True if training learns it: an answer's text, or the token that ends it."""


Render = Callable[[Sequence[Message], bool, str], list[Segment]]
"""Maps (messages, add_generation_prompt, assistant's name) to the segments that chat sends."""


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """Settings of a family's official chat, used where neither the caller nor the model's folder has them."""

    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 50
    """The default of the transformers versions that the official code was written for."""
    max_length: int = 8192
    """Most tokens of prompt and answer together in `model.chat`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat format."""

    render: Render
    """Renders messages as chat sends them."""
    examples: Callable[[Sequence[Message], str], list[list[Segment]]]
    """Maps (messages, assistant's name) to training examples; `Message.loss` marks the learned answers."""
    stop_tokens: tuple[str, ...]
    """Control tokens that end an answer."""
    end_of_text: str
    """Control token that ends a text (eos)."""
    control_tokens: tuple[str, ...]
    """Every control token after the plain vocabulary, in the order of their ids."""
    title: str
    """Name of the model in messages for people."""
    hides_control_tokens: bool = False
    """True if the official tokenizer decodes control tokens to nothing; others spell them."""
    assistant_name: str = ""
    """Name of the assistant in the tool instructions, unless the model's folder has another."""
    prefixes_prompt: bool = False
    """True if a source prefix goes in front of the whole prompt text, not of the first question."""
    splits_answers: bool = False
    """True if each learned answer is a training example of its own, with earlier turns as context."""
    thought_end: str = ""
    """Text that ends the thought in front of an answer; empty if the model does not think aloud."""
    learns_thoughts: bool = False
    """True if an answer is learned with its thought."""
    begins_thought: bool = False
    """True if a prompt ends inside a thought, which the answer goes on with."""
    calls: "type[CallReader] | None" = None
    """Reads the tool calls of an answer; None if the format has none."""
    tidy: Callable[[str], str] | None = None
    """Turns an answer's text into the one the official chat shows; None: shown as written."""
    remembers_tidied: bool = False
    """True if the history of a conversation holds answers as they were shown, not as they were written."""
    chat: ChatDefaults = ChatDefaults()
    """Sampling and length of the official chat."""

    def shown(self, text: str) -> str:
        """Return an answer's text as the official chat shows it."""
        return self.tidy(text) if self.tidy else text

    def remembered(self, text: str) -> str:
        """Return an answer's text as the official history keeps it."""
        return self.shown(text) if self.remembers_tidied else text


def parse_call_arguments(text: str) -> Mapping[str, Any] | None:
    """Parse a text as a JSON object; None if it is anything else."""
    try:
        arguments = parse_json(text)
    except json.JSONDecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


def is_learned(message: Message) -> bool:
    """True if a turn is an answer that training learns."""
    return message.role == "assistant" and message.loss


def unwrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's description without OpenAI's wrapper; a tool of another type unchanged."""
    inner = tool.get("function")
    function = dict(inner if isinstance(inner, Mapping) else tool)
    if "name" in function and function.get("type") == "function":
        del function["type"]
    return function


def wrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's description in OpenAI's wrapper; a tool of another type unchanged."""
    if isinstance(tool.get("function"), Mapping):
        return dict(tool)
    function = unwrapped(tool)
    return {"type": "function", "function": function} if "name" in function else function


@cache
def control(text: str, is_target: bool = False) -> Segment:
    """Return the segment of a control token, given its official spelling."""
    return Segment(text, is_control=True, is_target=is_target)


def pretty(value: object) -> str:
    """Write JSON as the official tool descriptions do: indented by four."""
    return json.dumps(value, ensure_ascii=False, indent=4)
