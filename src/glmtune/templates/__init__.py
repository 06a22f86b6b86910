"""Chat formats: messages -> segments of plain text or control tokens. `TEMPLATES` has one row per format.

Message content is always a text segment: a user who types `<|assistant|>` sends those characters, not a
control token. Segments are strings; `glmtune.tokenizers` turns them into ids.

Each text segment is encoded on its own, so the cut between two segments is part of the format.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glmtune.errors import ConfigError
from glmtune.renamed import find_renamed
from glmtune.templates.calls import CodeCall, LineCall, TagCall
from glmtune.templates.messages import (
    ROLES,
    Call,
    ChatDefaults,
    Message,
    Role,
    Segment,
    Template,
    is_learned,
)
from glmtune.templates.reading import messages_from_dicts
from glmtune.templates.rounds import (
    CHATGLM2_CONTROL_TOKENS,
    CHATGLM_CONTROL_TOKENS,
    chatglm2_prompt,
    chatglm2_render,
    chatglm_prompt,
    chatglm_render,
    round_format,
    rounds,
)
from glmtune.templates.taught import Taught, with_question_prefix
from glmtune.templates.thinking import (
    GLM45_CONTROL_TOKENS,
    GLM45_NO_THOUGHT,
    GLMZ1_ASK,
    glm45_learned,
    glm45_learned_unthinking,
    glm45_turns,
    glmz1_learned,
    glmz1_turns,
    thinking_format,
)
from glmtune.templates.tidy import process_chatglm, process_chatglm2, with_year
from glmtune.templates.turns import (
    GLM4_CONTROL_TOKENS,
    ROLE_TOKENS,
    chatglm3_turns,
    glm4_0414_turns,
    glm4_base_turns,
    glm4_turns,
    turn_format,
)
from glmtune.values import shown

__all__ = [
    "ROLES",
    "TEMPLATES",
    "Call",
    "Message",
    "Role",
    "Segment",
    "Taught",
    "Template",
    "chatglm2_prompt",
    "chatglm_prompt",
    "find_template",
    "is_learned",
    "message_segments",
    "messages_from_dicts",
    "render",
    "render_messages",
    "rounds",
    "stop_tokens",
    "training_examples",
    "visible_text",
    "with_question_prefix",
]

if not TYPE_CHECKING:
    __getattr__ = partial(find_renamed, __name__)


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    assistant_name: str = "",
    source_prefix: str = "",
) -> list[Segment]:
    """Return the segments that chat sends. Raises `DataError` for messages the format cannot express."""
    chosen = find_template(template)
    if not chosen.prefixes_prompt:
        messages = with_question_prefix(messages, source_prefix)
    segments = chosen.render(messages, add_generation_prompt, assistant_name or chosen.assistant_name)
    return _with_prompt_prefix(segments, source_prefix) if chosen.prefixes_prompt else segments


OPTIONS = ("enable_thinking", "assistant_name", "source_prefix")
"""Keyword options of `message_segments` and `render_messages`."""
_UNTHINKING: Mapping[str, str] = {"glm45": "glm45_nothink"}
"""Formats whose prompt can ask for an answer without a thought -> the format of that prompt."""


def render_messages(
    template: str,
    messages: Sequence[Mapping[str, Any] | Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **options: Any,  # Any: mypy would take them for `taught` too
) -> str:
    """Return the text that chat sends, control tokens spelled out; needs no tokenizer.

    `template` is the name of a chat format; messages, tools and options as in `encode_messages`. Raises
    `DataError` and `ConfigError`.
    """
    segments = message_segments(
        template, messages, tools=tools, add_generation_prompt=add_generation_prompt, **options
    )
    return "".join(segment.text for segment in segments)


def message_segments(
    template: str,
    messages: Sequence[Mapping[str, Any] | Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    taught: Taught | None = None,
    **options: object,
) -> list[Segment]:
    """`render` for messages and tools in OpenAI's form, with the texts that the model was `taught`.

    Raises `ConfigError` for an unknown option.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: no option of a chat format", hint=f"the options are {', '.join(OPTIONS)}"
        )
    options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(taught, Taught | None):
        raise ConfigError(
            f"taught: must be what a tokenizer was taught, got {shown(taught)}",
            hint="taught=tokenizer.taught, or leave it out",
        )
    taught = taught or Taught()
    texts = {"assistant_name": "", "source_prefix": taught.source_prefix}
    for name in texts:
        text = options.get(name, texts[name])
        if not isinstance(text, str):
            raise ConfigError(f"{name}: must be text, got {shown(text)}", hint="a text, or leave it out")
        texts[name] = text
    chosen = _with_thinking(template, options.get("enable_thinking"))
    begun = taught.begin(messages_from_dicts(messages, tools=tools))
    return render(chosen, begun, add_generation_prompt, **texts)


def _with_thinking(template: str, enable_thinking: object) -> str:
    """Return the name of the format with or without a thought. Raises `ConfigError` if there is none."""
    if enable_thinking not in (None, False, True):
        raise ConfigError(f"enable_thinking: {enable_thinking!r}", hint="true, false, or leave it out")
    thinks = bool(find_template(template).thought_end) and template not in _UNTHINKING.values()
    if enable_thinking is None or enable_thinking == thinks:
        return template
    # both directions: `template` may be either format of a pair
    pairs = [pair for pair in _UNTHINKING.items() if template in pair]
    if pairs:
        return pairs[0][0] if enable_thinking else pairs[0][1]
    always = "thinks before every answer" if thinks else "does not think aloud"
    raise ConfigError(
        f"enable_thinking: {enable_thinking}, but {find_template(template).title} {always}",
        hint="leave it out",
    )


def training_examples(
    template: str,
    messages: Sequence[Message],
    *,
    assistant_name: str = "",
    source_prefix: str = "",
) -> list[list[Segment]]:
    """Return the training examples of a conversation: the segments chat would send, answers as targets.

    An example ends with the token that ends its last learned answer; later turns are left out. Empty if no
    turn is learned. Raises `DataError` for a conversation the format cannot express.
    """
    chosen = find_template(template)
    if not chosen.prefixes_prompt:
        messages = with_question_prefix(messages, source_prefix)
    examples = chosen.examples(messages, assistant_name or chosen.assistant_name)
    if chosen.prefixes_prompt:
        return [_with_prompt_prefix(segments, source_prefix) for segments in examples]
    return examples


def _with_prompt_prefix(segments: Sequence[Segment], source_prefix: str) -> list[Segment]:
    if not source_prefix:
        return list(segments)
    # inside the first text, not as a segment of its own: each text is encoded on its own
    first = next((i for i, segment in enumerate(segments) if not segment.is_control), None)
    return [
        segment._replace(text=source_prefix + segment.text) if i == first else segment
        for i, segment in enumerate(segments)
    ]


def visible_text(template: str | Template, answer: str) -> str:
    """Return an answer, in a chat format or the one of a name, without the thought in front of it."""
    chat_format = template if isinstance(template, Template) else find_template(template)
    mark = chat_format.thought_end
    return answer.rpartition(mark)[2].strip() if mark and mark in answer else answer


def stop_tokens(template: str) -> tuple[str, ...]:
    """Return the control tokens that end an answer in this format."""
    return find_template(template).stop_tokens


def find_template(template: str) -> Template:
    """Return the format of this name. Raises `ConfigError` for an unknown name."""
    if template not in TEMPLATES:
        raise ConfigError(
            f"template: unknown chat format {template!r}", hint="choose one of " + ", ".join(TEMPLATES)
        )
    return TEMPLATES[template]


_GLM4_FACTS: dict[str, Any] = {
    "prefix": ("[gMASK]", "<sop>"),
    "end": "<|user|>",
    "stop_tokens": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "end_of_text": "<|endoftext|>",
    "control_tokens": GLM4_CONTROL_TOKENS,
    "title": "GLM-4",
    "calls": LineCall,
}
_0414_CHAT = ChatDefaults(temperature=0.6)
"""Source: inference/trans_cli_demo.py of https://github.com/THUDM/GLM-4, but for its repetition penalty."""
_GLM45_FACTS: dict[str, Any] = {
    **_GLM4_FACTS,
    "control_tokens": GLM45_CONTROL_TOKENS,
    "title": "GLM-4.5",
    "calls": TagCall,
    # Source: inference/trans_infer_cli.py of https://github.com/zai-org/GLM-4.5
    "chat": ChatDefaults(temperature=0.7, top_p=0.9),
}

TEMPLATES: dict[str, Template] = {
    "chatglm": round_format(
        chatglm_render,
        end="<eop>",
        control_tokens=CHATGLM_CONTROL_TOKENS,
        title="ChatGLM-6B",
        chat=ChatDefaults(temperature=0.95, top_p=0.7, max_length=2048),
        tidy=process_chatglm,
    ),
    "chatglm2": round_format(
        chatglm2_render,
        end="</s>",
        control_tokens=CHATGLM2_CONTROL_TOKENS,
        title="ChatGLM2",
        hides_control_tokens=True,
        tidy=process_chatglm2,
    ),
    "chatglm3": turn_format(
        chatglm3_turns,
        prefix=("[gMASK]", "sop"),
        end="</s>",
        stop_tokens=("</s>", "<|user|>", "<|observation|>"),
        end_of_text="</s>",
        control_tokens=(*CHATGLM2_CONTROL_TOKENS, *ROLE_TOKENS),
        title="ChatGLM3",
        calls=CodeCall,
        tidy=with_year,
    ),
    "glm4": turn_format(glm4_turns, assistant_name="ChatGLM", tidy=with_year, **_GLM4_FACTS),
    "glm4_base": turn_format(glm4_base_turns, assistant_name="GhatGLM", tidy=with_year, **_GLM4_FACTS),
    "glm4_0414": turn_format(glm4_0414_turns, chat=_0414_CHAT, **_GLM4_FACTS),
    "glmz1": thinking_format(
        glmz1_turns,
        glmz1_learned,
        ask=(GLMZ1_ASK,),
        begins_thought=True,
        chat=_0414_CHAT,
        **_GLM4_FACTS | {"title": "GLM-Z1"},
    ),
    "glm45": thinking_format(glm45_turns, glm45_learned, ask=(), **_GLM45_FACTS),
    "glm45_nothink": thinking_format(
        partial(glm45_turns, end_of_question="/nothink"),
        glm45_learned_unthinking,
        ask=GLM45_NO_THOUGHT,
        learns_thoughts=False,
        **_GLM45_FACTS,
    ),
}
"""All chat formats by name. The spelling `GhatGLM` is the GLM-4 base model's own."""
