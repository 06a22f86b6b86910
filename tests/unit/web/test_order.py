"""A run that is started from a form: its command, its rows, its plan; and a run as it is shown."""

import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from full_run import HOSTILE, write_full_run
from glmtune.errors import ConfigError, DataError, OutputError
from glmtune.run_files import make_folder
from glmtune.web import offers
from glmtune.web.offers import offered
from glmtune.web.order import (
    Form,
    command_of,
    keep_upload,
    look_ahead,
    plan_lines,
    preview,
    recipe_of,
    words_of,
)
from glmtune.web.watching import report_part, state_lines
from glmtune.web.words import Words
from glmtune.workflows.early import training_recipe

ROWS = [{"prompt": f"第 {i} 个问题", "response": f"第 {i} 个回答"} for i in range(12)]
EN = Words("en")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "my rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def form(rows: object, **fields: str) -> Form:
    return Form(**{"model": "glm-tiny", "rows": str(rows), "method": "lora", **fields})


def test_the_command_is_that_of_the_form_and_leaves_defaults_out(tmp_path: Path, rows: Path) -> None:
    typed = form(rows, epochs=" 2 ", lr="2e-4", name="mine", more="train.seed=7\n\n")
    words = words_of(typed, tmp_path / "runs")
    assert shlex.split(command_of(words)) == [
        "glmtune", "train", "model=glm-tiny", f"data.train={rows}", "method=lora", "train.epochs=2",
        "train.lr=2e-4", "train.seed=7", f"output={tmp_path / 'runs' / 'mine'}",
    ]  # fmt: skip
    recipe = training_recipe({}, words)
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.seed) == (2, 2e-4, 7)
    path = tmp_path / "shown.yaml"
    path.write_text(recipe_of(words), encoding="utf-8")
    assert training_recipe(path) == recipe


def test_a_run_s_folder_is_new_and_within_the_runs(tmp_path: Path, rows: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("glm-tiny-lora", "glm-tiny-lora-2"):
        assert words_of(form(rows), runs)[-1] == f"output={runs / name}"
        make_folder(runs / name)
    for name in ("../elsewhere", "a/b", "/tmp"):
        with pytest.raises(ConfigError, match="no name of a folder"):
            words_of(form(rows, name=name), runs)


def test_a_wrong_number_and_missing_rows_are_sentences(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(ConfigError, match="no rows are named"):
        words_of(form(" "), tmp_path)
    with pytest.raises(ConfigError, match=r"train.epochs"):
        words_of(form(rows, epochs="many"), tmp_path)


def test_an_uploaded_file_is_kept_once_and_none_is_overwritten(tmp_path: Path) -> None:
    runs, upload = tmp_path / "work" / "runs", tmp_path / "rows.json"
    contents = ["[1]", "[2]", "[1]"]
    kept = []
    for content in contents:
        upload.write_text(content, encoding="utf-8")
        kept.append(keep_upload(upload, runs))
    assert [path.name for path in kept] == ["rows.json", "rows-2.json", "rows.json"]
    assert [path.read_text(encoding="utf-8") for path in kept] == contents


def test_two_visitors_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    uploads = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        uploads.append(tmp_path / str(number) / "rows.json")
        uploads[-1].write_text(str(number), encoding="utf-8")
    with ThreadPoolExecutor(len(uploads)) as pool:
        kept = list(pool.map(lambda upload: keep_upload(upload, tmp_path / "runs"), uploads))
    assert [path.read_text(encoding="utf-8") for path in kept] == [str(number) for number in range(8)]


def test_the_last_checkpoint_is_offered_where_it_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "runs")
    run = write_full_run(tmp_path / "runs" / "one")
    [entry] = offers.runs_in(tmp_path / "runs")
    monkeypatch.setattr(offers, "runs_in", lambda _: [replace(entry, size_bytes=1)])  # as with weights
    for name in ("step-000010", "step-000060"):
        (run / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    for best, is_offered in (("step-000060", False), ("step-000010", True)):
        for name, step in (("best", best), ("last", "step-000060")):
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(Path("checkpoints", step))
        paths = [path for _, path in offered(None, tmp_path / "runs")]
        assert (str(run / "last") in paths) == is_offered


def test_an_upload_that_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file where the folder would be", encoding="utf-8")
    upload = tmp_path / "rows.json"
    upload.write_text("[]", encoding="utf-8")
    with pytest.raises(OutputError, match="uploads"):
        keep_upload(upload, tmp_path / "runs")


def test_the_first_rows_are_shown_as_the_model_sees_them(tmp_path: Path, rows: Path) -> None:
    seen = preview(words_of(form(rows), tmp_path / "runs"))
    assert (len(seen.rows), seen.num_rows) == (3, 12)
    assert ["".join(text for text, learned in row if learned) for row in seen.rows] == [
        f"\n 第 {i} 个回答</s>" for i in range(3)
    ]
    assert seen.rows[0][0] == ("[gMASK]sop<|user|>\n 第 0 个问题<|assistant|>", False)


def test_a_broken_file_is_named_by_its_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.jsonl:2"):
        preview(words_of(form(broken), tmp_path / "runs"))


def test_the_plan_says_in_both_languages_whether_it_fits(tmp_path: Path, rows: Path) -> None:
    outlook, warned = look_ahead(words_of(form(rows, epochs="4"), tmp_path / "runs"), is_timed=False)
    assert outlook.here.fits
    assert plan_lines(outlook, EN)[0].startswith("It fits")
    assert plan_lines(outlook, Words("zh"))[0].startswith("放得下")
    assert "4.00 epochs" in plan_lines(outlook, EN)[1]
    assert not [text for text in warned if "memory" in text]
    for override, key in (("quant=int4", "With these settings it does"), ("", "does not fit")):
        here = replace(outlook.here, fits=False, override=override, hint="take a smaller model")
        line = plan_lines(replace(outlook, here=here), EN)[0]
        assert key in line and (override or "take a smaller model") in line


def test_a_run_s_texts_are_escaped_where_they_are_shown(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "hostile", said=HOSTILE)
    part = report_part([str(run)], EN)
    assert "<script" not in part and "data-hover" in part and 'class="report" lang="en"' in part
    (run / "train.log").write_text(f"{HOSTILE}\n", encoding="utf-8")
    assert "<script" not in state_lines([str(run)], EN)


def test_a_run_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    assert "no run here" in state_lines([str(tmp_path / "gone")], EN)
    assert report_part([str(tmp_path / "gone")], EN) == ""


def test_two_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    runs = [str(write_full_run(tmp_path / name, said="好")) for name in ("one", "two")]
    part = report_part(runs, Words("zh"))
    assert "并排比较" in part and 'lang="zh"' in part
