"""Reads an answer while it comes: thoughts, text and tool calls, in any chat format.

A thought and the text are given as they come. A call is given when it is whole: one that breaks off, or
calls a tool that was not offered, is text, so that nothing gets lost and no half call is ever carried out.
Asked for, a call's arguments are given as they come, too; one that breaks off behind its first argument is
then no text any more, but told as broken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from glmtune.templates.calls import CallReader, functions_of
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END, Segment, Template, control
from glmtune.templates.tidy import ShownText
from glmtune.templates.turns import as_json


@dataclass(frozen=True, slots=True)
class ThoughtPiece:
    """The next part of the thought in front of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next part of an answer's text, as the official chat shows it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A tool call of an answer."""

    index: int
    """Its number among the calls of the answer, from 0."""
    id: str
    """The `tool_call_id` of its result, made up here: no chat format writes one."""
    name: str
    arguments: str
    """A JSON object, or its beginning if it is given as it comes."""


@dataclass(frozen=True, slots=True)
class ArgumentsPiece:
    """The next part of the arguments of a call that was begun."""

    index: int
    """The call's number."""
    text: str


AnswerPiece = ThoughtPiece | TextPiece | CallPiece | ArgumentsPiece


class AnswerStream:
    """Reads one answer, without the token that ends it; pieces of it are put in, pieces come out.

    Text and the control tokens of the format, `control_names`, are added apart, so that text which only
    spells such a token stays text.
    """

    def __init__(
        self,
        chat_format: Template,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        is_spelled: bool = False,
        streams_calls: bool = False,
    ) -> None:
        """`tools`: the descriptions that the prompt offers; calls of others are text.

        `is_spelled`: the text spells control tokens, as that of another program may. `streams_calls`: give
        the arguments of a call as they come.
        """
        self._format = chat_format
        self._functions = functions_of(tools)
        thought_marks = (THOUGHT_BEGIN, THOUGHT_END) if chat_format.thought_end else ()
        marks = (*thought_marks, *(chat_format.calls.marks if chat_format.calls else ()))
        self.control_names = tuple(mark for mark in marks if mark in chat_format.control_tokens)
        """The control tokens that mean something inside an answer."""
        # GLM-Z1, whose prompt begins the thought, ends it in plain text
        spelled = thought_marks[1:] if THOUGHT_END not in self.control_names else ()
        self._splitter = _MarkSplitter([*spelled, *(self.control_names if is_spelled else ())])
        self.is_thought = chat_format.begins_thought
        """True while the thought in front of the answer is read."""
        self._thought = _Trimmer(trims_end=True)
        self._text = _Trimmer(trims_end=bool(chat_format.thought_end))
        self._shown = ShownText(chat_format.tidy)
        self._reader: CallReader | None = None  # of what may become a call
        self._held: list[str] = []  # what it has taken, in case that it does not
        self._skips_space = False
        self._streams_calls = streams_calls
        self._given: str | None = None  # of the arguments of a call that was begun
        self.num_calls = 0
        """Calls that have been given whole."""
        self.is_broken = False
        """True if a call that was begun has broken off."""
        if not self.is_thought:
            self._begin_turn()

    def add(self, text: str) -> list[AnswerPiece]:
        """Add text and return the pieces that it completes; their cut is not that of the text."""
        return self._take_all(self._splitter.add(text))

    def add_control(self, name: str) -> list[AnswerPiece]:
        """Add a control token by its official spelling and return the pieces that it completes."""
        segment = control(name) if name in self.control_names else Segment(name)
        return self._take_all([*self._splitter.finish(), segment])

    def finish(self) -> list[AnswerPiece]:
        """Return the pieces that were kept back: the answer has ended."""
        return [*self._take_all(self._splitter.finish()), *self._close(), *self._end_text()]

    def _take_all(self, segments: Sequence[Segment]) -> list[AnswerPiece]:
        return [piece for segment in segments for piece in self._take(segment)]

    def _take(self, segment: Segment) -> list[AnswerPiece]:
        if self.is_thought:
            return self._think(segment)
        if segment.text not in self.control_names:  # GLM-Z1's end of a thought means nothing behind it
            segment = Segment(segment.text)
        mark = segment.text if segment.is_control else None
        calls = self._format.calls
        if calls and mark == calls.marks[0]:
            pieces = self._close()
            self._open(calls, "" if calls.is_whole_turn else mark)
            return pieces
        if self._reader is not None:
            return self._read(self._reader, segment)
        if mark == THOUGHT_BEGIN:
            self.is_thought = True
            return self._end_text()
        return self._write(segment.text)

    def _think(self, segment: Segment) -> list[AnswerPiece]:
        if segment == control(THOUGHT_END):
            self.is_thought = False
            self._begin_turn()
            self._skips_space = True
            return []
        thought = self._thought.add(segment.text)
        return [ThoughtPiece(thought)] if thought else []

    def _begin_turn(self) -> None:
        """Begin to read a call where the turn itself may be one."""
        if self._format.calls and self._format.calls.is_whole_turn:
            self._open(self._format.calls)

    def _open(self, calls: type[CallReader], held: str = "") -> None:
        self._reader, self._held = calls(self._functions), [held]

    def _read(self, reader: CallReader, segment: Segment) -> list[AnswerPiece]:
        if self._skips_space:  # the white space between a thought and a turn that may be a call
            segment = segment._replace(text=segment.text.lstrip())
            if not segment.text:
                return []
            self._skips_space = False
        self._held.append(segment.text)
        if not reader.take(segment):
            return self._give_up()
        if reader.is_ended:
            return self._close()
        sure = reader.sure() if self._streams_calls else None
        return self._call(*sure) if sure else []

    def _close(self) -> list[AnswerPiece]:
        """Return the call that has been read; if it is none, its text."""
        reader = self._reader
        call = reader.call() if reader else None
        if call is None:
            return self._give_up()
        self._reader, self._held = None, []
        # what was begun goes on as the model writes it
        written = reader.sure() if reader and self._given is not None else None
        pieces = self._call(call.name, written[1] if written else as_json(call.arguments))
        self._given = None
        self.num_calls += 1
        return pieces

    def _call(self, name: str, arguments: str) -> list[AnswerPiece]:
        """Return what the arguments so far add to a call; all of it if it begins."""
        given, self._given = self._given, arguments
        if given is None:
            piece = CallPiece(self.num_calls, f"call_{token_hex(12)}", name, arguments)
            return [*self._end_text(), piece]
        more = arguments[len(given) :]
        return [ArgumentsPiece(self.num_calls, more)] if more else []

    def _give_up(self) -> list[AnswerPiece]:
        held = "".join(self._held)
        self._reader, self._held = None, []
        if self._given is not None:
            self._given, self.is_broken = None, True
            return []
        return self._write(held)

    def _write(self, text: str) -> list[AnswerPiece]:
        return _texts(self._shown.add(self._text.add(text)))

    def _end_text(self) -> list[AnswerPiece]:
        """Return the end of a text behind which something else follows."""
        rest = self._shown.finish()
        self._shown = ShownText(self._format.tidy)
        return _texts(rest)


def _texts(text: str) -> list[AnswerPiece]:
    return [TextPiece(text)] if text else []


class _Trimmer:
    """Takes the white space off a growing text: in front and, if asked for, behind."""

    def __init__(self, *, trims_end: bool) -> None:
        self._trims_end = trims_end
        self._is_begun = False
        self._space = ""  # at the end so far: more text may follow

    def add(self, text: str) -> str:
        """Return what the next text adds."""
        if not self._is_begun:
            text = text.lstrip()
        self._is_begun = self._is_begun or bool(text)
        if not self._trims_end:
            return text
        whole = self._space + text
        kept = whole.rstrip()
        self._space = whole[len(kept) :]
        return kept


class _MarkSplitter:
    """Splits a growing text at marks that it spells, which become control tokens."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._pattern = re.compile(f"({'|'.join(map(re.escape, marks))})") if marks else None
        self._beginnings = {mark[:length] for mark in marks for length in range(1, len(mark))}
        self._longest = max(map(len, marks), default=0)
        self._rest = ""  # may be the beginning of a mark

    def add(self, text: str) -> list[Segment]:
        """Return the segments up to what may be the beginning of a mark."""
        if self._pattern is None:
            return [Segment(text)]
        *parts, last = self._pattern.split(self._rest + text)
        # the longest first: of "</thi" all must wait, not the last letters
        ends = (len(last) - length for length in range(min(len(last), self._longest), 0, -1))
        end = next((end for end in ends if last[end:] in self._beginnings), len(last))
        self._rest = last[end:]
        texts = [*parts, last[:end]]  # by turns text and a mark
        return [control(part) if index % 2 else Segment(part) for index, part in enumerate(texts) if part]

    def finish(self) -> list[Segment]:
        """Return the beginning of a mark that has become none."""
        rest, self._rest = self._rest, ""
        return [Segment(rest)] if rest else []
