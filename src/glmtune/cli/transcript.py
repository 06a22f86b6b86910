"""A file of conversations, one per line as training reads them; the chat continues the last one."""

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
    """Reads and writes a file of conversations in the `messages` format."""

    def __init__(self, path: Path) -> None:
        """Read the file if it exists. Raises `CheckpointError`, `DataError` and `OutputError`."""
        self.path = path
        conversations: list[Messages] = []
        for where, row in list(line_rows(read_text(path), path)) if is_there(path) else ():
            if not isinstance(row, dict) or row.keys() != {"messages"}:
                found = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
                raise DataError(f"{where}: must hold 'messages' alone, got {found or 'nothing'}", hint=FORM)
            try:
                messages_from_dicts(row["messages"])
            except DataError as err:
                raise DataError(f"{where}: {err}", hint=err.hint) from None
            conversations.append(list(row["messages"]))
        self._ended = conversations[:-1]
        self.messages: Messages = conversations[-1] if conversations else []
        """Messages of the last conversation."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise cannot_write(path, err) from err

    def begin(self) -> None:
        """End the last conversation; `keep` then writes a new one."""
        if self.messages:
            self._ended.append(self.messages)
            self.messages = []

    def keep(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Write the file with `messages` as the last conversation. Raises `OutputError`."""
        self.messages = [dict(message) for message in messages]
        lines = [json.dumps({"messages": each}, ensure_ascii=False) for each in (*self._ended, self.messages)]
        write_text(self.path, "\n".join(lines) + "\n")
