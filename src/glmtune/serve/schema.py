"""Requests in OpenAI's form, checked field by field; an unknown field is refused by its name.

Source: https://platform.openai.com/docs/api-reference/chat/create, .../completions/create.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MAX_TOKENS = 2**31 - 1
MAX_STOPS = 16

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Stops = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class RequestPart(BaseModel):
    """A part of a request, of which every field is known."""

    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False, frozen=True
    )


class StreamOptions(RequestPart):
    """Options of a streamed answer."""

    include_usage: bool = False
    """Send the numbers of tokens in a last piece."""
    include_obfuscation: bool | None = None
    """Has no effect: pieces are never padded."""


class JsonSchema(RequestPart):
    """A schema for the answer."""

    name: str
    description: str | None = None
    # the key is taken at the class by pydantic
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None
    """Has no effect: a schema is always followed."""


class TextFormat(RequestPart):
    """An answer without a form."""

    type: Literal["text"]

    schema_: ClassVar[None] = None


class ObjectFormat(RequestPart):
    """An answer that is a JSON object."""

    type: Literal["json_object"]

    schema_: ClassVar[Mapping[str, Any]] = {"type": "object"}


class SchemaFormat(RequestPart):
    """An answer that is JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def schema_(self) -> Mapping[str, Any]:
        """The schema."""
        return self.json_schema.schema_ or {}


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class FunctionName(RequestPart):
    """A function by its name."""

    name: Name


class FunctionChoice(RequestPart):
    """The function that the answer calls."""

    type: Literal["function"]
    function: FunctionName


class ChatMessage(BaseModel):
    """One turn. Further fields by role: reasoning_content, tool_calls, tool_call_id."""

    # neither strict nor closed: the reader of conversations checks turns, and names the place
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    role: str
    """system, developer, user, assistant or tool."""
    content: str | list[dict[str, Any]] | dict[str, Any] | None = None
    """Text, or a list of parts of type text."""


class _Sampled(RequestPart):
    """The fields that requests for chats and for texts have in common."""

    model: Name
    """A name that /v1/models lists."""
    stream: bool | None = False
    """True: the answer as server-sent events, piece by piece."""
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    """Longest answer in tokens; the server's own bound and the model's context may be less."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0: always the likeliest token; left out: the model's own setting."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    """Draw from so many likeliest tokens, 0: no limit. Not in OpenAI's interface."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    """Above 1 repeats less. Not in OpenAI's interface."""
    # less than 64 bits: each of n answers adds its number, and torch takes 64
    seed: Annotated[int, Field(ge=-(2**62), lt=2**62)] | None = None
    """Makes the answer repeatable."""
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    """Number of answers."""
    stop: Stops = None
    """Texts that end the answer; they are not part of it."""
    presence_penalty: Literal[0] | None = None
    """Only 0 is known here: see repetition_penalty."""
    frequency_penalty: Literal[0] | None = None
    """Only 0 is known here: see repetition_penalty."""
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    """Only an empty one is known here."""
    user: str | None = None
    """Has no effect."""

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        # programs that set floats send 0.0
        return 0 if isinstance(value, float) and value == 0 else value

    @property
    def stops(self) -> list[str]:
        """The stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of sampling that the request has, by our names."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def includes_usage(self) -> bool:
        """True if a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampled):
    """A request for the next turn of a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    """OpenAI's later name of max_tokens."""
    logprobs: bool | None = False
    """True: tell each token's log-probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest tokens beside each token; needs logprobs."""
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    """none: no tool is offered; auto: the model decides; required: the answer calls one, or the one named."""
    parallel_tool_calls: bool | None = None
    """false: the answer ends after its first call."""
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    """Options of the chat format, such as enable_thinking. Not in OpenAI's interface."""
    store: Literal[False] | None = None
    """Nothing is stored here."""
    metadata: Mapping[str, Any] | None = None
    """Has no effect."""
    safety_identifier: str | None = None
    """Has no effect."""
    prompt_cache_key: str | None = None
    """Has no effect: beginnings that were read before are reused in any case."""
    service_tier: Literal["auto", "default"] | None = None
    """Has no effect."""


class CompletionRequest(_Sampled):
    """A request to go on with a text, without a chat format."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=128)]
    )
    """A text, or its token ids; a list of them is answered one by one."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Likeliest tokens to tell beside each token."""
    echo: Literal[False] | None = None
    """Only false is known here."""
    best_of: Literal[1] | None = None
    """Only 1 is known here."""
    suffix: Literal[""] | None = None
    """Only an empty one is known here."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The texts, or their ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[index for index in self.prompt if isinstance(index, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]
