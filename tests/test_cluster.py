"""docs/cluster.md and the files beside it: the table is what its formulas say, the files start valid runs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster_tables import MODELS, PAGES, ZERO_2, fill, held, sent
from tools.pages import DOCS

from glmtune.recipe import load_recipe

FILES = DOCS.parent / "examples" / "cluster"
TIME = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_its_table_of_traffic(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.cluster_tables"


def test_the_formulas_give_what_two_processes_move_and_hold() -> None:
    """By hand, of 6,243,584,000 fp32 weights: each sends its half of the sums, and gathers the other half."""
    model, size, outer = MODELS[0], 6_243_584_000 * 4, (2 * 65024 * 4096 + 4096) * 4
    assert sent(model, "full", "ddp", 2) == sent(model, "full", ZERO_2, 2) == size
    assert sent(model, "full", "fsdp2", 2) == 1.5 * size - outer / 2
    assert held(model, "full", "fsdp2", 2) == 2 * size  # half of weights, gradients and two means
    assert held(model, "full", "ddp", 2) == 5 * size


def values(part: object, name: str) -> Iterator[Any]:
    """Each value of that name, wherever it stands."""
    if isinstance(part, dict) and name in part:
        yield part[name]
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from values(each, name)


@pytest.mark.parametrize("name", ["pytorchjob.yaml", "trainjob.yaml"])
def test_the_words_of_a_kubernetes_file_are_a_recipes(name: str) -> None:
    found = list(values(yaml.safe_load((FILES / name).read_text(encoding="utf-8")), "args"))
    assert found
    for words in found:
        start = words.index("train") + 1
        assert words[:start] == ["-m", "glmtune", "train"]
        assert load_recipe({}, words[start + 1 :]).distributed.name == "fsdp2"


@pytest.mark.parametrize("name", ["pytorchjob.yaml", "trainjob.yaml"])
def test_torchrun_has_nearly_as_long_for_a_save_as_its_pod(name: str) -> None:
    """Or it would end its processes after 30 seconds, whatever Kubernetes gives them."""
    job = yaml.safe_load((FILES / name).read_text(encoding="utf-8"))
    seconds = [int(each["value"]) for env in values(job, "env") for each in env if each["name"] == TIME]
    assert len(seconds) == len(list(values(job, "args")))
    for grace in values(job, "terminationGracePeriodSeconds"):
        assert all(0 < grace - each <= 30 for each in seconds)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_slurm_file_starts_a_process_for_each_card(tmp_path: Path) -> None:
    """Slurm's own commands are stood for by scripts that say what they were asked; the list of machines
    comes in two pieces, as one of a large cluster does."""
    for command, said in (("scontrol", "echo node7; sleep 0.3; echo node8"), ("srun", f'echo "${TIME} $@"')):
        (tmp_path / command).write_text(f"#!/bin/bash\n{said}\n", encoding="utf-8")
        (tmp_path / command).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "12",
        "SLURM_GPUS_ON_NODE": "8",
    }
    done = subprocess.run(
        ["bash", str(FILES / "slurm.sbatch"), "recipe.yaml", "model=x"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm},
        capture_output=True,
        text=True,
        check=True,
    )
    text = (FILES / "slurm.sbatch").read_text(encoding="utf-8")
    [grace] = re.findall(r"#SBATCH --signal=TERM@(\d+)", text)
    seconds, _, command = done.stdout.strip().partition(" ")
    assert 0 < int(grace) - int(seconds) <= 30
    assert command == (
        "--kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id 12 --rdzv-backend c10d "
        "--rdzv-endpoint node7:29500 -m glmtune train recipe.yaml model=x"
    )
