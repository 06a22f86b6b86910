"""Load a folder whose model is one of our own classes: ChatGLM-6B, ChatGLM2, ChatGLM3, GLM-4."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch

from glmtune.errors import ConfigError
from glmtune.folder import ModelFolder
from glmtune.models.chatglm import ChatGLM6BForConditionalGeneration
from glmtune.models.chatglm2 import ChatGLMForConditionalGeneration
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.computing import compute_in
from glmtune.models.config import ChatGLMConfig, read_config
from glmtune.models.config_checks import explain_config, require_stored
from glmtune.models.device import resolve_device
from glmtune.models.dtype import Choice, choose_dtype
from glmtune.models.frozen_linear import hurry_few_rows
from glmtune.models.nf4 import quantise_as
from glmtune.models.published_weights import (
    Progress,
    check_stored,
    fill,
    read_generation_config,
    set_scale_types,
    without_copies,
)
from glmtune.models.quant import check_quant
from glmtune.models.reading import Reading
from glmtune.models.shards import Stored, scan_tensors
from glmtune.quants import name_bits

Config = ChatGLMConfig | ChatGLM6BConfig
Model = ChatGLMForConditionalGeneration | ChatGLM6BForConditionalGeneration
MODELS: Mapping[type[Config], type[Model]] = {
    ChatGLMConfig: ChatGLMForConditionalGeneration,
    ChatGLM6BConfig: ChatGLM6BForConditionalGeneration,
}
"""The model class of each config class."""


def load_base(
    folder: str | PathLike[str] | ModelFolder,
    *,
    dtype: str | torch.dtype | Choice = "auto",
    device: str | torch.device = "auto",
    template: str | None = None,
    quant: str | None = None,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> Model:
    """Load the model of an official folder in evaluation mode, with weights in `dtype` on `device`.

    dtype: a type to hold them in, "auto", or a choice of that and of the computing type. template: the chat
    format if it is known; only a config with `rope_ratio` != 1 needs it. quant: int8, int4 or nf4 quantises
    the blocks' linear layers from their stored values while they are read; a quantised folder loads as it is.
    Scales keep their stored dtype. progress: by default a bar on a terminal when loading takes long. reading:
    checks or hashes each tensor as it is stored. Raises CheckpointError (files, names, shapes, numbers that
    are not finite) and ConfigError (settings, `dtype`, `device`).
    """
    torch_device = resolve_device(device)
    folder = ModelFolder.of(folder)
    config = read_config(folder, template=template)
    check_quant(quant)
    held = name_bits(config.quantization_bit) if config.quantization_bit else None
    if quant and held and quant != held:
        raise ConfigError(
            f"quant: {quant}, but {folder} is {held} already",
            hint="leave quant out, or open the original, unquantised folder",
        )
    generation = read_generation_config(folder)
    stored = scan_tensors(folder)
    reading = reading or Reading()
    choice = choose_dtype(dtype, stored, torch_device)
    reading.dtype = choice.dtype
    model = build_empty(config, choice.dtype, stored)
    stored = without_copies(model, stored)
    check_stored(model, stored)  # against the dense model: the files hold no codes that `quant` makes
    if quant and not held:
        quantise_as(model, quant)
    set_scale_types(model, stored)
    fill(model, stored, torch_device, progress, reading)
    model.tie_weights()  # `fill` replaced the parameters that were tied on the meta device
    if generation is not None:
        model.generation_config = generation
    compute_in(model, choice.computing)
    if choice.is_hurried:
        hurry_few_rows(model)
    model.eval()
    return model


def build_outline(
    folder: Path | ModelFolder, *, template: str | None = None, stored: Mapping[str, Stored] | None = None
) -> Model:
    """Build the folder's model without weights: every parameter on the meta device, from config.json alone.

    Raises CheckpointError where `stored` has far fewer layers than config.json says.
    """
    config = read_config(folder, template=template)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return build_empty(config, dtype, stored or {})


def build_empty(config: Config, dtype: torch.dtype, stored: Mapping[str, Stored]) -> Model:
    """Build the model of a config with every parameter on the meta device; raises as `build_outline`."""
    config_file = Path(config.name_or_path) / "config.json"
    require_stored(config, stored, config_file)
    with explain_config(config_file), torch.device("meta"):
        model: Model = MODELS[type(config)]._from_config(config, dtype=dtype)
    return model
