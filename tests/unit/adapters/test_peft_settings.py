"""Each setting that PEFT's adapters can have is carried out, or refused by its name."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from closeness import assert_close
from glmtune import Adapters, export, load_model
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.peft_settings import REFUSED, SUPPORTED
from glmtune.adapters.store import stored_tensors
from glmtune.errors import CheckpointError, ConfigError
from glmtune.info import inspect
from glmtune.methods import apply_method
from glmtune.methods.lora import ADAPTER
from glmtune.migration import migrate_path
from glmtune.models.config_checks import CONFIG_RULES
from glmtune.recipe import AdaLora, Lora, Ptuning
from glmtune.recipe.base import MAX_COUNT
from models import tiny_folder, tiny_hf_folder, tiny_model
from old_scripts import write_adapter

QKV: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["query_key_value"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


def adapter(folder: Path, base: Path, **settings: Any) -> Path:
    """PEFT's, with settings written into its file afterwards."""
    path = write_adapter(folder, peft.LoraConfig(**QKV), base) / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8"
    )
    return folder


def test_every_setting_of_peft_is_decided() -> None:
    known = {field.name for config in (peft.LoraConfig, peft.AdaLoraConfig) for field in fields(config)}
    assert SUPPORTED | REFUSED.keys() == known
    assert not SUPPORTED & REFUSED.keys()


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_carried_out_is_refused_by_name(key: str, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "old", base, **{key: [[0, 1]]})
    opening: list[Any] = [
        lambda: load_model(base, adapter=folder),
        lambda: load_model(base, adapter=folder, verify=False),
        lambda: Adapters(base).add("a", folder),
        lambda: migrate_path(folder, tmp_path / "new", base=base),
    ]
    for run in opening:
        with pytest.raises(CheckpointError, match=f"adapter_config.json: {key} is set: .* not supported"):
            run()
    [warning] = inspect(folder, base=base).warnings
    assert f"this adapter cannot be loaded: adapter_config.json: {key} is set" in warning


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_took_a_part_of_its_base_opens_as_the_hint_says(
    start: str, base: Path, tmp_path: Path
) -> None:
    tuned = peft.get_peft_model(
        load_model(base, dtype="fp32"), peft.LoraConfig(**QKV, init_lora_weights=start)
    )
    tuned.save_pretrained(str(tmp_path / "initial"))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05
    tuned.save_pretrained(str(tmp_path / "old"))
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}': a part of the") as caught:
        load_model(base, adapter=tmp_path / "old")
    assert "path_initial_model_for_weight_conversion=INITIAL" in caught.value.hint
    initial = str(tmp_path / "initial")
    tuned.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=initial)
    ids = torch.tensor([[5, 6, 7]])
    theirs = tuned.eval()(ids).logits
    ours = load_model(base, adapter=tmp_path / "plain", dtype="fp32")(ids).logits
    assert_close(ours, theirs)


def test_a_setting_that_is_not_known_is_refused_unless_it_is_empty(base: Path, tmp_path: Path) -> None:
    load_model(base, adapter=adapter(tmp_path / "empty", base, from_the_future=None, merge_weights=False))
    folder = adapter(tmp_path / "old", base, from_the_future={"x": 1})
    with pytest.raises(CheckpointError, match="from_the_future is set, which this version") as caught:
        load_model(base, adapter=folder)
    assert f"glmtune migrate {folder} --output NEW" in caught.value.hint
    [done] = migrate_path(folder, tmp_path / "new", base=base)
    assert list(done.lost) == ["from_the_future {'x': 1}"]
    load_model(tmp_path / "new")


@pytest.mark.parametrize(
    "settings",
    [{"bias": "all"}, {"modules_to_save": ["output_layer"]}, {"trainable_token_indices": [5]}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_changes_more_than_layers_stands_beside_no_other(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "old", peft.LoraConfig(**QKV, **settings), base)
    adapters = Adapters(base)
    ids = torch.tensor([[5, 6, 7]])
    before = adapters.model(ids).logits
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is set: it would change the base"):
        adapters.add("a", folder)
    assert torch.equal(adapters.model(ids).logits, before)
    load_model(base, adapter=folder)


def test_adapters_on_experts_open_and_are_not_merged(tmp_path: Path) -> None:
    base = tiny_hf_folder(tmp_path / "base", "GLM-4.5")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["gate_proj", "up_proj", "down_proj"])
    folder = write_adapter(tmp_path / "old", config, base)
    migrate_path(folder, tmp_path / "new", base=base)
    in_peft = peft.PeftModel.from_pretrained(load_model(base, dtype="fp32"), str(folder)).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_model(tmp_path / "new", dtype="fp32")(ids).logits, in_peft(ids).logits)
    with pytest.raises(CheckpointError, match=r"target_parameters is set, and only"):
        export(tmp_path / "new", to="merged", output=tmp_path / "merged")


STEPS = {"gt": 1e-30, "ge": 0, "le": 0, "lt": -1e-9}
"""From a bound of a setting to a value that is allowed."""


def extremes(kind: Any, name: str) -> list[float]:
    """The smallest and the largest number that a setting may be."""
    bounds = [(bound, sign) for bound in kind.model_fields[name].metadata for sign in STEPS]
    return [getattr(bound, sign) + STEPS[sign] for bound, sign in bounds if hasattr(bound, sign)]


NUMBERS = {Lora: ("r", "alpha", "dropout"), AdaLora: ("alpha", "dropout", "init_r", "orthogonality")}
SIZES = [
    (kind, name, value) for kind, names in NUMBERS.items() for name in names for value in extremes(kind, name)
]


@pytest.mark.parametrize(("kind", "name", "value"), SIZES)
def test_what_a_recipe_may_say_is_read_back_from_the_adapter(
    kind: Any, name: str, value: float, tmp_path: Path
) -> None:
    low = {"target_r": 1} if kind is AdaLora else {}
    config = apply_method(tiny_model(), kind(**{**low, name: value})).peft_config[ADAPTER]
    if kind is AdaLora:
        config.tinit = config.tfinal = config.deltaT = config.total_step = MAX_COUNT
    config.save_pretrained(str(tmp_path))
    assert read_adapter_config(tmp_path)["peft_type"] == kind.__name__.upper()


@pytest.mark.parametrize("value", extremes(Ptuning, "num_prefix_tokens"))
def test_the_longest_prefix_of_a_recipe_is_one_of_a_config(value: int) -> None:
    assert CONFIG_RULES["pre_seq_len"].allows(value)


@pytest.mark.parametrize("alpha", [-16, 2e6])
def test_any_scale_is_carried_out_as_peft_does(alpha: float, base: Path, tmp_path: Path) -> None:
    plain, ids = load_model(base), torch.tensor([[5, 6, 7]])
    folder = adapter(tmp_path / "a", base, lora_alpha=alpha)
    ours = load_model(base, adapter=folder)(input_ids=ids).logits
    assert_close(ours, peft.PeftModel.from_pretrained(plain, folder)(input_ids=ids).logits)


def test_a_rank_above_the_model_s_sizes_is_opened_again(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", peft.LoraConfig(**{**QKV, "r": 1_100}), base)
    assert stored_tensors(folder)
