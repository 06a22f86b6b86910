"""A training in a process whose addresses are limited, as `ulimit -v` sets: what goes beyond it fails."""

import json
from pathlib import Path

from models import tiny_folder

ROOM = 680 * 2**20
"""Bytes of addresses that are left to the training once all is imported."""
TOO_MUCH = ("train.micro_batch_size=2", "train.gradient_checkpointing=false")
"""Settings that need more: two rows of 2,000 tokens at once."""


def limited_training(folder: Path, *, rows: int, is_foretold: bool) -> tuple[str, ...]:
    """Write a program that limits itself, a model and rows; return the words that train them by it.

    is_foretold: forecast the memory before the weights are read, as of a large model.
    """
    sizes = {"hidden_size": 128, "ffn_hidden_size": 384, "kv_channels": 32, "num_layers": 12}
    model = tiny_folder(folder / "model", seq_length=2048, **sizes)
    row = {"prompt": "说", "response": "今天天气很好，我们一起去公园散步。" * 300}
    (folder / "rows.json").write_text(json.dumps([row] * rows), encoding="utf-8")
    (folder / "limited.py").write_text(
        "import resource\n"
        "import psutil, torch, peft, matplotlib.pyplot\n"
        "import glmtune.workflows.execute, glmtune.workflows.forecast\n"
        "from glmtune.cli import main\n"
        f"{'glmtune.workflows.forecast.SMALL = 0' if is_foretold else ''}\n"
        f"limit = psutil.Process().memory_info().vms + {ROOM}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "main()\n",
        encoding="utf-8",
    )
    return (
        str(folder / "limited.py"), "train", f"model={model}", f"output={folder / 'run'}",
        f"data.train={folder / 'rows.json'}", "data.max_tokens=2000", "data.overlong=cut_any",
        "train.steps=1", "samples.prompts=[]",
    )  # fmt: skip
