"""A quantised load takes what it holds and the weight that it reads: our classes and transformers'."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forks import run_fork
from models import tiny_folder, tiny_hf_folder

SCRATCH = 100e6
"""Bytes beyond them: rows in fp32 while they are quantised, and what torch and the allocator keep."""
BLOCKS = {"hidden_size": 1024, "num_attention_heads": 16}
FOLDERS: dict[str, tuple[Callable[..., Path], dict[str, int], dict[str, int]]] = {
    "own": (
        tiny_folder,
        {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16},
        {**BLOCKS, "ffn_hidden_size": 4096, "num_layers": 8, "kv_channels": 64},
    ),
    "transformers": (
        lambda folder, **sizes: tiny_hf_folder(folder, "GLM-4-0414", **sizes),
        {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
        {**BLOCKS, "intermediate_size": 4096, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": 20000},
    ),
}
"""The function that makes a folder, and the sizes of a small and of a large one, by the model's class."""
LARGEST = 2 * 4096 * 1024 * 2
"""Bytes of the largest weight of a block in 16 bits."""
MEASURE = """
import sys
from pathlib import Path
from glmtune.load import load_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

small, large, quant, dtype = sys.argv[1:]
load_model(small, quant=quant, dtype=dtype, device="cpu")  # whatever torch sets up once
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)
model = load_model(large, quant=quant, dtype=dtype, device="cpu")
print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
"""


@pytest.fixture(scope="module", params=list(FOLDERS))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    make, small, large = FOLDERS[request.param]
    root = tmp_path_factory.mktemp("memory")
    return make(root / "small", dtype=torch.bfloat16, **small), make(
        root / "large", dtype=torch.bfloat16, **large
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads VmHWM from /proc")
@pytest.mark.parametrize(
    ("quant", "dtype"),
    [
        ("int4", "bf16"),  # all but the blocks stays in the file
        ("int8", "fp32"),  # embeddings are converted
        pytest.param("nf4", "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_quantised_load_takes_what_it_holds_and_one_weight(
    folders: tuple[Path, Path], quant: str, dtype: str
) -> None:
    command = [sys.executable, "-c", MEASURE, *map(str, folders), quant, dtype]
    held, grown = map(int, run_fork(command, text=True, check=True).stdout.split())
    in_16_bits = sum(file.stat().st_size for file in folders[1].glob("*.safetensors"))
    assert in_16_bits > LARGEST + SCRATCH  # else the next line would prove nothing
    assert held * 0.5 < grown <= held + LARGEST + SCRATCH
