"""The KV cache of a batch: each row's keys and values from column 0 on, without padding in front.

Memory is allocated in blocks of columns and freed when rows leave. Nothing is ever concatenated: a decode
step writes one column per row. Shapes: R allocated rows, B rows in use, G key/value heads, S allocated
columns, D head size. Keys and values of a layer may differ in G and D, and a layer may have other than two
tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

BLOCK = 64
"""Columns are allocated in multiples of this."""

Layer = tuple[Tensor, ...]
"""Keys and values of one layer, (R, G, S, D) each; of a single row (G, S, D)."""


@dataclass(slots=True)
class KvCache:
    """Rows 0 to B - 1 are in use; when one is removed, the last row moves to its index."""

    lengths: list[int] = field(default_factory=list)
    """Columns written in each row in use, those of a prefix included."""
    layers: list[Layer] = field(default_factory=list)
    """Keys and values; empty until the first forward pass writes them."""
    room: tuple[int, int] = (0, 0)
    """R and S: allocated rows and columns."""
    is_room_kept: bool = False
    """True if removed rows free no memory: a CUDA graph needs it to stay at its address."""

    @property
    def num_bytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def add(self, count: int = 1) -> None:
        """Add `count` empty rows."""
        self.lengths += [0] * count

    def remove(self, row: int) -> None:
        """Remove a row: the last row moves to its index. Frees memory that is no longer needed."""
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
        """Fill a row with zeros. A later row there masks old columns, but 0 times NaN would still be NaN."""
        for layer in self.layers:
            for part in layer:
                part[row] = 0

    def keep_first(self, count: int) -> None:
        """Remove all rows but the first `count`."""
        del self.lengths[count:]
        self._give_back()

    def make_room(self, columns: int, *, rows: int = 0) -> None:
        """Allocate `columns` columns for the rows in use, and for at least `rows` rows."""
        room_rows, room_columns = self.room
        needed = max(len(self.lengths), rows)
        if needed > room_rows or columns > room_columns:
            # half as much again: rows that join one by one do not copy the cache each time
            new_rows = max(needed, room_rows + room_rows // 2) if needed > room_rows else room_rows
            self._resize(new_rows, max(_in_blocks(columns), room_columns))

    def write(self, row: int, start: int, layers: Sequence[Layer]) -> None:
        """Write keys and values (G, n, D) of every layer into a row, from column `start` on."""
        end = start + layers[0][0].shape[1]
        self.make_room(end)
        for i, layer in enumerate(layers):
            for held, new in zip(self.layer(i, *(part[None] for part in layer)), layer, strict=True):
                held[row, :, start:end] = new
        self.lengths[row] = end

    def read(self, row: int) -> list[Layer]:
        """Return a copy of a row's keys and values, (G, n, D) for every layer."""
        length = self.lengths[row]
        return [tuple(part[row, :, :length].clone() for part in layer) for layer in self.layers]

    def layer(self, index: int, *like: Tensor) -> Layer:
        """Return a layer's keys and values; allocated at first use, shaped like `like`, (B, G, T, D) each."""
        if index == len(self.layers):
            self.layers.append(tuple(_room_for(part, *self.room) for part in like))
        return self.layers[index]

    def _give_back(self) -> None:
        """Shrink the cache to what is used, but only below half: a removed row seldom costs a copy."""
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
        # what every layer has if this breaks off: some layers are resized by then, others not
        self.room = (min(rows, self.room[0]), min(columns, self.room[1]))
        for i, layer in enumerate(self.layers):  # layer by layer: little memory is held twice
            fresh = tuple(_room_for(part, rows, columns) for part in layer)
            for new, old in zip(fresh, layer, strict=True):
                new[:kept, :, :used] = old[:kept, :, :used]
            self.layers[i] = fresh
        self.room = (rows, columns)


def _room_for(part: Tensor, rows: int, columns: int) -> Tensor:
    # zeros, as attention multiplies masked columns by 0: NaN in unwritten memory would spread
    return part.new_zeros((rows, part.shape[1], columns, *part.shape[3:]))


def _in_blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK
