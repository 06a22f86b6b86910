"""What is saved on one processor is proven on another: caps make several of the one that is here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAPS: dict[str, dict[str, str]] = {
    "all": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "only avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
"""Of torch's own kernels, oneDNN's, FBGEMM's and MKL's, where there are such."""
ROWS = Path(__file__).parents[2] / "examples" / "adverts_heldout.jsonl"
TUNE = """
import sys
from pathlib import Path
import glmtune

for dtype in ("fp32", "bf16"):
    glmtune.train({
        "model": "glm-tiny", "dtype": dtype, "device": "cpu", "output": Path(sys.argv[2]) / dtype,
        "data": {"train": sys.argv[1]}, "train": {"steps": 2, "lr": 1e-3}, "samples": {"prompts": []},
    })
"""
VERIFY = """
import sys
from glmtune.workflows import verify

for folder in sys.argv[1:]:
    print(folder, next(check.found for check in verify(folder, device="cpu") if check.name == "logits"))
"""


def run(code: str, cap: str, *words: object) -> list[str]:
    """Run a program as on another processor; what it prints."""
    given = {name for caps in CAPS.values() for name in caps}
    environment = {name: value for name, value in os.environ.items() if name not in given} | CAPS[cap]
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_an_adapter_saved_on_any_processor_is_verified_on_any_other(tmp_path: Path) -> None:
    for cap in CAPS:
        run(TUNE, cap, ROWS, tmp_path / cap)
    runs = [tmp_path / cap / dtype for cap in CAPS for dtype in ("fp32", "bf16")]
    for cap in CAPS:
        found = run(VERIFY, cap, *runs)
        assert len(found) == len(runs)
        assert all("as recorded: off by" in line for line in found)
        kinds = ["float32" if folder.name == "fp32" else "bfloat16" for folder in runs]
        assert all(f"({kind}, saved in {kind})" in line for kind, line in zip(kinds, found, strict=True))
