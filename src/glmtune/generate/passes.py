"""What one pass through a model writes into the rows, and what its attention sees of them.

A pass stands where a layer expects a cache, and its `attend` where it expects an attention function; models
of transformers' own classes use it as a cache alone, with their own attention. Shapes as in `rows`; T new
tokens, H query heads, W the columns that are seen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from glmtune.generate.kv_cache import KvCache, Layer
from glmtune.processor import cpu_has

MANY_ROWS = 8
"""From so many rows on, in fp32, a step's attention is written out: 0.5 ms for 96 rows of 12 heads, not 1.2
ms, on 2 cores.
"""
SMALL_WIDTH = 1024
"""Hidden size up to which oneDNN's products of one row do not gain from AMX."""


@dataclass(slots=True)
class RowSpan:
    """The new tokens of one row in a packed pass."""

    row: int
    past: int
    """Columns of the row that are written already."""
    new: int
    mask: Tensor | None
    """What the new tokens may see, (1, 1, T, past + T), true = may; None: see `mask_prompt`."""


class PromptPass:
    """Several rows' new tokens, one after the other in one packed row: nothing is padded."""

    def __init__(self, rows: KvCache, segments: Sequence[RowSpan]) -> None:
        self.rows = rows
        self.segments = segments
        self.width = max(part.past + part.new for part in segments)
        rows.make_room(self.width)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (1, G, sum of T, D); return the first segment's row as far as it is written."""
        keys, values = self.rows.layer(layer, key, value)
        start = 0
        for part in self.segments:
            new, columns = slice(start, start + part.new), slice(part.past, part.past + part.new)
            keys[part.row, :, columns], values[part.row, :, columns] = key[0, :, new], value[0, :, new]
            start += part.new
        return self._seen(keys, self.segments[0]), self._seen(values, self.segments[0])

    def attend(self, module: Any, query: Tensor, *_: Any, scaling: float, **__: Any) -> tuple[Tensor, None]:
        """Attention of (1, H, sum of T, D), each segment in its own row, to (1, sum of T, H, D of values)."""
        keys, values = self.rows.layers[module.layer_idx]
        found, start = [], 0
        for part in self.segments:
            found.append(
                functional.scaled_dot_product_attention(
                    query[:, :, start : start + part.new],
                    self._seen(keys, part),
                    self._seen(values, part),
                    attn_mask=part.mask,
                    is_causal=part.mask is None and part.new > 1,
                    scale=scaling,
                    enable_gqa=True,
                )
            )
            start += part.new
        return torch.cat(found, dim=2).transpose(1, 2), None

    def finish(self) -> None:
        """Count what every layer has written."""
        for part in self.segments:
            self.rows.lengths[part.row] = part.past + part.new

    @staticmethod
    def _seen(held: Tensor, part: RowSpan) -> Tensor:
        return held[part.row, None, :, : part.past + part.new]

    def get_seq_length(self, *_: Any) -> int:
        """Columns before the new ones, as transformers asks of a cache."""
        return self.segments[0].past

    get_query_offset = get_seq_length

    def get_mask_sizes(self, new: int, *_: Any) -> tuple[int, int]:
        """Columns that are seen and the first of them, as transformers asks of a cache."""
        return self.segments[0].past + new, 0


class StepPass:
    """One new token in each row, the rows of any lengths."""

    def __init__(self, rows: KvCache, *, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = rows
        self.width = max(rows.lengths) + 1
        rows.make_room(self.width)
        self.columns: Tensor | None = None
        self.mask: Tensor | None = None
        """Added to the scores, (B, 1, 1, W); None where all rows are equally long."""
        if min(rows.lengths) + 1 < self.width:
            self.columns = torch.tensor(rows.lengths, device=device)
            self.held = torch.arange(len(rows.lengths), device=device)
            self.mask = mask_later(torch.arange(self.width, device=device), self.columns, dtype)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (B, G, 1, D), each row's at its end; return the rows (B, G, W, D)."""
        keys, values = self.rows.layer(layer, key, value)
        count = key.shape[0]
        if self.columns is None:
            keys[:count, :, self.width - 1] = key[:, :, 0]
            values[:count, :, self.width - 1] = value[:, :, 0]
        else:
            held, columns = self.held.to(key.device), self.columns.to(key.device)
            keys[held, :, columns] = key[:, :, 0]
            values[held, :, columns] = value[:, :, 0]
        return keys[:count, :, : self.width], values[:count, :, : self.width]

    def attend(
        self, _: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, scaling: float, **___: Any
    ) -> tuple[Tensor, None]:
        """Attention of (B, H, 1, D) over (B, G, W, D), to (B, 1, H, D of values); group by group."""
        grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])  # (B, G, H/G, D)
        mask = None if self.mask is None else self.mask.to(query)
        attend = _attend_many if _is_many(query) else functional.scaled_dot_product_attention
        found = attend(grouped, key, value, attn_mask=mask, scale=scaling)
        return found.reshape(query.shape[0], 1, -1, value.shape[3]), None

    def finish(self) -> None:
        """Count what every layer has written."""
        self.rows.lengths = [length + 1 for length in self.rows.lengths]

    def get_seq_length(self, *_: Any) -> int:
        """Columns before the new one, as transformers asks of a cache."""
        return self.width - 1

    get_query_offset = get_seq_length

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        """Columns that are seen and the first of them, as transformers asks of a cache."""
        return self.width, 0


def _is_many(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.float32 and len(query) >= MANY_ROWS


def _attend_many(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, scale: float
) -> Tensor:
    """What torch's own gives, for single queries of many rows, where that takes twice as long on a CPU."""
    scores = (query @ key.transpose(-1, -2)).mul_(scale)
    if attn_mask is not None:
        scores += attn_mask
    return scores.softmax(dim=-1) @ value


class WholeStep(StepPass):
    """`StepPass` over all the room there is: nothing but the room changes its shapes, so it compiles."""

    def __init__(self, layers: Sequence[Layer], columns: Tensor, *, dtype: torch.dtype) -> None:
        """`layers`: the held rows of each, (B, G, S, D); `columns`: how long each row is, (B,)."""
        self.layers = layers
        self.columns = columns
        self.held = torch.arange(columns.shape[0], device=columns.device)
        room = torch.arange(layers[0][0].shape[2], device=columns.device)
        self.mask = mask_later(room, columns, dtype)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (B, G, 1, D), each row's at its end; return the rows (B, G, S, D)."""
        keys, values = self.layers[layer]
        keys[self.held, :, self.columns] = key[:, :, 0]
        values[self.held, :, self.columns] = value[:, :, 0]
        return keys, values


def mask_later(room: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to scores, (B, 1, 1, W): of the columns (W,) a row sees those up to its own (B,)."""
    is_later = room > columns[:, None]
    mask = torch.zeros(is_later.shape, dtype=dtype, device=room.device)
    return mask.masked_fill(is_later, torch.finfo(dtype).min)[:, None, None]


def are_own_quicker(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether torch's own products are the quickest for one row, not oneDNN's; `width`: the hidden size.

    In bf16 on a CPU: 1.6 times as fast with the same error. Where there is AMX, 1.1 to 2 times for widths up
    to 768, but 0.8 times from 2,048 on.
    """
    is_large_for_tiles = width > SMALL_WIDTH and cpu_has("amx_bf16")
    return dtype == torch.bfloat16 and device.type == "cpu" and not is_large_for_tiles


@contextmanager
def own_products(are_wanted: bool) -> Iterator[None]:
    """Inside, linear layers take torch's own products if they are wanted.

    The switch is the whole process's: another thread's products may take the other way meanwhile.
    """
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = before and not are_wanted
    try:
        yield
    finally:
        onednn.enabled = before
