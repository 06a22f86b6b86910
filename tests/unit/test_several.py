"""Several adapters over one base: each answers as if it were alone, and the base is there once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import assert_close, distance
from glmtune import Adapters, load_model
from glmtune.errors import CheckpointError, ConfigError
from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_v1_folder
from tuned import METHODS, tune

FAMILIES = {"chatglm": tiny_v1_folder, "chatglm3": tiny_folder}


@pytest.fixture(scope="module", params=[*FAMILIES, "GLM-4-hf"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    if request.param in HF_FAMILIES:
        return tiny_hf_folder(folder, request.param)
    return FAMILIES[request.param](folder)


def prompt(model: Any) -> torch.Tensor:
    config = model.config
    ids = [5, 6, 7, 8, 9]
    return torch.tensor(
        [[*ids, config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else ids]
    )


def greedy(model: Any) -> list[int]:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = causal.generate(prompt(model), max_new_tokens=12, do_sample=False, eos_token_id=None)
    answer: list[int] = ids[0].tolist()
    return answer


def test_each_adapter_answers_as_it_does_alone_and_the_base_as_before(base: Path, tmp_path: Path) -> None:
    adapters = Adapters(base, dtype="fp32")
    can_prefix = hasattr(adapters.model, "hold_prefix")
    names = [name for name in METHODS if can_prefix or METHODS[name]["name"] != "ptuning"]
    before = {p.data_ptr() for p in adapters.model.parameters()}
    alone = {None: load_model(base, dtype="fp32")}
    for name in names:
        folder = tune(base, tmp_path / name, name)
        alone[name] = load_model(folder, dtype="fp32")
        adapters.add(name, folder)
    assert adapters.names == tuple(names)
    assert adapters.active is None
    assert before <= {p.data_ptr() for p in adapters.model.parameters()}  # the base's own, none copied
    ids = prompt(adapters.model)
    expected = {name: (model(ids).logits, greedy(model)) for name, model in alone.items()}
    answers = set()
    for name in [*names, None, *reversed(names), None]:
        with adapters.using(name) as model:
            assert_close(model(ids).logits, expected[name][0])
            assert greedy(model) == expected[name][1]
            answers.add(tuple(model(ids).logits[0, -1].topk(8).indices.tolist()))
    assert len(answers) > 3
    assert adapters.active is None


@pytest.mark.parametrize(("method", "off"), [("lora", 0), ("rslora", 0), ("dora", 0), ("adalora", 2e-2)])
def test_on_a_half_precision_base_each_answers_to_the_last_bit_as_alone(
    method: str, off: float, tmp_path: Path
) -> None:
    base = tiny_folder(tmp_path / "base")
    folder = tune(base, tmp_path / method, method)
    adapters, alone = Adapters(base, dtype="bf16"), load_model(folder, dtype="bf16")
    adapters.add(method, folder)
    with adapters.using(method) as model:
        ids = prompt(model)
        assert distance(model(ids).logits, alone(ids).logits) <= off  # AdaLoRA stands there as LoRA
        factors = [p for name, p in model.named_parameters() if "lora_" in name]
        assert {p.dtype for p in factors} == {torch.float32}


def test_switching_copies_no_weights(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    adapters = Adapters(base, dtype="fp32")
    for name in ("lora", "short"):
        adapters.add(name, tune(base, tmp_path / name, name))
    places = []
    for name in ("lora", "short", None, "lora"):
        adapters.use(name)
        places.append({n: p.data_ptr() for n, p in adapters.model.named_parameters() if "prefix" not in n})
    assert all(place == places[0] for place in places)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_adapters_stand_on_a_quantised_base(quant: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    adapters = Adapters(base, dtype="fp32", quant=quant)
    for name in ("lora", "short"):
        folder = tune(base, tmp_path / name, name, quant)
        adapters.add(name, folder)
        with adapters.using(name) as model:
            assert greedy(model) == greedy(load_model(folder, dtype="fp32"))


def test_an_adapter_that_is_refused_leaves_everything_as_it_was(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    other = tiny_folder(tmp_path / "other", num_layers=3)
    adapters = Adapters(base, dtype="fp32")
    adapters.add("lora", tune(base, tmp_path / "lora", "lora"))
    adapters.use("lora")
    before = adapters.model(prompt(adapters.model)).logits
    for method in ("wide", "short"):
        with pytest.raises(CheckpointError):
            adapters.add("wrong", tune(other, tmp_path / f"wrong-{method}", method))
    assert (adapters.names, adapters.active) == (("lora",), "lora")
    assert torch.equal(adapters.model(prompt(adapters.model)).logits, before)


@pytest.mark.parametrize("first", [None, "wide"])
def test_an_adapter_that_is_refused_once_it_is_on_leaves_no_part_of_itself(
    first: str | None, tmp_path: Path
) -> None:
    base = tiny_folder(tmp_path / "base")
    wrong = tune(base, tmp_path / "wrong", "lora")
    file = wrong / "adapter_model.safetensors"
    tensors = load_file(file)
    adapters = Adapters(base, dtype="fp32")
    if first:
        adapters.add(first, tune(base, tmp_path / first, first))
    before = [(name, type(part)) for name, part in adapters.model.named_modules()]
    held = set(adapters.model.state_dict())
    configs = dict(getattr(adapters.model, "peft_config", {}))
    missing = {n: t for n, t in tensors.items() if "layers.1" not in n}
    zeros = {n: t * 0 for n, t in tensors.items()}
    for damaged, verify in ((missing, False), (missing, True), (zeros, True)):
        save_file(damaged, file, {"format": "pt"})
        with pytest.raises(CheckpointError):
            adapters.add("wrong", wrong, verify=verify)
        assert [(name, type(part)) for name, part in adapters.model.named_modules()] == before
        assert set(adapters.model.state_dict()) == held
        assert not any(p.is_meta for p in adapters.model.parameters())
        assert getattr(adapters.model, "peft_config", {}) == configs
    save_file(tensors, file, {"format": "pt"})
    adapters.add("right", wrong)


@pytest.mark.parametrize("method", ["lora", "adalora", "short"])
def test_no_dropout_is_at_work_in_an_adapter_that_is_not_proven(method: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    folder = tune(base, tmp_path / method, method, dropout=0.5)
    adapters = Adapters(base, dtype="fp32")
    adapters.add(method, folder, verify=False)
    assert not any(part.training for part in adapters.model.modules())
    with adapters.using(method) as model:
        assert not any(part.training for part in model.modules())
        ids = prompt(model)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_names_and_folders_that_cannot_be_are_answered_with_what_can(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    adapters = Adapters(base, dtype="fp32")
    lora = tune(base, tmp_path / "lora", "lora")
    adapters.add("广告.v2", lora)
    with pytest.raises(ConfigError, match="an adapter of this name already"):
        adapters.add("广告.v2", lora)
    with pytest.raises(ConfigError, match="ads: no adapter of this name") as caught:
        adapters.use("ads")
    assert "广告.v2" in caught.value.hint
    with pytest.raises(ConfigError, match="an adapter, not a base"):
        Adapters(lora)
