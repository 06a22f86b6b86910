"""Exports of official adapters, prefixes and tiny checkpoints, held against what the official code made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from closeness import assert_close
from glmtune.adapters.store import load_adapter
from glmtune.errors import ConfigError
from glmtune.exports.folder import write_pretty
from glmtune.exports.hf import hf_config, hf_groups
from glmtune.exports.kinds import KINDS, ExportSettings, find_kind
from glmtune.exports.source import ExportSource, find_source
from glmtune.exports.tensors import merge, write_shards
from glmtune.models import load_base
from glmtune.models.config import read_config
from glmtune.models.shards import read_stored, scan_tensors
from golden import GOLDENS

TEMPLATES = {"v1_mid": "chatglm", "v1_late": "chatglm", "v2": "chatglm2", "v3": "chatglm3", "glm4": "glm4"}
LORA = ("v1_late", "v2", "v3", "glm4")
PREFIX = [
    (family, kind)
    for family in ("v1_mid", "v1_late", "v2", "v3")
    for kind in ("ckpt_prefix", "ckpt_prefix_proj")
]


def source_of(family: str, adapter: str | None = None) -> ExportSource:
    base = GOLDENS / family / "ckpt"
    template = TEMPLATES[family]
    return (
        find_source(GOLDENS / family / adapter, base=base, template=template)
        if adapter
        else (find_source(base, template=template))
    )


def write(source: ExportSource, to: str, folder: Path, **settings: Any) -> Path:
    """What an export writes, before it is verified."""
    kind = find_kind(to)
    kind.require(source)
    folder.mkdir(parents=True)
    kind.draft(source, source.open(), ExportSettings(**settings)).write(folder)
    return folder


def oracle(family: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(GOLDENS / family / "oracle.safetensors")
    return tensors


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("family", LORA)
def test_a_merged_official_adapter_gives_the_official_logits(family: str, tmp_path: Path) -> None:
    folder = write(source_of(family, "lora"), "merged", tmp_path / "out", dtype=torch.float32)
    known = oracle(family)
    merged = load_base(folder, dtype="fp32", device="cpu", template=TEMPLATES[family])
    assert_close(logits(merged, known["full.input_ids"]), known["lora.full.logits"])


@pytest.mark.parametrize("family", LORA)
def test_names_shapes_types_and_small_files_are_the_bases(family: str, tmp_path: Path) -> None:
    """With the tied copy and the buffers that the base has, in shards."""
    folder = write(source_of(family, "lora"), "merged", tmp_path / "out", shard_bytes=10**5)
    base = GOLDENS / family / "ckpt"
    ours, theirs = scan_tensors(folder), scan_tensors(base)
    assert list(ours) == list(theirs)
    assert all((ours[name].shape, ours[name].dtype) == (at.shape, at.dtype) for name, at in theirs.items())
    assert len({at.file for at in ours.values()}) > 1
    for path in base.glob("*.json"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    same = [name for name in theirs if torch.equal(read_stored(ours[name]), read_stored(theirs[name]))]
    assert {name for name in theirs if name not in same} == {
        n for n in theirs if n.endswith("query_key_value.weight")
    }


@pytest.mark.parametrize("family", ["v2", "v3", "glm4"])
def test_transformers_own_class_gives_the_official_logits_of_the_adapter(family: str, tmp_path: Path) -> None:
    source = source_of(family, "lora")
    groups = hf_only(source, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(groups, dtype=torch.float32, trust_remote_code=False).eval()
    assert type(model).__name__ == "GlmForCausalLM"
    known = oracle(family)
    assert_close(logits(model, known["full.input_ids"]), known["lora.full.logits"])


def hf_only(source: ExportSource, folder: Path) -> Path:
    """Weights and config: the goldens have no tokenizers."""
    folder.mkdir(parents=True)
    merged = merge(source, torch.float32)
    write_shards(hf_groups(source, merged), folder, 10**5)
    config: Any = read_config(source.base, template=source.identity.template)
    write_pretty(folder / "config.json", hf_config(config, stop_ids=[2], pad_id=0, dtype=torch.float32))
    return folder


@pytest.mark.parametrize(("family", "kind"), PREFIX)
def test_a_prefix_is_written_as_the_official_checkpoint_is(family: str, kind: str, tmp_path: Path) -> None:
    """Names, shapes, types and values; and the words of its config."""
    golden = GOLDENS / family / kind
    folder = write(source_of(family, kind), "official-ptuning", tmp_path / "out")
    ours, theirs = scan_tensors(folder), scan_tensors(golden)
    assert ours.keys() == theirs.keys()
    for name, at in theirs.items():
        assert (ours[name].shape, ours[name].dtype, ours[name].file.name) == (
            at.shape,
            torch.float32,
            "pytorch_model.bin",
        )
        assert torch.equal(read_stored(ours[name]), read_stored(at))
    config, official = ((place / "config.json").read_text(encoding="utf-8") for place in (folder, golden))
    assert [line for line in config.splitlines() if "pre" in line] == [
        line for line in official.splitlines() if "pre" in line
    ]
    again = load_adapter(load_base(GOLDENS / family / "ckpt", dtype="fp32", device="cpu"), folder)
    known = load_file(GOLDENS / family / "prefix.safetensors")
    name = kind.removeprefix("ckpt_")
    assert_close(logits(again, known[f"{name}.full.input_ids"]), known[f"{name}.full.logits"])


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_quantised_weights_are_the_official_ones_to_the_bit(to: str, tmp_path: Path) -> None:
    golden = GOLDENS / "v3" / f"ckpt_{to}"
    folder = write(source_of("v3"), to, tmp_path / "out")
    ours, theirs = scan_tensors(folder), scan_tensors(golden)
    assert ours.keys() - theirs.keys() == set()
    for name, at in theirs.items():
        if not name.endswith("inv_freq"):
            assert torch.equal(read_stored(ours[name]), read_stored(at)), name
    said = f'"quantization_bit": {to.removeprefix("int")}'
    assert said in (folder / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("to", KINDS)
def test_what_cannot_be_exported_so_is_refused_by_name(to: str) -> None:
    expected = {
        "merged": ("v1_late", "ckpt_prefix", "P-Tuning's prefix is no part of any weight"),
        "hf": ("v1_late", "lora", "transformers has no class for ChatGLM-6B"),
        "official-ptuning": ("v2", "lora", "trained with lora, so it has no prefix"),
        "lora-from-adalora": ("v2", "lora", "trained with lora, not with AdaLoRA"),
        "int8": ("v2", "ckpt_prefix", "P-Tuning's prefix is no part of any weight"),
        "int4": ("v3", "ckpt_prefix_proj", "P-Tuning's prefix is no part of any weight"),
    }
    family, adapter, problem = expected[to]
    source, kind = source_of(family, adapter), find_kind(to)
    with pytest.raises(ConfigError, match=problem) as caught:
        kind.require(source)
        kind.draft(source, source.open(), ExportSettings())
    assert caught.value.hint
