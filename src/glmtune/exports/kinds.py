"""The table of export kinds: checks of the source, the files to write, and how a fresh process loads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.own_weights import PREFIX
from glmtune.adapters.to_lora import save_as_lora
from glmtune.errors import ConfigError
from glmtune.exports.definition import require_same_prefix, require_same_update
from glmtune.exports.folder import copy_base_files, dtype_facts, write_pretty
from glmtune.exports.hf import hf_groups, write_hf_files
from glmtune.exports.source import ExportSource
from glmtune.exports.tensors import (
    Group,
    Merged,
    Quantised,
    merge,
    quantise_merged,
    write_shards,
)
from glmtune.files import read_json
from glmtune.models.pickles import write_pickle
from glmtune.models.protocol import CausalLM
from glmtune.near import nearest
from glmtune.possible import require_possible
from glmtune.quants import BITS
from glmtune.recipe import TrainedPart


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """Settings of how an export is written."""

    dtype: torch.dtype | None = None
    """Type of the weights; None: as in the base."""
    shard_bytes: int = 2 * 10**9


@dataclass(frozen=True, slots=True)
class ExportDraft:
    """A prepared export that is not written yet."""

    num_bytes: int
    """Size of its weights."""
    write: Callable[[Path], None]
    written_value: Callable[[str], Tensor] | None = None
    """Returns a weight's written values by its name in the base; None if nothing is rounded."""
    names: frozenset[str] = frozenset()
    """Names that `written_value` knows."""
    unquantised: Callable[[str], Tensor] | None = None
    """Returns the values before quantisation; None if nothing is quantised."""
    dtype: torch.dtype = torch.float32
    """The written floating type with the coarsest rounding."""
    num_defined: int = 0
    """Number of weights computed by the definition of base + adapter."""


@dataclass(frozen=True, slots=True)
class ExportKind:
    """A kind of export."""

    require: Callable[[ExportSource], None]
    """Raises `ConfigError` for a source without this kind of export."""
    draft: Callable[[ExportSource, Any, ExportSettings], ExportDraft]
    """Prepares an export of the source and the model loaded from it."""
    opener: str = "glmtune"
    """The way a fresh process loads it, a key of `fresh.OPENERS`."""
    is_adapter: bool = False
    """True if it must be loaded on its base."""
    has_chat: bool = False
    """True if the export's own tokenizer must encode a chat to the same ids."""


def _family_can(to: str) -> Callable[[ExportSource], None]:
    """Return a check that the source's family has this kind of export.

    Merging itself refuses a prefix.
    """

    def require(source: ExportSource) -> None:
        known = source.identity
        require_possible(known.family, f"--to {to}", source.name, revision=known.revision)

    return require


def _draft_merged(source: ExportSource, _: CausalLM, settings: ExportSettings) -> ExportDraft:
    merged = merge(source, settings.dtype)

    # The files before the weights: merging takes long, and a damaged file of the base shows at once.
    def write(folder: Path) -> None:
        copy_base_files(source, folder, dtype_facts(source.base, settings.dtype))
        write_shards(merged.groups(), folder, settings.shard_bytes)

    return _draft(merged, merged.groups(), write)


def _draft(weights: Merged | Quantised, groups: list[Group], write: Callable[[Path], None]) -> ExportDraft:
    merged = weights if isinstance(weights, Merged) else weights.merged
    return ExportDraft(
        sum(group.num_bytes for group in groups),
        write,
        written_value=weights.read,
        names=frozenset(merged.stored),
        unquantised=None if weights is merged else merged.read,
        dtype=merged.roughest,
        num_defined=merged.num_defined,
    )


def _draft_hf(source: ExportSource, _: CausalLM, settings: ExportSettings) -> ExportDraft:
    merged = merge(source, settings.dtype)
    groups = hf_groups(source, merged)

    def write(folder: Path) -> None:
        write_hf_files(source, folder, settings.dtype)
        write_shards(groups, folder, settings.shard_bytes)

    return _draft(merged, groups, write)


def _draft_quantised(bits: int) -> Callable[[ExportSource, Any, ExportSettings], ExportDraft]:
    def draft(source: ExportSource, _: CausalLM, settings: ExportSettings) -> ExportDraft:
        packed = quantise_merged(source, merge(source, settings.dtype), bits)

        def write(folder: Path) -> None:
            facts = {**dtype_facts(source.base, settings.dtype), "quantization_bit": bits}
            copy_base_files(source, folder, facts)
            write_shards(packed.groups(), folder, settings.shard_bytes)

        return _draft(packed, packed.groups(), write)

    return draft


def _require_prefix(source: ExportSource) -> None:
    _family_can("official-ptuning")(source)
    if source.kept is not TrainedPart.PREFIX:
        raise ConfigError(
            f"{source.name}: trained with {source.method or 'nothing'}, so it has no prefix",
            hint="to=official-ptuning is for runs of method=ptuning",
        )


def _draft_prefix(source: ExportSource, model: CausalLM, _: ExportSettings) -> ExportDraft:
    encoder = model.base_model.prefix_encoder
    # fp32, as the official scripts save a prefix
    tensors = {
        name: value.detach().float().cpu() for name, value in encoder.state_dict(prefix=PREFIX).items()
    }

    def write(folder: Path) -> None:
        facts = {"pre_seq_len": model.config.pre_seq_len, "prefix_projection": model.config.prefix_projection}
        copy_base_files(source, folder)
        write_pretty(folder / "config.json", {**read_json(folder / "config.json"), **facts})
        write_pickle(tensors, folder / "pytorch_model.bin")  # the file that the official code reads
        require_same_prefix(source.location.trained, folder)

    return ExportDraft(sum(value.nbytes for value in tensors.values()), write)


def _require_adalora(source: ExportSource) -> None:
    if not source.is_adalora:
        raise ConfigError(
            f"{source.name}: trained with {source.method or 'nothing'}, not with AdaLoRA",
            hint="a LoRA run's checkpoint folder is in PEFT's layout already",
        )


def _draft_lora(source: ExportSource, model: CausalLM, _: ExportSettings) -> ExportDraft:
    # of AdaLoRA's factors before pruned triplets are left out, so an upper bound
    num_bytes = sum(value.nbytes for name, value in model.named_parameters() if ".lora_" in name)

    def write(folder: Path) -> None:
        card = source.location.card
        if card and source.strength != 1:  # the recorded logits are those of the whole update
            card = replace(card, probe=None)
        save_as_lora(model, folder, card)
        require_same_update(source.location.trained, folder, source.strength)

    return ExportDraft(num_bytes, write)


KINDS = {
    "merged": ExportKind(_family_can("merged"), _draft_merged),
    "hf": ExportKind(_family_can("hf"), _draft_hf, opener="plain", has_chat=True),
    "official-ptuning": ExportKind(_require_prefix, _draft_prefix, is_adapter=True),
    "lora-from-adalora": ExportKind(_require_adalora, _draft_lora, opener="peft", is_adapter=True),
    **{name: ExportKind(_family_can(name), _draft_quantised(bits)) for name, bits in BITS.items()},
}
"""The kinds of exports, by the name that `--to` takes."""


_OTHERS: Mapping[str, str] = {
    "gguf": "llama.cpp's convert_hf_to_gguf.py makes it of a merged folder: to=merged; see docs/export.md",
    **dict.fromkeys(("awq", "gptq", "fp8", "nf4"), "quantise a merged folder with that program: to=merged"),
    **dict.fromkeys(("huggingface", "transformers", "vllm", "safetensors"), "here that is to=hf"),
    **dict.fromkeys(("lora", "peft", "adapter"), "a run's checkpoint folder is in PEFT's layout already"),
    **dict.fromkeys(("ptuning", "prefix"), "here that is to=official-ptuning"),
    **dict.fromkeys(("8bit", "8"), "here that is to=int8"),
    **dict.fromkeys(("4bit", "4"), "here that is to=int4"),
}
"""Hints for names that other programs use."""


def find_kind(name: str) -> ExportKind:
    """Return the kind of export of this name. Raises `ConfigError` for an unknown name."""
    if name in KINDS:
        return KINDS[name]
    near = [f"did you mean to={kind}?" for kind in [nearest(name, KINDS)] if kind]
    hint = "; ".join(filter(None, (_OTHERS.get(name.lower(), ""), *near, f"known are {', '.join(KINDS)}")))
    raise ConfigError(f"to: unknown {name!r}", hint=hint)
