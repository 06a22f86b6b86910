"""Attention over rows that are concatenated without padding: each row for itself, and never a mask over all.

A micro-batch of N rows goes through the model as one row of T tokens. Everything but the attention treats
each token alone; the attention is `attend_by_row`, registered with transformers as `BY_ROW`, so that its
classes and ours call it alike and hand it the rows' bounds as a keyword argument.

Shapes: N rows, T tokens of all rows, t of one row, P prefix tokens, H query heads, G key/value heads,
R = H / G, D head size, S keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.positions import positions_of
from glmtune.models.protocol import CausalLM
from glmtune.models.row_attention import RowAttention, can_attend_rows
from glmtune.models.varlen import attend_varlen, can_varlen
from glmtune.models.wrapped import causal_of

BY_ROW = "glmtune_rows"
"""Name of the attention; transformers acts on 'sdpa', 'flash' and 'flex' in one, and makes this no mask."""


@dataclass(slots=True)
class Rows:
    """The rows of a packed micro-batch, as the attention of every layer is told them."""

    bounds: tuple[int, ...]
    """The rows' first tokens, then the last row's end: 0, ..., T; N + 1 numbers."""
    contexts: tuple[int, ...] = ()
    """The number of each row's first tokens that all of the row see (ChatGLM-6B's context); () for none."""
    num_reads: int = 0
    """Layers that have attended by these rows so far."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [end - start for start, end in pairwise(self.bounds)]


class ByRow:
    """Has a model attend by row, from a packed forward pass to the end of its backward pass."""

    def __init__(self, model: CausalLM) -> None:
        """Take a causal language model, also in PEFT's wrapper; its config is changed in contexts alone."""
        self._model = model
        self._is_held = False

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Hold the attention that packed passes set, and set the model's own again at the end of the block.

        Until the first packed pass it is the model's own: an objective may run the model in a way of its own.
        Gradient checkpointing runs layers again in the backward pass and reads the attention's name anew:
        with the model's own they would attend across rows, without an error.
        """
        before, self._is_held = self._is_held, True
        try:
            with self._resetting():
                yield
        finally:
            self._is_held = before

    def run(self, rows: Rows, input_ids: Tensor, position_ids: Tensor, keep: Tensor) -> Tensor:
        """Return the last hidden states (L, C) of the tokens at `keep` (L,), of packed ids (T,).

        position_ids: (..., T). Raises RuntimeError where a backward pass could not be by row.
        """
        if self._is_held:
            return self._run(rows, input_ids, position_ids, keep)
        if torch.is_grad_enabled() and any(map(_is_recomputed, self._model.modules())):
            raise RuntimeError("layers are computed again in the backward pass: hold `passes()` around both")
        with self._resetting():
            return self._run(rows, input_ids, position_ids, keep)

    def _run(self, rows: Rows, input_ids: Tensor, position_ids: Tensor, keep: Tensor) -> Tensor:
        base = causal_of(self._model).base_model
        base.config._attn_implementation = BY_ROW
        is_kept = len(keep) and any(isinstance(part, Keeping) for part in base.modules())
        wanted = {"keep": keep} if is_kept else {}
        # without a mask, which would be over all rows, and without a cache, which has no rows
        outputs = base(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, rows=rows, **wanted
        )
        hidden: Tensor = outputs.last_hidden_state[0]
        if rows.num_reads < base.config.num_hidden_layers:
            raise RuntimeError(f"{type(base).__name__}: not all layers attend by row, but {rows.num_reads}")
        return hidden if wanted else hidden[keep]

    @contextmanager
    def _resetting(self) -> Iterator[None]:
        config = causal_of(self._model).base_model.config
        before = config._attn_implementation
        try:
            yield
        finally:
            config._attn_implementation = before


class Keeping:
    """Marks models, or their layers, that take `keep`: the positions (L,) to compute the last layer for."""


def _is_recomputed(module: nn.Module) -> bool:
    return (
        isinstance(module, GradientCheckpointingLayer) and module.training and module.gradient_checkpointing
    )


def count_positions_by_row(model: CausalLM, input_ids: Tensor, rows: Rows) -> Tensor:
    """Return the positions (..., T) of packed ids (T,), which each row counts for itself."""
    rule = positions_of(model)
    counted = [rule.count_positions(ids[None])[0][0] for ids in torch.split(input_ids, rows.lengths)]
    return torch.cat(counted, dim=-1)


def attend_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    rows: Rows | None = None,
    prefix: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend causally inside each row, with the signature of transformers' attention functions.

    query: (1, H, T, D). key, value: (1, G, T, D). prefix: the keys and values (2, N, G, P, D) that stand in
    front of each row's. Returns (1, T, H, D).
    """
    if rows is None or attention_mask is not None:
        raise RuntimeError(f"{BY_ROW}: {type(module).__name__} is not told its rows, or is given a mask too")
    rows.num_reads += 1
    # under autocast the rotation gives fp32, the projections, and so the values, half precision
    query, key = query.to(value.dtype), key.to(value.dtype)
    prefix = None if prefix is None else prefix.to(value.dtype)
    if can_attend_rows(query, value, dropout):
        context = RowAttention.apply(query[0], key[0], value[0], prefix, rows.bounds, rows.contexts, scaling)  # type: ignore[no-untyped-call]
    elif can_varlen(query, value, dropout) and not rows.contexts:
        context = attend_varlen(query[0], key[0], value[0], prefix, rows.bounds, scaling)
    else:
        context = attend_in_loop(query[0], key[0], value[0], prefix, rows, scaling, dropout)
    return context[None], None


def attend_in_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Tensor | None,
    rows: Rows,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attend row by row with torch's own attention, on any device: (H, T, D) to (T, H, D).

    A row has a mask (t, P + t) only if it has a prefix or a context.
    """
    parts = (torch.split(x, rows.lengths, dim=1) for x in (query, key, value))
    contexts = rows.contexts or (0,) * len(rows.lengths)
    attended = []
    for i, (q, k, v) in enumerate(zip(*parts, strict=True)):
        if prefix is not None:
            k, v = torch.cat((prefix[0, i], k), dim=1), torch.cat((prefix[1, i], v), dim=1)
        repeats = q.shape[0] // k.shape[0]
        out = functional.scaled_dot_product_attention(
            q[None],
            k.repeat_interleave(repeats, dim=0)[None],
            v.repeat_interleave(repeats, dim=0)[None],
            attn_mask=(mask := _mask_row(q, k, contexts[i])),
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
        )
        attended.append(out[0].transpose(0, 1))
    return torch.cat(attended)


def _mask_row(query: Tensor, key: Tensor, context: int) -> Tensor | None:
    """Return the mask (t, S) of a row, true = may see; None for the causal triangle alone."""
    new, width = query.shape[1], key.shape[1]
    if width == new and not context:
        return None
    columns = torch.arange(width, device=query.device)
    last = columns[width - new :, None].clamp(min=width - new + context - 1)
    return columns <= last


ALL_ATTENTION_FUNCTIONS.register(BY_ROW, attend_by_row)
