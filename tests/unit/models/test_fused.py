"""The fused functions against the operations they are made of: same numbers, fewer kept tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from closeness import ROUNDING, assert_close
from glmtune.models import ChatGLMConfig, fused
from glmtune.models.chatglm2_layers import ChatGLMRotary, rotate_pairs
from glmtune.models.fused import rms_norm, split_and_rotate, swiglu

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EXACT = [torch.float64, torch.float32]
NUM_HEADS, HEAD_DIM, TOKENS = (4, 2), 16, 7  # 4 query heads, 2 key/value heads


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps for the backward pass."""
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (found.append(x), x)[1], lambda x: x):
        yield found


def gradients(function: Callable[..., Any], *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of a function, and gradients of the inputs for an arbitrary gradient of the outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    weights = [draw(*out.shape, dtype=out.dtype, seed=9 + i) for i, out in enumerate(outputs)]
    return outputs, list(torch.autograd.grad(outputs, leaves, weights))


def plain_swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate) * up


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return (weight * wide).to(x.dtype)


def angles(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    config = ChatGLMConfig(hidden_size=64, num_attention_heads=4, kv_channels=HEAD_DIM)
    cos, sin = ChatGLMRotary(config)(torch.arange(3, 3 + TOKENS)[None], dtype)
    return cos, sin


def plain_split(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = projected.view(*projected.shape[:2], -1, HEAD_DIM).transpose(1, 2)
    queries, keys = NUM_HEADS
    rotated = rotate_pairs(heads[:, : queries + keys], angles(projected.dtype))
    return rotated[:, :queries], rotated[:, queries:], heads[:, queries + keys :]


def our_split(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split_and_rotate(projected, *angles(projected.dtype), NUM_HEADS)


def projection(dtype: torch.dtype) -> Tensor:
    return draw(1, TOKENS, (4 + 2 * 2) * HEAD_DIM, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_is_silu_of_the_gate_times_up(dtype: torch.dtype) -> None:
    both = draw(2, 5, 24, dtype=dtype)
    ours, theirs = gradients(swiglu, both), gradients(plain_swiglu, both)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)  # the same operations in fewer passes


def test_swiglu_keeps_the_projection_alone() -> None:
    both = draw(2, 5, 24).requires_grad_()
    with kept() as tensors:
        swiglu(both)
    assert [t.data_ptr() for t in tensors] == [both.data_ptr()]


@pytest.mark.parametrize("numbers_at_once", [1, 70, 2**17])
@pytest.mark.parametrize("held", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_that_of_its_formula(
    dtype: torch.dtype, held: torch.dtype, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_NUMBERS_AT_ONCE", numbers_at_once)
    x, weight = draw(2, 5, 32, dtype=dtype), draw(32, dtype=held, seed=1)
    (out,), ours = gradients(lambda x, w: rms_norm(x, w, 1e-5), x, weight)
    (expected,), theirs = gradients(plain_norm, x, weight)
    share = ROUNDING[min(dtype, held, key=lambda kind: torch.finfo(kind).bits)]
    if held.itemsize <= dtype.itemsize or dtype == torch.bfloat16:
        assert_close(out, expected, share=0 if held != torch.float64 else share)
    for gradient, oracle, like in zip(ours, theirs, (x, weight), strict=True):
        assert gradient.dtype == like.dtype
        assert_close(gradient, oracle, share=share)


def test_a_frozen_norm_keeps_its_input_and_a_number_a_token() -> None:
    x, weight = draw(2, 5, 32).requires_grad_(), draw(32)
    with kept() as tensors:
        rms_norm(x, weight, 1e-5)
    sizes = {t.data_ptr(): t.numel() for t in tensors}
    assert sizes.pop(x.data_ptr()) == x.numel()
    assert sizes.pop(weight.data_ptr()) == 32
    assert list(sizes.values()) == [10]


@pytest.mark.parametrize("dtype", EXACT)
def test_heads_are_split_and_rotated_as_in_single_steps(dtype: torch.dtype) -> None:
    ours, gradient = gradients(our_split, projection(dtype))
    theirs, oracle = gradients(plain_split, projection(dtype))
    assert_close(ours, theirs)
    torch.testing.assert_close(ours[2], theirs[2], rtol=0, atol=0)  # values are not rotated
    assert_close(gradient, oracle)


def test_in_a_half_type_the_rotation_is_rounded_once() -> None:
    cos, sin = angles(torch.bfloat16)
    exact = split_and_rotate(projection(torch.bfloat16).float(), cos.float(), sin.float(), NUM_HEADS)
    ours = our_split(projection(torch.bfloat16))
    torch.testing.assert_close(ours, tuple(x.bfloat16() for x in exact), rtol=0, atol=0)


def test_splitting_keeps_nothing_of_the_projection() -> None:
    projected = projection(torch.float32).requires_grad_()
    with kept() as tensors:
        heads = our_split(projected)
    cos, sin = angles(torch.float32)
    assert sum(t.numel() for t in tensors) == cos.numel() + sin.numel()
    assert not {x.untyped_storage().data_ptr() for x in heads} & {projected.untyped_storage().data_ptr()}


def test_under_autocast_gradients_have_the_types_of_what_they_are_of() -> None:
    x, weight = draw(3, 5, 32, dtype=torch.float32), torch.ones(32)
    with torch.autocast("cpu", torch.bfloat16):
        _, (to_x, to_weight) = gradients(lambda x, w: rms_norm(x, w, 1e-5), x, weight)
        _, (to_both,) = gradients(swiglu, x.bfloat16())
    assert (to_x.dtype, to_weight.dtype, to_both.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    _, expected = gradients(plain_norm, x, weight)
    assert_close([to_x, to_weight], expected)
