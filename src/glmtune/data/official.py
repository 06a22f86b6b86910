"""The preprocessing of the official fine-tuning scripts, reproduced exactly: ids, labels, prompts and cuts.

Rows are not padded: the scripts' padding changes neither loss nor answer. Where a script raises, DataError is
raised here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, chatglm2_prompt, chatglm_prompt, rounds, with_question_prefix
from glmtune.tokenizers.protocol import Tokenizer

IGNORED = -100


@dataclass(frozen=True, slots=True)
class OfficialRow:
    """A training row as an official script encodes it."""

    input_ids: list[int]
    labels: list[int]
    uncut_tokens: int
    """Tokens before the script's cuts."""
    is_question_cut: bool = False
    is_answer_cut: bool = False


@dataclass(frozen=True, slots=True)
class OfficialPrompt:
    """A prompt of an official script's evaluation, and the answer that it compares with."""

    prompt: list[int]
    reference: list[int]
    end: int
    """The id that ends a reference, unless the reference was cut."""
    uncut_tokens: int
    """Tokens of the prompt before the script's cut."""


_Train = Callable[[Tokenizer, Sequence[Message], Data], OfficialRow | None]
_Evaluate = Callable[[Tokenizer, Sequence[Message], Data], list[OfficialPrompt]]


@dataclass(frozen=True, slots=True)
class OfficialEncoding:
    """The preprocessing of one official script, from a conversation with its system text to ids.

    `data.source_prefix` is added by both functions.
    """

    train: _Train
    """Encodes a conversation as a training row; None for one that the script leaves out."""
    evaluate: _Evaluate
    """Encodes a conversation as the prompts of its evaluation, in order."""


def find_encoding(name: str, tokenizer: Tokenizer) -> OfficialEncoding:
    """Return the encoding of this name. Raises ConfigError if the tokenizer is another family's."""
    scripts = ENCODINGS[name]
    if tokenizer.template is None or tokenizer.template not in scripts:
        raise ConfigError(
            f"data.encoding: {name!r} is for {' or '.join(scripts)}, not for {tokenizer.template}",
            hint="use data.encoding=chat, or the encoding of the model's own script",
        )
    return scripts[tokenizer.template]


def _limits(settings: Data) -> tuple[int, int]:
    """Return the most tokens of prompt and answer. Raises ConfigError if either setting is missing."""
    if settings.max_source_tokens is None or settings.max_target_tokens is None:
        raise ConfigError(
            f"data.encoding: {settings.encoding} needs both limits",
            hint="set data.max_source_tokens and data.max_target_tokens, as its script does",
        )
    return settings.max_source_tokens, settings.max_target_tokens


# --- thudm: preprocess_function_train and _eval of ptuning/main.py in https://github.com/THUDM/ChatGLM-6B ---
# --- and, below, of that in https://github.com/THUDM/ChatGLM2-6B ---


def _thudm_texts(
    messages: Sequence[Message], settings: Data, prompt_text: Callable[..., str], **options: bool
) -> tuple[str, str] | None:
    """Return the prompt of the last question and its answer; None if the script skips the row."""
    pairs = rounds(messages, "encoding thudm")
    answered = [(question.content, answer.content) for question, answer in pairs if answer is not None]
    if not answered:
        raise DataError("no answer to learn or compare with", hint="give every row an answer")
    query, answer = answered[-1]
    if not (query and answer):
        return None
    return settings.source_prefix + prompt_text(query, answered[:-1], **options), answer


def _chatglm_train(tokenizer: Tokenizer, messages: Sequence[Message], settings: Data) -> OfficialRow | None:
    """Return a row that learns `<sop>`, the answer and `<eop>`; a history column numbers every round."""
    max_source, max_target = _limits(settings)
    is_numbered = settings.history_column is not None
    texts = _thudm_texts(messages, settings, chatglm_prompt, is_numbered=is_numbered)
    if texts is None:
        return None
    prompt, answer = (_encode_v1(tokenizer, text) for text in texts)
    source = [*prompt[: max_source - 1], *_v1_asks(tokenizer)]
    input_ids = [*source, *answer[: max_target - 2], tokenizer.control_id("<eop>")]
    start = input_ids.index(tokenizer.control_id("<sop>"))
    # as with ChatGLM2, a pad id in the labels is not learned
    learned = [IGNORED if index == tokenizer.pad_token_id else index for index in input_ids[start:]]
    return OfficialRow(
        input_ids,
        [IGNORED] * start + learned,
        uncut_tokens=len(prompt) + len(answer) + 3,
        is_question_cut=len(prompt) > max_source - 1,
        is_answer_cut=len(answer) > max_target - 2,
    )


def _chatglm_evaluate(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data
) -> list[OfficialPrompt]:
    texts = _thudm_texts(messages, settings, chatglm_prompt)
    if texts is None:
        return []
    asks = _v1_asks(tokenizer)
    prompt, answer = (_encode_v1(tokenizer, text) for text in texts)
    # the script encodes the reference like a prompt: two tokens less than allowed, then [gMASK] <sop>
    cut_prompt, reference = (
        [*ids[: limit - len(asks)], *asks]
        for ids, limit in zip((prompt, answer), _limits(settings), strict=True)
    )
    return [OfficialPrompt(cut_prompt, reference, tokenizer.control_id("<eop>"), len(prompt) + len(asks))]


def _encode_v1(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a text's ids by the official tokenizer, which reads `<sop>` in a text as the control token."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def _v1_asks(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end a prompt of ChatGLM-6B."""
    return [tokenizer.control_id("[gMASK]"), tokenizer.control_id("<sop>")]


def _chatglm2_train(tokenizer: Tokenizer, messages: Sequence[Message], settings: Data) -> OfficialRow | None:
    max_source, max_target = _limits(settings)
    texts = _thudm_texts(messages, settings, chatglm2_prompt)
    if texts is None:
        return None
    prefix = tokenizer.get_prefix_tokens()
    prompt, answer = (tokenizer.encode_plain(text) for text in texts)
    source = [*prefix, *prompt[: max_source - len(prefix)]]
    target = [*answer[:max_target], tokenizer.eos_token_id]
    # the script turns every pad id in the labels into "not learned", answer included
    learned = [IGNORED if index == tokenizer.pad_token_id else index for index in target]
    return OfficialRow(
        [*source, *target],
        [IGNORED] * len(source) + learned,
        uncut_tokens=len(prefix) + len(prompt) + len(answer) + 1,
        is_question_cut=len(source) < len(prefix) + len(prompt),
        is_answer_cut=len(answer) > max_target,
    )


def _chatglm2_evaluate(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data
) -> list[OfficialPrompt]:
    max_source, max_target = _limits(settings)
    texts = _thudm_texts(messages, settings, chatglm2_prompt)
    if texts is None:
        return []
    prefix = tokenizer.get_prefix_tokens()
    prompt, answer = ([*prefix, *tokenizer.encode_plain(text)] for text in texts)
    return [OfficialPrompt(prompt[:max_source], answer[:max_target], tokenizer.eos_token_id, len(prompt))]


# --- chatglm3: https://github.com/THUDM/ChatGLM3 finetune_demo/finetune_hf.py, process_batch and _eval ---
# --- glm4: https://github.com/THUDM/GLM-4 finetune/finetune.py, process_batch and _eval ---


def _chatglm3_turn(tokenizer: Tokenizer, message: Message) -> list[int]:
    if message.tools is not None:
        raise DataError("tools: the official script does not take them", hint="use data.encoding=chat")
    texts = ("\n", message.content)
    role = tokenizer.control_id(f"<|{message.role}|>")
    return [role, *(index for text in texts for index in tokenizer.encode_plain(text))]


def _glm4_turn(tokenizer: Tokenizer, message: Message) -> list[int]:
    if message.tools is not None:
        # process_message of the script drops the unset properties of a tool's parameters
        tools = []
        for tool in message.tools:
            try:
                function = dict(tool["function"])
                properties = {k: v for k, v in function["parameters"]["properties"].items() if v is not None}
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    "tools: the official script needs function.parameters.properties in every tool",
                    hint="use data.encoding=chat for other tools",
                ) from error
            function["parameters"] = {**function["parameters"], "properties": properties}
            tools.append({**tool, "function": function})
        message = replace(message, tools=tools)
    return _glm4_conversation(tokenizer, [message])[len(tokenizer.get_prefix_tokens()) :]


def _glm4_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids of the official chat template: control tokens spelled in content are control tokens."""
    rows = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        row |= {"metadata": message.metadata} if message.metadata else {}
        row |= {"tools": message.tools} if message.tools is not None else {}
        rows.append(row)
    return list(tokenizer.apply_chat_template(rows, tokenize=True, return_dict=False))


_EncodeTurn = Callable[[Tokenizer, Message], list[int]]


def _learn_turns(
    encode_turn: _EncodeTurn,
    unlearned: frozenset[str],
    end: str,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    data: Data,
) -> OfficialRow:
    """Return the row of all turns and an end token, learning the turns of all roles but the unlearned."""
    input_ids = tokenizer.get_prefix_tokens()
    mask = [False] * len(input_ids)
    for message in messages:
        ids = encode_turn(tokenizer, message)
        input_ids += ids
        mask += [message.role not in unlearned] * len(ids)
    return _shift_and_cut([*input_ids, tokenizer.control_id(end)], mask, data)


def _shift_and_cut(input_ids: list[int], mask: list[bool], data: Data) -> OfficialRow:
    """Return the row of some ids, cut as a whole; `mask[i]` is True if the id at i + 1 is learned."""
    # one late, as in the scripts: a learned turn's role token is no label, the token behind the turn is one
    labels = [index if learned else IGNORED for index, learned in zip(input_ids, [False, *mask], strict=True)]
    limit = sum(_limits(data)) + 1
    return OfficialRow(
        input_ids[:limit], labels[:limit], uncut_tokens=len(input_ids), is_answer_cut=len(input_ids) > limit
    )


def _ask_turns(
    encode_turn: _EncodeTurn, end: str, tokenizer: Tokenizer, messages: Sequence[Message], data: Data
) -> list[OfficialPrompt]:
    """Return a prompt for each answer, until the conversation is longer than the source limit."""
    max_source, max_target = _limits(data)
    end_id = tokenizer.control_id(end)
    input_ids = tokenizer.get_prefix_tokens()
    prompts = []
    for message in messages:
        if len(input_ids) >= max_source:
            break
        ids = encode_turn(tokenizer, message)
        if message.role == "assistant":
            prompt = [*input_ids[:max_source], *ids[:1]]  # ends in the assistant's role token
            reference = [*ids[1:], end_id][:max_target]
            prompts.append(OfficialPrompt(prompt, reference, end_id, len(input_ids) + 1))
        input_ids += ids
    return prompts


# ChatGLM3's script learns observations too
_CHATGLM3_UNLEARNED = frozenset({"system", "user"})
_GLM4_UNLEARNED = frozenset({"system", "user", "observation"})


def _glm4_train(tokenizer: Tokenizer, messages: Sequence[Message], data: Data) -> OfficialRow:
    """Return a row that learns all answers, or with `data.combine` the last alone."""
    if not data.combine:
        return _learn_turns(_glm4_turn, _GLM4_UNLEARNED, "<|user|>", tokenizer, messages, data)
    input_ids = _glm4_conversation(tokenizer, messages)
    start = _last_answer(tokenizer, input_ids)
    mask = [index > start for index in range(len(input_ids))]
    return _shift_and_cut([*input_ids, tokenizer.control_id("<|user|>")], mask, data)


def _glm4_evaluate(tokenizer: Tokenizer, messages: Sequence[Message], data: Data) -> list[OfficialPrompt]:
    if data.combine:
        # as the script: the prompt holds the answer and ends with [gMASK], so its scores mean nothing
        max_source, max_target = _limits(data)
        input_ids = _glm4_conversation(tokenizer, messages)
        end_id = tokenizer.control_id("<|user|>")
        reference = [*input_ids[_last_answer(tokenizer, input_ids) :], end_id]
        prompt = [*input_ids[:max_source], input_ids[0]]
        return [OfficialPrompt(prompt, reference[:max_target], end_id, len(input_ids) + 1)]
    prompts = _ask_turns(_glm4_turn, "<|user|>", tokenizer, messages, data)
    if not prompts:
        raise DataError(
            "no answer begins within max_source_tokens",
            hint="raise data.max_source_tokens, or leave the row out",
        )
    return prompts


def _last_answer(tokenizer: Tokenizer, input_ids: Sequence[int]) -> int:
    """Return the position of the last <|assistant|> token. Raises DataError if there is none."""
    role = tokenizer.control_id("<|assistant|>")
    last = max((position for position, index in enumerate(input_ids) if index == role), default=None)
    if last is None:
        raise DataError("no answer in this conversation", hint="give every row an answer")
    return last


def _with_question_prefix(train: _Train, evaluate: _Evaluate) -> OfficialEncoding:
    """Return the encoding of a script without a source prefix: the prefix goes into the first question."""

    def prefixed(messages: Sequence[Message], data: Data) -> list[Message]:
        return with_question_prefix(messages, data.source_prefix)

    return OfficialEncoding(
        lambda tokenizer, messages, data: train(tokenizer, prefixed(messages, data), data),
        lambda tokenizer, messages, data: evaluate(tokenizer, prefixed(messages, data), data),
    )


ENCODINGS: Mapping[str, Mapping[str, OfficialEncoding]] = {
    "thudm": {
        "chatglm": OfficialEncoding(_chatglm_train, _chatglm_evaluate),
        "chatglm2": OfficialEncoding(_chatglm2_train, _chatglm2_evaluate),
    },
    "chatglm3": {
        "chatglm3": _with_question_prefix(
            partial(_learn_turns, _chatglm3_turn, _CHATGLM3_UNLEARNED, "</s>"),
            partial(_ask_turns, _chatglm3_turn, "</s>"),
        )
    },
    "glm4": dict.fromkeys(("glm4", "glm4_base"), _with_question_prefix(_glm4_train, _glm4_evaluate)),
}
"""The preprocessing of every official script, by the value of `data.encoding` and the chat format's name."""
