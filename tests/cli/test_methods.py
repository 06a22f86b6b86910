"""P-Tuning and freeze from end to end, as a user types it: train, resume, evaluate, chat, info."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from commands import glmtune

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "projected": [
        "method=ptuning",
        "method.num_prefix_tokens=4",
        "method.projection=true",
        "quant=int4",
        "train.gradient_checkpointing=true",
    ],
    "freeze": ["method=freeze", "method.num_layers=1", "train.gradient_checkpointing=true"],
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on glm-tiny, whose weights are held in bf16."""
    folder = tmp_path_factory.mktemp("work")
    done = glmtune(
        "train", "model=glm-tiny", *RUNS[request.param], f"data.train={EXAMPLES / 'adverts.jsonl'}",
        "data.max_tokens=256", "data.max_rows=40", "data.holdout_rows=4", "train.steps=3",
        "train.batch_size=2", "train.eval_every=1", "train.lr=1e-2", "samples.max_new_tokens=4",
        f"output={request.param}", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / request.param


def test_a_run_keeps_what_it_trained_and_learns(run: Path) -> None:
    kept = load_file(run / "last" / "trained.safetensors")
    is_prefix = [name.startswith("transformer.prefix_encoder.") for name in kept]
    assert all(is_prefix) if run.name != "freeze" else not any(is_prefix)
    assert not list((run / "last").glob("model*.safetensors"))
    assert (run / "samples.jsonl").stat().st_size
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, *_, last = (line["eval_loss"] for line in lines if "eval_loss" in line)
    assert last < first


def test_a_run_is_evaluated_and_talked_to(run: Path) -> None:
    words = ("--data", EXAMPLES / "adverts.jsonl", "evaluate.max_rows=2", "evaluate.max_new_tokens=4")
    done = glmtune("evaluate", run, *words, "--output", "scores", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "2 rows, " in done.stdout
    words = ("--temperature", 0, "--max-new-tokens", 8)
    done = glmtune("chat", run, "--compare", *words, cwd=run.parent, typed="你好\nstop\n")
    assert done.returncode == 0, done.stderr
    alone = glmtune("chat", run, *words, cwd=run.parent, typed="你好\n").stdout
    assert done.stdout.endswith(alone.replace(f"<|{run.name}|>", f"<|{run.name} (tuned)|>"))
    assert done.stdout.startswith("<|glm-tiny (base)|>: 你好！")  # what it was trained to answer


def test_a_run_says_what_it_trained(run: Path) -> None:
    done = glmtune("info", run, "--names", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    marked = {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("* ")}
    assert marked == load_file(run / "last" / "trained.safetensors").keys()
    assert f"method           {'freeze' if run.name == 'freeze' else 'ptuning'}," in done.stdout
