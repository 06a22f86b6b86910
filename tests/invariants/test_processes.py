"""Several processes, by `--nproc`, torchrun or accelerate; one that fails ends all, in its own words."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from forks import run_ranks
from glmtune.run_files import read_json_lines
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
QUICK = (
    "retain.report=off", "retain.ratio=0", "samples.prompts=[]", "data.max_tokens=400",
    "train.micro_batch_size=2", "train.gradient_checkpointing=false",
)  # fmt: skip
LONG = ("train.steps=10000", "train.eval_every=10000")
"""More than a test waits for."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environment(), cwd=cwd, capture_output=True, text=True,
        encoding="utf-8", timeout=500, check=False,
    )  # fmt: skip


def training_words(model: Path, output: Path, *more: str) -> list[str]:
    return [
        "train", f"model={model}", f"data.train={ADVERTS}", f"output={output}", "data.max_rows=12",
        "data.holdout_rows=2", "train.steps=2", "train.batch_size=4", *QUICK, *more,
    ]  # fmt: skip


def figures(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "eval_loss")
    lines = read_json_lines(folder / "metrics.jsonl")
    return [tuple(line[name] for name in names if name in line) for line in lines]


@pytest.mark.slow
def test_all_ways_to_start_two_processes_give_the_same_run_to_the_bit(model: Path, tmp_path: Path) -> None:
    """Dropout on; two machines are two launchers that meet at an address."""
    launchers = {
        "nproc": ["-m", "glmtune"],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "glmtune"],
        # with --cpu it would start a single process; this starts two also where there is no card
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "-m",
            "glmtune",
        ],
    }
    for name, launcher in launchers.items():
        last = ["--nproc", "2"] if name == "nproc" else []
        done = run(*launcher, *training_words(model, tmp_path / name), *last, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("global step 2 ( 100.00% )") == 1
    node = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:29765", "-m", "glmtune"]  # fmt: skip
    nodes = [
        subprocess.Popen(
            [sys.executable, *node, *training_words(model, tmp_path / "nodes")], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=500)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert figures(tmp_path / "nproc")
    for name in ("torchrun", "accelerate", "nodes"):
        assert figures(tmp_path / name) == figures(tmp_path / "nproc")


def test_nproc_within_processes_that_were_started_already_is_refused(model: Path, tmp_path: Path) -> None:
    words = training_words(model, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", *words, "--nproc", "2"], env={**environment(), "WORLD_SIZE": "2"},
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--nproc: 2, but another program has started 2 processes" in done.stderr


def wait_for_steps(launcher: subprocess.Popen[str], folder: Path) -> None:
    until = time.monotonic() + 400
    while not (folder / "metrics.jsonl").exists() or len(figures(folder)) < 2:
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.2)


def started(model: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """A run of two processes after its first step, and the number of the second one's process."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "glmtune", *training_words(model, tmp_path / "run", *LONG), "--nproc", "2"],
        env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        encoding="utf-8",
    )  # fmt: skip
    wait_for_steps(launcher, tmp_path / "run")
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    second = next(
        int(child) for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()
    )
    return launcher, second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (signal.SIGKILL, 137, r"error: process 1 was ended by SIGKILL"),
        (
            signal.SIGSTOP,
            2,
            r"error: process 1 has given no sign of life since it was at .+, and the others",
        ),
    ],
    ids=["killed", "stopped"],
)
def test_a_process_that_is_gone_or_stopped_ends_all_in_words(
    model: Path, tmp_path: Path, sent: signal.Signals, code: int, told: str
) -> None:
    launcher, second = started(model, tmp_path)
    os.kill(second, sent)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == code, errors
    assert re.search(told, errors), errors
    assert "Traceback" not in errors
    assert not Path(f"/proc/{second}").exists()


def environment_with(folder: Path, code: str) -> dict[str, str]:
    """The environment of a program that runs code before all else."""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**environment(), "PYTHONPATH": paths}


@pytest.mark.slow
def test_an_error_of_another_process_than_the_first_is_told_and_gives_the_exit_code(
    model: Path, tmp_path: Path
) -> None:
    patched = environment_with(
        tmp_path,
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from importlib import import_module\n"
        "    from glmtune.errors import OutputError\n"
        "    def fail(*_, **__):\n"
        "        raise OutputError('disk of the second machine: full', hint='free some space')\n"
        "    import_module('glmtune.workflows.assemble').collate = fail\n",
    )
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", *training_words(model, tmp_path / "run"), "--nproc", "2"],
        env=patched, capture_output=True, text=True, encoding="utf-8",
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, error, hint = done.stderr.splitlines()
    assert (error, hint) == (
        "error: process 1: disk of the second machine: full",
        "hint: free some space",
    )


@pytest.mark.slow
def test_a_process_that_is_asked_to_end_has_all_save(model: Path, tmp_path: Path) -> None:
    launcher, _ = started(model, tmp_path)
    launcher.terminate()
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("steps so far are saved; go on with: glmtune train") == 1
    assert (tmp_path / "run" / "last").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.12"), reason="torchrun has a fixed time"
)
@pytest.mark.parametrize(("seconds", "is_saved"), [("1", False), ("270", True)])
def test_torchrun_gives_a_save_the_time_that_the_files_for_clusters_set(
    model: Path, tmp_path: Path, seconds: str, is_saved: bool
) -> None:
    patched = environment_with(
        tmp_path,
        "import os, time\n"
        "if os.environ.get('RANK') == '0':\n"
        "    from glmtune.workflows import execute\n"
        "    save = execute.save_checkpoint\n"
        "    def save_slowly(run, *, is_best):\n"
        "        time.sleep(10)\n"
        "        return save(run, is_best=is_best)\n"
        "    execute.save_checkpoint = save_slowly\n",
    )
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "glmtune", *training_words(model, tmp_path / "run", *LONG)],
        env={**patched, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": seconds},
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    wait_for_steps(launcher, tmp_path / "run")
    launcher.terminate()
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1, errors  # whatever its processes return
    assert (tmp_path / "run" / "last").exists() == is_saved
    assert ("steps so far are saved; go on with: glmtune train" in errors) == is_saved


@pytest.mark.slow
def test_processes_whose_launcher_was_killed_save_and_end(model: Path, tmp_path: Path) -> None:
    launcher, _ = started(model, tmp_path)
    ranks = psutil.Process(launcher.pid).children()
    launcher.kill()
    _, errors = launcher.communicate(timeout=300)  # until the first process has closed it too
    assert "steps so far are saved; go on with: glmtune train" in errors
    assert not psutil.wait_procs(ranks, timeout=60)[1]
    assert (tmp_path / "run" / "last").exists()


@pytest.mark.slow
@pytest.mark.parametrize("last", [(), ("--resume",)], ids=["begun", "resumed"])
def test_of_the_same_command_started_twice_at_once_one_trains(
    model: Path, tmp_path: Path, last: tuple[str, ...]
) -> None:
    words = training_words(model, tmp_path / "run")
    if last:
        done = run("-m", "glmtune", *words, "train.schedule=constant", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        words = ["train", str(tmp_path / "run")]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "glmtune", *words, *LONG, *last], env=environment(), cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )
        for _ in range(2)
    ]  # fmt: skip
    until = time.monotonic() + 400
    while all(each.poll() is None for each in both):
        assert time.monotonic() < until
        time.sleep(0.2)
    refused, other = sorted(both, key=lambda each: each.poll() is None)
    file = tmp_path / "run" / "metrics.jsonl"
    while not file.exists() or len(figures(tmp_path / "run")) < 6:
        assert time.monotonic() < until
        time.sleep(0.2)
    other.terminate()
    assert "steps so far are saved" in other.communicate(timeout=300)[1]
    told = f"error: {tmp_path / 'run'}: process {other.pid} trains in this folder\nhint: "
    assert told in refused.communicate()[1]
    assert refused.returncode == 2
    steps = [line[0] for line in figures(tmp_path / "run") if len(line) == 3]
    assert steps == list(range(1, len(steps) + 1))


def test_an_evaluation_by_two_processes_writes_the_file_of_one(model: Path, tmp_path: Path) -> None:
    rows = ADVERTS.read_text(encoding="utf-8").splitlines()[:6]
    (tmp_path / "test.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    files = {}
    for number in (1, 2):
        output = tmp_path / str(number)
        words = ["evaluate", str(model), "--data", "test.jsonl", "--output", str(output)]
        settings = ["evaluate.max_new_tokens=6", "evaluate.batch_size=2"]
        done = run_ranks(number, "-m", "glmtune", *words, *settings, cwd=tmp_path, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test rows: 6 rows") == 1  # one process speaks
        files[number] = (output / "generated_predictions.txt").read_bytes()
        assert {path.name for path in output.iterdir()} == {
            "generated_predictions.txt", "scores.json", "settings.json",
        }  # fmt: skip
    assert files[1] == files[2]
    assert files[1].count(b"\n") == 6


@pytest.mark.slow
def test_processes_of_an_evaluation_wait_for_one_another_as_long_as_is_set(
    model: Path, tmp_path: Path
) -> None:
    late = (
        "import os, sys, time\n"
        "from glmtune.cli import main\n"
        "from glmtune.workflows import evaluating\n"
        "answers = evaluating.predict\n"
        "def predict(*given, **settings):\n"
        "    time.sleep(60 * int(os.environ['RANK']))\n"
        "    return answers(*given, **settings)\n"
        "evaluating.predict = predict\n"
        "main()\n"
    )
    words = ["evaluate", str(model), "--data", str(ADVERTS), "--output", str(tmp_path / "answers")]
    settings = ["evaluate.max_new_tokens=1", "data.max_test_rows=2", "distributed.timeout_s=10"]
    done = run_ranks(2, "-c", late, *words, *settings, encoding="utf-8")
    assert done.returncode, done.stderr
    assert "error: the processes have waited too long for one another" in done.stderr
