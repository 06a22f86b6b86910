"""Load a folder whose model is a class of transformers, with the same checks as for our own classes.

Every file's header is read first, so a missing shard or a git-lfs pointer is an error before anything loads.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from glmtune.errors import CheckpointError, ConfigError
from glmtune.folder import ModelFolder
from glmtune.log import without_bars
from glmtune.models.computing import compute_in
from glmtune.models.config_checks import (
    PUBLISHED,
    check_content,
    explain_config,
    refuse_quantised,
    require_stored,
)
from glmtune.models.device import resolve_device
from glmtune.models.dtype import Choice, choose_dtype
from glmtune.models.frozen_linear import hurry_few_rows
from glmtune.models.fused_upstream import fuse_upstream
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import read_generation_config
from glmtune.models.quant import check_quant
from glmtune.models.reading import Reading, require_held_types
from glmtune.models.shards import Shard, Stored, open_shard, read_stored, scan_tensors
from glmtune.models.while_reading import quantised_tensors, quantising

_SAME_MODEL = "config.json and weights must be of the same model, and complete"
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # a buffer that old files hold and the model computes


def load_in_transformers(
    folder: Path | ModelFolder,
    *,
    dtype: str | torch.dtype | Choice = "auto",
    device: str | torch.device = "auto",
    template: str | None = None,  # ignored: only ChatGLM2's and ChatGLM3's models depend on it
    quant: str | None = None,
    reading: Reading | None = None,
) -> Any:
    """Load the model of a folder in evaluation mode, with weights in `dtype` on `device`.

    quant: int8, int4 or nf4 quantises the blocks' linear layers from their stored values while they are
    read; experts that transformers holds as one tensor stay as they are. reading: checks or hashes each
    tensor as it is stored. Raises CheckpointError (files, names, shapes, numbers that are not finite) and
    ConfigError (settings, `dtype`, `device`).
    """
    folder, torch_device, reading = ModelFolder.of(folder), resolve_device(device), reading or Reading()
    config = read_upstream_config(folder)
    stored = scan_tensors(folder)
    outline = build_upstream(config, config.dtype or torch.float32, stored)
    check_upstream_stored(folder.path, outline, stored)
    check_quant(quant)
    choice = choose_dtype(dtype, stored, torch_device)
    reading.dtype = choice.dtype
    stored = _without_mtp(stored, config)
    shards = {file: open_shard(file) for file in {held.file for held in stored.values()}}
    # read by transformers one by one, where it places or merges them; what stays in the file shares a mapping
    tensors: dict[str, Any] = {
        name: _LazyTensor(shards[held.file] if held.dtype == choice.dtype else None, held, reading)
        for name, held in stored.items()
    }
    if quant:
        tensors |= quantised_tensors(outline, quant, stored, torch_device, reading)
    with nullcontext() if sys.stderr.isatty() else without_bars(), _without_report():
        model, mismatches = type(outline).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            quantization_config=quantising(quant, stored) if quant else None,
            generation_config=read_generation_config(folder),
            dtype=choice.dtype,
            device_map=None if torch_device.type == "cpu" else {"": torch_device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed in `mismatches`, and refused below
        )
    _refuse_mismatches(folder.path, mismatches)
    reading.finish()
    compute_in(model, choice.computing)
    fuse_upstream(model)
    if choice.is_hurried:
        hurry_few_rows(model)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model.eval()


class _LazyTensor:
    """A stored tensor that is read and checked when transformers subscripts it, `[...]`.

    Without `shard`, it is read in a mapping of its own, which ends with it.
    """

    def __init__(self, shard: Shard | None, held: Stored, reading: Reading) -> None:
        self._shard, self._held, self._reading = shard, held, reading

    def __getitem__(self, _: object) -> Tensor:
        tensor = self._shard.read(self._held.name) if self._shard else read_stored(self._held)
        self._reading.look(self._held.name, self._held.file, tensor)
        return tensor


def _without_mtp(stored: Mapping[str, Stored], config: PreTrainedConfig) -> dict[str, Stored]:
    """Drop the `num_nextn_predict_layers` layers that predict further tokens (GLM-4.5's MTP).

    They follow the model's own layers, and transformers' class has none of them.
    """
    layers, more = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", 0) or 0
    starts = tuple(f"model.layers.{number}." for number in range(layers, layers + more))
    return (
        {name: held for name, held in stored.items() if not name.startswith(starts)} if more else dict(stored)
    )


def build_upstream_outline(folder: Path | ModelFolder, stored: Mapping[str, Stored] | None = None) -> Any:
    """Build the folder's model without weights: every parameter on the meta device, from config.json alone.

    A folder of pre-quantised weights gives the dense model. Raises CheckpointError where `stored` has far
    fewer layers or experts than config.json says.
    """
    folder = ModelFolder.of(folder)
    config = _read_config(folder)
    return build_upstream(config, config.dtype or torch.float32, stored or {})


def build_upstream(config: PreTrainedConfig, dtype: torch.dtype, stored: Mapping[str, Stored]) -> Any:
    """Build the model of a config with every parameter on the meta device; raises as the outline."""
    config_file = Path(config.name_or_path) / "config.json"
    require_stored(config, stored, config_file)
    with explain_config(config_file), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def check_upstream_stored(folder: Path, model: CausalLM, stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for the first stored tensor, by header, that loading this model would refuse."""
    # the names in the files: a loaded model holds GLM-4.5's experts as one tensor, the files one by one
    expected = revert_weight_conversion(model, model.state_dict())
    stored = _without_mtp(stored, model.config)
    require_held_types({name: held for name, held in stored.items() if not _COMPUTED.search(name)})
    mismatches = {
        "missing_keys": expected.keys() - stored.keys() - model.all_tied_weights_keys.keys(),
        "unexpected_keys": [name for name in stored.keys() - expected.keys() if not _COMPUTED.search(name)],
        "mismatched_keys": [
            (name, held.shape, expected[name].shape)
            for name, held in stored.items()
            if name in expected and held.shape != expected[name].shape
        ],
        "error_msgs": [],
    }
    _refuse_mismatches(folder, mismatches)


def name_stored(model: CausalLM, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the stored tensors, and an entry for each parameter that merges several (GLM-4.5's experts)."""
    tensors = dict(stored)
    for name, parameter in model.named_parameters():
        parts = revert_weight_conversion(model, {name: parameter}) if name not in stored else {}
        first = next((stored[part] for part in parts if part in stored), None)
        if first:
            tensors[name] = replace(first, name=name, shape=tuple(parameter.shape))
    return tensors


@contextmanager
def _without_report() -> Iterator[None]:
    """Suppress transformers' table of mismatches: the error that follows names the first."""
    logger = logging.get_logger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)  # not by level: that logger's other warnings must pass
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def read_upstream_config(folder: ModelFolder) -> Any:
    """Read the folder's config with transformers.

    Raises CheckpointError and ConfigError for a config that makes no model, or a pre-quantised one.
    """
    config = _read_config(folder)
    refuse_quantised(folder.config, folder.path / "config.json")
    return config


def _read_config(folder: ModelFolder) -> Any:
    return deepcopy(folder.once(_auto_config))  # loading a model changes its config


def _auto_config(folder: ModelFolder) -> Any:
    """Read a config and raise ConfigError for values, or sizes that contradict one another."""
    path = folder.path / "config.json"
    check_content(folder.json(path.name, is_required=True), where=path, kind=PreTrainedConfig)
    with explain_config(path):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    experts, per_token = getattr(config, "n_routed_experts", 1), getattr(config, "num_experts_per_tok", 1)
    groups, layers = getattr(config, "n_group", 1), config.num_hidden_layers
    rotated = (config.head_dim or 0) * (config.rope_parameters or {}).get("partial_rotary_factor", 1)
    for problem, is_found in (
        ("num_attention_heads is no multiple of num_key_value_heads",
         config.num_attention_heads % (config.num_key_value_heads or 1)),
        ("head_dim times partial_rotary_factor is no even number", rotated % 2),
        ("num_experts_per_tok is larger than n_routed_experts", per_token > experts),
        ("n_routed_experts is no multiple of n_group", experts % groups),
        ("topk_group is larger than n_group", getattr(config, "topk_group", 1) > groups),
        ("first_k_dense_replace is larger than num_hidden_layers",
         getattr(config, "first_k_dense_replace", 0) > layers),
    ):  # fmt: skip
        if is_found:
            raise ConfigError(f"{path}: {problem}", hint=PUBLISHED)
    return config


def _refuse_mismatches(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the first tensor that is missing, unexpected, of another shape or unread.

    found: transformers' loading info, by its keys.
    """
    for key, problem in (
        ("missing_keys", "is missing"),
        ("unexpected_keys", "is not part of this model"),
        ("mismatched_keys", "has another shape"),
    ):
        names = sorted(found[key])
        if not names:
            continue
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        if key == "mismatched_keys":
            name, stored, expected = names[0]
            problem = f"has shape {list(stored)}, config.json makes it {list(expected)}"
        else:
            name = names[0]
        raise CheckpointError(f"{folder}: tensor {name} {problem}{more}", hint=_SAME_MODEL)
    if found["error_msgs"]:
        raise CheckpointError(f"{folder}: {found['error_msgs'][0]}", hint=_SAME_MODEL)
