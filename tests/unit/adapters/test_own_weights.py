"""P-Tuning and freeze: what is trained, what is kept, what opens again and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import assert_close, distance
from glmtune import load_model
from glmtune.adapters.own_weights import TRAINED_FILE
from glmtune.adapters.store import Card, load_adapter, restore_trained, save_trained
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.info import inspect
from glmtune.locations import resolve
from glmtune.methods import apply_method
from glmtune.models import load_base, load_in_transformers
from glmtune.recipe import Freeze, Lora, Ptuning
from golden import GOLDENS
from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_model, tiny_v1_folder

IDS = torch.tensor([[5, 6, 7, 8, 9]])
PREFIX = "transformer.prefix_encoder."
PTUNING = Ptuning(num_prefix_tokens=4, dropout=0.0)
PROJECTED = Ptuning(num_prefix_tokens=4, projection=True, dropout=0.0)
SETTINGS = [PTUNING, PROJECTED, Freeze(num_layers=1), Freeze(patterns=("*.mlp.*", "*final_layernorm*"))]


def save_tuned(folder: Path, settings: Any, base: str = "/base", **model: Any) -> Any:
    """A model whose trained weights have moved, kept in a folder."""
    tuned = apply_method(tiny_model(**model), settings).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    card = Card(base=base, template="chatglm3", method=settings.model_dump(mode="json"))
    save_trained(tuned, folder, card)
    return tuned


# What is trained


def test_p_tuning_trains_the_prefix_alone_and_that_in_fp32() -> None:
    model = apply_method(tiny_model().to(torch.bfloat16), PROJECTED)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(PREFIX)
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert model.config.pre_seq_len == 4
    assert model.transformer.prefix_encoder.dropout.p == 0.0


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_p_tuning_of_a_model_of_transformers_own_is_refused_by_name(family: str, tmp_path: Path) -> None:
    model = load_in_transformers(tiny_hf_folder(tmp_path, family), device="cpu")
    with pytest.raises(
        ConfigError, match=f"method.name: ptuning: not possible with a {family} model"
    ) as caught:
        apply_method(model, PTUNING)
    assert "method=lora" in caught.value.hint


def trained_names(model: torch.nn.Module, settings: Freeze) -> set[str]:
    return {n for n, p in apply_method(model, settings).named_parameters() if p.requires_grad}


def test_freeze_trains_the_last_layers_three_unless_said() -> None:
    names = {n for n, _ in tiny_model(num_layers=5).named_parameters()}
    for count, layers in ((None, "234"), (1, "4")):
        last = {n for n in names if any(f".layers.{i}." in n for i in layers)}
        assert trained_names(tiny_model(num_layers=5), Freeze(num_layers=count)) == last


def test_freeze_trains_what_the_patterns_match() -> None:
    found = trained_names(tiny_model(), Freeze(patterns=("*.layers.1.mlp.*", "*final_layernorm.weight")))
    assert found == {
        "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight",
        "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight",
        "transformer.encoder.final_layernorm.weight",
    }


def test_a_pattern_that_matches_nothing_is_answered_with_near_names() -> None:
    with pytest.raises(
        ConfigError, match=r"no weight of this model is called '\*final_layer_norm\*'"
    ) as caught:
        apply_method(tiny_model(), Freeze(patterns=("*final_layer_norm*",)))
    assert "final_layernorm.weight" in caught.value.hint


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.num_layers: 3, but the model has 2 layers"):
        apply_method(tiny_model(), Freeze())


@pytest.mark.parametrize("settings", [Freeze(num_layers=1), Freeze(patterns=("*.layers.0.mlp.*",))])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_not_trained(bits: int, settings: Freeze) -> None:
    model = tiny_model()
    model.quantize(bits)
    with pytest.raises(ConfigError, match=r"\.weight is quantised: its codes cannot be trained"):
        apply_method(model, settings)


def test_what_is_dense_in_a_quantised_model_can_be_trained() -> None:
    model = tiny_model()
    model.quantize(8)
    apply_method(model, Freeze(patterns=("*layernorm.weight", "*query_key_value.bias")))
    model(IDS, labels=IDS).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


# Layers of fp32 among layers of half precision


@pytest.mark.parametrize("family", ["chatglm", "chatglm3", *HF_FAMILIES])
@pytest.mark.parametrize("has_autocast", [True, False])
def test_frozen_half_and_trained_fp32_layers_work_together(
    family: str, has_autocast: bool, tmp_path: Path
) -> None:
    """With checkpointing and without, the gradients are finite and equal, outside of autocast too."""
    settings = Freeze(patterns=("*layers.1.*", "*embed*"))
    gradients = []
    for is_checkpointed in (False, True):
        model = apply_method(open_half(tmp_path / str(is_checkpointed), family), settings).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
            loss = model(input_ids=model.probe, labels=model.probe).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients[0])
    assert gradients[0]
    assert_close(gradients[1], gradients[0])


def open_half(folder: Path, family: str) -> Any:
    if family in HF_FAMILIES:
        model: Any = load_in_transformers(tiny_hf_folder(folder, family), dtype="bf16", device="cpu")
    elif family == "chatglm":
        model = load_base(tiny_v1_folder(folder), dtype="bf16", device="cpu")
    else:
        model = load_base(tiny_folder(folder), dtype="bf16", device="cpu")
    model.probe = IDS
    if family == "chatglm":
        config = model.config
        model.probe = torch.tensor([[5, 6, config.gmask_token_id, config.bos_token_id, 7, 8]])
    return model


# What is kept


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_trained_weights_are_all_that_is_kept_and_give_the_same_logits(settings: Any, tmp_path: Path) -> None:
    tuned = save_tuned(tmp_path, settings)
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    kept = load_file(tmp_path / TRAINED_FILE)
    assert kept.keys() == trained.keys()
    assert all(x.dtype == torch.float32 and torch.equal(x, trained[n]) for n, x in kept.items())
    assert {path.name for path in tmp_path.iterdir()} == {TRAINED_FILE, "glmtune.json"}
    loaded = load_adapter(tiny_model(), tmp_path)
    assert torch.equal(loaded(IDS).logits, tuned(IDS).logits)
    assert distance(loaded(IDS).logits, tiny_model()(IDS).logits) > 1e-2
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_trained_weights_are_put_back_into_a_model_of_the_same_method(settings: Any, tmp_path: Path) -> None:
    tuned = save_tuned(tmp_path, settings)
    fresh = apply_method(tiny_model(), settings).eval()
    restore_trained(fresh, tmp_path)
    assert torch.equal(fresh(IDS).logits, tuned(IDS).logits)
    assert all(
        p.requires_grad == (n in load_file(tmp_path / TRAINED_FILE)) for n, p in fresh.named_parameters()
    )


def test_opened_for_answers_the_models_own_weights_take_its_type_and_the_prefix_stays_in_fp32(
    tmp_path: Path,
) -> None:
    for name, settings, dtype in (("a", Freeze(num_layers=1), torch.bfloat16), ("b", PTUNING, torch.float32)):
        save_tuned(tmp_path / name, settings)
        loaded = load_adapter(tiny_model().to(torch.bfloat16), tmp_path / name)
        kept = load_file(tmp_path / name / TRAINED_FILE)
        assert {p.dtype for n, p in loaded.named_parameters() if n in kept} == {dtype}
        assert loaded(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_freeze_is_kept_and_opened_for_models_of_transformers_own_too(family: str, tmp_path: Path) -> None:
    base = tiny_hf_folder(tmp_path / "base", family)
    tuned = apply_method(load_in_transformers(base, device="cpu"), Freeze(num_layers=1)).eval()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data *= 1.5
    settings = Freeze(num_layers=1).model_dump(mode="json")
    save_trained(tuned, tmp_path / "run", Card(base=str(base), template="glm4", method=settings))
    loaded = load_adapter(load_in_transformers(base, device="cpu"), tmp_path / "run")
    assert torch.equal(loaded(IDS).logits, tuned(IDS).logits)
    fresh = apply_method(load_in_transformers(base, device="cpu"), Freeze(num_layers=1)).eval()
    restore_trained(fresh, tmp_path / "run")
    assert torch.equal(fresh(IDS).logits, tuned(IDS).logits)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_prefix_opens_on_a_quantised_base(quant: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    tuned = apply_method(load_base(base, device="cpu", quant=quant), PTUNING).eval()
    save_trained(
        tuned,
        tmp_path / "run",
        Card(base=str(base), template="chatglm3", method=PTUNING.model_dump(mode="json"), quant=quant),
    )
    assert torch.equal(load_model(tmp_path / "run")(IDS).logits, tuned(IDS).logits)


# Official folders


@pytest.mark.parametrize("kind", ["prefix", "prefix_proj"])
@pytest.mark.parametrize("family", ["v1_mid", "v1_late", "v2", "v3"])
def test_an_official_folder_is_told_by_its_tensors_though_it_has_a_config(family: str, kind: str) -> None:
    place = resolve(GOLDENS / family / f"ckpt_{kind}", base=GOLDENS / family / "ckpt")
    assert (place.base, place.adapter) == (GOLDENS / family / "ckpt", GOLDENS / family / f"ckpt_{kind}")
    found = inspect(GOLDENS / family / f"ckpt_{kind}", base=GOLDENS / family / "ckpt")
    assert (found.kind, found.method) == ("adapter", "ptuning")
    assert found.adapter is not None
    assert not found.warnings
    assert found.adapter.method["projection"] == (kind == "prefix_proj")
    trained = [p for p in found.parameters if p.is_trained]
    assert trained and all(p.part == "prefix" for p in trained)
    assert found.adapter.num_trained == sum(torch.Size(p.shape).numel() for p in trained)


def test_without_a_base_an_official_folder_asks_for_one() -> None:
    with pytest.raises(CheckpointError, match="its base model is not at") as caught:
        resolve(GOLDENS / "v3" / "ckpt_prefix")
    assert "base=" in caught.value.hint


def test_a_whole_official_model_with_its_prefix_opens_alone_and_on_its_base(tmp_path: Path) -> None:
    """As the official code saved it at first: every weight, the prefix among them."""
    base = tiny_folder(tmp_path / "base")
    tuned = apply_method(load_base(base, device="cpu"), PTUNING).eval()
    tuned.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "whole" / name).write_bytes((base / name).read_bytes())
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["pre_seq_len"] == 4
    for opened in (load_model(tmp_path / "whole"), load_model(base, adapter=tmp_path / "whole")):
        assert torch.equal(opened(IDS).logits, tuned(IDS).logits)
    half = load_model(tmp_path / "whole", dtype="bf16")
    assert (half.dtype, half.transformer.prefix_encoder.embedding.weight.dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    other = tiny_folder(tmp_path / "other", ffn_hidden_size=64)
    with pytest.raises(CheckpointError, match=r"mlp\.\S+ has shape \[32, 48\], this model's is"):
        load_model(other, adapter=tmp_path / "whole")


# What is refused


PAIRINGS = [
    ("other widths", "v1_late", "v3"),
    ("other widths", "v3", "v1_late"),
    ("other widths", "v2", "v3"),
    ("other layers", "v3", "v2"),
]


@pytest.mark.parametrize("kind", ["prefix", "prefix_proj"])
@pytest.mark.parametrize(("_why", "family", "base"), PAIRINGS)
def test_a_prefix_on_another_base_is_refused(_why: str, family: str, base: str, kind: str) -> None:
    model = load_base(GOLDENS / base / "ckpt", device="cpu")
    with pytest.raises(CheckpointError, match=r"has shape \[.*\], expected is \[") as caught:
        load_adapter(model, GOLDENS / family / f"ckpt_{kind}")
    assert "base" in caught.value.hint
    assert str(GOLDENS / family / f"ckpt_{kind}") in str(caught.value)
    assert (model.num_prefix_tokens, model.config.pre_seq_len) == (0, None)  # the base is as it was


def test_a_prefix_on_a_model_of_transformers_own_is_refused(tmp_path: Path) -> None:
    model = load_in_transformers(tiny_hf_folder(tmp_path, "GLM-4-hf"), device="cpu")
    with pytest.raises(ConfigError, match="not possible with a GLM-4-hf model"):
        load_adapter(model, GOLDENS / "v3" / "ckpt_prefix")


def drop(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def cut(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name][:, :-1].contiguous()


def add(tensors: dict[str, Any], _name: str) -> None:
    tensors[f"{PREFIX}more.weight"] = torch.zeros(2)


FAULTS: list[tuple[Callable[[dict[str, Any], str], None], str]] = [
    (drop, "is missing|no transformer.prefix_encoder.embedding.weight"),
    (cut, "has shape"),
    (add, "is left over"),
]


@pytest.mark.parametrize(("fault", "problem"), FAULTS)
@pytest.mark.parametrize("settings", [PTUNING, PROJECTED, Freeze(num_layers=1)], ids=repr)
def test_a_kept_file_with_a_fault_is_neither_opened_nor_resumed_from(
    settings: Any, fault: Callable[[dict[str, Any], str], None], problem: str, tmp_path: Path
) -> None:
    save_tuned(tmp_path, settings)
    tensors = load_file(tmp_path / TRAINED_FILE)
    fault(tensors, next(name for name, x in tensors.items() if x.ndim == 2))
    save_file(tensors, tmp_path / TRAINED_FILE)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_adapter(tiny_model(), tmp_path)
    assert str(tmp_path) in str(caught.value) and caught.value.hint
    with pytest.raises(CheckpointError):
        restore_trained(apply_method(tiny_model(), settings), tmp_path)


def test_a_cut_off_file_is_named(tmp_path: Path) -> None:
    save_tuned(tmp_path, PTUNING)
    path = tmp_path / TRAINED_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{TRAINED_FILE}: truncated or damaged"):
        load_adapter(tiny_model(), tmp_path)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A copy of an official folder, to be changed."""
    for source in (GOLDENS / "v3" / "ckpt_prefix").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("key", "value"), [("pre_seq_len", 16), ("prefix_projection", True)])
def test_an_official_config_that_contradicts_the_tensors_is_refused(
    official: Path, key: str, value: object
) -> None:
    content = json.loads((official / "config.json").read_text()) | {key: value}
    (official / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"config.json: {key} = {value}, but its tensors make it"):
        load_model(GOLDENS / "v3" / "ckpt", adapter=official)


def test_an_official_file_that_is_cut_off_is_named(official: Path) -> None:
    file = official / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: truncated or damaged"):
        load_model(GOLDENS / "v3" / "ckpt", adapter=official)


@pytest.mark.parametrize(
    ("written", "card"),
    [
        (PTUNING, Ptuning(num_prefix_tokens=5)),
        (PTUNING, PROJECTED),
        (Freeze(num_layers=1), Freeze(num_layers=2)),
        (Freeze(num_layers=1), PTUNING),
        (PTUNING, Freeze(num_layers=1)),
    ],
    ids=repr,
)
def test_a_card_of_another_method_is_refused(written: Any, card: Any, tmp_path: Path) -> None:
    save_tuned(tmp_path, written)
    Card(base="/base", template="chatglm3", method=card.model_dump(mode="json")).save(tmp_path)
    with pytest.raises(CheckpointError):
        load_adapter(tiny_model(), tmp_path)


def test_weights_of_freeze_do_not_go_into_codes(tmp_path: Path) -> None:
    save_tuned(tmp_path, Freeze(num_layers=1))
    model = tiny_model()
    model.quantize(8)
    with pytest.raises(ConfigError, match="its codes cannot be trained"):
        load_adapter(model, tmp_path)


def test_a_run_of_another_method_is_not_resumed_from(tmp_path: Path) -> None:
    save_tuned(tmp_path, PTUNING)
    for settings in (Ptuning(num_prefix_tokens=5), Freeze(num_layers=1), Lora(r=2)):
        with pytest.raises(GlmtuneError):
            restore_trained(apply_method(tiny_model(), settings), tmp_path)
