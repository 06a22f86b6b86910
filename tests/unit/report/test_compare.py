"""Runs side by side: every figure is what the files say, and what cannot be compared is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from safetensors.numpy import save_file

from glmtune import compare
from glmtune.cli.compare import _sections
from glmtune.data.lengths import LengthReport
from glmtune.errors import ConfigError
from glmtune.recipe import load_recipe, to_yaml
from glmtune.reports.recorded_run import describe_method, read_run

HASHES = {"train_sha256": "aa", "validation_sha256": "bb"}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_run(
    folder: Path,
    *,
    losses: list[float],
    evaluations: dict[int, float],
    step_s: float = 2.0,
    recipe: dict[str, Any] | None = None,
    is_finished: bool = True,
    best: int | None = None,
    unsettled: tuple[int, ...] = (),
    **environment: Any,
) -> Path:
    """A run's folder as training leaves it, with known numbers; its adapter holds 4 x 6 + 3 weights.

    `best` is the best step where that is not the one of the lowest loss.
    """
    best = best or min(evaluations, key=lambda step: evaluations[step], default=len(losses))
    folders = {"best": checkpoint_of(folder, best), "last": checkpoint_of(folder, len(losses))}
    folder.mkdir()
    settings = {"model": "glm-tiny", "data": {"train": "a.json", "validation": "b.json"}, **(recipe or {})}
    (folder / "recipe.yaml").write_text(to_yaml(load_recipe(settings)), encoding="utf-8")
    facts = {"device": "cpu", "model": {"name": "glm-tiny"}, **HASHES, **environment}
    (folder / "env.json").write_text(json.dumps(facts), encoding="utf-8")
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 9.0}]
    for step, loss in enumerate(losses, 1):
        figures = {"step_s": step_s, "tokens_per_s": 100.0 * step, "peak_memory_gib": 1.5}
        lines.append({"step": step, "loss": loss, **figures})
        if step in evaluations:
            flag = {"is_settled": False} if step in unsettled else {}
            lines.append({"step": step, "eval_loss": evaluations[step], **flag})
    write_lines(folder / "metrics.jsonl", lines)
    tensors = {"a": np.zeros((4, 6), np.float32), "b": np.zeros(3, np.float32)}
    for name, checkpoint in folders.items():
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(tensors, checkpoint / "adapter_model.safetensors")
        (folder / name).symlink_to(checkpoint.relative_to(folder), target_is_directory=True)
    if is_finished:
        result = {"steps": len(losses), "best_step": best}
        (folder / "eval.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def checkpoint_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def write_scores(
    run: Path, name: str, *, checkpoint: str, rouge: float, num_rows: int = 3, turns: tuple[float, ...] = ()
) -> None:
    """Scores of an evaluation; `turns` are ROUGE-L of turn 1, 2 and so on."""
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    values = {"rouge-1": rouge, "rouge-2": 1.0, "rouge-l": 2.0, "bleu-4": 3.0, "num_empty": 0}
    scores = {"thudm": values, "chatglm3": values, "num_rows": num_rows}
    scores["turns"] = [
        {"turn": turn, "num_rows": turn, "thudm": {**values, "rouge-l": of}}
        for turn, of in enumerate(turns, 1)
    ]
    settings = {
        "data": "/rows/test.json",
        "data_sha256": "cc",
        "max_new_tokens": 8,
        "model": f"/x/{checkpoint}",
    }
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    """Four steps of 2 s; evaluation loss 3, 1, 2."""
    return write_run(
        tmp_path / "fast",
        losses=[8.0, 6.0, 4.0, 2.0],
        evaluations={1: 3.0, 2: 1.0, 4: 2.0},
        trainable_parameters=50,
        all_parameters=1000,
        recipe={"train": {"lr": 1e-4}},
    )


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Three steps of 5 s; evaluation loss 3.5, 2.5."""
    recipe = {"method": {"name": "ptuning", "num_prefix_tokens": 4}, "train": {"lr": 0.02}}
    return write_run(
        tmp_path / "slow", losses=[9.0, 8.0, 7.0], evaluations={1: 3.5, 3: 2.5}, step_s=5.0, recipe=recipe
    )


def test_the_figures_are_those_of_the_files(fast: Path, slow: Path) -> None:
    one, other = compare([fast, slow]).runs
    assert (one.name, one.method, one.device) == ("fast", "lora", "cpu")
    assert (one.trainable_parameters, one.all_parameters) == (50, 1000)
    assert (one.steps, one.train_s, one.steps_per_s) == (4, 8.0, 0.5)
    assert (one.tokens_per_s, one.peak_memory_gib) == (250.0, 1.5)
    assert (one.best_eval_loss, one.best_step) == (1.0, 2)
    assert (other.method, other.steps_per_s) == ("ptuning num_prefix_tokens=4", 0.2)
    assert other.size_bytes == (slow / "best" / "adapter_model.safetensors").stat().st_size


def test_without_a_count_in_the_runs_files_the_checkpoints_weights_are_counted(
    fast: Path, slow: Path
) -> None:
    assert compare([fast, slow]).runs[1].trainable_parameters == 27


def test_losses_are_compared_at_the_last_step_that_all_have_made(fast: Path, slow: Path) -> None:
    one, other = compare([fast, slow]).runs
    assert (one.losses, other.losses) == ({3: 6.0}, {3: 8.0})  # means of the steps 1 to 3
    assert (one.eval_losses, other.eval_losses) == ({1: 3.0}, {1: 3.5})


def test_a_loss_at_a_step_is_the_mean_of_ten(tmp_path: Path) -> None:
    losses = [float(step) for step in range(1, 31)]
    runs = [write_run(tmp_path / name, losses=losses, evaluations={30: 1.0}) for name in "ab"]
    assert compare(runs, at=[30, 20]).runs[0].losses == {30: 25.5, 20: 15.5}


def test_the_better_run_is_told_when_it_had_reached_the_others_best(fast: Path, slow: Path) -> None:
    [lead] = compare([slow, fast]).leads
    assert (lead.run, lead.other, lead.loss) == ("fast", "slow", 2.5)
    assert (lead.step, lead.seconds) == (2, 4.0)  # at step 1 it was still above
    assert (lead.other_step, lead.other_seconds) == (3, 15.0)


def test_settings_that_all_have_and_that_differ_are_listed(fast: Path, slow: Path) -> None:
    assert compare([fast, slow]).differences == {"train.lr": (1e-4, 0.02)}


def test_the_time_of_a_resumed_run_is_that_of_its_steps_each_counted_once(fast: Path, slow: Path) -> None:
    lines = [json.loads(line) for line in (fast / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    again = [line | {"loss": 5.0, "step_s": 4.0} for line in lines if line["step"] == 4 and "loss" in line]
    write_lines(fast / "metrics.jsonl", lines + again)
    run = read_run(fast)
    assert run.seconds == {0: 0.0, 1: 2.0, 2: 4.0, 3: 6.0, 4: 10.0}
    assert run.training[4] == 5.0


def test_scores_are_those_of_the_best_checkpoint_for_each_set_of_rows(fast: Path, slow: Path) -> None:
    write_scores(fast, "step-000002-test", checkpoint="step-000002", rouge=40.0)
    write_scores(fast, "step-000004-test", checkpoint="step-000004", rouge=50.0)
    write_scores(fast, "step-000004-more", checkpoint="step-000004", rouge=60.0, num_rows=9)
    one, other = compare([fast, slow]).runs
    assert {scores.num_rows: scores.values["rouge-1"] for scores in one.scores} == {3: 40.0, 9: 60.0}
    assert one.scores[0].values.keys() == {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}
    assert other.scores == ()


def test_scores_of_turns_stand_beside_each_other_and_in_the_picture(
    fast: Path, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "glmtune.reports.compare.plot_comparison",
        lambda curves, *_, turn_score, **_said: drawn.extend([turn_score, *(one.turns for one in curves)]),
    )
    write_scores(fast, "test", checkpoint="step-000002", rouge=40.0, turns=(90.0, 70.0))
    write_scores(slow, "test", checkpoint="step-000003", rouge=40.0, turns=(80.0, 30.0))
    write_scores(slow, "more", checkpoint="step-000003", rouge=60.0, num_rows=9, turns=(1.0, 2.0))
    comparison = compare([fast, slow], output=tmp_path / "out")
    assert {turn: of["rouge-l"] for turn, of in comparison.runs[0].scores[0].turns.items()} == {
        1: 90.0,
        2: 70.0,
    }
    assert drawn == ["rouge-l of test, 0 to 100", {1: 90.0, 2: 70.0}, {1: 80.0, 2: 30.0}]
    rows = dict(next(_sections(comparison))[1])
    assert rows["rouge-l, turn 2, 2 rows"] == ["70.00 of 100", "30.00 of 100"]


def test_an_evaluation_of_before_turns_were_told_has_none(fast: Path, slow: Path) -> None:
    write_scores(fast, "test", checkpoint="step-000002", rouge=40.0)
    file = fast / "evaluations" / "test" / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8"))
    del scores["turns"]
    file.write_text(json.dumps(scores), encoding="utf-8")
    assert compare([fast, slow]).runs[0].scores[0].turns == {}


def test_answers_are_those_of_the_best_evaluation_to_prompts_of_two_runs(fast: Path, slow: Path) -> None:
    lines = [{"step": s, "prompt": p, "answer": f"{p}{s}"} for s in (0, 2, 4) for p in ("你好", "only one")]
    write_lines(fast / "samples.jsonl", lines)
    write_lines(slow / "samples.jsonl", [{"step": 1, "prompt": "你好", "answer": "好"}])
    comparison = compare([fast, slow])
    assert [(sample.prompt, sample.answers) for sample in comparison.samples] == [("你好", ("你好2", "好"))]
    assert [run.samples_step for run in comparison.runs] == [2, 1]


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """AdaLoRA over four steps of 2 s: the lowest loss, 0.5, is of a step before its ranks had settled."""
    return write_run(
        tmp_path / "pruned",
        losses=[5.0, 4.0, 3.0, 2.0],
        evaluations={1: 0.5, 3: 0.8, 4: 0.9},
        unsettled=(1,),
        best=3,
        recipe={"method": "adalora"},
    )


def test_the_best_is_the_step_that_the_run_itself_calls_so(pruned: Path, slow: Path) -> None:
    write_lines(pruned / "samples.jsonl", [{"step": s, "prompt": "p", "answer": str(s)} for s in (1, 3, 4)])
    write_lines(slow / "samples.jsonl", [{"step": 3, "prompt": "p", "answer": "x"}])
    write_scores(pruned, "one", checkpoint="step-000001", rouge=10.0)
    write_scores(pruned, "three", checkpoint="step-000003", rouge=30.0)
    comparison = compare([pruned, slow])
    one = comparison.runs[0]
    assert (one.best_step, one.best_eval_loss, one.samples_step) == (3, 0.8, 3)
    assert [scores.values["rouge-1"] for scores in one.scores] == [30.0]
    assert comparison.samples[0].answers == ("3", "x")
    [lead] = comparison.leads
    assert (lead.step, lead.seconds) == (3, 6.0)  # at step 1 it was not yet what the run delivers


def test_the_best_step_is_known_without_its_checkpoint(pruned: Path, slow: Path) -> None:
    shutil.rmtree(pruned / "checkpoints")
    assert read_run(pruned).best_step == 3
    (pruned / "best").unlink()
    assert read_run(pruned).best_step == 3
    (pruned / "eval.json").unlink()
    assert read_run(pruned).best_step == 3  # of those that count, the lowest


def test_a_run_that_goes_on_without_a_best_has_the_lowest_so_far(tmp_path: Path) -> None:
    going = write_run(tmp_path / "g", losses=[5.0, 4.0], evaluations={1: 0.5, 2: 0.6}, is_finished=False)
    (going / "best").unlink()
    assert read_run(going).best_step == 1


@pytest.mark.parametrize(
    ("recipe", "environment", "what"),
    [
        ({}, {"validation_sha256": "dd"}, "data.validation"),
        ({"data": {"train": "a.json", "validation": "b.json", "max_tokens": 64}}, {}, "data.max_tokens"),
        ({"data": {"train": "a.json"}}, {}, "data.train, data.holdout_rows, data.split_seed"),
        ({"template": "glm4"}, {}, "template"),
    ],
    ids=["rows", "length", "held out", "template"],
)
def test_losses_of_other_rows_are_said_to_be_incomparable(
    fast: Path, tmp_path: Path, recipe: dict[str, Any], environment: dict[str, Any], what: str
) -> None:
    other = write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, recipe=recipe, **environment)
    comparison = compare([fast, other])
    [warning] = comparison.warnings
    assert "evaluation losses cannot be compared" in warning
    assert what in warning
    assert comparison.caveats == (warning,)
    assert comparison.leads == ()


def test_limits_that_cut_no_evaluated_row_make_no_difference(fast: Path, tmp_path: Path) -> None:
    limits = {"data": {"train": "a.json", "validation": "b.json", "max_tokens": 64}}
    runs = [fast, write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, recipe=limits)]
    for run in runs:
        write_rows(run)
    assert compare(runs).warnings == ()
    write_rows(runs[1], rows_cut=1)
    assert "data.max_tokens" in compare(runs).warnings[0]
    write_rows(runs[1], drops={"overlong": 1})
    assert "data.max_tokens" in compare(runs).warnings[0]


def write_rows(run: Path, **counts: Any) -> None:
    """Write data.json as a run does, with these counts for the rows of the evaluation loss."""
    facts = LengthReport(limit="64").facts()
    rows = {"train": facts, "validation": facts | counts}
    (run / "data.json").write_text(json.dumps(rows), encoding="utf-8")


def test_other_training_rows_are_told_with_their_files_and_leave_the_evaluations_comparable(
    fast: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, train_sha256="0123456789ab")
    comparison = compare([fast, other])
    [caveat] = comparison.caveats
    assert "training losses are of different rows (data.train)" in caveat
    assert [run.trained_on for run in comparison.runs] == ["a.json (aa)", "a.json (01234567)"]
    assert [run.evaluated_on for run in comparison.runs] == ["b.json (bb)"] * 2
    assert len(comparison.leads) == 1


def test_runs_on_several_files_name_each_and_differ_in_how_one_is_read(fast: Path, tmp_path: Path) -> None:
    plain, limited = ["a.json", "b.json"], ["a.json", {"path": "b.json", "max_rows": 5}]
    runs = [
        write_run(
            tmp_path / str(i), losses=[1.0], evaluations={1: 1.0}, train_sha256="0123456789 abc",
            recipe={"data": {"train": train}},
        )
        for i, train in enumerate((plain, limited, plain))
    ]  # fmt: skip
    comparison = compare(runs[:2])
    assert [run.trained_on for run in comparison.runs] == ["a.json (01234567), b.json (abc)"] * 2
    [warning] = comparison.warnings
    assert warning.endswith("differ in data.train")
    assert not any("data.train" in warning for warning in compare(runs[::2]).warnings)


def test_rows_held_out_are_named_by_the_file_they_are_of(fast: Path, tmp_path: Path) -> None:
    recipe = {"data": {"train": "a.json"}}
    other = write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, recipe=recipe)
    assert compare([fast, other]).runs[1].evaluated_on == "held out of a.json (aa)"


def test_the_picture_says_what_cannot_be_compared(
    fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("glmtune.reports.compare.plot_comparison", lambda *_, **said: drawn.update(said))
    other = write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, validation_sha256="dd")
    comparison = compare([fast, other], output=tmp_path / "out")
    assert comparison.caveats
    assert drawn["caveats"] == comparison.caveats


def test_names_that_no_font_here_can_write_are_numbered_and_told(
    fast: Path, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [font for font in fontManager.ttflist if "DejaVu" in font.name]
    monkeypatch.setattr(fontManager, "ttflist", few)
    monkeypatch.setattr("glmtune.reports.fonts._add_new_fonts", lambda: None)
    fast, slow = fast.rename(tmp_path / "甲"), slow.rename(tmp_path / "乙")
    *_, told = compare([fast, slow], output=tmp_path / "out").warnings
    assert "run 1 is 甲, run 2 is 乙" in told
    assert "fonts-noto-cjk" in told


def test_other_models_and_devices_are_named(fast: Path, tmp_path: Path) -> None:
    facts = {"model": {"name": "/m/chatglm3-6b"}, "device": "NVIDIA H100"}
    other = write_run(tmp_path / "other", losses=[1.0], evaluations={1: 1.0}, **facts)
    comparison = compare([fast, other])
    models, devices = comparison.warnings
    assert "/m/chatglm3-6b, glm-tiny" in models
    assert "NVIDIA H100, cpu" in devices
    assert comparison.leads == ()


def test_a_run_that_goes_on_and_one_that_has_not_begun_are_compared_as_far_as_they_are(
    fast: Path, tmp_path: Path
) -> None:
    going = write_run(tmp_path / "going", losses=[3.0, 2.0], evaluations={}, is_finished=False)
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(fast / "recipe.yaml", begun)
    shutil.copy(fast / "env.json", begun)
    comparison = compare([fast, going, begun], output=tmp_path / "out")
    assert comparison.warnings == (
        "going: at step 2, still running or interrupted",
        "going: not evaluated yet",
        "begun: no step yet",
    )
    assert [run.is_finished for run in comparison.runs] == [True, False, False]
    assert [run.steps_per_s for run in comparison.runs] == [0.5, 0.5, None]
    assert comparison.runs[0].losses == {}
    assert (tmp_path / "out" / "compare.png").exists()


def test_runs_of_the_same_name_are_told_apart_by_their_folders(
    fast: Path, slow: Path, tmp_path: Path
) -> None:
    for folder, name in ((fast, "one"), (slow, "two")):
        (tmp_path / name).mkdir()
        folder.rename(tmp_path / name / "lora")
    comparison = compare([tmp_path / "one" / "lora", tmp_path / "two" / "lora"])
    assert [run.name for run in comparison.runs] == ["one/lora", "two/lora"]


def test_what_is_written_is_what_is_returned_and_overwrites_nothing(
    fast: Path, slow: Path, tmp_path: Path
) -> None:
    comparison = compare([fast, slow], output=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "compare.png"}
    written = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert [run["best_eval_loss"] for run in written["runs"]] == [1.0, 2.5]
    assert written["runs"][0]["losses"] == {"3": 6.0}
    assert written["leads"][0]["seconds"] == comparison.leads[0].seconds
    with pytest.raises(ConfigError, match="not empty and will not be overwritten"):
        compare([fast, slow], output=tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "at", "message"),
    [
        (["fast"], [], "1 run named"),
        ([], [], "0 runs named"),
        (["fast", "slow", "fast/../fast"], [], "fast: named twice"),
        (["fast", "nowhere"], [], "nowhere: no such folder"),
        (["fast", "fast/best"], [], "fast/best: no run: it has no recipe.yaml"),
        (["fast", "fast/env.json"], [], "fast/env.json: a file, not the folder of a run"),
        (["fast", "slow"], [4], "--at 4: slow has no step 4, its last is 3"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    fast: Path, slow: Path, tmp_path: Path, names: list[str], at: list[int], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        compare([tmp_path / name for name in names], at=at, output=tmp_path / "out")
    assert message in str(caught.value)
    assert caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_that_this_version_does_not_know_is_named_with_its_file(fast: Path, slow: Path) -> None:
    (slow / "recipe.yaml").write_text("model: m\nlater: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"slow/recipe\.yaml: later: unknown setting"):
        compare([fast, slow])


def test_a_method_is_called_by_what_is_not_its_default() -> None:
    method = {"name": "lora", "r": 4, "target_modules": ["dense", "query_key_value"]}
    recipe = load_recipe({"model": "m", "method": method})
    assert describe_method(recipe.method) == "lora target_modules=dense+query_key_value r=4"
