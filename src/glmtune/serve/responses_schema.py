"""Requests in the form of OpenAI's responses, checked by field; an unknown field is refused by its name.

Source: https://platform.openai.com/docs/api-reference/responses/create.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from glmtune.serve.schema import Count, JsonSchema, Name, ObjectFormat, RequestPart, TextFormat


class ContentPart(RequestPart):
    """A part of a turn: text."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    """Has no effect."""
    logprobs: list[Any] | None = None
    """Has no effect."""


class _Item(RequestPart):
    id: str | None = None
    """Has no effect: nothing is stored here."""
    status: str | None = None
    """Has no effect."""


class TurnItem(_Item):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    phase: str | None = None
    """Has no effect."""


class CallItem(_Item):
    """A tool call of an earlier answer."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    """A JSON object."""


class ResultItem(_Item):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: Name
    output: str | list[ContentPart]


class ReasoningPart(RequestPart):
    """A part of a thought, or of its summary."""

    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(_Item):
    """The thought in front of an earlier answer."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    """Has no effect: there is none here."""


def _kind(item: Any) -> str:  # Any: a JSON value or an item
    kind = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[TurnItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class ResponsesTool(RequestPart):
    """A tool of the client."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments."""
    strict: bool | None = None
    """Has no effect: the schema is followed where a call is forced."""


class ResponsesChoice(RequestPart):
    """The function that the answer calls."""

    type: Literal["function"]
    name: Name


class Reasoning(RequestPart):
    """The thought in front of the answer, in formats that let one choose."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """none: no thought; others have no effect."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Has no effect: a thought is told whole."""


class AnswerSchema(JsonSchema):
    """An answer that is JSON by a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextOptions(RequestPart):
    """Options of the answer's text."""

    format: Annotated[TextFormat | ObjectFormat | AnswerSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Has no effect."""


class ResponseStreamOptions(RequestPart):
    """Options of a streamed answer."""

    include_obfuscation: bool | None = None
    """Has no effect: pieces are never padded."""


class ResponsesRequest(RequestPart):
    """A request for the next turn of a conversation."""

    model: Name
    """A name that /v1/models lists."""
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    """A system text in front of the conversation."""
    max_output_tokens: Count | None = None
    """Longest answer in tokens; the server's own bound and the model's context may be less."""
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesChoice | None = None
    """none: no tool is offered; auto: the model decides; required: the answer calls one, or the one named."""
    parallel_tool_calls: bool | None = None
    """false: the answer ends after its first call."""
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    store: bool | None = None
    """Has no effect: nothing is stored here, and previous_response_id is not known."""
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Has no effect: a thought is told as it is."""
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    metadata: Mapping[str, str] | None = None
    """Told again in the reply."""
    user: str | None = None
    """Has no effect."""
    safety_identifier: str | None = None
    """Has no effect."""
    prompt_cache_key: str | None = None
    """Has no effect: beginnings that were read before are reused in any case."""
    service_tier: Literal["auto", "default"] | None = None
    """Has no effect."""
