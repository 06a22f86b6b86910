"""The chat formats of ChatGLM3, GLM-4 and GLM-4-0414: turns that begin with a role token."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from keyword import iskeyword
from typing import Any, NamedTuple
from unicodedata import normalize

from glmtune.errors import DataError
from glmtune.templates.messages import (
    Message,
    Segment,
    Template,
    control,
    is_learned,
    pretty,
    unwrapped,
)

# --- ChatGLM3 and GLM-4: turns that begin with a role token ---


class Turn(NamedTuple):
    """A role token and the texts behind it; each text is encoded on its own."""

    role: str
    texts: tuple[str | Segment, ...]
    """Plain texts, and control tokens as segments."""
    is_learned: bool = False
    num_asked: int = 0
    """Number of first texts that belong to the prompt, and so are not learned."""
    is_call: bool = False
    """True if the turn waits for a tool's result."""

    def is_ended_by(self, role: str) -> bool:
        """True if the model learns to end this turn with the role token of the next one."""
        # a call ends with its result's token; where the result is missing there is nothing to learn
        return self.is_learned and not (self.is_call and role in ("user", "system"))

    def segments(self, *, ends_learned: bool = False, is_prompt: bool = False) -> Iterator[Segment]:
        """Yield the turn's segments; none of its texts is a target if `is_prompt`.

        `ends_learned`: its role token ends a learned answer, so is a target.
        """
        yield control(f"<|{self.role}|>", ends_learned)
        is_learned = self.is_learned and not is_prompt
        for index, text in enumerate(self.texts):
            is_target = is_learned and index >= self.num_asked
            yield Segment(text, False, is_target) if isinstance(text, str) else control(text.text, is_target)


TurnsFunction = Callable[[Sequence[Message], str], list[Turn]]
"""Maps (messages, assistant's name) to turns."""


def turn_format(
    turns_of: TurnsFunction,
    prefix: Sequence[str],
    end: str,
    **facts: Any,  # Any: other fields of `Template`, of several types
) -> Template:
    """Return a format of role tokens: each turn ends with the next one's role token, the last with `end`.

    A tool call in the last turn ends like every call: with the role token of its result.
    """
    start = [control(text) for text in prefix]

    def render_turns(messages: Sequence[Message], add_generation_prompt: bool, name: str) -> list[Segment]:
        turns = [*turns_of(messages, name), *([Turn("assistant", ())] if add_generation_prompt else [])]
        return [
            *start,
            *(segment for turn in turns for segment in turn.segments(is_prompt=True)),
        ]

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        turns = turns_of(messages, name)
        learned = [index for index, turn in enumerate(turns) if turn.is_learned]
        if not learned:
            return []
        used = turns[: learned[-1] + 1]  # turns behind the last learned answer are left out
        following = turns[len(used)].role if len(turns) > len(used) else None
        segments = [*start, *used[0].segments()]
        for before, turn in pairwise(used):
            segments += turn.segments(ends_learned=before.is_ended_by(turn.role))
        last = "observation" if used[-1].is_call else following
        return [[*segments, control(f"<|{last}|>" if last else end, is_target=True)]]

    return Template(render=render_turns, examples=examples, **facts)


def spread(
    messages: Sequence[Message], write_arguments: Callable[[Mapping[str, Any]], str]
) -> Iterator[Message]:
    """Yield the messages with each tool call as a turn of its own: the tool's name is its metadata.

    The official chat reads an answer so: its text and every call begin with `<|assistant|>`.
    Source: https://huggingface.co/THUDM/chatglm3-6b modeling_chatglm.py (process_response). A thought is left
    out: these formats have none.
    """
    for message in messages:
        if not message.calls and message.thought is None:
            yield message  # as nearly all are: no copy
        elif message.content or not message.calls:
            yield replace(message, calls=(), thought=None)
        for call in message.calls:
            yield Message(message.role, write_arguments(call.arguments), call.name, loss=message.loss)


def as_json(arguments: Mapping[str, Any]) -> str:
    """Write the arguments of a call as GLM-4 does."""
    return json.dumps(arguments, ensure_ascii=False)


def _turn(message: Message, *texts: str) -> Turn:
    return Turn(message.role, texts, is_learned(message), 0, message.is_call)


def chatglm3_turns(messages: Sequence[Message], _name: str) -> list[Turn]:
    """ChatGLM3's turns: `metadata` and its line break are one text, the content another.

    Source: https://huggingface.co/THUDM/chatglm3-6b tokenization_chatglm.py (build_single_message,
    build_chat_input).
    """
    turns = []
    for message in spread(messages, _python_call):
        content = message.content
        if message.tools is not None:
            content += f"\n{pretty([unwrapped(tool) for tool in message.tools])}"
        turns.append(_turn(message, f"{message.metadata}\n", content))
    return turns


def _python_call(arguments: Mapping[str, Any]) -> str:
    """Write a call of `tool_call` in a code block; arguments without a Python name go into a dict."""
    plain = {key: value for key, value in arguments.items() if is_python_name(key)}
    odd = {key: value for key, value in arguments.items() if key not in plain}
    words = [f"{key}={value!r}" for key, value in plain.items()]
    return f"```python\ntool_call({', '.join([*words, *([f'**{odd!r}'] if odd else [])])})\n```"


def is_python_name(key: str) -> bool:
    """True if Python takes the text as the name of an argument, and gives it back as it is."""
    # Python reads a name in its NFKC form, so another spelling would not come back
    return key.isidentifier() and not iskeyword(key) and normalize("NFKC", key) == key


def glm4_turns(messages: Sequence[Message], name: str) -> list[Turn]:
    """GLM-4's turns: `metadata`, its line break and the content are one text; empty turns are not sent.

    Source: https://huggingface.co/THUDM/glm-4-9b-chat tokenizer_config.json (chat_template; its renderer
    drops the first line break after a block, hence one in front of a tool where the base revision has two).
    """
    turns = []
    for message in spread(messages, as_json):
        if message.tools is not None:
            turns.append(Turn("system", ("\n" + _glm4_tools(message.tools, name, "\n"),)))
        if message.content:
            turns.append(_turn(message, f"{message.metadata}\n{message.content}"))
    return turns


def glm4_base_turns(messages: Sequence[Message], name: str) -> list[Turn]:
    """The GLM-4 base model's turns: as `glm4_turns`, but `metadata` and its line break are one text.

    Source: https://huggingface.co/THUDM/glm-4-9b tokenization_chatglm.py (apply_chat_template).
    """
    turns = []
    for message in spread(messages, as_json):
        if message.tools:
            turns.append(Turn("system", ("\n", _glm4_tools(message.tools, name, "\n\n"))))
        if message.content:
            turns.append(_turn(message, f"{message.metadata}\n", message.content))
    return turns


def _glm4_tools(tools: Sequence[Mapping[str, Any]], name: str, gap: str) -> str:
    """Write the system text that introduces the tools; `gap` goes in front of each."""
    text = _GLM4_INTRODUCTION.format(name)
    for tool in tools:
        kind = str(tool.get("type", "function")) if isinstance(tool, Mapping) else ""
        function = unwrapped(tool) if kind == "function" else {}
        if kind in _GLM4_BUILT_IN_TOOLS:
            text += gap + _GLM4_BUILT_IN_TOOLS[kind]
        elif "name" in function:
            text += gap + _glm4_function(function)
        else:
            raise DataError(
                f"tools: a tool of type {kind!r} that GLM-4 does not know",
                hint='use {"type": "function", "function": {"name": ...}} or type '
                + ", ".join(_GLM4_BUILT_IN_TOOLS),
            )
    return text


def _glm4_function(function: Mapping[str, Any]) -> str:
    return f"## {function['name']}\n\n{pretty(function)}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


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


# --- GLM-4-0414: GLM-4's turns, with the system messages first ---
# Source: zai-org/GLM-4-9B-0414 chat_template.jinja, sha256 854b703e44ca..., which SillyTavern pins too;
# the template of its thinking revision introduces the tools otherwise.


def glm4_0414_turns(messages: Sequence[Message], _name: str) -> list[Turn]:
    """GLM-4-0414's turns: tools, system messages, then the others; a called tool's name ends in a space."""
    return turns_0414(messages, "# 可用工具\n", lambda content: content, name_end=" ")


def turns_0414(
    messages: Sequence[Message], introduction: str, shown: Callable[[str], str], name_end: str = ""
) -> list[Turn]:
    """Return the turns of the 0414 models: tools, then all system messages, then the others.

    `shown` maps the content of the others to the text that is sent; `name_end` follows a called tool's name.
    """
    functions = [unwrapped(tool) for message in messages for tool in message.tools or ()]
    if any("name" not in function for function in functions):
        raise DataError("tools: a tool without a name", hint='use {"type": "function", "function": {...}}')
    turns = []
    if functions:
        texts = [introduction, *map(_glm4_function, functions)]
        turns.append(Turn("system", ("\n" + "\n".join(texts),)))
    turns += [
        Turn("system", (f"\n{message.content}",))
        for message in messages
        if message.role == "system" and (message.content or message.tools is None)
    ]
    others = [
        m if (content := shown(m.content)) == m.content else replace(m, content=content)
        for m in messages
        if m.role != "system"
    ]
    for message in spread(others, as_json):
        called = message.metadata + name_end if message.is_call else message.metadata
        turns.append(_turn(message, f"{called}\n{message.content}"))
    return turns


ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM4_CONTROL_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *ROLE_TOKENS,
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
