"""What each kind writes, before it is proved in a fresh process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from closeness import assert_close
from glmtune import load_model, load_tokenizer
from glmtune.adapters.store import Card, save_trained
from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.exports.fresh import logits_of
from glmtune.exports.kinds import KINDS, ExportSettings, find_kind
from glmtune.exports.source import ExportSource, find_source
from glmtune.methods import apply_method
from glmtune.models import load_base
from glmtune.models.shards import scan_tensors
from glmtune.recipe import Freeze, Full
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder
from proofs import make_checkpoint
from tiny import tiny_sentencepiece

IDS = torch.arange(5, 40)[None]


def write(source: ExportSource, to: str, folder: Path, **settings: Any) -> Path:
    kind = find_kind(to)
    kind.require(source)
    folder.mkdir()
    kind.draft(source, source.open(), ExportSettings(**settings)).write(folder)
    return folder


def save_full(base: Path, folder: Path, template: str, method: Any) -> Path:
    """A checkpoint whose every trained weight is another than the base's."""
    place = find_source(base)
    model = apply_method(place.open(), method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    folder.mkdir()
    card = Card(base=str(base), template=template, method=method.model_dump(mode="json"))
    if method.name == "full":
        for path in base.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    save_trained(model, folder, card)
    return folder


def test_another_type_is_said_in_the_config_and_nothing_else_is_changed(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    out = write(find_source(base), "merged", tmp_path / "out", dtype=torch.bfloat16)
    before, after = (json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (base, out))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed <= {"torch_dtype", "dtype"}
    assert after["torch_dtype"] == "bfloat16"
    assert list(before) == list(after)
    assert {at.dtype for at in scan_tensors(out).values()} == {torch.bfloat16}


def test_the_type_that_the_base_has_leaves_its_config_as_it_is(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    out = write(find_source(base), "merged", tmp_path / "out", dtype=torch.float32)
    assert (base / "config.json").read_bytes() == (out / "config.json").read_bytes()


def test_code_and_licence_go_along_and_old_indexes_stay_behind(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    for name in ("modeling_chatglm.py", "MODEL_LICENSE", "pytorch_model.bin.index.json", "picture.png"):
        (base / name).write_bytes(b"{}\r\n")
    out = write(find_source(base), "merged", tmp_path / "out")
    assert (out / "modeling_chatglm.py").read_bytes() == b"{}\r\n"
    assert (out / "MODEL_LICENSE").exists()
    assert not (out / "pytorch_model.bin.index.json").exists()
    assert not (out / "picture.png").exists()


def test_a_chat_format_that_only_the_user_knew_is_written_down(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", "chatglm2")
    tiny_sentencepiece(base, None)
    out = write(find_source(base, template="chatglm2"), "merged", tmp_path / "out")
    assert load_tokenizer(out).template == "chatglm2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_saved_whole_beside_an_adapter_are_merged_unrounded(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """`modules_to_save`, as other tools write it for vocabularies; on a base that is stored in a type."""
    base = tiny_folder(tmp_path / "base", dtype=dtype)
    settings = {"target_modules": ["dense"], "modules_to_save": ["output_layer"], "init_lora_weights": False}
    opened = load_base(base, device="cpu", dtype="fp32")
    tuned = get_peft_model(opened, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        tuned.get_base_model().transformer.output_layer.modules_to_save["default"].weight.mul_(2.001)
        expected = tuned.eval()(IDS).logits
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    source = find_source(tmp_path / "adapter", base=base)
    out = write(source, "merged", tmp_path / "out", dtype=torch.float32)
    model = source.open()
    assert (logits_of(model, IDS[0].tolist(), source.as_trained(model)) - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert_close(load_model(out, dtype="fp32", device="cpu")(IDS).logits, expected)


@pytest.mark.parametrize("biases", [{"bias": "all"}, {"lora_bias": True}])
def test_an_adapter_with_biases_is_refused(biases: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"], **biases)
    settings.init_lora_weights = False  # else its update is zero
    tuned = get_peft_model(load_base(base, device="cpu"), settings)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match="it has biases"):
        write(find_source(tmp_path / "adapter", base=base), "merged", tmp_path / "out")


def test_both_copies_of_a_tied_weight_are_the_trained_one(tmp_path: Path) -> None:
    base = tiny_v1_folder(tmp_path / "base")
    held = load_base(base, device="cpu")
    tensors = {name: value.clone() for name, value in held.state_dict().items()}
    (base / "model.safetensors").unlink()
    torch.save(tensors, base / "pytorch_model.bin")  # as published: with lm_head
    trained = save_full(base, tmp_path / "trained", "chatglm", Full())
    out = write(find_source(trained), "merged", tmp_path / "out")
    assert scan_tensors(out).keys() == scan_tensors(base).keys()
    stored = load_file(out / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], stored["transformer.word_embeddings.weight"])
    assert_close(stored["lm_head.weight"], tensors["lm_head.weight"] + 0.01)


def test_a_full_runs_base_that_has_moved_is_named(tmp_path: Path) -> None:
    trained = save_full(tiny_folder(tmp_path / "base"), tmp_path / "trained", "chatglm3", Full())
    moved = (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError) as caught:
        find_source(trained)
    assert "base=" in caught.value.hint
    source = find_source(trained, base=moved)
    assert source.is_whole
    assert source.base == moved


def test_fused_experts_that_were_trained_alone_are_refused_by_name(tmp_path: Path) -> None:
    base = tiny_hf_folder(tmp_path / "base", "GLM-4.5")
    trained = save_full(base, tmp_path / "trained", "glm45", Freeze(num_layers=1))
    with pytest.raises(CheckpointError, match=r"it has no tensor .*experts.*, which was trained"):
        write(find_source(trained), "merged", tmp_path / "out")


@pytest.mark.parametrize("to", ["hf", "int8", "int4"])
def test_what_is_in_transformers_layout_is_merged_only(to: str, tmp_path: Path) -> None:
    source = find_source(tiny_hf_folder(tmp_path / "base", "GLM-4-0414"))
    with pytest.raises(ConfigError, match="GLM-4-0414") as caught:
        KINDS[to].require(source)
    assert "to=merged" in caught.value.hint


@pytest.mark.parametrize(("to", "part", "method"), [
    ("official-ptuning", "prefix_encoder", {"name": "ptuning", "num_prefix_tokens": 4}),
    ("lora-from-adalora", "lora_A", {"name": "adalora", "init_r": 6, "target_r": 4}),
])  # fmt: skip
def test_an_adapter_that_is_off_by_too_little_for_the_logits_is_refused(
    to: str, part: str, method: dict[str, Any], tmp_path: Path
) -> None:
    source = find_source(make_checkpoint(tiny_folder(tmp_path / "base"), tmp_path / "run", method))
    write(source, to, tmp_path / "right")
    model = source.open()
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data *= 1 + 1e-5
    (tmp_path / "wrong").mkdir()
    with pytest.raises(OutputError, match=r"not as (it was|they were) trained"):
        KINDS[to].draft(source, model, ExportSettings()).write(tmp_path / "wrong")


def test_a_prefix_for_code_without_a_prefix_encoder_is_refused(tmp_path: Path) -> None:
    base = tiny_v1_folder(tmp_path / "base", "early")
    model = load_base(base, device="cpu")
    model.attach_prefix(4)
    (tmp_path / "prefix").mkdir()
    method = {"name": "ptuning", "num_prefix_tokens": 4}
    model.requires_grad_(False).transformer.prefix_encoder.requires_grad_(True)
    save_trained(model, tmp_path / "prefix", Card(base=str(base), template="chatglm", method=method))
    with pytest.raises(ConfigError, match="has no prefix encoder"):
        KINDS["official-ptuning"].require(find_source(tmp_path / "prefix"))
