"""`glmtune explain` as users type it, and the explanation below this program's own failures."""

import json
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from tools.explained_messages import DOCS, PAGES

from commands import Done, glmtune
from explained_logs import HEALTHY, LOGS
from glmtune.cli import glmtune as program
from glmtune.cli import main
from glmtune.cli.explain import WIDTH
from glmtune.errors import TrainingError
from glmtune.explanations.table import known_messages


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")


def write(folder: Path, **logs: str) -> Path:
    for name, text in logs.items():
        (folder / f"{name}.log").write_text(text, encoding="utf-8")
    return folder


def test_a_log_gives_place_cause_cure_and_command(tmp_path: Path) -> None:
    done = glmtune("explain", "train.log", cwd=write(tmp_path, train=LOGS["ragged-rows"]))
    first, *_ = done.stdout.split("\n\n")
    row = known_messages()["ragged-rows"]
    assert done.returncode == 0
    assert first.startswith("2: ValueError: expected sequence of length 129 at dim 1 (got 128)")
    assert f"\n  {row.en.title}\n  cause: " in first
    assert "\n  there: " in first
    assert f"\n          {row.commands[0]}\n" in first
    assert first.endswith(f"\n  more: {row.link}")
    assert done.stdout.index(row.en.title) < done.stdout.index(known_messages()["child-failed"].en.title)


def test_texts_are_broken_within_the_width_and_lose_nothing(tmp_path: Path) -> None:
    from rich.cells import cell_len

    for language in ("en", "zh"):
        done = glmtune("explain", "cuda-out-of-memory", "--lang", language, cwd=tmp_path)
        words = getattr(known_messages()["cuda-out-of-memory"], language)
        lines = done.stdout.splitlines()
        assert all(cell_len(line) <= WIDTH for line in lines)
        flat = re.sub(r"\s", "", done.stdout)
        for text in (words.title, words.cause, words.there, words.here):
            assert re.sub(r"\s", "", text) in flat
        assert not any(re.match(r" *[，。；：！？、）]", line) for line in lines)


@pytest.mark.parametrize("words", [["explain"], ["explain", "-"]])
def test_a_pipe_is_read(words: list[str], tmp_path: Path) -> None:
    done = glmtune(*words, cwd=tmp_path, typed=LOGS["half-and-float"])
    assert done.stdout.startswith("3: RuntimeError: expected scalar type Half but found Float\n")


def test_a_pipe_of_bytes_is_read_in_its_character_set(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glmtune", "explain", "--lang", "zh"]
    log = "训练开始\n显存不足：CUDA out of memory\n".encode("gb18030")
    done = subprocess.run(command, input=log, capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.decode("utf-8").startswith("2: 显存不足：CUDA out of memory\n  显存不够\n  原因：")


def test_several_logs_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, one=LOGS["disk-full"], two=LOGS["killed"])
    done = glmtune("explain", "one.log", "two.log", cwd=tmp_path)
    assert re.findall(r"^== .*", done.stdout, re.MULTILINE) == ["== one.log", "== two.log"]


def test_an_unknown_error_is_shown_with_where_to_ask(tmp_path: Path) -> None:
    write(tmp_path, odd='Traceback (most recent call last):\n  File "a.py", line 1\nOddError: nobody knows\n')
    done = glmtune("explain", "odd.log", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == [
        "no message is known (lines read: 3)", "it is likely this:", "3: OddError: nobody knows",
    ]  # fmt: skip
    assert "`glmtune doctor`" in done.stdout
    assert "/issues" in done.stdout


def test_an_error_of_ours_that_needs_no_explanation_leads_to_its_hint(tmp_path: Path) -> None:
    done = glmtune(
        "explain", cwd=tmp_path, typed="error: train.lrr: unknown setting\nhint: did you mean lr?\n"
    )
    assert "1: error: train.lrr: unknown setting\nif it is of glmtune, its line `hint:`" in done.stdout


def test_a_healthy_log_has_nothing_to_explain(tmp_path: Path) -> None:
    done = glmtune("explain", "fine.log", cwd=write(tmp_path, fine=HEALTHY))
    assert done.returncode == 1
    assert done.stdout.startswith("no message is known")
    assert "likely" not in done.stdout


def test_a_report_without_its_cause_is_said_to_be_one(tmp_path: Path) -> None:
    done = glmtune("explain", "end.log", cwd=write(tmp_path, end=LOGS["child-failed"]))
    assert done.returncode == 1
    assert "these lines only report that something failed" in done.stdout


def test_json_holds_the_same(tmp_path: Path) -> None:
    write(tmp_path, one=LOGS["disk-full"], two="OddError: nobody knows\n")
    done = glmtune("explain", "one.log", "two.log", "--json", "--lang", "zh", cwd=tmp_path)
    one, two = json.loads(done.stdout)
    assert done.returncode == 1
    assert (one["log"], one["explained"][0]["name"], one["explained"][0]["line"]) == (
        "one.log",
        "disk-full",
        3,
    )
    assert one["explained"][0]["title"] == known_messages()["disk-full"].zh.title
    assert (two["explained"], two["likely"]["text"]) == ([], "OddError: nobody knows")


def test_every_message_is_listed_and_explained_by_name(tmp_path: Path) -> None:
    listed = glmtune("explain", "--list", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(known_messages())
    done = glmtune("explain", "killed", cwd=tmp_path)
    assert done.stdout.startswith(f"  {known_messages()['killed'].en.title}\n")


@pytest.mark.parametrize(
    ("word", "said"), [("nowhere.log", "nowhere.log: No such file"), ("folder", "folder: Is a directory")]
)
def test_a_log_that_cannot_be_read_is_an_error(word: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = glmtune("explain", word, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert "`glmtune explain --list`" in done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_guide_shows_what_is_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # xdist's processes have 80
    done = glmtune("explain", "train.log", cwd=write(tmp_path, train=LOGS["ragged-rows"]))
    assert f"```text\n{done.stdout}```\n" in (DOCS / page).read_text(encoding="utf-8")


# The program's own failures


def fail(error: Exception, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Done:
    def callback(**_: object) -> None:
        raise error

    monkeypatch.setattr(program.commands["runs"], "callback", callback)
    return glmtune("runs", cwd=folder)


def test_an_error_of_ours_that_is_known_has_its_cause_below_the_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = TrainingError("memory: there was none left (CUDA out of memory)", hint="end other programs")
    done = fail(error, monkeypatch, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1] == "hint: end other programs"
    row = known_messages()["cuda-out-of-memory"]
    assert done.stderr.splitlines()[2] == f"cause: {row.en.cause}"
    assert done.stderr.splitlines()[3] == "       more: `glmtune explain cuda-out-of-memory`"
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert f"\n原因：{row.zh.cause}\n" in fail(error, monkeypatch, tmp_path).stderr


def test_a_mistake_that_needs_no_explanation_has_none(tmp_path: Path) -> None:
    done = glmtune("train", "model=glm-tiny", "data.train=x.json", "train.lrr=1", cwd=tmp_path)
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_a_traceback_of_a_library_is_explained_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("expected scalar type Half but found Float")
    with pytest.raises(RuntimeError) as caught:
        fail(error, monkeypatch, tmp_path)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.index("RuntimeError: expected") < shown.index("half precision meets fp32")
    with pytest.raises(KeyError) as unknown:
        fail(KeyError("x"), monkeypatch, tmp_path)
    assert not hasattr(unknown.value, "__notes__")


def test_help_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", "--help"])
    main()
    assert "glmtune explain train.log" in capsys.readouterr().out
