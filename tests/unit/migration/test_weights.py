"""Old adapters and prefixes: opened, renamed, mended, and computing what the official code computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from closeness import assert_close, distance
from glmtune import load_model
from glmtune.adapters.own_weights import PREFIX
from glmtune.adapters.store import read_card
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.locations import resolve
from glmtune.migration import Migration, migrate_path
from glmtune.models.pickles import read_tensors
from glmtune.models.quant import held_quant
from glmtune.workflows.verifying import verifying
from golden import GOLDENS, read_golden
from models import tiny_folder
from old_scripts import write_adapter

TEMPLATES = {"v1_late": "chatglm", "v1_mid": "chatglm", "v2": "chatglm2", "v3": "chatglm3", "glm4": "glm4"}

OPENING: Any = {"template": None, "dtype": "fp32", "device": "cpu"}


def bring(source: Path, output: Path, family: str, **settings: Any) -> Migration:
    base = GOLDENS / family / "ckpt"
    [done] = migrate_path(source, output, base=base, template=TEMPLATES[family], **settings)
    return done


def assert_is_official(adapter: Path, family: str, case: str) -> None:
    """The migrated folder, opened as any other, has the official code's logits."""
    golden = read_golden(family)
    official = load_file(GOLDENS / family / f"{'oracle' if case == 'lora' else 'prefix'}.safetensors")
    ids = official.get(f"{case}.full.input_ids", golden.tensors["full.input_ids"])
    with torch.no_grad():
        ours = load_model(adapter, dtype="fp32", device="cpu")(input_ids=ids).logits
        plain = golden.model(input_ids=ids).logits
    assert_close(ours, official[f"{case}.full.logits"])
    assert distance(ours, plain) > 1e-3


@pytest.mark.parametrize("family", ["v1_late", "v2", "v3", "glm4"])
def test_a_lora_folder_has_the_official_logits(family: str, tmp_path: Path) -> None:
    done = bring(GOLDENS / family / "lora", tmp_path / "new", family)
    assert_is_official(tmp_path / "new", family, "lora")
    card = read_card(tmp_path / "new")
    assert card is not None
    assert (card.template, card.method["name"], card.method["r"]) == (TEMPLATES[family], "lora", 8)
    assert "logits equal the source's" in done.found[-1]


@pytest.mark.parametrize("kind", ["prefix", "prefix_proj"])
@pytest.mark.parametrize("family", ["v1_mid", "v1_late", "v2", "v3"])
def test_a_prefix_has_the_official_logits(family: str, kind: str, tmp_path: Path) -> None:
    source = GOLDENS / family / f"ckpt_{kind}"
    bring(source, tmp_path / "new", family)
    assert_is_official(tmp_path / "new", family, kind)
    assert same(
        read_tensors(source / "pytorch_model.bin"), load_file(tmp_path / "new" / "trained.safetensors")
    )
    assert not list((tmp_path / "new").glob("*.bin"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def whole_save(folder: Path, family: str, change: float = 0.0) -> Path:
    """What the old trainers and PREFIX_TUNING leave: every weight, the prefix among them."""
    shutil.copytree(GOLDENS / family / "ckpt_prefix", folder)
    base = load_file(GOLDENS / family / "ckpt" / "model.safetensors")
    prefix = read_tensors(folder / "pytorch_model.bin")
    name = next(name for name in base if name.endswith("query_key_value.weight"))
    base[name] = base[name] + change
    kept = torch.float32 if family == "v2" else torch.float16  # trained with and without half precision
    base = {n: t.to(kept) for n, t in base.items()}
    torch.save({**base, **{n: t.clone() for n, t in prefix.items()}}, folder / "whole.bin")
    (folder / "whole.bin").replace(folder / "pytorch_model.bin")
    return folder


def test_a_prefix_that_was_trained_on_int4_opens_on_int4(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "v2" / "ckpt_prefix", tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "quantization_bit": 4}), encoding="utf-8")
    state = {"global_step": 3000, "log_history": [{"loss": 3.9}, {"loss": 3.7}, {"train_runtime": 9}]}
    (tmp_path / "old" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    done = bring(tmp_path / "old", tmp_path / "new", "v2")
    assert "step 3000 of its training, its last loss 3.7" in done.found
    assert resolve(tmp_path / "new").quant == "int4"
    assert held_quant(load_model(tmp_path / "new", dtype="fp32")) == "int4"


@pytest.mark.parametrize("family", ["v1_late", "v2", "v3"])
def test_of_a_whole_save_the_prefix_alone_is_kept(family: str, tmp_path: Path) -> None:
    done = bring(whole_save(tmp_path / "old", family), tmp_path / "new", family)
    assert_is_official(tmp_path / "new", family, "prefix")
    assert all(name.startswith(PREFIX) for name in load_file(tmp_path / "new" / "trained.safetensors"))
    assert any("every one equal to the base's" in line for line in done.found)


def test_a_whole_save_whose_other_weights_were_trained_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="differs from the base's, so more than the prefix"):
        bring(whole_save(tmp_path / "old", "v3", change=0.5), tmp_path / "new", "v3")
    assert not (tmp_path / "new").exists()


def test_a_prefix_by_its_bare_names_is_read(tmp_path: Path) -> None:
    """finetune_hf.py's commented-out save_model."""
    named = read_tensors(GOLDENS / "v3" / "ckpt_prefix_proj" / "pytorch_model.bin")
    (tmp_path / "old").mkdir()
    bare = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in named.items()}
    torch.save(bare, tmp_path / "old" / "pytorch_model.bin")
    bring(tmp_path / "old", tmp_path / "new", "v3")
    assert_is_official(tmp_path / "new", "v3", "prefix_proj")


# LoRA folders of other versions of PEFT


def old_lora(folder: Path, family: str = "v3", names: Any = None, **config: Any) -> Path:
    """The golden adapter with other settings and names in its files."""
    source = GOLDENS / family / "lora"
    folder.mkdir()
    settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}), encoding="utf-8")
    file = source / "adapter_model.bin"
    tensors = read_tensors(file) if file.exists() else load_file(source / "adapter_model.safetensors")
    tensors = {names(n) if names else n: t.clone() for n, t in tensors.items()}
    torch.save(tensors, folder / "adapter_model.bin")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: name.replace(".weight", ".chat.weight"),
    ],
    ids=["adapter's name", "no prefix", "DDP", "another adapter's name"],
)
def test_tensors_under_other_names_are_found(names: Any, tmp_path: Path) -> None:
    done = bring(old_lora(tmp_path / "old", names=names), tmp_path / "new", "v3")
    assert_is_official(tmp_path / "new", "v3", "lora")
    assert any("renamed" in line for line in done.mended)


def test_the_base_s_weights_beside_an_adapter_are_left_out(tmp_path: Path) -> None:
    """What a Trainer that knows no PEFT saves: 12 GB in place of megabytes."""
    folder = old_lora(tmp_path / "old")
    adapter = {n: t.clone() for n, t in read_tensors(folder / "adapter_model.bin").items()}
    base = load_file(GOLDENS / "v3" / "ckpt" / "model.safetensors")
    torch.save(
        {**adapter, **{f"base_model.model.{n}": t for n, t in base.items()}}, folder / "pytorch_model.bin"
    )
    (folder / "adapter_model.bin").unlink()
    done = bring(folder, tmp_path / "new", "v3")
    assert_is_official(tmp_path / "new", "v3", "lora")
    assert f"{len(base)} tensors of the base lie beside it: left out" in done.mended


def test_settings_of_another_peft_are_left_out_and_named(tmp_path: Path) -> None:
    folder = old_lora(
        tmp_path / "old", merge_weights=False, enable_lora=None, from_the_future={"x": 1},
        base_model_name_or_path="/home/someone/chatglm3-6b",
    )  # fmt: skip
    done = bring(folder, tmp_path / "new", "v3")
    assert_is_official(tmp_path / "new", "v3", "lora")
    assert list(done.lost) == ["from_the_future {'x': 1}"]
    said = " ".join(done.mended)
    assert "merge_weights" in said and "enable_lora" in said and "/home/someone/chatglm3-6b became" in said
    written = json.loads((tmp_path / "new" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == str((GOLDENS / "v3" / "ckpt").resolve())
    assert resolve(tmp_path / "new").base.resolve() == (GOLDENS / "v3" / "ckpt").resolve()


TARGETS = {"task_type": "CAUSAL_LM", "target_modules": ["query_key_value", "dense"], "lora_dropout": 0.1}


@pytest.mark.parametrize(
    ("config", "method", "said"),
    [
        (peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, **TARGETS), "lora", "logits equal the source's"),
        (peft.LoraConfig(r=4, lora_alpha=8, alpha_pattern={"dense": 2}, rank_pattern={"dense": 2}, **TARGETS),
         "lora", "logits equal the source's"),
        (peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=9, **TARGETS), "adalora",
         "logits equal the source's"),
        (peft.LoraConfig(r=4, use_dora=True, **TARGETS), "lora", "nothing here computes the source's"),
    ],
    ids=["rslora", "patterns", "adalora", "dora"],
)  # fmt: skip
def test_what_peft_writes_is_computed_without_it(config: Any, method: str, said: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    source = write_adapter(tmp_path / "old", config, base)
    [done] = migrate_path(source, tmp_path / "new", base=base)
    assert said in done.found[-1]
    card = read_card(tmp_path / "new")
    assert card is not None and card.method["name"] == method
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "new"))
    assert same(before, after)


QKV = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["query_key_value"]}
MORE: dict[str, dict[str, Any]] = {
    "some layers": {"layers_to_transform": [1]},
    "all but some layers": {"exclude_modules": r".*layers\.0.*"},
    "a regex": {"target_modules": r".*layers\.1\..*(dense|query_key_value)"},
    "a larger rank": {"rank_pattern": {r"layers\.1\..*query_key_value": 16}},
    "a module saved whole": {"modules_to_save": ["output_layer"]},
    "an embedding": {"target_modules": ["word_embeddings"]},
    "some tokens": {"trainable_token_indices": [5, 6]},
    "biases": {"bias": "lora_only"},
    "biases of its own": {"lora_bias": True},
    "a parameter": {"target_parameters": ["mlp.dense_h_to_4h.weight"]},
    "tied weights": {"modules_to_save": ["embedding"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("what", MORE)
def test_what_is_made_opens_and_answers_as_peft_alone_does(what: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    source = write_adapter(tmp_path / "old", peft.LoraConfig(**{**QKV, **MORE[what]}), base)
    migrate_path(source, tmp_path / "new", base=base)
    in_peft = peft.PeftModel.from_pretrained(load_model(base, dtype="fp32"), str(source)).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_model(tmp_path / "new", dtype="fp32")(ids).logits, in_peft(ids).logits)


@pytest.mark.parametrize("named", [None, ["query_key_value", "query", "value"]])
def test_targets_are_told_from_the_weights(named: Any, tmp_path: Path) -> None:
    bring(old_lora(tmp_path / "old", target_modules=named), tmp_path / "new", "v3")
    written = json.loads((tmp_path / "new" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["target_modules"] == ["query_key_value"]


def zero_b(folder: Path) -> None:
    path = folder / "adapter_model.bin"
    tensors = {n: t * (".lora_B" not in n) for n, t in read_tensors(path).items()}
    torch.save(tensors, folder / "new.bin")
    (folder / "new.bin").replace(path)


def set_in_config(**settings: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, **settings}), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (zero_b, "its update is 0 everywhere, so this adapter changes nothing"),
        (set_in_config(peft_type="PREFIX_TUNING"), "peft_type PREFIX_TUNING: PEFT's own prefix shifts every"),
        (set_in_config(peft_type="IA3"), "peft_type IA3: this version has no such method"),
        (set_in_config(enable_lora=[True, False, True]), "a LoRA of parts of a layer"),
        (lambda folder: (folder / "adapter_model.bin").unlink(), "no weights; looked for"),
        (
            lambda folder: (folder / "adapter_model.bin").write_bytes(b"PK\x03\x04 cut"),
            "truncated or damaged",
        ),
        (set_in_config(rank_pattern={"query_key_value": 4}), "does not fit this model|do not match"),
    ],
    ids=["zero B", "PEFT's prefix", "IA3", "merged", "no weights", "cut", "other ranks"],
)
def test_what_cannot_be_the_same_adapter_is_refused(change: Any, sentence: str, tmp_path: Path) -> None:
    change(old_lora(tmp_path / "old"))
    with pytest.raises(CheckpointError, match=sentence):
        bring(tmp_path / "old", tmp_path / "new", "v3")
    assert not (tmp_path / "new").exists()


def test_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GlmtuneError):
        bring(GOLDENS / "v1_late" / "lora", tmp_path / "new", "v3")
    assert not list(tmp_path.iterdir())


def test_what_was_migrated_is_proven_when_it_is_opened(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", "chatglm3")
    config = peft.LoraConfig(r=4, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    source = write_adapter(tmp_path / "old", config, base)
    migrate_path(source, tmp_path / "new", base=base)
    card = read_card(tmp_path / "new")
    assert card is not None
    assert card.fingerprint and card.norm and card.stop_ids and card.probe
    found = {check.name for check in verifying(resolve(tmp_path / "new"), **OPENING)}
    assert found >= {"base", "tokenizer", "update", "logits"}
    other = tiny_folder(tmp_path / "other", "chatglm3", seed=7)
    with pytest.raises(CheckpointError, match="trained on other weights"):
        load_model(other, adapter=tmp_path / "new")


def test_without_a_tokenizer_the_base_alone_is_recorded(tmp_path: Path) -> None:
    done = bring(GOLDENS / "v3" / "lora", tmp_path / "new", "v3")
    card = read_card(tmp_path / "new")
    assert card is not None
    assert card.fingerprint and card.norm and not card.probe
    assert any("no tokenizer is with the base" in line for line in done.found)


def test_the_base_is_asked_for_and_nothing_is_overwritten(tmp_path: Path) -> None:
    source = GOLDENS / "v3" / "lora"
    with pytest.raises(ConfigError, match="its base model is not at"):
        migrate_path(source, tmp_path / "new", template="chatglm3")
    with pytest.raises(ConfigError, match="output: missing"):
        migrate_path(source, base=GOLDENS / "v3" / "ckpt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="will not be overwritten"):
        bring(source, tmp_path / "full", "v3")


def test_a_folder_of_checkpoints_names_them(tmp_path: Path) -> None:
    for step in (900, 1000):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds checkpoint-900, checkpoint-1000"):
        migrate_path(tmp_path / "out", tmp_path / "new")


def test_what_needs_no_migration_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a whole model, which needs no migration"):
        migrate_path(GOLDENS / "v3" / "ckpt", tmp_path / "new")
    bring(GOLDENS / "v3" / "lora", tmp_path / "new", "v3")
    with pytest.raises(CheckpointError, match="an adapter of this program already"):
        migrate_path(tmp_path / "new", tmp_path / "again")
