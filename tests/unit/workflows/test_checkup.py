"""A checkup: what changed is told alike of an adapter and of what it was merged into; the rest is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.kinds import KINDS, ExportSettings
from glmtune.exports.source import find_source
from glmtune.locations import resolve
from glmtune.recipe.parse import build_recipe
from glmtune.reports.checkup import Change, Checkup
from glmtune.workflows.checkup import _adapter_changes, _whole_changes, checking
from glmtune.workflows.events import drain
from models import tiny_folder
from proofs import make_checkpoint

LORA: dict[str, Any] = {"name": "lora", "r": 4, "dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "freeze": {"name": "freeze", "num_layers": 1},
}


def merged(run: Path, folder: Path) -> Path:
    source = find_source(run)
    folder.mkdir()
    KINDS["merged"].draft(source, source.open(), ExportSettings()).write(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_and_what_it_was_merged_into_have_changed_alike(method: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    run = make_checkpoint(base, tmp_path / "run", METHODS[method], by=0.05)
    whole = resolve(merged(run, tmp_path / "merged"))
    ours = {each.name: each.share for each in _adapter_changes(resolve(run)).changes}
    theirs = {each.name: each.share for each in _whole_changes(whole, resolve(base))}
    assert ours
    assert {name: share for name, share in theirs.items() if share} == pytest.approx(ours)


def check(path: Path, **settings: object) -> Checkup:
    return drain(checking(build_recipe({"model": str(path), **settings}), path))


def test_what_changes_nothing_or_fits_no_base_is_refused_before_a_model_answers(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    run = make_checkpoint(base, tmp_path / "run", LORA, by=0)
    with pytest.raises(CheckpointError, match="changes nothing"):
        check(run)
    with pytest.raises(CheckpointError, match="changes nothing: its weights are its base's"):
        check(base, base=str(base))
    with pytest.raises(ConfigError, match=r"checkup: .* is a model, with no base recorded"):
        check(base)
    wider = tiny_folder(tmp_path / "wider", hidden_size=64)
    with pytest.raises(CheckpointError, match=r"is \[.*, its is \["):
        check(base, base=str(wider))
    moved = make_checkpoint(base, tmp_path / "moved", LORA)
    other = tiny_folder(tmp_path / "other", seed=4)
    with pytest.raises(CheckpointError, match="trained on other weights"):
        check(moved, base=str(other))


def found(**changed: Any) -> Checkup:
    both = {"base": 1.0, "tuned": 1.0}
    forgetting: dict[str, Any] = {
        "verdict": "kept", "kl": {"mean": 0.01, "low": 0.0, "high": 0.02}, "prompts": 4, "answers": 5,
        "thresholds": {"drifted": 0.05, "forgot": 0.2}, "changed_share": 0.4, "ended_share": both,
        "repeated_share": both, "leaked": {"base": 0, "tuned": 0}, "loss": both, "compared": [],
        "by": {"category": {}, "language": {}},
    }  # fmt: skip
    settings = {
        "path": "p", "base": "b", "kind": "lora", "template": "chatglm3", "rule": "recorded",
        "system": None, "source_prefix": "", "command": "glmtune chat p", "num_weights": 2,
        "changes": (Change("layers.0.a", 3.0, 10.0), Change("layers.0.b", 4.0, 0.0), Change("h", 0.0, 1.0)),
        "prefix_tokens": 0, "unproven": (), "has_rows": True,
        "forgetting": {**forgetting, **changed.pop("forgetting", {})},
    }  # fmt: skip
    return Checkup(**{**settings, **changed})


def test_states_follow_the_figures() -> None:
    def state(question: str, **changed: Any) -> str:
        return next(r.state for r in found(**changed).replies() if r.question == question)

    assert [reply.state for reply in found().replies()] == ["good"] * 4 + ["plain"] * 2
    assert state("stops", forgetting={"ended_share": {"base": 1.0, "tuned": 0.85}}) == "bad"
    assert state("leaks", forgetting={"leaked": {"base": 1, "tuned": 2}}) == "bad"
    assert state("leaks", has_rows=False) == "plain"
    assert state("forgot", forgetting={"verdict": "drifted"}) == "odd"
    assert state("forgot", forgetting={"verdict": "forgot"}) == "bad"


def test_layers_are_summed_as_lengths_are() -> None:
    assert found().layers() == [("h", 0.0), ("0", pytest.approx(0.5))]
    assert torch.tensor([3.0, 4.0]).norm() / 10 == pytest.approx(0.5)


def test_shares_above_the_whole_and_below_a_thousandth_are_told_in_plain_figures() -> None:
    changes = (Change("a", 1.5, 1.0), Change("b", 0.0000123, 1.0))
    does = found(changes=changes).replies()[0].words
    assert "by 0.0012 % to 150 % of their length; 40% of 5 answers to 4 general prompts" in does.en
    assert "0.0012 % 到 150 %；4 个通用提示" in does.zh


@pytest.mark.parametrize(
    ("rule", "en", "zh"),
    [
        ("recorded", "recorded with it", "随它一起记录"),
        ("given", "the template setting", "由 template 设置指定"),
        ("its chat_template", "told by its files", "由其文件得知"),
    ],
)
def test_the_source_of_the_format_is_told_in_both_languages(rule: str, en: str, zh: str) -> None:
    words = next(reply.words for reply in found(rule=rule).replies() if reply.question == "format")
    assert words.en.startswith(f"chatglm3 ({en});")
    assert words.zh.startswith(f"chatglm3（{zh}）；")
