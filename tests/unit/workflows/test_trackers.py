"""Programs that a run's figures are sent to: they get them, and none of them can stop a run."""

import sys
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from glmtune.errors import ConfigError, MissingDependencyError
from glmtune.recipe import load_recipe
from glmtune.workflows.run_writer import RunWriter
from glmtune.workflows.trackers import LONGEST_LOGIN_S, PROGRAMS, Trackers

LINE = {"step": 3, "loss": 2.0, "lr": 1e-3, "grad_norm": float("inf"), "tokens": 9, "is_settled": True}


class FakeWandb(ModuleType):
    """What W&B does, as far as it is called; `failing` are the calls that raise."""

    def __init__(self, *, key: str | None = None, failing: tuple[str, ...] = ()) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_finished = False
        self._key, self._failing = key, failing

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(api_key=self._key))

    def Settings(self, **words: object) -> dict[str, object]:
        return words

    def init(self, **words: Any) -> "FakeWandb":
        self.begun.append(words)
        if words["mode"] in self._failing:
            raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login")
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        if "log" in self._failing:
            raise OSError("disk full")
        self.logged.append((figures, step))

    def finish(self) -> None:
        if "finish" in self._failing:
            raise RuntimeError("no network")
        self.is_finished = True


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb) -> Trackers:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return Trackers(["wandb"])


def test_a_run_without_a_login_is_kept_offline_and_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_lines: list[str]
) -> None:
    fake = FakeWandb()
    trackers = use(monkeypatch, fake)
    trackers.begin(tmp_path / "run", {"train": {"lr": 1}})
    trackers.add(LINE)
    trackers.close()
    [begun] = fake.begun
    assert (begun["mode"], begun["project"], begun["name"]) == ("offline", "glmtune", "run")
    assert begun["config"] == {"train": {"lr": 1}}
    assert fake.logged == [({"loss": 2.0, "lr": 1e-3}, 3)]
    assert fake.is_finished
    [line] = told_lines
    assert "offline" in line and "wandb sync" in line


def test_with_a_login_it_is_online_and_waits_for_the_network_no_longer_than_this(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_lines: list[str]
) -> None:
    fake = FakeWandb(key="k")
    use(monkeypatch, fake).begin(tmp_path, {})
    assert [begun["mode"] for begun in fake.begun] == ["online"]
    assert fake.begun[0]["settings"]["init_timeout"] == LONGEST_LOGIN_S
    assert told_lines == []


def test_without_a_network_it_goes_on_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_lines: list[str]
) -> None:
    fake = FakeWandb(key="k", failing=("online",))
    trackers = use(monkeypatch, fake)
    trackers.begin(tmp_path, {})
    trackers.add(LINE)
    assert [begun["mode"] for begun in fake.begun] == ["online", "offline"]
    assert len(fake.logged) == 1
    assert "api_key not configured (no-tty)" in told_lines[0]


@pytest.mark.parametrize(
    ("failing", "num_logged"), [(("online", "offline"), 0), (("log",), 0), (("finish",), 2)]
)
def test_a_failure_is_one_warning_and_the_figures_are_in_the_runs_own_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    told_lines: list[str],
    failing: tuple[str, ...],
    num_logged: int,
) -> None:
    fake = FakeWandb(key="k", failing=failing)
    use(monkeypatch, fake)
    writer = RunWriter(tmp_path / "run", report_to=["wandb"])
    writer.begin(load_recipe({"model": "m", "train": {"lr": 1e-3}}), {}, is_new=True)
    for _ in range(2):
        writer.add(LINE)
    writer.close()
    assert len(fake.logged) == num_logged
    assert sum("the run goes on without it" in line for line in told_lines) == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_mode_that_the_user_names_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeWandb(key="k")
    trackers = use(monkeypatch, fake)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    trackers.begin(tmp_path, {})
    assert (fake.begun[0]["mode"], fake.begun[0]["project"]) == ("disabled", "mine")


def test_a_program_that_does_not_end_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_lines: list[str]
) -> None:
    fake, goes_on = FakeWandb(key="k"), Event()
    monkeypatch.setattr(fake, "finish", goes_on.wait)
    monkeypatch.setattr("glmtune.workflows.trackers.LONGEST_END_S", 0.01)
    trackers = use(monkeypatch, fake)
    trackers.begin(tmp_path, {})
    trackers.close()
    goes_on.set()
    [line] = told_lines
    assert "wandb: still not done" in line


def test_trackio_gets_the_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_lines: list[str]
) -> None:
    called: list[tuple[str, Any]] = []
    fake = ModuleType("trackio")
    fake.init = lambda **words: called.append(("init", words))  # type: ignore[attr-defined]
    fake.log = lambda figures, step: called.append(("log", (figures, step)))  # type: ignore[attr-defined]
    fake.finish = lambda: called.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    trackers = Trackers(["trackio"])
    trackers.begin(tmp_path / "run", {"model": "m"})
    trackers.add(LINE)
    trackers.close()
    init = {"project": "glmtune", "name": "run", "config": {"model": "m"}}
    assert called == [("init", init), ("log", ({"loss": 2.0, "lr": 1e-3}, 3)), ("finish", None)]
    assert told_lines == []


def test_a_program_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROGRAMS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependencyError) as caught:
            Trackers([name])
        assert caught.value.hint == f"pip install 'glmtune[{name}]'"
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.report_to=wandb", ("wandb",)),
        ("train.report_to=[wandb, trackio]", ("wandb", "trackio")),
        ("train.report_to=[]", ()),
        ("train.tensorboard=true", ("tensorboard",)),
        ("train.tensorboard=false", ()),
    ],
)
def test_the_setting_is_a_name_a_list_or_the_older_switch(word: str, expected: tuple[str, ...]) -> None:
    assert load_recipe({"model": "m"}, [word]).train.report_to == expected


def test_an_unknown_program_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"train\.report_to"):
        load_recipe({"model": "m"}, ["train.report_to=mlflow"])
