"""The fused products of int8 and int4 codes: in Triton's interpreter equal to expanded ones, and compiled."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from glmtune.models.quant import QuantizedLinear, quantise
from glmtune.models.triton_products import FEW_ROWS, MOST_ROWS, multiply_codes, multiply_codes_back

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


def test_a_cpu_expands() -> None:
    codes, scale = quantise(torch.randn(8, 16), 8)
    assert multiply_codes(torch.randn(2, 16), codes, scale, 8) is None
    assert multiply_codes_back(torch.randn(2, 8), codes, scale, 8) is None


def on_card(layer: QuantizedLinear, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the layer calls for these rows: the kernels are stood in for, as there is no card."""
    called: list[Any] = []

    def held(given: Tensor, *_: object, **__: object) -> Tensor:
        called.append(len(given))
        return given.new_ones(len(given), layer.out_features)

    monkeypatch.setattr("glmtune.models.quant.multiply_codes", held)
    assert torch.equal(layer(rows), torch.ones(len(rows), layer.out_features))
    return called


def test_a_layer_takes_the_kernel_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(torch.nn.Linear(16, 8), 8)
    assert on_card(layer, torch.randn(3, 16, requires_grad=True), monkeypatch) == [3]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", list(FLOATS.values()))
def test_products_on_a_card_are_those_of_expanded_weights(bits: int, dtype: torch.dtype) -> None:
    layer = QuantizedLinear(torch.nn.Linear(448, 512).to(dtype), bits).cuda()
    weight, bias = layer.dequantise().to(dtype).double(), layer.bias.double()
    for count in (1, 7, FEW_ROWS, MOST_ROWS):
        rows = torch.randn(count, 448, dtype=dtype, device="cuda", requires_grad=True)
        out = layer(rows)
        out.backward(gradient := torch.randn_like(out))
        share = max(1e-6, 2 * torch.finfo(dtype).eps)
        assert rows.grad is not None
        assert_close(out.double(), rows.double() @ weight.t() + bias, share=share)
        assert_close(rows.grad.double(), gradient.double() @ weight, share=share)
