"""A method, an objective, a chat format and a data format, each added here in a few lines, in this process.

`test_developing.py` writes the additions of docs/developing.md into a copy of the project.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy

from glmtune import load_model, train, verify
from glmtune.data.batches import Batch
from glmtune.data.formats import FORMATS, Format
from glmtune.data.reader import read_dataset
from glmtune.errors import ConfigError
from glmtune.methods import METHODS, MethodRow
from glmtune.methods.freeze import train_weights
from glmtune.objectives import OBJECTIVES, SftObjective
from glmtune.recipe import Data, load_recipe, to_yaml
from glmtune.recipe.describe import describe
from glmtune.recipe.method import METHOD_SETTINGS, MethodSettings, TrainedPart
from glmtune.recipe.objective import OBJECTIVE_SETTINGS, ObjectiveSettings
from glmtune.run_files import read_json_lines
from glmtune.templates import TEMPLATES
from models import tiny_folder

SHORT = {
    "data": {"train": "examples/adverts.jsonl", "max_rows": 6, "holdout_rows": 2, "max_tokens": 160,
             "overlong": "cut_any"},
    "train": {"steps": 2, "batch_size": 2, "lr": 1e-2},
    "samples": {"prompts": []},
}  # fmt: skip


# --- a method: its settings, what it trains, a row each in two tables ---


class Norms(MethodSettings):
    """Train the weights of the normalisations."""

    kept: ClassVar[TrainedPart] = TrainedPart.WEIGHTS
    default_lr: ClassVar[float] = 1e-2
    lr_source: ClassVar[str] = "a test"
    name: Literal["norms"] = "norms"


def norms_of(model: Any, _: Norms) -> list[str]:
    return [name for name, _ in model.named_parameters() if "norm" in name]


def apply_norms(model: Any, settings: Norms) -> Any:
    return train_weights(model, norms_of(model, settings))


def test_a_new_method_is_trained_saved_opened_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHOD_SETTINGS, "norms", Norms)
    monkeypatch.setitem(METHODS, "norms", MethodRow(apply_norms, choose=norms_of))
    base = tiny_folder(tmp_path / "base")
    run = train(model=str(base), method="norms", output=tmp_path / "run", quiet=True, **SHORT).path
    assert verify(run, quiet=True)
    before, after = (load_model(path, dtype="fp32").state_dict() for path in (base, run))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("norm" in name for name in changed)


# --- an objective: its settings, its loss, a row each in two tables ---


class Smooth(ObjectiveSettings):
    """Cross-entropy, a share of each target spread over the vocabulary."""

    name: Literal["smooth"] = "smooth"
    share: float = 0.1


class Smoothed(SftObjective):
    def __init__(self, model: Any, settings: Smooth) -> None:
        super().__init__(model)
        self.share = settings.share

    def loss(self, batch: Batch) -> Tensor:
        inputs = batch.padded()
        logits = self.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        targets = inputs["labels"][:, 1:].flatten()
        return cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum", label_smoothing=self.share
        )


def test_a_new_objective_is_what_a_run_minimises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVE_SETTINGS, "smooth", Smooth)
    monkeypatch.setitem(OBJECTIVES, "smooth", Smoothed)
    base = tiny_folder(tmp_path / "base", lively=8)
    losses = {}
    for name, objective in {"none": {"name": "smooth", "share": 0}, "some": "smooth"}.items():
        run = train(model=str(base), objective=objective, output=tmp_path / name, quiet=True, **SHORT).path
        losses[name] = [
            line.get("loss", line.get("eval_loss")) for line in read_json_lines(run / "metrics.jsonl")
        ]
    assert losses["none"] != pytest.approx(losses["some"], rel=2e-5)
    assert load_recipe(run / "recipe.yaml").objective == Smooth()
    assert verify(run, quiet=True)


# --- a chat format: its row in one table ---


def test_a_new_chat_format_is_a_template_that_recipes_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEMPLATES, "llama", TEMPLATES["glm4"])
    recipe = load_recipe({"model": "m", "template": "llama"})
    assert load_recipe(yaml.safe_load(to_yaml(recipe))).template == "llama"
    assert next(row for row in describe() if row.key == "template").kind.split(" | ")[-1] == "llama"
    with pytest.raises(ConfigError, match="'glm45_nothink' or 'llama', got 'lama'") as caught:
        load_recipe({"model": "m", "template": "lama"})
    assert caught.value.hint == "did you mean template=llama?"


# --- a data format: its row in one table ---


def test_a_new_data_format_is_found_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.jsonl").write_text('{"ask": "1+1?", "tell": "2"}\n')
    monkeypatch.setitem(FORMATS, "ask_tell", Format(("ask", "tell")))
    dataset = read_dataset(tmp_path / "my.jsonl", Data())
    assert dataset.format == "ask_tell"
    assert [message.content for message in dataset.examples[0].messages] == ["1+1?", "2"]
