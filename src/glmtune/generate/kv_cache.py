"""Keys and values of the rows that are being answered, each row from column 0, without padding in between.

Room is made in blocks of columns and given back when rows leave. Nothing is ever concatenated: a step writes
one column a row. Shapes: R rows with room, B rows held, G key/value heads, S columns with room, D head size;
a layer's keys and values may differ in G and D, and a layer may have another number of parts than two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

BLOCK = 64
"""Columns that are added at once."""

Layer = tuple[Tensor, ...]
"""What a layer keeps: its keys and its values, (R, G, S, D) each; of a single row (G, S, D)."""


@dataclass(slots=True)
class KvCache:
    """Rows 0 to B - 1 are held; one that leaves is replaced by the last."""

    lengths: list[int] = field(default_factory=list)
    """Columns written in each held row; a prefix's count."""
    layers: list[Layer] = field(default_factory=list)
    """Empty until the first pass writes them."""
    room: tuple[int, int] = (0, 0)
    """R and S of the layers."""
    is_room_kept: bool = False
    """Whether rows that leave give no memory back: a compiled step wants it to stay where it is."""

    @property
    def num_bytes(self) -> int:
        """Memory that is held, room included."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def add(self, count: int = 1) -> None:
        """Hold so many more rows, empty ones."""
        self.lengths += [0] * count

    def remove(self, row: int) -> None:
        """Let a row go; the last row takes its place. Memory that is no longer needed is given back."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                for part in layer:
                    length = self.lengths[last]
                    part[row, :, :length] = part[last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._give_back()

    def wipe(self, row: int) -> None:
        """Overwrite numbers that are not finite: the next row there masks them, and 0 times NaN is NaN."""
        for layer in self.layers:
            for part in layer:
                part[row] = 0

    def keep_first(self, count: int) -> None:
        """Let all rows but the first ones go."""
        del self.lengths[count:]
        self._give_back()

    def make_room(self, columns: int, *, rows: int = 0) -> None:
        """Room for the held rows and for at least so many, each with so many columns."""
        there, held = self.room
        needed = max(len(self.lengths), rows)
        if needed > there or columns > held:
            more = max(needed, there + there // 2) if needed > there else there
            self._resize(more, max(_in_blocks(columns), held))

    def write(self, row: int, start: int, layers: Sequence[Layer]) -> None:
        """Put (G, n, D) keys and values of every layer into a row, from column `start` on."""
        end = start + layers[0][0].shape[1]
        self.make_room(end)
        for i, layer in enumerate(layers):
            for held, new in zip(self.layer(i, *(part[None] for part in layer)), layer, strict=True):
                held[row, :, start:end] = new
        self.lengths[row] = end

    def read(self, row: int) -> list[Layer]:
        """A copy of a row's keys and values, (G, n, D) of every layer."""
        length = self.lengths[row]
        return [tuple(part[row, :, :length].clone() for part in layer) for layer in self.layers]

    def layer(self, index: int, *like: Tensor) -> Layer:
        """The parts of a layer; made at its first use, for parts like these, (B, G, T, D) each."""
        if index == len(self.layers):
            self.layers.append(tuple(_room_for(part, *self.room) for part in like))
        return self.layers[index]

    def _give_back(self) -> None:
        """Halve the room when less than half of it is used, so that a leaving row seldom costs a copy."""
        if self.is_room_kept:
            return
        rows, columns = self.room
        needed = _in_blocks(max(self.lengths, default=0))
        if not self.lengths:
            self.layers, self.room = [], (0, 0)
        elif 2 * len(self.lengths) <= rows or 2 * needed < columns:
            self._resize(len(self.lengths), needed)

    def _resize(self, rows: int, columns: int) -> None:
        used = max(self.lengths, default=0)
        kept = min(self.room[0], len(self.lengths))
        self.room = (min(rows, self.room[0]), min(columns, self.room[1]))  # all there is if this breaks off
        for i, layer in enumerate(self.layers):  # one after the other: little is held twice
            self.layers[i] = tuple(_moved(part, rows, columns, kept, used) for part in layer)
        self.room = (rows, columns)


def _room_for(part: Tensor, rows: int, columns: int) -> Tensor:
    return part.new_zeros((rows, part.shape[1], columns, *part.shape[3:]))


def _moved(part: Tensor, rows: int, columns: int, kept: int, used: int) -> Tensor:
    fresh = _room_for(part, rows, columns)
    fresh[:kept, :, :used] = part[:kept, :, :used]
    return fresh


def _in_blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK
