"""The cache and attention of one forward pass: writes new keys and values, and attends to them.

Our own layers take a pass as their cache and its `attend` as their attention function; models of
transformers' own classes take it as a cache alone, with their own attention. Shapes as in `kv_cache`; T new
tokens, H query heads, W columns that are attended to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.generate.kv_cache import KvCache, Layer
from glmtune.processor import cpu_has

MANY_ROWS = 8
"""Batch size from which, in fp32 on a CPU, a step's attention is two plain matrix products: for 96 rows of 12
heads 0.5 ms on 2 cores, where torch's own attention takes 1.2 ms.
"""
SMALL_WIDTH = 1024
"""Hidden size up to which oneDNN's products of one row do not gain from AMX."""


@dataclass(slots=True)
class RowSpan:
    """The new tokens of one row in a packed prefill."""

    row: int
    past: int
    """Columns of the row that are written already."""
    new: int
    """Number of new tokens, T."""
    mask: Tensor | None
    """Attention mask (1, 1, T, past + T), True = may attend; None: causal, or all for a single token."""


class PromptPass:
    """Prefill: the new tokens of several rows, packed one after the other into one row without padding."""

    def __init__(self, rows: KvCache, spans: Sequence[RowSpan]) -> None:
        self.rows = rows
        self.spans = spans
        self.width = max(span.past + span.new for span in spans)
        rows.make_room(self.width)

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (1, G, sum of T, D); return those of the first span's row, (1, G, W, D).

        Only transformers' own attention uses the result, and it runs one prompt per pass.
        """
        keys, values = self.rows.layer(layer, key, value)
        start = 0
        for span in self.spans:
            new, columns = slice(start, start + span.new), slice(span.past, span.past + span.new)
            keys[span.row, :, columns], values[span.row, :, columns] = key[0, :, new], value[0, :, new]
            start += span.new
        return self._seen(keys, self.spans[0]), self._seen(values, self.spans[0])

    def attend(
        self, module: nn.Module, query: Tensor, *_: object, scaling: float, **__: object
    ) -> tuple[Tensor, None]:
        """Attend with queries (1, H, sum of T, D), each span to its own row; return (1, sum of T, H, D)."""
        index: Any = module.layer_idx
        keys, values = self.rows.layers[index]
        contexts, start = [], 0
        for span in self.spans:
            contexts.append(
                functional.scaled_dot_product_attention(
                    query[:, :, start : start + span.new],
                    self._seen(keys, span),
                    self._seen(values, span),
                    attn_mask=span.mask,
                    is_causal=span.mask is None and span.new > 1,
                    scale=scaling,
                    enable_gqa=True,
                )
            )
            start += span.new
        return torch.cat(contexts, dim=2).transpose(1, 2), None

    def finish(self) -> None:
        """Count the new columns of each row; called once, after the last layer."""
        for span in self.spans:
            self.rows.lengths[span.row] = span.past + span.new

    @staticmethod
    def _seen(part: Tensor, span: RowSpan) -> Tensor:
        return part[span.row, None, :, : span.past + span.new]

    def get_seq_length(self, *_: object) -> int:
        """Return the columns before the new ones; transformers calls this on a cache."""
        return self.spans[0].past

    get_query_offset = get_seq_length

    def get_mask_sizes(self, new: int, *_: object) -> tuple[int, int]:
        """Return the columns attended to and the first of them; transformers calls this on a cache."""
        return self.spans[0].past + new, 0


class StepPass:
    """Decode: one new token in each row, rows of any lengths."""

    def __init__(self, rows: KvCache, *, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = rows
        self.width = max(rows.lengths) + 1
        rows.make_room(self.width)
        self.columns: Tensor | None = None
        self.mask: Tensor | None = None
        """Added to the attention scores, (B, 1, 1, W); None if all rows are equally long."""
        if min(rows.lengths) + 1 < self.width:
            self.columns = torch.tensor(rows.lengths, device=device)
            self.row_indices = torch.arange(len(rows.lengths), device=device)
            self.mask = mask_later(torch.arange(self.width, device=device), self.columns, dtype)

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, G, 1, D), one column per row; return those attended to, (B, G, W, D)."""
        keys, values = self.rows.layer(layer, key, value)
        count = key.shape[0]
        if self.columns is None:  # equally long rows: one slice, much faster than an index per row
            keys[:count, :, self.width - 1] = key[:, :, 0]
            values[:count, :, self.width - 1] = value[:, :, 0]
        else:  # the layers of a model may lie on several devices
            rows, columns = self.row_indices.to(key.device), self.columns.to(key.device)
            keys[rows, :, columns] = key[:, :, 0]
            values[rows, :, columns] = value[:, :, 0]
        return keys[:count, :, : self.width], values[:count, :, : self.width]

    def attend(
        self, _: object, query: Tensor, key: Tensor, value: Tensor, *__: object, scaling: float, **___: object
    ) -> tuple[Tensor, None]:
        """Attend with queries (B, H, 1, D) to keys (B, G, W, D); return (B, 1, H, D of values)."""
        # the H/G queries of a group share their keys: as one product, keys need not be repeated
        grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])  # (B, G, H/G, D)
        mask = None if self.mask is None else self.mask.to(query)
        is_many = query.device.type == "cpu" and query.dtype == torch.float32 and len(query) >= MANY_ROWS
        attend = _attend_many if is_many else functional.scaled_dot_product_attention
        context = attend(grouped, key, value, attn_mask=mask, scale=scaling)
        return context.reshape(query.shape[0], 1, -1, value.shape[3]), None

    def finish(self) -> None:
        """Count the new column of each row; called once, after the last layer."""
        self.rows.lengths = [length + 1 for length in self.rows.lengths]

    def get_seq_length(self, *_: object) -> int:
        """Return the columns before the new one; transformers calls this on a cache."""
        return self.width - 1

    get_query_offset = get_seq_length

    def get_mask_sizes(self, *_: object) -> tuple[int, int]:
        """Return the columns attended to and the first of them; transformers calls this on a cache."""
        return self.width, 0


def _attend_many(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, scale: float
) -> Tensor:
    """`scaled_dot_product_attention` for one query in each of many rows, twice as fast on a CPU."""
    scores = (query @ key.transpose(-1, -2)).mul_(scale)
    if attn_mask is not None:
        scores += attn_mask
    return scores.softmax(dim=-1) @ value


class WholeStep(StepPass):
    """`StepPass` over all allocated columns: shapes change only with them, so a step can be compiled."""

    def __init__(self, layers: Sequence[Layer], columns: Tensor, *, dtype: torch.dtype) -> None:
        """`layers`: keys and values of the rows in use, (B, G, S, D); `columns`: length of each row, (B,)."""
        self.layers = layers
        self.columns = columns
        self.row_indices = torch.arange(columns.shape[0], device=columns.device)
        room = torch.arange(layers[0][0].shape[2], device=columns.device)
        self.mask = mask_later(room, columns, dtype)

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, G, 1, D), one column per row; return all columns, (B, G, S, D)."""
        keys, values = self.layers[layer]
        keys[self.row_indices, :, self.columns] = key[:, :, 0]
        values[self.row_indices, :, self.columns] = value[:, :, 0]
        return keys, values


def mask_later(room: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask (B, 1, 1, W) to add to scores: row i attends to the indices `room` up to `columns[i]`."""
    is_later = room > columns[:, None]
    mask = torch.zeros(is_later.shape, dtype=dtype, device=room.device)
    return mask.masked_fill(is_later, torch.finfo(dtype).min)[:, None, None]


def are_own_quicker(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """True if torch's own matrix products beat oneDNN's for a single row; `width`: the hidden size.

    Measured in bf16 on a CPU: 1.6 times as fast with the same error. With AMX, 1.1 to 2 times for widths up
    to 768, but 0.8 times from 2,048 on.
    """
    is_large_for_tiles = width > SMALL_WIDTH and cpu_has("amx_bf16")
    return dtype == torch.bfloat16 and device.type == "cpu" and not is_large_for_tiles


@contextmanager
def own_products(are_wanted: bool) -> Iterator[None]:
    """Inside, linear layers use torch's own matrix products, not oneDNN's, if `are_wanted`.

    The switch belongs to the process: products of another thread may be switched meanwhile, too.
    """
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = before and not are_wanted
    try:
        yield
    finally:
        onednn.enabled = before
