"""`glmtune report` and `glmtune card` as a user types them, and the page that a run writes by itself."""

from pathlib import Path

import pytest

from commands import glmtune
from full_run import write_full_run
from glmtune import train
from glmtune.files import read_json
from glmtune.reports.listing import summarise_runs
from glmtune.workflows.events import Event, Stepped
from models import tiny_folder

ROWS = "".join(f'{{"prompt": "问题{i}", "response": "答案{i}。"}}\n' for i in range(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_run(tmp_path_factory.mktemp("runs") / "full")


def test_the_page_and_the_card_are_written_where_they_say(run: Path, tmp_path: Path) -> None:
    for verb, name in (("report", "report.html"), ("card", "card.png")):
        done = glmtune(verb, run, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{run / name}\n")
        assert (run / name).stat().st_size > 10_000
        assert glmtune(verb, run, "--output", f"mine-{name}", "--lang", "zh", cwd=tmp_path).returncode == 0
        done = glmtune(verb, run, "--output", f"mine-{name}", cwd=tmp_path)
        assert done.returncode == 2
        assert "will not be overwritten" in done.stderr and "hint: " in done.stderr
        assert glmtune(verb, run, "--output", f"mine-{name}", "--force", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("verb", ["report", "card"])
def test_a_folder_that_is_no_run_is_named(verb: str, tmp_path: Path) -> None:
    done = glmtune(verb, "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr


def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run")
    (run / "data.json").write_text('{"train": {"rows": -1}}', encoding="utf-8")
    done = glmtune("report", run, cwd=tmp_path)
    assert done.returncode == 2
    assert "data.json" in done.stderr
    assert not (run / "report.html").exists()


def test_a_run_writes_its_page_and_evaluating_it_writes_it_anew(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    words = ("model=model", "data.train=rows.jsonl", "train.steps=2", "train.batch_size=2", "output=run")
    done = glmtune("train", *words, "samples.max_new_tokens=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert "report: run/report.html" in done.stdout
    [entry] = summarise_runs(run)
    assert entry.report == run / "report.html"
    assert "report.html" in glmtune("runs", run, cwd=tmp_path).stdout
    lengths = read_json(run / "data.json", is_ours=True)
    assert (lengths["train"]["rows"], lengths["validation"]["rows"]) == (7, 1)
    command = "glmtune train model=model data.train=rows.jsonl"
    assert read_json(run / "env.json", is_ours=True)["command"].startswith(command)
    (run / "report.html").unlink()
    assert glmtune("evaluate", "run", "evaluate.max_new_tokens=2", cwd=tmp_path).returncode == 0
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_an_interrupted_run_has_its_page_too(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")

    def interrupt(event: Event) -> None:
        if isinstance(event, Stepped) and event.log.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            model=str(tmp_path / "model"),
            data={"train": tmp_path / "rows.jsonl"},
            train={"steps": 4, "batch_size": 2, "eval_every": 1},
            samples={"prompts": []},
            output=tmp_path / "run",
            on_event=interrupt,
        )
    assert "stopped at step" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
