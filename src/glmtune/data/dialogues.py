"""Read rows that hold a conversation as a list of turns: `messages`, ShareGPT, ChatGLM3 `conversations`.

The turns of all three formats become messages by the same rules: an assistant's turn stays whole with its
tool calls, and the results follow in the order of the calls.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from glmtune.errors import DataError
from glmtune.templates import Message, Role
from glmtune.templates.messages import THOUGHT_END, Call, wrapped
from glmtune.templates.reading import (
    FORM,
    ROLE_NAMES,
    read_loss,
    read_message,
    read_role,
    read_thought,
    with_tools,
)
from glmtune.templates.tools import call_in_answer, read_arguments, read_calls, read_tools, tool_name
from glmtune.values import EmptyError, RowObject, asked, decoded, non_empty, shown, text

Messages = tuple[Message, ...]

SHAREGPT_ROLES: Mapping[str, Role] = {**ROLE_NAMES, "function_call": "assistant"}
SHAREGPT_FORM = 'a turn is like {"from": "human", "value": "..."}'


def sharegpt(row: RowObject) -> Messages:
    """Read a ShareGPT row: `{conversations: [{from, value}], tools?}`."""
    return _read_conversation(row, "conversations", _read_sharegpt_turn, SHAREGPT_FORM)


def messages(row: RowObject) -> Messages:
    """Read a row of OpenAI or the GLM-4 script: `{messages: [{role, content, tool_calls?}], tools?}`."""
    return _read_conversation(row, "messages", _read_chat_turn, FORM)


def chatglm3(row: RowObject) -> Messages:
    """Read a row of the ChatGLM3 scripts: `{conversations: [{role, content}], tools?}`."""
    return _read_conversation(row, "conversations", _read_chat_turn, FORM)


def is_sharegpt(row: RowObject) -> bool:
    """True if the turns in `conversations` have ShareGPT's form `{from, value}`."""
    turns = decoded(row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def is_chatglm3(row: RowObject) -> bool:
    """True if the turns in `conversations` do not have ShareGPT's form."""
    return not is_sharegpt(row)


Turn = tuple[str, Message]
"""The name of a turn in errors, such as `conversations[2]`, and its message."""
ReadTurn = Callable[[RowObject, str], Iterator[Turn]]
"""Reads one turn of a row, given its name in errors: into one message, or a call and its result."""


def _read_conversation(row: RowObject, column: str, read_turn: ReadTurn, form: str) -> Messages:
    rows = decoded(row[column])
    if not isinstance(rows, list):
        raise DataError(f"{column!r} must be a list of turns, got {shown(row[column])}", hint=form)
    turns: list[Turn] = []
    for index, turn in enumerate(rows):
        name = f"{column}[{index}]"
        if not isinstance(turn, dict):
            raise DataError(f"{name!r} must be an object, got {shown(turn)}", hint=form)
        for turn_name, message in read_turn(turn, name):
            before = turns[-1][1] if turns else None
            is_call_alone = bool(message.calls) and not message.content and message.thought is None
            can_take_call = before and before.role == "assistant" and not before.metadata
            if before and can_take_call and is_call_alone and before.loss == message.loss:
                # a call written as a turn of its own belongs to the assistant's turn before it
                turns[-1] = turns[-1][0], replace(before, calls=(*before.calls, *message.calls))
            else:
                turns.append((turn_name, message))
    if not turns:
        raise EmptyError(f"{column!r} holds no turns, got {shown(row[column])}", hint=form)
    tools = read_tools(row.get("tools"), "tools")
    messages = _match_results(turns)
    return tuple(with_tools(messages, tools and [wrapped(tool) for tool in tools]))


# One turn of each form


def _read_sharegpt_turn(row: RowObject, name: str) -> Iterator[Turn]:
    for key in ("from", "value"):
        if key not in row:
            raise DataError(
                f"{name!r} has no {key!r}, got {', '.join(map(repr, row)) or 'nothing'}", hint=SHAREGPT_FORM
            )
    role = read_role(row["from"], f"{name}.from", SHAREGPT_ROLES)
    value, where = row["value"], f"{name}.value"
    loss = read_loss(row, name, role)
    if role != "assistant":
        is_empty = value is None and role == "system"
        read = asked if role == "user" else text
        yield name, Message(role, "" if is_empty else read(value, where), loss=loss)
    elif row["from"].strip().lower() == "function_call":
        calls = tuple(read_calls(value, where))
        yield name, Message(role, "", loss=loss, thought=read_thought(row, name), calls=calls)
    else:
        yield name, Message(role, non_empty(value, where), loss=loss, thought=read_thought(row, name))


def _read_chat_turn(row: RowObject, name: str) -> Iterator[Turn]:
    if row.get("role") == "tool" and row.get("parameters") is not None:
        # ChatGLM3's script writes a call and its observation as one turn of role `tool`. Source:
        # https://github.com/THUDM/ChatGLM3 finetune_chatmodel_demo/preprocess_utils.py
        calls = tuple(read_calls({key: row[key] for key in ("name", "parameters") if key in row}, name))
        loss = read_loss(row, name, "assistant")
        yield name, Message("assistant", "", loss=loss, thought=read_thought(row, name), calls=calls)
        observation = row.get("observation")
        if observation is not None:
            is_text = isinstance(observation, str)
            result = observation if is_text else json.dumps(observation, ensure_ascii=False)
            yield name, Message("observation", text(result, f"{name}.observation"))
        return
    message = read_message(row, name)
    if message.tools is not None:
        message = replace(message, tools=[wrapped(tool) for tool in message.tools] or None)
    if message.role == "assistant":
        if not message.calls and not (message.thought or "").strip():
            non_empty(message.content, f"{name}.content")
        metadata = tool_name(message.metadata, f"{name}.metadata") if message.metadata.strip() else ""
        message = replace(message, metadata=metadata)
        # content below a tool's name is a call where its arguments can be read; else it stays text
        arguments = read_arguments(message.content) if metadata else None
        if arguments is not None:
            message = replace(message, content="", metadata="", calls=(Call(metadata, arguments),))
    yield name, message


# Turns to messages


def _match_results(turns: Sequence[Turn]) -> list[Message]:
    """Return the turns' messages, each followed by its results; a blank system turn is left out."""
    messages: list[Message] = []
    index = 0
    while index < len(turns):
        (name, message), index = turns[index], index + 1
        if message.role == "observation":
            raise DataError(
                f"{name!r} is an observation without a call before it",
                hint="an observation follows the assistant's turn that called the tool",
            )
        results = []
        while message.role == "assistant" and index < len(turns) and turns[index][1].role == "observation":
            results.append(turns[index][1])
            index += 1
        if results:
            if not message.is_call:
                # the text in front of a result counts as its call where it can be read as one
                thought, end_tag, answer = message.content.rpartition(THOUGHT_END)
                if call := call_in_answer(answer):
                    message = replace(message, content=thought + end_tag, calls=(call,))
            messages += [message, *_order_results(name, message, results)]
        elif message.role != "system" or message.tools is not None or message.content.strip():
            messages.append(message)
    return messages


def _order_results(name: str, message: Message, results: Sequence[Message]) -> list[Message]:
    """Return the results in the order of the calls: by id if all have one, else as they stand."""
    if len(message.calls) > 1 and len(results) != len(message.calls):
        raise DataError(
            f"{name!r} makes {len(message.calls)} calls, got {len(results)} observations",
            hint="give every call its own observation, in the same order",
        )
    call_ids = [call.id for call in message.calls if call.id]
    answered_ids = [result.call_id for result in results if result.call_id]
    if not call_ids or len(call_ids) < len(message.calls) or len(answered_ids) < len(results):
        return list(results)
    if sorted(call_ids) != sorted(answered_ids):
        raise DataError(
            f"{name!r} makes the calls {', '.join(call_ids)}, "
            f"but its results answer {', '.join(answered_ids)}",
            hint="give each result the id of its call as tool_call_id, or none of them an id",
        )
    return sorted(results, key=lambda result: call_ids.index(str(result.call_id)))
