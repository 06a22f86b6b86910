"""Search for known messages through a log of any length, part by part."""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from glmtune.explanations.table import LATER, compiled_signs, known_messages

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""Colours, cursor movements and titles of a terminal. Source: ECMA-48, 5.4 and 5.6."""
ERROR = re.compile(
    r"^(?:error|fatal): [^\r\n]*|\b[A-Za-z_][\w.]{0,200}(?:Error|Exception): [^\r\n]*"
    r"|^[A-Za-z_][\w.]{0,200}(?:Error|Exception)$",
    re.MULTILINE,
)
ERROR_WORDS = ("Error: ", "Exception: ", "Error\n", "Exception\n", "error: ", "fatal: ")
"""Some of these stand in every text that `ERROR` matches: looking for them is quicker."""
BOX_END = "─╯"
"""The end of a traceback that rich prints, below which the message is wrapped."""
SHOWN = 200
"""Longest line that is shown in characters; of a longer one, the part around the message."""


@dataclass(slots=True)
class Sighting:
    """A line of a log, counted from 1, its text, and how many lines are of its kind."""

    line: int
    text: str
    times: int = 0


@dataclass(slots=True)
class LogSearch:
    """The known messages of a log as far as it was read; `read` takes its next whole lines."""

    sightings: dict[str, Sighting] = field(default_factory=dict)
    """By the name in the table: the first line that has it."""
    likely: Sighting | None = None
    """The last line that looks like an error and is not known."""
    num_lines: int = 0
    _context: str = ""
    """End of the text before, in which a sign of several lines may begin."""
    _line: int = 1
    """Number of the context's first line."""

    def read(self, lines: str) -> None:
        """Search the next lines; a line break that follows a carriage return ends the same line."""
        lines = ESCAPES.sub("", lines) if "\x1b" in lines else lines
        text = self._context + lines.replace("\r\n", "\n")
        begin, explained, is_wrapped = len(self._context), set[int](), BOX_END in text
        for name in known_messages():
            positions: dict[int, int] = {}
            for sign in compiled_signs()[name]:
                is_there = sign.part in text or (is_wrapped and sign.word in text)
                for match in sign.pattern.finditer(text) if is_there else ():
                    start = _line_start(text, match.start(1))
                    if match.start(1) >= begin and start not in explained:
                        positions.setdefault(start, match.start(1))
            if positions:
                first = self._sight(text, min(positions.values()))
                self.sightings.setdefault(name, first).times += len(positions)
                explained |= positions.keys()
        if any(word in text for word in ERROR_WORDS):
            errors = (match.start() for match in ERROR.finditer(text, begin))
            for last in deque((at for at in errors if _line_start(text, at) not in explained), maxlen=1):
                self.likely = self._sight(text, last)
        kept = text[_line_start(text, max(0, len(text) - LATER)) :]
        self._line += text.count("\n", 0, len(text) - len(kept))
        self._context = kept
        self.num_lines = self._line - 1 + kept.count("\n") + (not kept.endswith("\n") and kept != "")

    def _sight(self, text: str, position: int) -> Sighting:
        """Return the line of a position; a progress bar's overwritten states are parts of one line."""
        start = _line_start(text, position)
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        cut = text.find("\r", position, end)
        end = end if cut < 0 else cut
        if end - start > SHOWN:
            start = min(max(start, position - SHOWN // 2), end - SHOWN)
        return Sighting(self._line + text.count("\n", 0, position), text[start:end][:SHOWN].strip())


def search_log(chunks: Iterable[str]) -> LogSearch:
    """Search a log that comes in parts, each of whole lines."""
    search = LogSearch()
    for lines in chunks:
        search.read(lines)
    return search


def _line_start(text: str, position: int) -> int:
    """Return where the line begins, or what last overwrote it."""
    start = text.rfind("\n", 0, position) + 1
    return max(start, text.rfind("\r", start, position) + 1)
