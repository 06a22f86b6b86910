"""Texts that end an answer, found wherever the pieces of a streamed text break."""

from collections.abc import Sequence


class StopTexts:
    """Passes a growing text on up to the stop text that is complete first; keeps back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: texts that are not empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop text that has ended the answer."""

    def add(self, piece: str) -> str:
        """Return the text that is sure to stand before any stop text; nothing once one is found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        # by their ends, so that an answer ends alike however it falls into pieces
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            _, place, self.found = min(ends)  # of two with one end the longer
            self._held = ""
            return text[:place]
        # only the longest beginning: a shorter one lies within it
        held = max((self._count_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was kept back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _count_begun(text: str, stop: str) -> int:
        """Count the last characters of a text that begin the stop text."""
        longest = min(len(text), len(stop) - 1)
        return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
