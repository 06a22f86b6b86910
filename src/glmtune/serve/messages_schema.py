"""Requests in Anthropic's form, checked field by field; an unknown field is refused by its name.

Source: https://docs.anthropic.com/en/api/messages, .../messages-count-tokens.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from glmtune.serve.schema import MAX_STOPS, MAX_TOKENS, Count, Name, RequestPart, StopText


class CachePoint(RequestPart):
    """A mark of what to keep; beginnings that were read before are reused in any case."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Cached(RequestPart):
    cache_control: CachePoint | None = None
    """Has no effect."""


class TextBlock(_Cached):
    """Text."""

    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(RequestPart):
    """The thought in front of an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""
    """Has no effect."""


class ToolUseBlock(_Cached):
    """A tool call of an earlier answer."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]


class ToolResultBlock(_Cached):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[TextBlock] = ""
    is_error: bool | None = None
    """Has no effect: the text says what went wrong."""


class UserMessage(RequestPart):
    """A question, or the results of tools."""

    role: Literal["user"]
    content: str | list[Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]]


class AssistantMessage(RequestPart):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str | list[Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]]


class MessagesTool(_Cached):
    """A tool of the client."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    """The JSON schema of its arguments."""


class ToolChoice(RequestPart):
    """The freedom to call tools."""

    type: Literal["auto", "none", "any", "tool"]
    """auto: the model decides; none: no tool is offered; any: the answer calls one; tool: the one named."""
    name: Name | None = None
    """Of the tool that the answer calls; only with type tool."""
    disable_parallel_tool_use: bool = False
    """True: the answer ends after its first call."""


class Thinking(RequestPart):
    """The thought in front of the answer, in formats that let one choose; adaptive: the format's own way."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    """Has no effect: max_tokens bounds thought and answer together."""
    display: Literal["summarized"] | None = None
    """Has no effect: a thought is told whole."""


class RequestMetadata(RequestPart):
    """Facts about the request."""

    user_id: str | None = None
    """Has no effect."""


class CountRequest(_Cached):
    """A conversation whose tokens are counted."""

    model: Name
    """A name that /v1/models lists."""
    messages: Annotated[
        list[Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]], Field(min_length=1)
    ]
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """A request for the next turn of a conversation."""

    max_tokens: Count
    """Longest answer in tokens; the server's own bound and the model's context may be less."""
    stream: bool | None = False
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    """Has no effect."""
