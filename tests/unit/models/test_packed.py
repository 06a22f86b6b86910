"""The ways to attend by row, each against plain attention under a mask over all rows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from closeness import ROUNDING, assert_close
from glmtune.models import packed, row_attention, varlen
from glmtune.models.fused import split_and_rotate
from glmtune.models.packed import Rows, attend_by_row, attend_in_loop

BOUNDS = (0, 7, 8, 20, 33)
CONTEXTS = (3, 0, 11, 1)
HALF = (torch.float16, torch.bfloat16)


def tensors(
    heads: int, groups: int, num_prefix: int, dtype: torch.dtype, device: str = "cpu", size: int = 8
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries (1, H, T, D) and keys and values as one projection makes them, not contiguous; and a prefix."""
    draw = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).to(device)

    joint = made(1, BOUNDS[-1], heads + 2 * groups, size).transpose(1, 2)
    query, key, value = joint.split((heads, groups, groups), dim=1)
    prefix = made(2, len(BOUNDS) - 1, groups, num_prefix, size) if num_prefix else None
    return query, key, value, prefix


def under_a_mask(
    query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None, contexts: tuple[int, ...]
) -> Tensor:
    """Attention as it is defined, over all rows at once with a mask that keeps them apart: (1, T, H, D)."""
    width = 0 if prefix is None else prefix.shape[-2]
    repeats = query.shape[1] // key.shape[1]
    total = query.shape[2]
    seen = torch.zeros(total, len(contexts) * width + total, dtype=torch.bool, device=query.device)
    for i, (start, end) in enumerate(pairwise(BOUNDS)):
        seen[start:end, i * width : (i + 1) * width] = True
        for t in range(start, end):
            last = max(t + 1, start + contexts[i])
            seen[t, len(contexts) * width + start : len(contexts) * width + last] = True
    if prefix is not None:
        front_keys, front_values = (x.transpose(0, 1).flatten(1, 2)[None] for x in prefix)
        key, value = torch.cat((front_keys, key), dim=2), torch.cat((front_values, value), dim=2)
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


def results(attend: Any, parts: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The result and the gradients of all inputs, under a gradient that differs from place to place."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in parts]
    out = attend(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    (out * weights.view_as(out)).sum().backward()
    return [out, *(x.grad for x in leaves if x is not None and x.grad is not None)]


SHAPES = [(4, 4, 0), (4, 2, 0), (6, 1, 0), (4, 2, 5), (4, 4, 1)]


@pytest.mark.parametrize("contexts", [(), CONTEXTS])
@pytest.mark.parametrize(("heads", "groups", "num_prefix"), SHAPES)
@pytest.mark.parametrize("way", ["whole", "blocks", "loop"])
def test_each_row_attends_to_itself_its_prefix_and_its_context(
    way: str,
    heads: int,
    groups: int,
    num_prefix: int,
    contexts: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "blocks":  # of at most five queries
        monkeypatch.setattr(row_attention, "BLOCK_SCORES", 0)
        monkeypatch.setattr(row_attention, "FEWEST_QUERIES", 5)
    parts = tensors(heads, groups, num_prefix, torch.float64)

    def ours(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None) -> Tensor:
        rows, scaling = Rows(BOUNDS, contexts), query.shape[-1] ** -0.5
        if way == "loop":
            front = prefix
            return attend_in_loop(query[0], key[0], value[0], front, rows, scaling)[None]
        return attend_by_row(nn.Module(), query, key, value, None, scaling, rows=rows, prefix=prefix)[0]

    expected = results(lambda *xs: under_a_mask(*xs, contexts or (0,) * 4), parts)
    assert_close(results(ours, parts), expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "groups", "num_prefix"), SHAPES)
def test_half_precision_is_rounded_once_at_the_end(
    dtype: torch.dtype, heads: int, groups: int, num_prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed in fp32 from the same numbers: result and gradients are off by the last rounding alone."""
    monkeypatch.setattr(row_attention, "BLOCK_SCORES", 0)
    monkeypatch.setattr(row_attention, "FEWEST_QUERIES", 5)
    parts = tensors(heads, groups, num_prefix, dtype)

    def ours(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None) -> Tensor:
        rows = Rows(BOUNDS, CONTEXTS)
        return attend_by_row(nn.Module(), query, key, value, None, 8**-0.5, rows=rows, prefix=prefix)[0]

    exact = tuple(None if x is None else x.double() for x in parts)
    expected = results(lambda *xs: under_a_mask(*xs, CONTEXTS), exact)
    found = results(ours, parts)
    assert {x.dtype for x in found} == {dtype}
    # the gradient is rounded before, as an input
    assert_close([x.double() for x in found], expected, share=4 * torch.finfo(dtype).eps)


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """The sizes of what autograd keeps for the backward pass, by where it lies."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield kept


def test_a_graph_keeps_queries_keys_and_values_once() -> None:
    query, key, value, _ = tensors(4, 2, 0, torch.bfloat16)
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    # as rotation leaves queries and keys: of their own; values are a part of the projection's result
    projected = (torch.cat([x.transpose(1, 2) for x in leaves], dim=2) * 1).transpose(1, 2)
    value = projected[:, 6:]
    with kept_bytes() as kept:
        attend_by_row(nn.Module(), leaves[0], leaves[1], value, None, 1.0, rows=Rows(BOUNDS))
    tokens = BOUNDS[-1] * 8 * 2  # of one head in bf16
    assert sum(kept.values()) == (4 + 2 + 2) * tokens


def test_a_graph_keeps_queries_keys_and_values_that_lie_in_one_tensor_once_too() -> None:
    """As the rotation of ChatGLM2, ChatGLM3 and GLM-4 leaves them: parts of one copy of the projection."""
    heads, groups, size = 4, 2, 8
    tokens = BOUNDS[-1]
    projected = torch.randn(1, tokens, (heads + 2 * groups) * size, requires_grad=True)
    cos, sin = torch.ones(1, 1, tokens, size), torch.zeros(1, 1, tokens, size)
    query, key, value = split_and_rotate(projected, cos, sin, (heads, groups))
    with kept_bytes() as kept:
        attend_by_row(nn.Module(), query, key, value, None, 1.0, rows=Rows(BOUNDS))
    assert sum(kept.values()) == projected.nbytes


class FakeKernel:
    """torch's `varlen_attn` by its documentation, in a loop: the triangle of a row ends at its last key."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        """Queries (T, H, D), keys and values (S, G, D), ends (N + 1,) in int32."""
        assert window_size == (-1, 0)
        assert enable_gqa == (key.shape[1] != query.shape[1])
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        self.calls.append({"max_q": max_q, "max_k": max_k})
        rows = []
        for (start, end), (first, last) in zip(
            pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True
        ):
            q, k, v = (x.transpose(0, 1) for x in (query[start:end], key[first:last], value[first:last]))
            assert q.shape[1] <= max_q
            assert k.shape[1] <= max_k
            k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
            seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
            scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -math.inf)
            rows.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
        return torch.cat(rows)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel()
    monkeypatch.setattr(varlen, "_kernel", lambda: fake)
    yield fake


@pytest.mark.parametrize(("heads", "groups", "num_prefix"), SHAPES)
def test_the_kernel_for_all_rows_is_given_what_makes_it_attend_by_row(
    kernel: FakeKernel, heads: int, groups: int, num_prefix: int
) -> None:
    parts = tensors(heads, groups, num_prefix, torch.float64)

    def ours(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None) -> Tensor:
        return varlen.attend_varlen(query[0], key[0], value[0], prefix, BOUNDS, 8**-0.5)[None]

    assert_close(results(ours, parts), results(lambda *xs: under_a_mask(*xs, (0,) * 4), parts))
    assert kernel.calls == [{"max_q": 13, "max_k": 13 + num_prefix}]


def test_ends_kept_from_an_evaluation_serve_training() -> None:
    varlen._ends.cache_clear()
    with torch.inference_mode():
        kept = varlen._ends(BOUNDS, 0, torch.device("cpu"))
    assert varlen._ends(BOUNDS, 0, torch.device("cpu")) is kept
    assert not kept.is_inference()


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("capability", "dtype", "size", "dropout", "is_taken"),
    [
        ((8, 0), torch.bfloat16, 64, 0.0, True),
        ((9, 0), torch.float16, 128, 0.0, True),
        ((7, 5), torch.float16, 64, 0.0, False),
        ((8, 0), torch.float32, 64, 0.0, False),
        ((8, 0), torch.bfloat16, 64, 0.1, False),
        ((8, 0), torch.bfloat16, 20, 0.0, False),
        ((8, 0), torch.bfloat16, 512, 0.0, False),
    ],
)
def test_a_card_takes_the_kernel_from_ampere_on_in_half_precision(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    size: int,
    dropout: float,
    is_taken: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    query = torch.zeros(1, 2, 3, size, dtype=dtype).as_subclass(OnCuda)
    assert varlen.can_varlen(query, query, dropout) is is_taken
    monkeypatch.setattr(varlen, "_kernel", lambda: None)
    assert not varlen.can_varlen(query, query, dropout)


def test_an_older_torch_without_the_kernel_or_its_window_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen._kernel.cache_clear()
    assert varlen._kernel() is not None  # the pinned torch has it

    class Older:
        @staticmethod
        def varlen_attn(query: Tensor, key: Tensor, *, is_causal: bool = False, scale: float = 1.0) -> None:
            """Torch 2.10's."""

    for module in (Older, None):
        varlen._kernel.cache_clear()
        monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", module)
        assert varlen._kernel() is None
    varlen._kernel.cache_clear()


def test_rows_with_a_context_or_dropout_go_through_the_loop(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "can_attend_rows", lambda *_: False)
    monkeypatch.setattr(packed, "can_varlen", lambda *_: True)
    query, key, value, _ = tensors(4, 2, 0, torch.float64)
    for contexts, calls in ((CONTEXTS, 0), ((), 1)):
        out, _ = attend_by_row(nn.Module(), query, key, value, None, 8**-0.5, rows=Rows(BOUNDS, contexts))
        assert len(kernel.calls) == calls
        assert_close(out, under_a_mask(query, key, value, None, contexts or (0,) * 4))


def test_attention_dropout_drops_inside_rows_and_its_mean_is_the_attention() -> None:
    query, key, value, _ = tensors(4, 2, 0, torch.float64)
    torch.manual_seed(0)

    def drawn() -> Tensor:
        return attend_by_row(nn.Module(), query, key, value, None, 8**-0.5, 0.3, rows=Rows(BOUNDS))[0]

    mean = torch.stack([drawn() for _ in range(400)]).mean(0)
    expected = under_a_mask(query, key, value, None, (0,) * 4)
    assert_close(mean, expected, share=0.2)
    assert not torch.equal(drawn(), drawn())


def test_a_pass_that_tells_no_rows_is_refused() -> None:
    query, key, value, _ = tensors(4, 2, 0, torch.float64)
    with pytest.raises(RuntimeError, match="not told its rows"):
        attend_by_row(nn.Module(), query, key, value, None, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "groups", "num_prefix"), [(4, 4, 0), (8, 2, 0), (8, 2, 5)])
def test_a_gpu_attends_by_row(dtype: torch.dtype, heads: int, groups: int, num_prefix: int) -> None:
    """On its own way, whichever that is, and in the loop; both as under a mask in fp64."""
    parts = tensors(heads, groups, num_prefix, dtype, "cuda", size=64)
    rows = Rows(BOUNDS)

    def own(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None) -> Tensor:
        return attend_by_row(nn.Module(), query, key, value, None, 0.125, rows=rows, prefix=prefix)[0]

    def loop(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None) -> Tensor:
        return attend_in_loop(query[0], key[0], value[0], prefix, rows, 0.125)[None]

    exact = tuple(None if x is None else x.double() for x in parts)
    expected = results(lambda *xs: under_a_mask(*xs, (0,) * 4), exact)
    for way in (own, loop):
        assert_close([x.double() for x in results(way, parts)], expected, share=ROUNDING[dtype])
