"""Rows that hold a whole conversation as a list of turns: `messages`, ShareGPT, ChatGLM3 `conversations`.

The turns of all three become messages by the same rules: an assistant turn stays whole with the tools that it
calls, and their results follow it in the order of the calls.
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
from glmtune.values import RowObject, decoded, non_empty, shown, text

Messages = tuple[Message, ...]

SHAREGPT_ROLES: Mapping[str, Role] = {**ROLE_NAMES, "function_call": "assistant"}
SHAREGPT_FORM = 'a turn is like {"from": "human", "value": "..."}'


def sharegpt(row: RowObject) -> Messages:
    """`{conversations: [{from, value}], tools?}`."""
    return _conversation(row, "conversations", _sharegpt_turn, SHAREGPT_FORM)


def messages(row: RowObject) -> Messages:
    """`{messages: [{role, content, tool_calls?}], tools?}`, OpenAI's form and the GLM-4 script's."""
    return _conversation(row, "messages", _chat_turn, FORM)


def chatglm3(row: RowObject) -> Messages:
    """`{conversations: [{role, content}], tools?}`, the ChatGLM3 scripts' form."""
    return _conversation(row, "conversations", _chat_turn, FORM)


def is_sharegpt(row: RowObject) -> bool:
    """Whether the turns in `conversations` are of the form `{from, value}`."""
    turns = decoded(row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def is_chatglm3(row: RowObject) -> bool:
    """Whether the turns in `conversations` are not ShareGPT's."""
    return not is_sharegpt(row)


Turn = tuple[str, Message]
"""A message, and its name in errors, such as `conversations[2]`."""
ReadTurn = Callable[[RowObject, str], Iterator[Turn]]


def _conversation(row: RowObject, column: str, read_turn: ReadTurn, form: str) -> Messages:
    rows = decoded(row[column])
    if not isinstance(rows, list):
        raise DataError(f"{column!r} must be a list of turns, got {shown(row[column])}", hint=form)
    turns: list[Turn] = []
    for index, turn in enumerate(rows):
        name = f"{column}[{index}]"
        if not isinstance(turn, dict):
            raise DataError(f"{name!r} must be an object, got {shown(turn)}", hint=form)
        turns += read_turn(turn, name)
    if not turns:
        raise DataError(f"{column!r} holds no turns, got {shown(row[column])}", hint=form)
    tools = read_tools(row.get("tools"), "tools")
    return tuple(with_tools(_matched(_joined(turns)), tools and [wrapped(tool) for tool in tools]))


# One turn of each form


def _sharegpt_turn(row: RowObject, name: str) -> Iterator[Turn]:
    for key in ("from", "value"):
        if key not in row:
            raise DataError(
                f"{name!r} has no {key!r}, got {', '.join(map(repr, row)) or 'nothing'}", hint=SHAREGPT_FORM
            )
    role = read_role(row["from"], f"{name}.from", SHAREGPT_ROLES)
    value, where = row["value"], f"{name}.value"
    loss = read_loss(row, name, role)
    if role != "assistant":
        is_none = value is None and role == "system"
        yield name, Message(role, "" if is_none else text(value, where), loss=loss)
    elif row["from"].strip().lower() == "function_call":
        calls = tuple(read_calls(value, where))
        yield name, Message(role, "", loss=loss, thought=read_thought(row, name), calls=calls)
    else:
        yield name, Message(role, non_empty(value, where), loss=loss, thought=read_thought(row, name))


def _chat_turn(row: RowObject, name: str) -> Iterator[Turn]:
    if _is_call_with_result(row):
        yield from _call_with_result(row, name)
        return
    message = read_message(row, name)
    if message.tools is not None:
        message = replace(message, tools=[wrapped(tool) for tool in message.tools] or None)
    yield name, _learnable(message, name) if message.role == "assistant" else message


def _learnable(message: Message, name: str) -> Message:
    """An assistant's turn that says something, its call read from under the tool's name where it can be."""
    if not message.calls and not (message.thought or "").strip():
        non_empty(message.content, f"{name}.content")
    if not message.metadata.strip():
        return replace(message, metadata="")
    metadata = tool_name(message.metadata, f"{name}.metadata")
    arguments = read_arguments(message.content)
    if arguments is None:
        return replace(message, metadata=metadata)
    return replace(message, content="", metadata="", calls=(Call(metadata, arguments),))


def _is_call_with_result(row: RowObject) -> bool:
    """Whether this is the `tool` turn of ChatGLM3's script, a call and its observation in one.

    Source: https://github.com/THUDM/ChatGLM3 finetune_chatmodel_demo/preprocess_utils.py
    """
    return row.get("role") == "tool" and row.get("parameters") is not None


def _call_with_result(row: RowObject, name: str) -> Iterator[Turn]:
    call = {key: row[key] for key in ("name", "parameters") if key in row}
    calls = tuple(read_calls(call, name))
    loss = read_loss(row, name, "assistant")
    yield name, Message("assistant", "", loss=loss, thought=read_thought(row, name), calls=calls)
    observation = row.get("observation")
    if observation is not None:
        result = observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
        yield name, Message("observation", text(result, f"{name}.observation"))


# Turns to messages


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with each call that was written apart put back into the assistant's turn before it."""
    found: list[Turn] = []
    for name, message in turns:
        before = found[-1][1] if found else None
        if before and _goes_on(before, message):
            found[-1] = found[-1][0], replace(before, calls=(*before.calls, *message.calls))
        else:
            found.append((name, message))
    return found


def _goes_on(before: Message, call: Message) -> bool:
    """Whether a turn is a call and no more, which the assistant's turn before it goes on to make."""
    is_bare = bool(call.calls) and not call.content and call.thought is None
    return is_bare and before.role == "assistant" and not before.metadata and before.loss == call.loss


def _matched(turns: Sequence[Turn]) -> list[Message]:
    """The messages of the turns, each with its results behind it; a blank system turn says nothing."""
    found: list[Message] = []
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
            message = _calling(message)
            found += [message, *_in_order(name, message, results)]
        elif message.role != "system" or message.tools is not None or message.content.strip():
            found.append(message)
    return found


def _calling(message: Message) -> Message:
    """A turn in front of a result: its text counts as its call where it can be read as one."""
    if message.is_call:
        return message
    thought, mark, said = message.content.rpartition(THOUGHT_END)
    call = call_in_answer(said)
    return replace(message, content=thought + mark, calls=(call,)) if call else message


def _in_order(name: str, message: Message, results: Sequence[Message]) -> list[Message]:
    """The results in the order of the calls, by id where both have them."""
    if len(message.calls) > 1 and len(results) != len(message.calls):
        raise DataError(
            f"{name!r} makes {len(message.calls)} calls, got {len(results)} observations",
            hint="give every call its own observation, in the same order",
        )
    made = [call.id for call in message.calls if call.id]
    answered = [result.call_id for result in results if result.call_id]
    if not made or len(made) < len(message.calls) or len(answered) < len(results):
        return list(results)
    if sorted(made) != sorted(answered):
        raise DataError(
            f"{name!r} makes the calls {', '.join(made)}, but its results answer {', '.join(answered)}",
            hint="give each result the id of its call as tool_call_id, or none of them an id",
        )
    return sorted(results, key=lambda result: made.index(str(result.call_id)))
