"""Conversations in a file, as training reads them: one a line, the last of them goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.data.json_rows import line_rows
from glmtune.errors import DataError
from glmtune.files import is_there, read_text
from glmtune.run_files import cannot_write, write_text
from glmtune.templates import messages_from_dicts

Messages = list[dict[str, Any]]
FORM = 'each line is a conversation: {"messages": [{"role": "user", "content": "..."}, ...]}'


class Transcript:
    """A file of conversations."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises `CheckpointError`, `DataError` and `OutputError`."""
        self.path = path
        rows = list(line_rows(read_text(path), path)) if is_there(path) else []
        conversations = [_messages_of(row.value, row.where) for row in rows]
        self._ended = conversations[:-1]
        self.messages: Messages = conversations[-1] if conversations else []
        """Of the conversation that goes on."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise cannot_write(path, err) from err

    def begin(self) -> None:
        """End the conversation: what is kept next is another."""
        if self.messages:
            self._ended.append(self.messages)
            self.messages = []

    def keep(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Write the conversation as it is now. Raises `OutputError`."""
        self.messages = [dict(message) for message in messages]
        lines = [json.dumps({"messages": each}, ensure_ascii=False) for each in (*self._ended, self.messages)]
        write_text(self.path, "\n".join(lines) + "\n")


def _messages_of(row: Any, where: str) -> Messages:
    if not isinstance(row, dict) or row.keys() != {"messages"}:
        held = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: must hold 'messages' alone, got {held or 'nothing'}", hint=FORM)
    try:
        messages_from_dicts(row["messages"])
    except DataError as err:
        raise DataError(f"{where}: {err}", hint=err.hint) from None
    return list(row["messages"])
