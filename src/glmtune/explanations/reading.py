"""Read a log as text, in parts of whole lines, whatever its character set."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import AnyStr, BinaryIO

from glmtune.charset import decode_any, wide_codec

PART = 2**20
"""Bytes that are read at once."""
LONGEST_LINE = 2**23
"""A longer line is cut: what comes without any line end is not kept in memory whole."""


def read_log(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield a log's text; UTF-16, as PowerShell writes it, and GBK are recognised.

    `name` is the file's, for the error. Raises `NotTextError` for an archive or another file that is no text.
    """
    start = stream.read(PART)
    parts = chain([start], iter(lambda: stream.read(PART), b""))
    if codec := wide_codec(start, name):
        decoder = codecs.getincrementaldecoder(codec)(errors="replace")
        return _whole_lines(map(decoder.decode, parts), "\n")
    return map(decode_any, _whole_lines(parts, b"\n"))


def _whole_lines(parts: Iterable[AnyStr], end: AnyStr) -> Iterator[AnyStr]:
    """Yield the same text, in parts that end where a line does."""
    rest = end[:0]
    for part in parts:
        lines, newline, rest = (rest + part).rpartition(end)
        if len(rest) > LONGEST_LINE:
            newline, rest = newline + rest, end[:0]
        if lines or newline:
            yield lines + newline
    if rest:
        yield rest
