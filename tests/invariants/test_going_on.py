"""A second run goes on from what a first one trained: its weights, its settings, its base; all else anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.adapters.store import read_card
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.exports.kinds import KINDS, ExportSettings
from glmtune.exports.source import find_source
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import follow, read_json_lines
from glmtune.workflows.early import training_recipe
from glmtune.workflows.events import Note, Saved, drain
from glmtune.workflows.execute import training
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # nf4 needs rows of whole blocks of 64
METHODS: dict[str, tuple[dict[str, Any], str | None]] = {
    "lora": ({"name": "lora", "r": 4, "alpha": 16}, None),
    "rslora": ({"name": "lora", "r": 4, "use_rslora": True}, None),
    "dora": ({"name": "lora", "r": 4, "use_dora": True}, None),
    "qlora": ({"name": "lora", "r": 4}, "nf4"),
    "adalora": ({"name": "adalora", "init_r": 4, "target_r": 2}, None),
    "ptuning": ({"name": "ptuning", "num_prefix_tokens": 4}, None),
    "ptuning projected": ({"name": "ptuning", "num_prefix_tokens": 4, "projection": True}, None),
    "freeze": ({"name": "freeze", "num_layers": 1}, None),
}
SLOW = ("rslora", "qlora", "ptuning projected")
RATES = {"ptuning": 1e-1, "ptuning projected": 5e-3, "freeze": 5e-3}


def recipe(model: Path, output: Path | None, *words: str, **values: Any) -> Recipe:
    defaults = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 16, "holdout_rows": 4},
        "train": {"steps": 8, "batch_size": 4, "micro_batch_size": 4, "lr": 1e-2, "eval_every": 4},
        "samples": {"prompts": []},
    }
    return training_recipe({**defaults, **values}, words)


Begin = Callable[[str], Path]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Begin:
    """The first run of a method, its base stored in bf16."""
    folder = tmp_path_factory.mktemp("first")
    tiny_folder(folder / "base", dtype=torch.bfloat16, lively=8, **SIZES)

    def run(method: str) -> Path:
        path = folder / method
        if not path.exists():
            settings, quant = METHODS[method]
            rate = f"train.lr={RATES.get(method, 3e-2)}"
            first = recipe(folder / "base", path, rate, method=settings, quant=quant, dtype="fp32")
            drain(training(first))
        return path

    return run


def figures(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr", "eval_loss")
    return [tuple(x[n] for n in names if n in x) for x in read_json_lines(folder / "metrics.jsonl")]


def losses(folder: Path) -> list[float]:
    return [line["eval_loss"] for line in read_json_lines(folder / "metrics.jsonl") if "eval_loss" in line]


def trained(run: Path, link: str = "best") -> dict[str, torch.Tensor]:
    (file,) = follow(run / link).glob("*.safetensors")
    return load_file(file)


each_method = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS]
)


@each_method
def test_a_run_goes_on_from_the_weights_and_settings_of_another(
    method: str, begin: Begin, tmp_path: Path
) -> None:
    first = begin(method)
    before = read_card(follow(first / "best"))
    rate = f"train.lr={RATES.get(method, 1e-2)}"
    second = recipe(first, tmp_path / "second", rate, dtype="fp32")
    notes = [event.text for event in training(second) if isinstance(event, Note)]
    assert any(note.startswith(f"goes on from {follow(first / 'best')}: ") for note in notes)
    found = losses(tmp_path / "second")
    best = json.loads((first / "eval.json").read_text(encoding="utf-8"))["best_eval_loss"]
    assert found[0] == pytest.approx(best, rel=1e-6)  # it begins as the first one ended
    assert found[-1] < found[0] - 1e-3
    rates = [line["lr"] for line in read_json_lines(tmp_path / "second/metrics.jsonl") if "lr" in line]
    assert rates[0] == second.train.lr  # the schedule is its own
    card = read_card(follow(tmp_path / "second" / "best"))
    assert before
    assert card
    assert (card.base, card.fingerprint, card.method, card.quant, card.template) == (
        before.base, before.fingerprint, before.method, before.quant, before.template
    )  # fmt: skip
    assert card.parent == {"path": str(follow(first / "best")), "weights_sha256": before.weights_sha256}
    assert card.probe
    assert before.probe
    assert card.probe.base == before.probe.base  # the base's own answers, without the parent
    ours, theirs = trained(tmp_path / "second"), trained(first)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    glmtune.verify(tmp_path / "second")


@each_method
def test_a_step_that_changes_nothing_leaves_every_weight_of_the_parent(
    method: str, begin: Begin, tmp_path: Path
) -> None:
    first = begin(method)
    drain(training(recipe(first, tmp_path / method, "train.lr=0", "train.steps=1")))
    theirs, ours = trained(first), trained(tmp_path / method, "last")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), method


@pytest.mark.parametrize(
    "method",
    ["adalora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "ptuning", "freeze"))],
)
def test_a_run_that_goes_on_and_is_resumed_equals_an_uninterrupted_one(
    method: str, begin: Begin, tmp_path: Path
) -> None:
    whole, parts = (recipe(begin(method), tmp_path / name, "train.lr=5e-3") for name in ("whole", "parts"))
    drain(training(whole))
    interrupted = training(parts)
    while not isinstance(next(interrupted), Saved):
        pass
    for _ in range(2):
        next(interrupted)
    interrupted.close()
    drain(training(parts, resume=True))
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    mine, theirs = trained(tmp_path / "parts", "last"), trained(tmp_path / "whole", "last")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    again = load_recipe(tmp_path / "parts" / "recipe.yaml")  # which names the checkpoint, not the run
    assert again.model == str(follow(begin(method) / "best"))
    drain(training(again, resume=True))


def test_a_pruned_adalora_keeps_its_ranks_and_an_unpruned_one_is_pruned(begin: Begin, tmp_path: Path) -> None:
    first = begin("adalora")
    drain(training(recipe(first, tmp_path / "settled", "train.steps=2")))
    settled = [line["ranks"] for line in read_json_lines(tmp_path / "settled" / "ranks.jsonl")]
    assert settled == [read_json_lines(first / "ranks.jsonl")[-1]["ranks"]]
    early = recipe(first.parent / "base", tmp_path / "early", method=METHODS["adalora"][0], dtype="fp32")
    interrupted = training(early)
    while not isinstance(next(interrupted), Saved):  # at step 4, when ranks still fall
        pass
    interrupted.close()
    drain(training(recipe(tmp_path / "early" / "last", tmp_path / "late")))
    ranks = [sum(line["ranks"].values()) for line in read_json_lines(tmp_path / "late" / "ranks.jsonl")]
    assert (ranks[0], ranks[-1]) == (2 * 4, 2 * 2)


@pytest.mark.parametrize(("words", "problem"), [
    ("method.r=16", "method.r: 16, but {run} was trained with 4"),
    ("method.alpha=8", "method.alpha: 8.0, but {run} was trained with 16.0"),
    ("method=ptuning", "method.name: ptuning, but {run} was trained with lora"),
    ("method=adalora method.init_r=16", "method.name: adalora, but {run} was trained with lora"),
    ("template=chatglm2", "trained with the chat format chatglm3, not with chatglm2"),
])  # fmt: skip
def test_other_settings_than_the_parents_are_refused_by_name(
    words: str, problem: str, begin: Begin, tmp_path: Path
) -> None:
    first = begin("lora")
    with pytest.raises(GlmtuneError) as caught:
        drain(training(recipe(first, tmp_path / "second", *words.split())))
    assert problem.format(run=first) in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("method", "word", "problem"),
    [
        ("adalora", "method.target_r=1", "method.target_r: 1, but {run} was trained with 2"),
        (
            "ptuning",
            "method.num_prefix_tokens=64",
            "method.num_prefix_tokens: 64, but {run} was trained",
        ),
        ("freeze", "method.num_layers=7", "method.num_layers: 7, but {run} was trained with"),
    ],
)
def test_settings_are_those_of_the_parents_method_though_it_is_not_named(
    method: str, word: str, problem: str, begin: Begin, tmp_path: Path
) -> None:
    first = begin(method)
    with pytest.raises(ConfigError) as caught:
        drain(training(recipe(first, tmp_path / "second", word)))
    assert str(caught.value).startswith(problem.format(run=first))


def test_the_parents_own_settings_may_be_named(begin: Begin, tmp_path: Path) -> None:
    words = ("method=lora", "method.r=4", "method.alpha=16", "train.steps=1")
    drain(training(recipe(begin("lora"), tmp_path / "second", *words)))
    card = read_card(follow(tmp_path / "second" / "best"))
    assert card and (card.method["r"], card.method["alpha"]) == (4, 16)


def test_a_parent_whose_file_has_changed_is_refused(begin: Begin, tmp_path: Path) -> None:
    parent = shutil.copytree(follow(begin("lora") / "best"), tmp_path / "parent")
    file = parent / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: tensors[name] * (1 + 1e-6)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="these are not the weights that were saved"):
        drain(training(recipe(parent, tmp_path / "second")))
    assert not (tmp_path / "second").exists()


def test_a_lora_of_pefts_is_gone_on_from_by_its_own_settings(begin: Begin, tmp_path: Path) -> None:
    parent = shutil.copytree(follow(begin("lora") / "best"), tmp_path / "parent")
    (parent / "glmtune.json").unlink()
    drain(training(recipe(parent, tmp_path / "second", "train.lr=0", "train.steps=1")))
    card = read_card(follow(tmp_path / "second" / "last"))
    assert card
    assert {key: card.method[key] for key in ("name", "r", "alpha", "target_modules")} == {
        "name": "lora", "r": 4, "alpha": 16, "target_modules": ["query_key_value"]
    }  # fmt: skip
    assert card.parent["weights_sha256"] == card.weights_sha256


def test_an_official_prefix_is_gone_on_from_with_its_base_named(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, prefix = find_source(begin("ptuning")), tmp_path / "prefix"
    prefix.mkdir()
    KINDS["official-ptuning"].draft(source, source.open(), ExportSettings()).write(prefix)
    base = begin("ptuning").parent / "base"
    monkeypatch.chdir(base.parent)
    second = recipe(prefix, tmp_path / "second", "train.lr=0", "train.steps=1", "base=base")
    drain(training(second))
    card = read_card(follow(tmp_path / "second" / "last"))
    assert card
    assert (card.method["num_prefix_tokens"], card.base) == (4, str(base))
    assert load_recipe(tmp_path / "second" / "recipe.yaml").base == base
    theirs, ours = trained(begin("ptuning")), trained(tmp_path / "second", "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize(("changes", "problem"), [
    ({"modules_to_save": ["output_layer"]}, "modules_to_save is ['output_layer'], which no method here"),
    ({"target_modules": ".*dense"}, "target_modules is '.*dense', which no method here has a setting for"),
    ({"bias": "all"}, "bias is 'all'"),
])  # fmt: skip
def test_an_adapter_whose_settings_no_method_has_is_refused_by_name(
    changes: dict[str, Any], problem: str, is_ours: bool, begin: Begin, tmp_path: Path
) -> None:
    parent = shutil.copytree(follow(begin("lora") / "best"), tmp_path / "parent")
    if not is_ours:
        (parent / "glmtune.json").unlink()
    config = json.loads((parent / "adapter_config.json").read_text(encoding="utf-8"))
    (parent / "adapter_config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        drain(training(recipe(parent, tmp_path / "second")))
    assert problem in str(caught.value)
    assert caught.value.hint


def test_an_adalora_without_a_card_is_refused_with_the_way_to_plain_lora(
    begin: Begin, tmp_path: Path
) -> None:
    parent = shutil.copytree(follow(begin("adalora") / "best"), tmp_path / "parent")
    (parent / "glmtune.json").unlink()
    with pytest.raises(ConfigError, match=r"peft_type ADALORA, but no glmtune\.json") as caught:
        drain(training(recipe(parent, tmp_path / "second")))
    assert "--to lora-from-adalora" in caught.value.hint


@pytest.mark.slow
def test_plain_lora_made_of_adalora_is_gone_on_from_with_its_ranks(begin: Begin, tmp_path: Path) -> None:
    lora = glmtune.export(begin("adalora"), to="lora-from-adalora", output=tmp_path / "lora").path
    drain(training(recipe(lora, tmp_path / "second", dtype="fp32")))
    found = losses(tmp_path / "second")
    assert found[0] == pytest.approx(losses(begin("adalora"))[-1], rel=1e-5)
    assert found[-1] < found[0]
    ours, theirs = trained(tmp_path / "second"), trained_in(lora)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    glmtune.verify(tmp_path / "second")


def trained_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_of_full_is_a_model_to_go_on_from(method: str, begin: Begin, tmp_path: Path) -> None:
    base = begin("lora").parent / "base"
    drain(training(recipe(base, tmp_path / "first", method={"name": "full"})))
    parent = follow(tmp_path / "first" / "best")
    result = drain(training(recipe(tmp_path / "first", tmp_path / "second", f"method={method}")))
    assert losses(tmp_path / "second")[0] == pytest.approx(losses(tmp_path / "first")[-1], rel=1e-2)
    assert result.metrics["eval_loss"] < result.metrics["first_eval_loss"]
    card, before = read_card(follow(tmp_path / "second" / "best")), read_card(parent)
    assert card
    assert before
    assert card.parent == {"path": str(parent), "weights_sha256": before.weights_sha256}
    assert card.base == str(parent)


def test_a_run_with_another_system_text_than_its_parent_is_warned_of(begin: Begin, tmp_path: Path) -> None:
    settings = recipe(begin("lora"), tmp_path / "second", "data.system=Be brief.", "train.steps=1")
    warnings = [event.text for event in training(settings) if isinstance(event, Note) and event.is_warning]
    assert any(text.startswith("data.system: 'Be brief.', but ") for text in warnings)


def test_a_run_without_a_name_of_its_own_is_called_after_its_parent(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = drain(training(recipe(begin("ptuning"), None, "train.steps=1")))
    assert result.path == Path("runs/ptuning-ptuning")
