"""Products with frozen weights, block by block: the whole weight's, in little memory, on any thread."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from closeness import ROUNDING, assert_close
from glmtune.models import frozen_linear
from glmtune.models.frozen_linear import (
    HELD_ROWS,
    FrozenLinear,
    HeldLinear,
    decoding_step,
    hurry_few_rows,
    multiply,
    multiply_back,
)
from glmtune.models.nf4 import Nf4Linear
from glmtune.models.quant import QuantizedLinear, unpack

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
OUTPUTS, INPUTS = 200, 192
"""Neither is a whole number of blocks, of which the fixture makes several."""
NUM_BLOCKS = 4  # of 64 rows; of columns three

KINDS: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "bf16": lambda dense: HeldLinear(dense.bfloat16()),
    "fp16": lambda dense: HeldLinear(dense.half()),
    "fp32": HeldLinear,
    "plain bf16": lambda dense: dense.bfloat16(),
    "int8": lambda dense: QuantizedLinear(dense.half(), 8),
    "int8, bf16 scales": lambda dense: QuantizedLinear(dense.bfloat16(), 8),
    "int4": lambda dense: QuantizedLinear(dense.half(), 4),
    "int4, bf16 scales": lambda dense: QuantizedLinear(dense.bfloat16(), 4),
    "int4, fp32 scales": lambda dense: QuantizedLinear(dense, 4),
    "int4, fp64 scales": lambda dense: QuantizedLinear(dense.double(), 4),
    "nf4": Nf4Linear,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
FROZEN = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain bf16"])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of the least size, in buffers of their own."""
    monkeypatch.setattr(frozen_linear, "BLOCK_BYTES", 1)
    monkeypatch.setattr(frozen_linear, "_buffers", frozen_linear._Buffers())
    yield


def layer_of(kind: str, *, outputs: int = OUTPUTS, inputs: int = INPUTS, bias: bool = True) -> Any:
    torch.manual_seed(outputs + inputs)
    return KINDS[kind](nn.Linear(inputs, outputs, bias=bias)).requires_grad_(False)


def worth(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The whole weight in `dtype`, by the arithmetic that the formats' own texts give."""
    if isinstance(layer, Nf4Linear):
        return layer.dequantise(FP32 if dtype == FP64 else dtype).to(dtype)
    if isinstance(layer, QuantizedLinear):
        codes = layer.weight.data if layer.bits == 8 else unpack(layer.weight.data)
        return (codes.to(layer.weight_scale.dtype) * layer.weight_scale[:, None]).to(dtype)
    return layer.weight.detach().to(dtype)


def in_fp64(layer: nn.Linear, rows: Tensor) -> Tensor:
    weight, bias = worth(layer, rows.dtype), None if layer.bias is None else layer.bias.to(rows.dtype)
    return functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())


# The numbers


@FROZEN
@DTYPES
@pytest.mark.usefixtures("small_blocks")
def test_blocks_put_together_are_the_weight_to_the_last_bit(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind)
    expected = worth(layer, dtype)
    by_rows, by_columns = (
        [(part, block.clone()) for part, block in frozen_linear.blocks(layer, dtype, is_by_rows=is_by_rows)]
        for is_by_rows in (True, False)
    )
    assert len(by_rows) == NUM_BLOCKS
    assert len(by_columns) == NUM_BLOCKS - 1
    assert torch.equal(torch.cat([block for _, block in by_rows]), expected)
    assert torch.equal(torch.cat([block for _, block in by_columns], dim=1), expected)
    assert torch.equal(layer.whole(dtype), expected)


@pytest.mark.parametrize(
    "kind", ["int8", "int4", "int4, bf16 scales", "int4, fp32 scales", "int4, fp64 scales"]
)
@DTYPES
def test_wide_rows_are_worth_the_same(kind: str, dtype: torch.dtype) -> None:
    """Of 1,024 weights and more, int4 rows have tables of their own."""
    layer = layer_of(kind, outputs=131, inputs=1030)
    layer.weight_scale.data[0] = 0
    layer.weight_scale.data[1] = torch.finfo(FP16).smallest_normal / 2
    assert torch.equal(layer.whole(dtype), worth(layer, dtype))


@EVERY_KIND
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_products_by_blocks_are_the_whole_weight_s(kind: str, dtype: torch.dtype, bias: bool) -> None:
    layer = layer_of(kind, bias=bias)
    rows, gradient = torch.randn(5, INPUTS, dtype=dtype), torch.randn(5, OUTPUTS, dtype=dtype)
    product, back = multiply(layer, rows), multiply_back(layer, gradient)
    assert product.dtype == back.dtype == dtype
    assert_close(product, in_fp64(layer, rows).to(dtype))
    assert_close(back, (gradient.double() @ worth(layer, dtype).double()).to(dtype))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.usefixtures("small_blocks")
def test_a_width_of_any_pairs_will_do(kind: str) -> None:
    layer = layer_of(kind, outputs=67, inputs=146)
    rows = torch.randn(3, 146)
    assert_close(multiply(layer, rows), in_fp64(layer, rows).float())
    assert_close(multiply_back(layer, torch.eye(67)), worth(layer, FP32))


def test_a_layer_that_fits_into_a_block_is_one() -> None:
    assert len(list(frozen_linear.blocks(layer_of("int4"), FP32, is_by_rows=True))) == 1


@FROZEN
@DTYPES
@pytest.mark.usefixtures("small_blocks")
def test_gradients_are_those_of_the_whole_weight(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind)
    layer.bias.requires_grad_()
    rows = torch.randn(2, 3, INPUTS, dtype=dtype, requires_grad=True)
    seed = torch.randn(2, 3, OUTPUTS, dtype=dtype)
    layer(rows).backward(seed)
    assert_close(rows.grad, (seed.double() @ worth(layer, dtype).double()).to(dtype))
    assert layer.bias.grad.dtype == layer.bias.dtype
    narrower = max(ROUNDING[dtype], ROUNDING[layer.bias.dtype])
    assert_close(layer.bias.grad, seed.double().sum((0, 1)).to(layer.bias.dtype), share=narrower)


@FROZEN
def test_a_second_derivative_is_refused_rather_than_zero(kind: str) -> None:
    rows = torch.randn(2, INPUTS, requires_grad=True)
    (first,) = torch.autograd.grad(layer_of(kind)(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# Few rows


@FROZEN
@pytest.mark.parametrize("num_rows", [1, HELD_ROWS, 20])
def test_few_rows_of_fp32_are_exact_but_in_a_step_of_a_hurried_model(kind: str, num_rows: int) -> None:
    layer, rows = layer_of(kind), torch.randn(num_rows, INPUTS)
    with torch.no_grad(), decoding_step():
        assert torch.equal(layer(rows), multiply(layer, rows))
        assert_close(layer(rows), in_fp64(layer, rows).float())
    hurry_few_rows(nn.Sequential(layer))
    with torch.no_grad():  # a prompt, a loss, a proof
        assert torch.equal(layer(rows), multiply(layer, rows))
        with decoding_step():
            assert_close(layer(rows), in_fp64(layer, rows).float(), share=ROUNDING[BF16])
    with torch.enable_grad(), decoding_step():  # training is exact in any case
        assert torch.equal(layer(rows), multiply(layer, rows))


@pytest.mark.parametrize(("kind", "most"), [("bf16", HELD_ROWS), ("int8", 16), ("int4", 16)])
@torch.no_grad()
def test_few_rows_are_multiplied_in_the_held_type_where_that_is_quicker(kind: str, most: int) -> None:
    layer = layer_of(kind, outputs=208)
    hurry_few_rows(layer)
    for num_rows, is_rounded in ((most, True), (most + 1, False)):
        rows = torch.randn(num_rows, INPUTS)
        with decoding_step():
            assert torch.equal(layer(rows), multiply(layer, rows)) != is_rounded


@torch.no_grad()
def test_a_step_hurries_its_own_thread_alone_and_ends_with_an_error() -> None:
    layer, rows = layer_of("bf16"), torch.randn(1, INPUTS)
    hurry_few_rows(layer)
    exact, beside = multiply(layer, rows), []

    def measure_loss() -> None:
        with torch.no_grad():  # the switch of gradients belongs to a thread, too
            beside.append(layer(rows))

    with pytest.raises(KeyError), decoding_step():
        with decoding_step():
            pass
        assert not torch.equal(layer(rows), exact)  # still inside the outer one
        other = threading.Thread(target=measure_loss)
        other.start()
        other.join()
        raise KeyError
    assert torch.equal(beside[0], exact)
    assert torch.equal(layer(rows), exact)


# Memory


class Sizes(TorchDispatchMode):
    """Keeps the size of the largest tensor that operations make, in memory other than a layer's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.known = {held.untyped_storage().data_ptr() for held in layer.parameters()}
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest_bytes = max(self.largest_bytes, tensor.untyped_storage().nbytes())
        return result


@EVERY_KIND
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.usefixtures("small_blocks")
def test_no_product_makes_more_than_a_block_of_the_weight(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind, outputs=1024, inputs=1024, bias=False)
    is_fp64 = getattr(layer, "weight_scale", layer.weight).dtype == FP64  # expanded through fp64
    block_bytes = 64 * 1024 * (8 if is_fp64 else 4)
    rows = torch.randn(4, 1024, dtype=dtype)
    for product in (multiply, multiply_back):
        with Sizes(layer) as seen:
            product(layer, rows)
        assert rows.nbytes <= seen.largest_bytes <= block_bytes


@FROZEN
def test_no_weight_is_kept_for_the_backward_pass(kind: str) -> None:
    kept: list[Tensor] = []
    layer = layer_of(kind)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        layer(torch.randn(2, INPUTS, requires_grad=True))
    assert not kept


# Where it is used


@FROZEN
def test_a_buffer_made_in_inference_serves_training(kind: str, small_blocks: None) -> None:
    layer, rows = layer_of(kind), torch.randn(70, INPUTS, requires_grad=True)
    with torch.inference_mode():
        answer = layer(rows)
    product = layer(rows)
    product.sum().backward()
    assert torch.equal(product, answer)
    assert_close(rows.grad, worth(layer, FP32).sum(0).expand(70, -1))


@pytest.mark.usefixtures("small_blocks")
def test_threads_do_not_share_a_buffer() -> None:
    layers = [layer_of(kind, outputs=320) for kind in ("bf16", "int8", "int4", "nf4")]
    rows = torch.randn(64, INPUTS)
    expected = [multiply(layer, rows) for layer in layers]
    wrong: list[str] = []
    together = threading.Barrier(len(layers))

    def work(layer: FrozenLinear, product: Tensor) -> None:
        together.wait()
        wrong.extend(str(layer) for _ in range(50) if not torch.equal(multiply(layer, rows), product))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(layers, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@FROZEN
def test_autocast_decides_the_type_of_the_layer_and_not_of_the_bare_product(kind: str) -> None:
    layer, rows = layer_of(kind), torch.randn(3, INPUTS, requires_grad=True)
    with torch.autocast("cpu", dtype=BF16):
        product, bare = layer(rows), multiply(layer, rows)
        product.sum().backward()
    assert (product.dtype, bare.dtype, rows.grad.dtype) == (BF16, FP32, FP32)
    assert_close(bare, in_fp64(layer, rows).float())
    assert_close(product, in_fp64(layer, rows.bfloat16()).bfloat16())
    assert_close(rows.grad, worth(layer, FP32).sum(0).expand(3, -1), share=ROUNDING[BF16])


@FROZEN
def test_copies_and_pickles_compute_the_same(kind: str) -> None:
    layer, rows = layer_of(kind), torch.randn(3, INPUTS)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(rows), layer(rows))


def test_a_dense_layer_s_names_stay_when_it_is_held() -> None:
    dense = nn.Linear(4, 6).bfloat16()
    layer = HeldLinear(dense)
    assert layer.state_dict().keys() == dense.state_dict().keys()
    assert layer.weight is dense.weight
    assert layer.float().weight.dtype == FP32
