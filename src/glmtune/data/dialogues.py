"""Rows that hold a whole conversation as a list of turns: `messages`, ShareGPT, ChatGLM3 `conversations`.

The turns of all three become messages by the same rules: an assistant turn that calls a tool holds the
tool's name and arguments, and the observation follows it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmtune.data.tools import Call, call_in_answer, read_arguments, read_calls, read_tools, tool_name
from glmtune.data.values import Row, decoded, non_empty, shown, text
from glmtune.errors import DataError
from glmtune.templates import Message, Role

Messages = tuple[Message, ...]

SHAREGPT_ROLES: Mapping[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "observation",
    "tool": "observation",
    "user": "user",
    "assistant": "assistant",
}
CHAT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function": "observation",
    "developer": "system",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a row, its spelling gone, its calls not yet matched with their observations."""

    name: str
    """What it is called in messages, such as `conversations[2]`."""
    role: Role
    text: str
    metadata: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    """Which call an observation answers."""
    tools: list[dict[str, Any]] | None = None
    has_loss: bool = True


def sharegpt(row: Row) -> Messages:
    """`{conversations: [{from, value}], tools?}`."""
    return _conversation(row, "conversations", _sharegpt_turn)


def messages(row: Row) -> Messages:
    """`{messages: [{role, content, tool_calls?}], tools?}`, OpenAI's form and the GLM-4 script's."""
    return _conversation(row, "messages", _chat_turn)


def chatglm3(row: Row) -> Messages:
    """`{conversations: [{role, content}], tools?}`, the ChatGLM3 scripts' form."""
    return _conversation(row, "conversations", _chat_turn)


def is_sharegpt(row: Row) -> bool:
    """Whether the turns in `conversations` are of the form `{from, value}`."""
    turns = decoded(row.get("conversations"))
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def is_chatglm3(row: Row) -> bool:
    """Whether the turns in `conversations` are not ShareGPT's."""
    return not is_sharegpt(row)


ReadTurn = Callable[[Row, str], Iterator[Turn]]


def _conversation(row: Row, column: str, read_turn: ReadTurn) -> Messages:
    rows = decoded(row[column])
    if not isinstance(rows, list):
        raise DataError(
            f"{column!r} must be a list of turns, got {shown(row[column])}", hint=_form(read_turn)
        )
    turns: list[Turn] = []
    for index, turn in enumerate(rows):
        name = f"{column}[{index}]"
        if not isinstance(turn, Mapping):
            raise DataError(f"{name!r} must be an object, got {shown(turn)}", hint=_form(read_turn))
        turns += read_turn(turn, name)
    if not turns:
        raise DataError(f"{column!r} holds no turns, got {shown(row[column])}", hint=_form(read_turn))
    return _with_tools(_matched(turns), read_tools(row.get("tools"), "tools"))


def _form(read_turn: ReadTurn) -> str:
    keys = ("from", "value") if read_turn is _sharegpt_turn else ("role", "content")
    return f'a turn is like {{"{keys[0]}": "...", "{keys[1]}": "..."}}'


def _required(row: Row, key: str, name: str, form: str) -> Any:
    if key not in row:
        keys = ", ".join(map(repr, row)) or "nothing"
        raise DataError(f"{name!r} has no {key!r}, got {keys}", hint=form)
    return row[key]


def _role(value: Any, name: str, known: Mapping[str, Role]) -> Role:
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{name!r} is no known role, got {shown(value)}", hint=f"known: {', '.join(known)}")
    return known[value]


def _loss(row: Row, name: str, role: Role) -> bool:
    """The flag of a turn; `weight`, 0 or 1, is OpenAI's name for it."""
    key = "loss" if row.get("loss") is not None else "weight"
    value = row.get(key)
    if value is None:
        return True
    if value not in (False, True) or (key == "loss" and not isinstance(value, bool)):
        allowed = "true or false" if key == "loss" else "0 or 1"
        raise DataError(
            f"'{name}.{key}' must be {allowed}, got {shown(value)}", hint="it says if the turn is learned"
        )
    if value and role != "assistant" and key == "loss":
        raise DataError(
            f"'{name}.loss' is set in a turn of role {role!r}, got true",
            hint="only an assistant's turn can be learned: remove the flag",
        )
    return bool(value)


# One turn of each form


def _sharegpt_turn(row: Row, name: str) -> Iterator[Turn]:
    form = _form(_sharegpt_turn)
    kind = _required(row, "from", name, form)
    role = _role(kind, f"{name}.from", SHAREGPT_ROLES)
    value = _required(row, "value", name, form)
    place = f"{name}.value"
    has_loss = _loss(row, name, role)
    if kind == "function_call":
        yield Turn(name, role, "", calls=tuple(read_calls(value, place)), has_loss=has_loss)
    else:
        found = non_empty(value, place) if role == "assistant" else text(_said(value, role), place)
        yield Turn(name, role, found, has_loss=has_loss)


def _chat_turn(row: Row, name: str) -> Iterator[Turn]:
    form = _form(_chat_turn)
    role = _role(_required(row, "role", name, form), f"{name}.role", CHAT_ROLES)
    has_loss = _loss(row, name, "assistant" if _is_call_with_result(row) else role)
    if _is_call_with_result(row):
        yield from _call_with_result(row, name, has_loss)
    elif role == "assistant":
        yield _assistant_turn(row, name, form, has_loss)
    else:
        content = _content(_required(row, "content", name, form))
        call_id = row.get("tool_call_id")
        yield Turn(
            name,
            role,
            text(_said(content, role), f"{name}.content"),
            call_id=call_id if isinstance(call_id, str) else None,
            tools=_own_tools(row, name, role),
        )


def _assistant_turn(row: Row, name: str, form: str, has_loss: bool) -> Turn:
    key = "tool_calls" if row.get("tool_calls") else "function_call"
    calls = tuple(read_calls(row[key], f"{name}.{key}")) if row.get(key) else ()
    content = _content(row.get("content") if calls else _required(row, "content", name, form))
    place = f"{name}.content"
    found = "" if calls and content in (None, "") else non_empty(content, place)
    turn = Turn(name, "assistant", found, calls=calls, has_loss=has_loss)
    metadata = row.get("metadata")
    if metadata is None or not text(metadata, f"{name}.metadata").strip():
        return turn
    return replace(turn, metadata=tool_name(metadata, f"{name}.metadata"))


def _is_call_with_result(row: Row) -> bool:
    """Whether this is the `tool` turn of ChatGLM3's script, a call and its observation in one.

    Source: https://github.com/THUDM/ChatGLM3 finetune_chatmodel_demo/preprocess_utils.py
    """
    return row.get("role") == "tool" and row.get("parameters") is not None


def _call_with_result(row: Row, name: str, has_loss: bool) -> Iterator[Turn]:
    yield Turn(name, "assistant", "", calls=tuple(read_calls(row, name)), has_loss=has_loss)
    observation = row.get("observation")
    if observation is not None:
        result = observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
        yield Turn(name, "observation", text(result, f"{name}.observation"))


def _said(value: Any, role: Role) -> Any:
    """A system text of null is none."""
    return "" if value is None and role == "system" else value


def _content(value: Any) -> Any:
    """Join OpenAI's list of text parts; anything else stays for the check of text."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _own_tools(row: Row, name: str, role: Role) -> list[dict[str, Any]] | None:
    tools = read_tools(row.get("tools"), f"{name}.tools")
    if tools is not None and role != "system":
        raise DataError(
            f"'{name}.tools' is in a turn of role {role!r}, got {len(tools)} tools",
            hint="put the tools into the row's own `tools`, or into its system turn",
        )
    return tools


# Turns to messages


def _matched(turns: Sequence[Turn]) -> list[Message]:
    """The messages of the turns, each call followed by its observation."""
    found: list[Message] = []
    index = 0
    while index < len(turns):
        turn, index = turns[index], index + 1
        if turn.role == "observation":
            raise DataError(
                f"{turn.name!r} is an observation without a call before it",
                hint="an observation follows the assistant's turn that called the tool",
            )
        if turn.role != "assistant":
            found += _plain(turn)
            continue
        observations = []
        while index < len(turns) and turns[index].role == "observation":
            observations.append(turns[index])
            index += 1
        found += _answered(turn, observations)
    return found


def _plain(turn: Turn) -> list[Message]:
    """A blank system turn without tools says nothing, and is left out."""
    if turn.role == "system" and turn.tools is None and not turn.text.strip():
        return []
    return [Message(turn.role, turn.text, tools=turn.tools)]


def _answered(turn: Turn, observations: Sequence[Turn]) -> list[Message]:
    """An assistant turn and the observations after it; what stands before one counts as its call."""
    if turn.metadata:
        return [_called(turn), *map(_observed, observations)]
    said = turn.text
    calls = turn.calls
    if observations and not calls:
        call = call_in_answer(said)
        calls, said = ((call,), "") if call else ((), said)
    found = [Message("assistant", said, loss=turn.has_loss)] if said else []
    if len(calls) < 2 or not observations:
        found += [_call_message(call, turn) for call in calls]
        return [*found, *map(_observed, observations)]
    for call, observation in zip(calls, _in_order(turn, observations), strict=True):
        found += [_call_message(call, turn), _observed(observation)]
    return found


def _in_order(turn: Turn, observations: Sequence[Turn]) -> list[Turn]:
    """The observations in the order of the calls, by id where they have one."""
    if len(observations) != len(turn.calls):
        raise DataError(
            f"{turn.name!r} makes {len(turn.calls)} calls, got {len(observations)} observations",
            hint="give every call its own observation, in the same order",
        )
    by_id = {observation.call_id: observation for observation in observations}
    if {call.id for call in turn.calls} == set(by_id) and None not in by_id:
        return [by_id[call.id] for call in turn.calls]
    return list(observations)


def _called(turn: Turn) -> Message:
    """A turn with the tool's name as metadata: its arguments where they can be read, else its text."""
    arguments = read_arguments(turn.text)
    text_ = turn.text if arguments is None else ""
    return Message("assistant", text_, turn.metadata, loss=turn.has_loss, arguments=arguments)


def _call_message(call: Call, turn: Turn) -> Message:
    return Message("assistant", "", call.name, loss=turn.has_loss, arguments=call.arguments)


def _observed(turn: Turn) -> Message:
    return Message("observation", turn.text)


def _with_tools(found: list[Message], tools: list[dict[str, Any]] | None) -> Messages:
    """The row's tools belong into the first system turn; there is one even without text."""
    if tools is None:
        return tuple(found)
    if any(message.tools is not None for message in found):
        raise DataError("'tools' is given by the row and by a system turn, got both", hint="keep one")
    if not found or found[0].role != "system":
        return Message("system", "", tools=tools), *found
    return replace(found[0], tools=tools), *found[1:]
