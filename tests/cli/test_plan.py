"""`glmtune plan` and `glmtune train --dry-run`: the page of a run before it is begun."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commands import glmtune
from glmtune.cli.plan import WIDTH, page_lines, table_lines
from glmtune.recipe import load_recipe
from glmtune.workflows import outlook
from glmtune.workflows.forecast import CARDS, Forecast, Machine, Phase
from glmtune.workflows.outlook import Outlook, Speed
from models import tiny_folder

GIB = 2**30
WORDS = (
    "train.micro_batch_size=auto train.gradient_checkpointing=auto data.max_tokens=512 data.overlong=cut_any"
)


def forecast_on(machine: Machine, override: str = "") -> Forecast:
    recipe = load_recipe({"model": "m", "quant": "int4", "train": {"precision": "bf16"}})
    training = {"codes": 3 * GIB, "adapter": 8 * 2**20, "activations": 2 * GIB}
    phases = Phase("training", training), Phase("evaluation", {"codes": 3 * GIB, "KV cache": GIB // 4})
    return Forecast(machine, recipe, phases, 2041, 12, GIB // 3, not override, override)


HERE = Machine("this machine", "cpu", 20 * GIB, has_bf16=False)
SMALL, *LARGER = CARDS
OUTLOOK = Outlook(
    model="/models/chatglm3-6b",
    method="lora r=8",
    steps=450,
    batch_size=8,
    samples=3600,
    epochs=3.0,
    rows=1200,
    replay="",
    nearness="",
    report="",
    validation_rows=63,
    longest_row=812,
    longest_replay=0,
    processes=1,
    here=forecast_on(HERE),
    cards=(
        forecast_on(SMALL, WORDS),
        *map(forecast_on, LARGER),
    ),
)


def test_the_page_of_a_run_has_its_parts_and_its_machines_in_columns() -> None:
    lines = list(page_lines(OUTLOOK))
    assert all(len(line) <= WIDTH for line in lines if WORDS not in line)
    assert "1,200 rows to train on, 63 to evaluate on; longest 812 tokens, longest micro-batch 2,041" in lines
    rows = {line[:13].strip(): line[13:].split() for line in lines}
    assert rows["codes"][-2:] == ["3.00", "3.00"]
    assert rows["KV cache"] == ["0.25"]
    assert rows["together"][-2:] == ["5.01", "3.25"]
    assert [line.split("  ")[0] for line in lines if "card" in line] == [card.name for card in CARDS]


def test_a_replay_that_is_longer_than_the_rows_is_told_from_them() -> None:
    lines = "\n".join(page_lines(replace(OUTLOOK, longest_replay=900)))
    assert "longest 812 tokens" in lines
    assert "replay's longest row: up to 900 tokens" in lines
    assert "replay's" not in "\n".join(page_lines(replace(OUTLOOK, longest_replay=800)))


def test_the_settings_that_make_a_run_fit_stand_in_one_piece() -> None:
    lines = list(page_lines(OUTLOOK))
    assert lines[lines.index(f"      {WORDS}") - 1].startswith("6 GB card")
    short = replace(OUTLOOK, cards=(forecast_on(SMALL, "quant=int4"),))
    assert any(line.endswith("no    quant=int4") for line in page_lines(short))


def test_a_card_without_bf16_has_a_line_of_its_own_where_it_differs() -> None:
    card = LARGER[0]
    both = forecast_on(card), forecast_on(card.with_bf16(False), "quant=int4")
    lines = [line for line in page_lines(replace(OUTLOOK, cards=both)) if "card" in line]
    assert [line.split("  ")[0] for line in lines] == ["8 GB card", "8 GB card, no bf16"]


def test_a_card_that_lacks_a_type_says_so() -> None:
    lacking = replace(forecast_on(SMALL), phases=(), fits=False, hint="train.precision: bf16, but ...")
    [line] = [line for line in page_lines(replace(OUTLOOK, cards=(lacking,))) if "card" in line]
    assert line.split()[-6:] == ["-", "no", "train.precision:", "bf16,", "but", "..."]


def test_the_time_of_a_run_is_said_once_it_was_measured() -> None:
    speed = Speed(steps=18, step_s=2.31, slowest_s=2.9, evaluation_s=12.1, total_s=1234.5)
    assert not any("a step takes" in line for line in page_lines(OUTLOOK))
    assert any(
        line.startswith("about 00:20:34 in all: a step takes 2.31 s")
        for line in page_lines(replace(OUTLOOK, speed=speed))
    )


def test_several_recipes_are_lines_of_one_table() -> None:
    none = replace(OUTLOOK, cards=(forecast_on(SMALL, WORDS),), here=forecast_on(HERE, WORDS))
    lines = list(table_lines({"recipes/lora.yaml": OUTLOOK, "runs/other": none}))
    assert [line.split()[0] for line in lines] == ["recipe", "lora", "other"]
    assert lines[1].split()[-4:] == ["8", "GB", "card", "yes"]
    assert lines[2].split()[-3:] == ["no", "card", "no"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tiny_folder(folder / "model", seq_length=2048, hidden_size=64, ffn_hidden_size=128, kv_channels=16)
    rows = [{"prompt": "说", "response": "今天天气很好，我们一起去公园散步。" * 30}] * 12
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


WORK = ("model=model", "data.train=rows.json", "train.epochs=2", "train.batch_size=4", "output=run")


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_plan_reads_no_weight_and_needs_none(work: Path) -> None:
    before = files(work)
    done = glmtune("plan", *WORK, "train.lr=0.5", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "warning: train.lr: 0.5 is a rate at which lora has lost ordinary chat" in done.stderr
    assert files(work) == before
    facts = json.loads(done.stdout)
    assert (facts["steps"], facts["samples"], facts["epochs"]) == (6, 22, 2.0)
    assert list(facts["here"]["phases"]) == ["training", "evaluation", "merge", "export"]
    weights = work / "model" / "model.safetensors"
    moved = weights.rename(work / "weights")
    try:
        assert json.loads(glmtune("plan", *WORK, "--json", cwd=work).stdout)["cards"] == facts["cards"]
        refused = glmtune("plan", *WORK, "--probe", cwd=work)
        assert refused.returncode == 2
        assert "no weights to time a step with" in refused.stderr
    finally:
        moved.rename(weights)


def test_a_probe_says_how_long_the_run_takes_and_leaves_nothing(work: Path) -> None:
    before = files(work)
    done = glmtune("plan", *WORK, "--probe", cwd=work)
    assert done.returncode == 0, done.stderr
    assert " in all: a step takes " in done.stdout
    assert files(work) == before


def test_a_dry_run_says_what_a_training_says_and_writes_nothing(work: Path) -> None:
    before = files(work)
    done = glmtune("train", *WORK, "train.lr=0.5", "--dry-run", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "warning: train.lr: 0.5 is a rate at which lora has lost ordinary chat" in done.stdout
    assert files(work) == before
    assert done.stdout.startswith("rows.json: ")
    assert done.stdout.splitlines()[-1].startswith("this machine")


def test_a_dry_run_of_what_cannot_fit_ends_as_the_training_would(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        outlook, "this_machine", lambda: Machine("this machine", "cpu", 2**20, has_bf16=False)
    )
    done = glmtune("train", *WORK, "--dry-run", cwd=work)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2].startswith("error: memory: this run would need")
    assert glmtune("train", *WORK, "--dry-run", "--force", cwd=work).returncode == 0


def test_what_was_run_can_be_planned_again_beside_another_recipe(work: Path) -> None:
    (work / "done").mkdir()
    text = "model: model\ndata: {train: rows.json}\noutput: done\n"
    for path in (work / "done" / "recipe.yaml", work / "other.yaml"):
        path.write_text(text, encoding="utf-8")
    done = glmtune("plan", "done", "other.yaml", "method=ptuning", cwd=work)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        ["done", "ptuning"],
        ["other", "ptuning"],
    ]
