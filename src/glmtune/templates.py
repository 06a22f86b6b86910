"""Chat formats: messages -> segments of plain text or named control tokens. One function a format.

Content is only ever a text segment, so a user who types `<|assistant|>` sends those characters, not a
control token. This module knows strings, not ids: `glmtune.tokenizers` turns segments into ids.

Each text segment is encoded on its own, so where one ends and the next begins is part of the format.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from keyword import iskeyword
from typing import Any, Literal, get_args
from unicodedata import normalize

from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import TemplateName

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


_Render = Callable[[Sequence[Message], bool, str], list[Segment]]


@dataclass(frozen=True, slots=True)
class Template:
    """A chat format."""

    render: _Render
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


def render(
    template: TemplateName,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    assistant_name: str = "",
    source_prefix: str = "",
) -> list[Segment]:
    """What chat sends for these messages. Raises DataError for a conversation the format cannot express."""
    chosen = find(template)
    if not chosen.prefixes_prompt:
        messages = with_question_prefix(messages, source_prefix)
    segments = chosen.render(messages, add_generation_prompt, assistant_name or chosen.assistant_name)
    return _with_prompt_prefix(segments, source_prefix) if chosen.prefixes_prompt else segments


def training_examples(
    template: TemplateName,
    messages: Sequence[Message],
    loss: Loss = "all_turns",
    *,
    assistant_name: str = "",
    source_prefix: str = "",
) -> list[list[Segment]]:
    """The conversation as training examples: what chat would send, with the learned parts marked.

    An example ends with the token that ends its last learned answer; what follows that is left out. Empty
    when nothing is learned. Raises DataError for a conversation the format cannot express.
    """
    chosen = find(template)
    if not chosen.prefixes_prompt:
        messages = with_question_prefix(messages, source_prefix)
    examples = chosen.examples(_with_loss(messages, loss), assistant_name or chosen.assistant_name)
    if chosen.prefixes_prompt:
        return [_with_prompt_prefix(segments, source_prefix) for segments in examples]
    return examples


def with_question_prefix(messages: Sequence[Message], source_prefix: str) -> list[Message]:
    """The messages with a text in front of the first question."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    return [
        replace(message, content=source_prefix + message.content) if i == first else message
        for i, message in enumerate(messages)
    ]


def _with_prompt_prefix(segments: Sequence[Segment], source_prefix: str) -> list[Segment]:
    first = next((i for i, segment in enumerate(segments) if not segment.is_control), None)
    return [
        replace(segment, text=source_prefix + segment.text) if i == first else segment
        for i, segment in enumerate(segments)
    ]


def visible_text(template: TemplateName, answer: str) -> str:
    """An answer without the thought in front of it."""
    mark = find(template).thought_end
    return answer.rpartition(mark)[2].strip() if mark and mark in answer else answer


def stop_tokens(template: TemplateName) -> tuple[str, ...]:
    """The control tokens at which an answer in this format ends."""
    return find(template).stop_tokens


def find(template: str) -> Template:
    """The format of this name. Raises ConfigError for a name nobody knows."""
    if template not in TEMPLATES:
        raise ConfigError(
            f"template: unknown chat format {template!r}", hint="choose one of " + ", ".join(TEMPLATES)
        )
    return TEMPLATES[template]


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


def _with_loss(messages: Sequence[Message], loss: Loss) -> list[Message]:
    """The messages with `loss` true exactly where the turn is learned."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return [
        replace(m, loss=m.role == "assistant" and m.loss and (loss == "all_turns" or i == last))
        for i, m in enumerate(messages)
    ]


def _parse_object(text: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _control(text: str, is_target: bool = False) -> Segment:
    return Segment(text, is_control=True, is_target=is_target)


def _pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=4)


# --- ChatGLM2: one text of numbered rounds ---
# Source: https://huggingface.co/THUDM/chatglm2-6b tokenization_chatglm.py (build_prompt); the answer is
# encoded on its own as https://github.com/THUDM/ChatGLM2-6B ptuning/main.py does.

_ROUND = "[Round {}]\n\n问：{}\n\n答："
_BETWEEN_ROUNDS = "\n\n"


def chatglm2_prompt(query: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The text that ChatGLM2 is asked with: earlier rounds of (question, answer), then the question."""
    rounds = [_ROUND.format(n, question) + answer for n, (question, answer) in enumerate(history, 1)]
    return _BETWEEN_ROUNDS.join([*rounds, _ROUND.format(len(history) + 1, query)])


def rounds(
    messages: Sequence[Message], format_name: str = "ChatGLM2"
) -> list[tuple[Message, Message | None]]:
    """The messages as (question, answer) pairs, the last answer perhaps None.

    Raises DataError for anything but user and assistant in turn.
    """
    for index, message in enumerate(messages):
        _check_round_role(message, ("user", "assistant")[index % 2], index, format_name)
    answers: list[Message | None] = [*messages[1::2], None]
    return list(zip(messages[::2], answers, strict=False))


def _check_round_role(message: Message, expected: str, index: int, format_name: str) -> None:
    if message.role == "system":
        hint = "put the text into data.source_prefix, which goes in front of the prompt"
        raise DataError(f"message {index + 1}: {format_name} has no system message", hint=hint)
    if message.role == "observation" or message.metadata:
        raise DataError(
            f"message {index + 1}: {format_name} has no tool calls", hint="use a ChatGLM3 or GLM-4 model"
        )
    if message.role != expected:
        raise DataError(
            f"message {index + 1}: role {message.role!r} where {expected!r} was expected",
            hint=f"{format_name} takes questions and answers in turn, a question first",
        )


def _chatglm2_render(messages: Sequence[Message], add_generation_prompt: bool, _name: str) -> list[Segment]:
    pairs = rounds(messages)
    prefix = [_control("[gMASK]"), _control("sop")]
    if not pairs:
        return prefix
    history = [(question.content, answer.content) for question, answer in pairs[:-1] if answer]
    question, answer = pairs[-1]
    text = chatglm2_prompt(question.content, history)
    if answer is not None:
        return [*prefix, Segment(text + answer.content)]
    return [*prefix, Segment(text if add_generation_prompt else text.removesuffix("\n\n答："))]


def _round_format(render_rounds: _Render, end: str, **facts: Any) -> Template:
    """A format of rounds: each learned answer is an example, which `end` ends."""

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        render_rounds(messages, False, name)  # refuses what the format cannot express, up to its end
        return [
            [
                *render_rounds(messages[:index], True, name),
                Segment(message.content, is_target=True),
                _control(end, is_target=True),
            ]
            for index, message in enumerate(messages)
            if message.role == "assistant" and message.loss
        ]

    return Template(
        render=render_rounds,
        examples=examples,
        stop_tokens=(end,),
        end_of_text=end,
        prefixes_prompt=True,
        splits_answers=True,
        **facts,
    )


# --- ChatGLM-6B: a bare question, or numbered rounds; what asks for the answer stands behind the text ---
# Source: https://huggingface.co/THUDM/chatglm-6b modeling_chatglm.py (chat), tokenization_chatglm.py
# (build_inputs_with_special_tokens). Earlier text is two-way context: a loss there would see the answer.

_V1_ROUND = "[Round {}]\n问：{}\n答："


def chatglm_prompt(query: str, history: Sequence[tuple[str, str]] = (), *, is_numbered: bool = False) -> str:
    """The text that ChatGLM-6B is asked with; without earlier rounds it is the question alone.

    `is_numbered`: write the first round like the others.
    """
    if not (history or is_numbered):
        return query
    earlier = [_V1_ROUND.format(n, question) + answer + "\n" for n, (question, answer) in enumerate(history)]
    return "".join([*earlier, _V1_ROUND.format(len(history), query)])


def _chatglm_render(messages: Sequence[Message], add_generation_prompt: bool, _name: str) -> list[Segment]:
    pairs = rounds(messages, "ChatGLM-6B")
    asks = [_control("[gMASK]"), _control("<sop>")]
    if not pairs:
        return asks if add_generation_prompt else []
    history = [(question.content, answer.content) for question, answer in pairs[:-1] if answer]
    question, answer = pairs[-1]
    text = chatglm_prompt(question.content, history)
    if answer is not None:
        return [Segment(text), *asks, Segment(answer.content)]
    if add_generation_prompt:
        return [Segment(text), *asks]
    return [Segment(text.removesuffix("\n答：") if history else text)]


# --- ChatGLM3 and GLM-4: turns that begin with a role token ---


@dataclass(frozen=True, slots=True)
class _Turn:
    """A role token and what follows it, each text encoded on its own."""

    role: str
    texts: tuple[str | Segment, ...]
    """Plain texts, and control tokens as segments."""
    is_learned: bool = False
    num_asked: int = 0
    """How many of the texts are part of the question, and so not learned."""

    def segments(self, *, ends_learned: bool = False) -> Iterator[Segment]:
        """Its segments; `ends_learned`: its role token is the end of a learned answer before it."""
        yield _control(f"<|{self.role}|>", is_target=ends_learned)
        for index, text in enumerate(self.texts):
            part = Segment(text) if isinstance(text, str) else text
            yield replace(part, is_target=self.is_learned and index >= self.num_asked)


_Turns = Callable[[Sequence[Message], str], list[_Turn]]


def _turn_format(turns_of: _Turns, prefix: Sequence[str], end: str, **facts: Any) -> Template:
    """A format of role tokens: a turn is ended by the role token of the next, the last one by `end`."""
    start = [_control(text) for text in prefix]

    def render_turns(messages: Sequence[Message], add_generation_prompt: bool, name: str) -> list[Segment]:
        turns = [*turns_of(messages, name), *([_Turn("assistant", ())] if add_generation_prompt else [])]
        return [
            *start,
            *(segment for turn in turns for segment in replace(turn, is_learned=False).segments()),
        ]

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        turns = turns_of(messages, name)
        learned = [index for index, turn in enumerate(turns) if turn.is_learned]
        if not learned:
            return []
        kept = turns[: learned[-1] + 1]
        following = turns[len(kept)].role if len(turns) > len(kept) else None
        segments = [*start, *kept[0].segments()]
        for before, turn in pairwise(kept):
            segments += turn.segments(ends_learned=before.is_learned)
        return [[*segments, _control(f"<|{following}|>" if following else end, is_target=True)]]

    return Template(render=render_turns, examples=examples, **facts)


def _is_learned(message: Message) -> bool:
    return message.role == "assistant" and message.loss


def _chatglm3_turns(messages: Sequence[Message], _name: str) -> list[_Turn]:
    """`metadata` and its line break are one text, the content another.

    Source: https://huggingface.co/THUDM/chatglm3-6b tokenization_chatglm.py (build_single_message,
    build_chat_input).
    """
    return [
        _Turn(message.role, (f"{message.metadata}\n", _chatglm3_content(message)), _is_learned(message))
        for message in messages
    ]


def _chatglm3_content(message: Message) -> str:
    if message.arguments is not None:
        return f"```python\n{_python_call(message.arguments)}\n```"
    if message.tools is None:
        return message.content
    return f"{message.content}\n{_pretty(message.tools)}"


def _python_call(arguments: Mapping[str, Any]) -> str:
    """A call of `tool_call`; an argument whose name is no Python name stands in a dict."""
    plain = {key: value for key, value in arguments.items() if _is_python_name(key)}
    odd = {key: value for key, value in arguments.items() if key not in plain}
    words = [f"{key}={value!r}" for key, value in plain.items()]
    return f"tool_call({', '.join([*words, *([f'**{odd!r}'] if odd else [])])})"


def _is_python_name(name: str) -> bool:
    """Python reads a name in its NFKC form, so another spelling would not come back."""
    return name.isidentifier() and not iskeyword(name) and normalize("NFKC", name) == name


def _glm4_turns(messages: Sequence[Message], name: str) -> list[_Turn]:
    """`metadata`, its line break and the content are one text; a turn without content is not sent.

    Source: https://huggingface.co/THUDM/glm-4-9b-chat tokenizer_config.json (chat_template; its renderer
    drops the first line break after a block, hence one in front of a tool where the base revision has two).
    """
    turns = []
    for message in messages:
        if message.tools is not None:
            turns.append(_Turn("system", ("\n" + _glm4_tools(message.tools, name, "\n"),)))
        content = _glm4_content(message)
        if content:
            text = f"{message.metadata}\n{content}"
            turns.append(_Turn(message.role, (text,), _is_learned(message)))
    return turns


def _glm4_base_turns(messages: Sequence[Message], name: str) -> list[_Turn]:
    """As `_glm4_turns`, but `metadata` and its line break are encoded apart from the content.

    Source: https://huggingface.co/THUDM/glm-4-9b tokenization_chatglm.py (apply_chat_template).
    """
    turns = []
    for message in messages:
        if message.tools:
            turns.append(_Turn("system", ("\n", _glm4_tools(message.tools, name, "\n\n"))))
        content = _glm4_content(message)
        if content:
            texts = (f"{message.metadata}\n", content)
            turns.append(_Turn(message.role, texts, _is_learned(message)))
    return turns


def _glm4_content(message: Message) -> str:
    if message.arguments is None:
        return message.content
    return json.dumps(message.arguments, ensure_ascii=False)


def _glm4_tools(tools: Sequence[Mapping[str, Any]], name: str, gap: str) -> str:
    return _GLM4_INTRODUCTION.format(name) + "".join(gap + _glm4_tool(tool) for tool in tools)


def _glm4_tool(tool: Mapping[str, Any]) -> str:
    kind = str(tool.get("type", "function")) if isinstance(tool, Mapping) else ""
    if kind in _GLM4_BUILT_IN_TOOLS:
        return _GLM4_BUILT_IN_TOOLS[kind]
    function = tool.get("function", tool) if kind == "function" else None  # ChatGLM3's have no wrapper
    if not isinstance(function, Mapping) or "name" not in function:
        raise DataError(
            f"tools: a tool of type {kind!r} that GLM-4 does not know",
            hint='use {"type": "function", "function": {"name": ...}} or type '
            + ", ".join(_GLM4_BUILT_IN_TOOLS),
        )
    return _glm4_function(function)


def _glm4_function(function: Mapping[str, Any]) -> str:
    return f"## {function['name']}\n\n{_pretty(function)}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


_GLM4_INTRODUCTION = (
    "你是一个名为 {} 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)

_GLM4_BUILT_IN_TOOLS: Mapping[str, str] = {
    "python": (
        "## python\n\n当你向 `python` 发送包含 Python 代码的消息时，"
        "该代码将会在一个有状态的 Jupyter notebook 环境中执行。"
        "\n`python` 返回代码执行的输出，或在执行 60 秒后返回超时。"
        "\n`/mnt/data` 将会持久化存储你的文件。在此会话中，`python` 无法访问互联网。"
        "不要使用 `python` 进行任何网络请求或者在线 API 调用，这些在线内容的访问将不会成功。"
    ),
    "simple_browser": (
        "## simple_browser\n\n你可以使用 `simple_browser` 工具。该工具支持以下函数："
        "\n`search(query: str, recency_days: int)`：使用搜索引擎进行查询并显示结果，"
        "可以使用 `recency_days` 参数控制搜索内容的时效性。"
        "\n`mclick(ids: list[int])`：获取一系列指定 id 的页面内容。每次调用时，须选择3-10个页面。"
        "选择多个角度的页面，同时尽可能选择可信任的信息来源。"
        "考虑到部分页面是无法加载的，你也可以多打开一些可能有用的页面而不用担心内容过多。"
        "\n`open_url(url: str)`：打开指定的 URL。"
        "\n\n使用 `【{引用 id}†{引用文本}】` 来引用内容。"
        "\n\n操作步骤：1. 使用 `search` 来获得信息列表; 2. 使用 `mclick` 来获取指定 ID 页面的内容; "
        "3. 根据获得的内容进行回复。在回复中应当引用信息来源。"
        "\n 如果用户提供了 URL，也可以用 `open_url` 直接打开页面。"
        "\n如果初次搜索结果没有找到合适的信息，也可以再次使用 `search` 进行搜索。"
    ),
    "cogview": (
        "## cogview\n\n如果用户的请求中包含了对图像的描述，你可以使用 `cogview` 来生成图像并展示给用户。"
        "你需要向 `cogview` 发送图像描述，规则："
        "\n- 发送给 `cogview` 的消息必须使用英语。用户的中文描述必须完全翻译为英语。"
        "\n- 应当尽可能详细地描述图像生成的需求，需求描述约 100 英文单词。"
        "\n- 保持用户原始描述的意图。不要虚构内容或者没见过的人物。"
        "\n- 如无特殊说明，所在地为中国，持有中国立场并遵循中国社会主义价值观。"
    ),
}

_CHATGLM_CONTROL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<unused_0>",
    "<sop>",
    "<eop>",
    "<ENC>",
    "<dBLOCK>",
)
# --- GLM-4-0414: GLM-4's turns, with the system messages first ---
# Source: modelscope/ms-swift swift/plugin/agent_template/glm4.py (GLM4_0414AgentTemplate) for the tools, and
# the template of its thinking revision below, which introduces them otherwise and changes the content.


def _glm4_0414_turns(messages: Sequence[Message], _name: str) -> list[_Turn]:
    return _turns_0414(messages, "# 可用工具\n", lambda content: content)


def _turns_0414(messages: Sequence[Message], introduction: str, shown: Callable[[str], str]) -> list[_Turn]:
    """Tools, then every system message, then the others; `shown` is what is sent of their content."""
    tools = [tool for message in messages for tool in message.tools or ()]
    turns = []
    if tools:
        texts = [introduction, *(_glm4_function(_unwrapped(tool)) for tool in tools)]
        turns.append(_Turn("system", ("\n" + "\n".join(texts),)))
    turns += [
        _Turn("system", (f"\n{message.content}",))
        for message in messages
        if message.role == "system" and (message.content or message.tools is None)
    ]
    for message in messages:
        if message.role != "system":
            text = f"{message.metadata}\n{shown(_glm4_content(message))}"
            turns.append(_Turn(message.role, (text,), _is_learned(message)))
    return turns


def _unwrapped(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function") or tool if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise DataError("tools: a tool without a name", hint='use {"type": "function", "function": {...}}')
    return function


# --- Formats of models that think aloud: an answer is learned as it is generated, an earlier one is sent
# without its thought; so each learned answer is an example of its own ---


def _thinking_format(
    turns_of: _Turns,
    learned_turn: Callable[[Message], _Turn],
    *,
    ask: Sequence[str | Segment],
    prefix: Sequence[str],
    end: str,
    **facts: Any,
) -> Template:
    """A format of role tokens; `ask` is what stands behind the assistant's role token in a prompt."""
    start = [_control(text) for text in prefix]

    def render_turns(messages: Sequence[Message], add_generation_prompt: bool, name: str) -> list[Segment]:
        turns = [replace(turn, is_learned=False) for turn in turns_of(messages, name)]
        if add_generation_prompt:
            turns.append(_Turn("assistant", tuple(ask)))
        return [*start, *(segment for turn in turns for segment in turn.segments())]

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        turns_of(messages, name)  # refuses what the format cannot express, up to its end
        return [
            [
                *render_turns(messages[:index], False, name),
                *learned_turn(message).segments(),
                _control("<|observation|>" if message.metadata else end, is_target=True),
            ]
            for index, message in enumerate(messages)
            if _is_learned(message)
        ]

    return Template(
        render=render_turns, examples=examples, splits_answers=True, thought_end="</think>", **facts
    )


# --- GLM-Z1: the thought is plain text, begun by the prompt ---
# Source: https://huggingface.co/zai-org/GLM-Z1-9B-0414 chat_template.jinja.

_GLMZ1_ASK = "\n<think>"
_GLMZ1_INTRODUCTION = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)


def _glmz1_turns(messages: Sequence[Message], _name: str) -> list[_Turn]:
    return _turns_0414(messages, _GLMZ1_INTRODUCTION, _without_thought)


def _without_thought(content: str) -> str:
    return content.rpartition("</think>")[2].strip()


def _glmz1_learned(message: Message) -> _Turn:
    """An answer without a thought is learned with an empty one.

    Source of the empty one: hiyouga/LLaMA-Factory src/llamafactory/data/template.py (ReasoningTemplate).
    """
    if message.metadata:
        raise DataError(
            "GLM-Z1: a tool call cannot be learned: the prompt already begins a thought",
            hint='take the call out of what is learned: "loss": false',
        )
    content = message.content
    if "</think>" not in content:
        content = f"\n\n</think>\n\n{content.strip()}"
    return _Turn("assistant", (_GLMZ1_ASK, content.removeprefix("<think>")), True, num_asked=1)


# --- GLM-4.5 and 4.6: thoughts, tool calls and their results stand between control tokens of their own ---
# Source: https://huggingface.co/zai-org/GLM-4.6 chat_template.jinja, in ggml-org/llama.cpp
# models/templates/GLM-4.6.jinja. Its enable_thinking=False is the format glm45_nothink.


def _glm45_turns(messages: Sequence[Message], _name: str, end_of_question: str = "") -> list[_Turn]:
    """Only answers behind the last question keep their thought; results in a row share one role token."""
    tools = [tool for message in messages for tool in message.tools or ()]
    turns = [_Turn("system", _glm45_tools(tools))] if tools else []
    last_question = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    for role, group in groupby(enumerate(messages), key=lambda numbered: numbered[1].role):
        if role == "observation":
            texts = tuple(text for _, message in group for text in _glm45_result(message))
            turns.append(_Turn(role, texts))
            continue
        for index, message in group:
            if role == "assistant":
                texts = _glm45_answer(message, keeps_thought=index > last_question)
            elif role == "user":
                texts = _glm45_question(message, end_of_question)
            elif message.content or message.tools is None:
                texts = (f"\n{message.content}",)
            else:
                continue
            turns.append(_Turn(role, texts))
    return turns


def _glm45_question(message: Message, end: str) -> tuple[str | Segment, ...]:
    if not end:
        return (f"\n{message.content}",)
    return f"\n{message.content.removesuffix(end)}", _control(end)


def _glm45_answer(message: Message, *, keeps_thought: bool) -> tuple[str | Segment, ...]:
    if message.metadata:
        return (*_GLM45_NO_THOUGHT, *_glm45_call(message))
    thought, mark, content = message.content.rpartition("</think>")
    thought = message.content.partition("</think>")[0].rpartition("<think>")[2].strip() if mark else ""
    beginning = _GLM45_NO_THOUGHT
    if keeps_thought and thought:
        beginning = ("\n", _control("<think>"), thought, _control("</think>"))
    return (*beginning, f"\n{content.strip()}") if content.strip() else beginning


def _glm45_call(message: Message) -> tuple[str | Segment, ...]:
    arguments = message.arguments
    if arguments is None:
        arguments = _parse_object(message.content or "{}")
    if arguments is None:
        raise DataError(
            f"a call of {message.metadata!r}: its content is no JSON object of GLM-4.5's named arguments",
            hint='write the arguments as {"name": value}',
        )
    texts: list[str | Segment] = ["\n", _control("<tool_call>"), f"{message.metadata}\n"]
    for key, value in arguments.items():
        written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for tag, text in (("arg_key", key), ("arg_value", written)):
            texts += [_control(f"<{tag}>"), *([text] if text else []), _control(f"</{tag}>"), "\n"]
    return (*texts, _control("</tool_call>"))


def _glm45_result(message: Message) -> tuple[str | Segment, ...]:
    return "\n", _control("<tool_response>"), f"\n{message.content}\n", _control("</tool_response>")


def _glm45_learned(message: Message) -> _Turn:
    return _Turn("assistant", _glm45_answer(message, keeps_thought=True), True)


def _glm45_learned_unthinking(message: Message) -> _Turn:
    """What follows the empty thought that the prompt holds; the answer's own thought is left out."""
    texts = _glm45_answer(message, keeps_thought=False)
    return _Turn("assistant", texts, True, num_asked=len(_GLM45_NO_THOUGHT))


def _glm45_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[str | Segment, ...]:
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
    return _GLM45_TOOLS_BEGIN + listed + _GLM45_TOOLS_END, *_GLM45_CALL_FORM


_GLM45_NO_THOUGHT: tuple[str | Segment, ...] = ("\n", _control("<think>"), _control("</think>"))
_GLM45_TOOLS_BEGIN = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_GLM45_TOOLS_END = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following "
    "XML format:\n"
)
_GLM45_CALL_FORM: tuple[str | Segment, ...] = (
    *(_control("<tool_call>"), "{function-name}\n"),
    *(_control("<arg_key>"), "{arg-key-1}", _control("</arg_key>"), "\n"),
    *(_control("<arg_value>"), "{arg-value-1}", _control("</arg_value>"), "\n"),
    *(_control("<arg_key>"), "{arg-key-2}", _control("</arg_key>"), "\n"),
    *(_control("<arg_value>"), "{arg-value-2}", _control("</arg_value>"), "\n...\n"),
    _control("</tool_call>"),
)

_CHATGLM2_CONTROL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_GLM4_CONTROL_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *_ROLE_TOKENS,
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_GLM45_CONTROL_TOKENS = (
    *_GLM4_CONTROL_TOKENS,
    *("<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
)
_GLM4_FACTS: dict[str, Any] = {
    "prefix": ("[gMASK]", "<sop>"),
    "end": "<|user|>",
    "stop_tokens": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "end_of_text": "<|endoftext|>",
    "control_tokens": _GLM4_CONTROL_TOKENS,
    "title": "GLM-4",
}
_GLM45_FACTS: dict[str, Any] = {**_GLM4_FACTS, "control_tokens": _GLM45_CONTROL_TOKENS, "title": "GLM-4.5"}

TEMPLATES: Mapping[str, Template] = {
    "chatglm": _round_format(
        _chatglm_render, end="<eop>", control_tokens=_CHATGLM_CONTROL_TOKENS, title="ChatGLM-6B"
    ),
    "chatglm2": _round_format(
        _chatglm2_render, end="</s>", control_tokens=_CHATGLM2_CONTROL_TOKENS, title="ChatGLM2"
    ),
    "chatglm3": _turn_format(
        _chatglm3_turns,
        prefix=("[gMASK]", "sop"),
        end="</s>",
        stop_tokens=("</s>", "<|user|>", "<|observation|>"),
        end_of_text="</s>",
        control_tokens=(*_CHATGLM2_CONTROL_TOKENS, *_ROLE_TOKENS),
        title="ChatGLM3",
    ),
    "glm4": _turn_format(_glm4_turns, assistant_name="ChatGLM", **_GLM4_FACTS),
    "glm4_base": _turn_format(_glm4_base_turns, assistant_name="GhatGLM", **_GLM4_FACTS),
    "glm4_0414": _turn_format(_glm4_0414_turns, **_GLM4_FACTS),
    "glmz1": _thinking_format(
        _glmz1_turns, _glmz1_learned, ask=(_GLMZ1_ASK,), **_GLM4_FACTS | {"title": "GLM-Z1"}
    ),
    "glm45": _thinking_format(_glm45_turns, _glm45_learned, ask=(), **_GLM45_FACTS),
    "glm45_nothink": _thinking_format(
        partial(_glm45_turns, end_of_question="/nothink"),
        _glm45_learned_unthinking,
        ask=_GLM45_NO_THOUGHT,
        **_GLM45_FACTS,
    ),
}
"""Every chat format. The spelling `GhatGLM` is the base revision's own."""
