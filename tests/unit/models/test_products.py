"""Multiplying codes as they are: as exact as expanding them, and only where nothing is to be learned."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from glmtune.models.frozen_linear import multiply
from glmtune.models.products import MOST_ROWS, decoding_bytes, find_kernel
from glmtune.models.quant import QuantizedLinear


def layer_of(bits: int, *, inputs: int = 512, outputs: int = 96, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear(nn.Linear(inputs, outputs, bias=bias).bfloat16(), bits).eval()


def exact(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """In fp64, of the weight that codes and scales are worth before any rounding."""
    codes = (
        layer.weight if layer.bits == 8 else torch.stack((layer.weight >> 4, (layer.weight << 4) >> 4), -1)
    )
    weight = codes.flatten(1).double() * layer.weight_scale.double()[:, None]
    product = x.double() @ weight.T
    return product if layer.bias is None else product + layer.bias.double()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [512, 96])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_codes_is_as_exact_as_one_of_expanded_weights(
    bits: int, inputs: int, bias: bool
) -> None:
    layer = layer_of(bits, inputs=inputs, bias=bias)
    x = torch.randn(2, 3, inputs).bfloat16()
    with torch.no_grad():
        by_codes = layer(x)
        assert layer._kernel
        assert layer._kernel[1]
    expanded = layer(x.detach().requires_grad_()).detach()
    wanted = exact(layer, x)
    assert error(by_codes, wanted) < 1.5 * error(expanded, wanted)
    assert by_codes.dtype == torch.bfloat16
    assert by_codes.shape == expanded.shape


@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernel_is_for_few_rows_in_bf16_without_gradients(bits: int) -> None:
    layer = layer_of(bits)
    few, many = torch.randn(MOST_ROWS[bits], 512).bfloat16(), torch.randn(MOST_ROWS[bits] + 1, 512).bfloat16()
    layer(few)
    with torch.no_grad():
        layer(many)
        layer(few.float())
    assert layer._kernel is None
    with torch.no_grad():
        layer(few)
    assert layer._kernel


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 96), (64, 100)])
def test_int4_of_a_size_that_no_kernel_takes_is_expanded(inputs: int, outputs: int) -> None:
    layer = layer_of(4, inputs=inputs, outputs=outputs)
    x = torch.randn(1, inputs).bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(x), multiply(layer, x))
        assert layer._kernel
        assert layer._kernel[1] is None
        assert error(layer(x), exact(layer, x)) < 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("way", ["replaced", "in place"])
@torch.no_grad()
def test_other_codes_are_noticed(bits: int, way: str) -> None:
    layer, x = layer_of(bits), torch.randn(1, 512).bfloat16()
    layer(x)
    torch.manual_seed(7)
    if way == "replaced":
        layer.fill(torch.randn(96, 512).bfloat16(), torch.device("cpu"))
    else:
        other = QuantizedLinear(nn.Linear(512, 96).bfloat16(), bits)
        layer.load_state_dict(other.state_dict())
    assert error(layer(x), exact(layer, x)) < 0.01


@torch.no_grad()
def test_a_copy_has_a_kernel_of_its_own_codes() -> None:
    layer, x = layer_of(4), torch.randn(1, 512).bfloat16()
    layer(x)
    copied = deepcopy(layer)
    assert copied._kernel is None
    assert torch.equal(copied(x), layer(x))


@torch.no_grad()
def test_training_lets_the_kernel_go() -> None:
    layer = layer_of(4)
    layer(torch.randn(1, 512).bfloat16())
    layer.train()
    assert layer._kernel is None


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 512), (96, 96), (90, 512), (96, 100)])
def test_the_bytes_of_kernels_are_known_before_they_are_made(outputs: int, inputs: int) -> None:
    codes = torch.ones(outputs, inputs, dtype=torch.int8)
    kernel = find_kernel(codes, 4)
    making = 5 * codes.numel()  # int8 and int32
    expected = kernel.codes.nbytes + kernel.ones.nbytes + making if kernel else 0
    assert decoding_bytes([(outputs, inputs, 4)]) == expected
    assert decoding_bytes([(outputs, inputs, 4)] * 3) == (3 * (expected - making) + making if kernel else 0)
    assert decoding_bytes([(outputs, inputs, 8)]) == 0
