"""The fused products of int8 and int4 codes: in Triton's interpreter equal to expanded ones, and compiled."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from closeness import assert_close
from glmtune.models import triton_products
from glmtune.models.nf4 import Nf4Linear
from glmtune.models.quant import QuantizedLinear, quantise
from glmtune.models.triton_products import FEW_ROWS, MOST_ROWS, multiply_codes, multiply_codes_back
from glmtune.quants import BITS, QUANTS

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with PyTorch for CUDA")
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = [(1, 70, 66), (37, 96, 160), (130, 33, 34)]
"""Rows, outputs, inputs: within a block and over its edges."""

MULTIPLY = """
import json, sys
import torch
from glmtune.models.quant import dequantise, quantise
from glmtune.models.triton_kernels import multiply, multiply_back

torch.manual_seed(0)
answers = []
for bits, of_rows, of_scale, has_bias, (count, outputs, inputs) in json.loads(sys.argv[1]):
    kind, scale_kind = getattr(torch, of_rows), getattr(torch, of_scale)
    codes, scale = quantise(torch.randn(outputs, inputs) / 8, bits, scale_dtype=scale_kind)
    rows, gradient = torch.randn(count, inputs).to(kind), torch.randn(count, outputs).to(kind)
    bias = torch.randn(outputs).to(kind) if has_bias else None
    weight = dequantise(codes, scale, bits).to(kind)
    exact = rows.double() @ weight.double().t() + (bias.double() if has_bias else 0)
    pairs = [
        (multiply(rows, codes, scale, bias, bits), exact),
        (multiply_back(gradient, codes, scale, bits), gradient.double() @ weight.double()),
        # of unit vectors: the weight itself, whose rounding must be that of expanding, to the bit
        (multiply(torch.eye(inputs, dtype=kind), codes, scale, None, bits), weight.t()),
        (multiply_back(torch.eye(outputs, dtype=kind), codes, scale, bits), weight),
    ]
    answers.append([[x.float().tolist(), y.float().tolist()] for x, y in pairs])
print(json.dumps(answers))
"""


@needs_triton
@pytest.mark.parametrize("bits", [8, 4])
def test_products_in_the_interpreter_are_those_of_expanded_weights(bits: int) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    words = [str(dtype).removeprefix("torch.") for dtype in FLOATS.values()]
    cases = [(bits, rows, scale, shape[0] > 1, shape) for rows, scale, shape in product(words, words, SHAPES)]
    command = [sys.executable, "-c", MULTIPLY, json.dumps(cases)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
    )
    for (_, rows, *_), pairs in zip(cases, json.loads(done.stdout), strict=True):
        (y, exact), (to_rows, exact_to_rows), *weights = [[torch.tensor(x) for x in pair] for pair in pairs]
        share = max(1e-6, 2 * torch.finfo(getattr(torch, rows)).eps)  # fp32 sums in another order
        assert_close(y, exact, share=share)
        assert_close(to_rows, exact_to_rows, share=share)
        assert all(torch.equal(found, expected) for found, expected in weights)


COMPILE = """
import json, sys
import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from glmtune.models import triton_kernels as kernels

TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}

def build(is_back, bits, count, kind, scale):
    given = torch.empty(count, 8, dtype=getattr(torch, kind), device="meta")
    blocks = kernels._blocks(given, is_back=is_back)
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")}
    constants = {"BITS": bits, "PRECISION": "ieee", "IS_WIDE": False, **blocks}
    pointers = {"gradient" if is_back else "rows": TYPES[kind], "codes": "*i8", "scale": TYPES[scale]}
    if not is_back:
        constants["HAS_BIAS"] = True
        pointers["bias"] = TYPES[kind]
    signature = {**pointers, "out": TYPES[kind], "N": "i32", "O": "i32", "I": "i32"}
    source = ASTSource(
        fn=kernels._multiply_back if is_back else kernels._multiply,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert made.asm["cubin"]
    return made.metadata.shared, made.asm["ptx"].count("mma.sync")

print(json.dumps([build(*case) for case in json.loads(sys.argv[2])]))
"""
MOST_SHARED = {70: 96, 75: 64, 80: 163, 86: 99, 90: 227}
"""KiB of memory that the threads of a block may share, by capability.
Source: CUDA C++ Programming Guide, technical specifications per compute capability."""
BUILT = [
    (is_back, *case)
    for is_back in (False, True)
    for case in (
        (4, 4096, "float16", "float16"),
        (8, 4096, "bfloat16", "float16"),
        (4, 4096, "float32", "float32"),
        (8, 1, "float16", "float16"),
    )
]
"""Direction, bits, rows, type of the rows and of the scales."""


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", MOST_SHARED)
def test_it_compiles_for_every_card_within_its_memory(capability: int) -> None:
    """By Triton's own assembler, without a card."""
    cases = [case for case in BUILT if capability >= 80 or case[3] != "bfloat16"]
    command = [sys.executable, "-c", COMPILE, str(capability), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for case, (shared, num_tensor_products) in zip(cases, json.loads(done.stdout), strict=True):
        assert shared <= MOST_SHARED[capability] * 1024
        if capability < 90:  # from there on the instruction has another name
            assert (num_tensor_products > 0) == (capability >= 80 and case[3] != "float32")


def layer_of(quant: str, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> QuantizedLinear:
    torch.manual_seed(0)
    dense = nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    return Nf4Linear(dense) if quant == "nf4" else QuantizedLinear(dense, BITS[quant])


def test_a_cpu_expands() -> None:
    codes, scale = quantise(torch.randn(8, 16), 8)
    assert multiply_codes(torch.randn(2, 16), codes, scale, 8) is None
    assert multiply_codes_back(torch.randn(2, 8), codes, scale, 8) is None


@pytest.mark.parametrize("quant", QUANTS)
def test_a_layer_takes_the_kernels_that_read_its_codes(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and back; the kernels are stood in for, as there is no card."""
    layer, called = layer_of(quant, 64, 8), []

    def held(rows: Tensor, *_: object, **__: object) -> Tensor:
        called.append("forward")
        return rows.new_full((len(rows), 8), 2)

    def held_back(gradient: Tensor, *_: object) -> Tensor:
        called.append("back")
        return gradient.new_full((len(gradient), 64), 3)

    monkeypatch.setattr("glmtune.models.quant.multiply_codes", held)
    monkeypatch.setattr("glmtune.models.quant.multiply_codes_back", held_back)
    rows = torch.randn(3, 64, requires_grad=True)
    out = layer(rows)
    out.sum().backward()
    assert rows.grad is not None
    if quant == "nf4":
        assert called == []
        assert_close(out, nn.functional.linear(rows, layer.dequantise(), layer.bias))
        assert_close(rows.grad, layer.dequantise().sum(0).expand(3, 64))
    else:
        assert called == ["forward", "back"]
        assert out.unique().tolist() == [2]
        assert rows.grad.unique().tolist() == [3]


class Stand:
    """Stands for `triton_kernels`, which only a card or the interpreter can run."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def multiply(self, *_: object) -> object:
        """Give the answer, or raise it."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    multiply_back = multiply


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A card with Triton; the lines that are told."""
    told: list[str] = []
    monkeypatch.setattr(triton_products, "tell", told.append)
    monkeypatch.setattr(triton_products, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    errors = SimpleNamespace(TritonError=ZeroDivisionError)
    for name, module in {"triton": SimpleNamespace(errors=errors), "triton.errors": errors}.items():
        monkeypatch.setitem(sys.modules, name, module)
    triton_products._runs.cache_clear()
    yield told
    triton_products._runs.cache_clear()


def let_kernels(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "glmtune.models.triton_kernels", Stand(answer))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError(""), "RuntimeError"),
        (ZeroDivisionError("\n  at 1:0\nx + 1"), "at 1:0"),  # stands for an error of Triton's
        (subprocess.CalledProcessError(1, ["gcc"]), "Command '['gcc']' returned non-zero exit status 1."),
        (torch.tensor([[63.0]]), "its sum of 64 ones is 63"),
    ],
)
def test_kernels_that_do_not_run_are_told_once(
    answer: object, reason: str, card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_kernels(answer, monkeypatch)
    assert [triton_products._runs(torch.device("cpu")) for _ in range(2)] == [False, False]
    assert card == [f"int8 and int4 weights are expanded for each product: no Triton kernel ({reason})"]


@pytest.mark.parametrize("name", ["triton.errors", "glmtune.models.triton_kernels"])
def test_a_triton_that_lacks_a_part_is_told(
    name: str, card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_kernels(torch.tensor([[64.0]]), monkeypatch)
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    assert not triton_products._runs(torch.device("cpu"))
    (line,) = card
    assert name in line


def test_a_card_without_triton_and_one_too_old_for_it_are_told(
    card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_products, "find_spec", lambda _: None)
    assert not triton_products._runs(torch.device("cpu"))
    triton_products._runs.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (6, 1))
    assert not triton_products._runs(torch.device("cpu"))
    assert ["not installed" in line for line in card] == [True, False]
    assert "Volta" in card[1]


def test_kernels_that_run_are_taken_for_codes_of_whole_numbers_alone(
    card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tensors that claim to lie on a card."""
    monkeypatch.setattr(triton_products, "find_obstacle", lambda _: None)
    let_kernels("product", monkeypatch)
    with FakeTensorMode():
        rows = torch.empty(2, 64, device="cuda")
        codes, scale = torch.empty(64, 64, dtype=torch.int8, device="cuda"), torch.empty(64, device="cuda")

        def answers(codes: Tensor, scale: Tensor) -> list[object]:
            return [product(rows, codes, scale, 8) for product in (multiply_codes, multiply_codes_back)]

        assert answers(codes, scale) == ["product"] * 2
        assert answers(codes.view(torch.uint8), scale) == [None] * 2
        assert answers(codes, scale.to(torch.uint8)) == [None] * 2
    assert card == []


@needs_triton
@pytest.mark.parametrize("name", ["_multiply", "_multiply_back"])
def test_a_kernel_is_launched_on_the_card_of_its_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be theirs."""
    from glmtune.models import triton_kernels

    codes, scale = quantise(torch.randn(8, 8), 8)
    given, current, launched = torch.randn(2, 8), [], []

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        current.append(x)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, _: object) -> Any:
            return lambda *_, **__: launched.append(current[-1])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(triton_kernels, name, Kernel())
    if name == "_multiply":
        triton_kernels.multiply(given, codes, scale, None, 8)
    else:
        triton_kernels.multiply_back(given, codes, scale, 8)
    assert len(launched) == 1
    assert launched[0] is given


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("dtype", list(FLOATS.values()))
def test_products_on_a_card_are_those_of_expanded_weights(quant: str, dtype: torch.dtype) -> None:
    layer = layer_of(quant, 448, 512, dtype).cuda(torch.cuda.device_count() - 1)
    weight, bias = layer.dequantise().to(dtype).double(), layer.bias.double()
    for count in (1, 7, FEW_ROWS, MOST_ROWS):
        rows = torch.randn(count, 448, dtype=dtype, device=weight.device, requires_grad=True)
        out = layer(rows)
        out.backward(gradient := torch.randn_like(out))
        share = max(1e-6, 2 * torch.finfo(dtype).eps)
        assert rows.grad is not None
        assert_close(out.double(), rows.double() @ weight.t() + bias, share=share)
        assert_close(rows.grad.double(), gradient.double() @ weight, share=share)
