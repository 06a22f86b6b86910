"""Trained weights under the model's own names, not in PEFT's layout: a prefix, or some of the model's own.

This program writes one safetensors file next to a card. Official P-Tuning folders load too: a
pytorch_model.bin of the prefix alone, or of the whole model and the prefix. Source:
github.com/THUDM/ChatGLM-6B, ptuning/trainer.py (saves them) and ptuning/main.py (loads them).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from glmtune.adapters.factors import is_part
from glmtune.errors import CheckpointError
from glmtune.families import name_family
from glmtune.files import read_json_if_there
from glmtune.folder import ModelFolder
from glmtune.methods import METHODS
from glmtune.models.computing import computes_in
from glmtune.models.prefix import DROPOUT, PrefixEncoder, new_prefix
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import quantised_layers
from glmtune.models.shards import Stored, read_shard, read_stored, scan_tensors
from glmtune.possible import require_possible
from glmtune.recipe.method import Method, Ptuning, TrainedPart
from glmtune.tensor_file import read_shapes

TRAINED_FILE = "trained.safetensors"
PREFIX = "transformer.prefix_encoder."
"""Start of the names of a prefix's weights."""

Shapes = Mapping[str, tuple[int, ...]]

ITS_BASE = "load it on the base it was trained on"
"""Hint for weights that do not fit a model."""


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the trainable weights, and no others, as `trained.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in trained_weights(model).items()}
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights by name; tied weights appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_back(path: Path, tensors: Mapping[str, Tensor], target: Mapping[str, nn.Parameter]) -> None:
    """Copy stored tensors into weights, in the weights' types. Raises CheckpointError as `require_same`."""
    require_same(path, shapes_of(tensors), shapes_of(target))
    for name, parameter in target.items():
        parameter.copy_(tensors[name])
    require_equal_numbers(path, tensors, target)


def find_trained(folder: Path | ModelFolder) -> Literal["", "alone", "whole"]:
    """Find a prefix or trained weights in a folder: `alone`, with a `whole` model, or empty for none.

    Unreadable weights raise `CheckpointError` unless config.json says that the model has no prefix.
    """
    folder = ModelFolder.of(folder)
    if (folder.path / TRAINED_FILE).exists():
        return "alone"
    # An official folder with a prefix in several shards names `pre_seq_len`: a plain model's are not read.
    is_plain = bool(folder.config) and not folder.config.get("pre_seq_len")
    if not folder.has_weights or (is_plain and any(folder.path.glob("*.index.json"))):
        return ""
    try:
        names = scan_tensors(folder)
    except CheckpointError:
        if is_plain:
            return ""
        raise
    if not any(name.startswith(PREFIX) for name in names):
        return ""
    return "alone" if all(name.startswith(PREFIX) for name in names) else "whole"


def trained_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the trained weights in a folder that `find_trained` accepts."""
    if (folder / TRAINED_FILE).exists():
        return read_shapes(folder / TRAINED_FILE)
    return {name: tensor.shape for name, tensor in scan_tensors(folder).items() if name.startswith(PREFIX)}


def tell_method(folder: Path, shapes: Shapes | None = None) -> Ptuning:
    """Return the method of a prefix from its `trained_shapes`. Raises CheckpointError if there is none."""
    shapes = trained_shapes(folder) if shapes is None else shapes
    embedding = shapes.get(f"{PREFIX}embedding.weight")
    if embedding is None or len(embedding) != 2 or not embedding[0]:
        raise CheckpointError(
            f"{folder}: no {PREFIX}embedding.weight of shape [prefix tokens, width], got "
            f"{'none' if embedding is None else list(embedding)}",
            hint="an official P-Tuning folder has one; a run names its method in glmtune.json",
        )
    projection = any(name.startswith(f"{PREFIX}trans.") for name in shapes)
    return Ptuning(num_prefix_tokens=embedding[0], projection=projection, dropout=DROPOUT)


def load_weights(
    model: CausalLM, folder: Path, method: Method | None, tensors: Mapping[str, Tensor], *, is_trainable: bool
) -> Any:
    """Load a folder's trained weights into the base they were trained on, in the type that it computes in.

    `method` is the card's, None without a card; `tensors` comes from `read_trained`. Raises CheckpointError
    for tensors missing, left over or of another shape, and ConfigError for a model that cannot have a prefix.
    """
    model.requires_grad_(False)
    computing = computes_in(model)  # before the embedding may be among what is replaced
    # a method that trains some of the model's own weights names them; all others here have a prefix
    choose = METHODS[method.name].choose if method else None
    if choose:
        chosen = set(choose(model, method))
        target = {name: p for name, p in model.named_parameters() if name in chosen}
        for parameter in target.values():  # held in the base's own type they might be rounded more than that
            parameter.data = parameter.data.to(computing)
        put_back(folder, tensors, target)
    else:
        encoder = load_prefix(model, folder, method, tensors)
        model.hold_prefix(encoder)
        target = dict(encoder.named_parameters())
    for parameter in target.values():
        parameter.requires_grad_(is_trainable)
    return model


def load_prefix(
    model: CausalLM, folder: Path, method: Method | None, tensors: Mapping[str, Tensor]
) -> PrefixEncoder:
    """Return a folder's prefix for a model, in fp32 on the model's device, without random weights before it.

    Raises as `load_weights`.
    """
    require_possible(name_family(model.config.model_type), "method=ptuning", f"{folder}: P-Tuning's prefix")
    from_shapes = tell_method(folder, shapes_of(tensors))
    recorded = cast(Ptuning, method) if method and method.kept is TrainedPart.PREFIX else None
    _check_prefix_settings(folder, from_shapes, recorded)
    if not (folder / TRAINED_FILE).exists():
        _check_base_tensors(model, scan_tensors(folder))
    encoder = new_prefix(
        model.config,
        from_shapes.num_prefix_tokens,
        from_shapes.projection,
        dropout=recorded.dropout if recorded else DROPOUT,
        device=torch.device("meta"),  # `assign=True` below puts the stored tensors in place of these
    )
    require_same(folder, shapes_of(tensors), shapes_of(encoder.state_dict(prefix=PREFIX)))
    values = {
        # copied: the stored tensors may be views of a file, and training would write into them
        name.removeprefix(PREFIX): tensor.to(model.device, torch.float32, copy=True)
        for name, tensor in tensors.items()
    }
    encoder.load_state_dict(values, assign=True)
    require_equal_numbers(folder, tensors, encoder.state_dict(prefix=PREFIX))
    return encoder


def _check_prefix_settings(folder: Path, from_shapes: Ptuning, recorded: Ptuning | None) -> None:
    """Raise `CheckpointError` if config.json or the card contradict the shapes of a prefix's tensors."""
    config = read_json_if_there(folder / "config.json")
    num_tokens, projection = from_shapes.num_prefix_tokens, from_shapes.projection
    settings = [("config.json: pre_seq_len", config.get("pre_seq_len") or None, num_tokens)]
    if settings[0][1] is not None:
        settings.append(
            ("config.json: prefix_projection", config.get("prefix_projection", False), projection)
        )
    if recorded:
        settings += [
            ("glmtune.json: num_prefix_tokens", recorded.num_prefix_tokens, num_tokens),
            ("glmtune.json: projection", recorded.projection, projection),
        ]
    for key, value, shape_value in settings:
        if value is not None and value != shape_value:
            raise CheckpointError(
                f"{folder}/{key} = {value}, but its tensors make it {shape_value}",
                hint="the folder's files are of different runs: take all of them from one",
            )


def _check_base_tensors(model: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Raise `CheckpointError` unless the base's weights in an official folder fit this model.

    The official scripts save the whole model with the prefix.
    """
    quantised = quantised_layers(model)
    known = shapes_of(model.state_dict())
    for name, tensor in stored.items():
        plain = name.removesuffix("_scale")
        if name.startswith(PREFIX) or name.endswith("inv_freq"):
            continue
        # codes have another shape than the weight they stand for, on either side
        is_dense = plain.rpartition(".")[0] not in quantised and f"{plain}_scale" not in stored
        if plain not in known or (is_dense and known[plain] != tensor.shape):
            problem = "is left over" if plain not in known else f"has shape {list(tensor.shape)}"
            allowed = "" if plain not in known else f", this model's is {list(known[plain])}"
            raise CheckpointError(f"{tensor.file}: {name} {problem}{allowed}", hint=ITS_BASE)


def read_trained(folder: Path) -> dict[str, Tensor]:
    """Return the trained weights in a folder that `find_trained` accepts."""
    if (folder / TRAINED_FILE).exists():
        return read_shard(folder / TRAINED_FILE)
    stored = scan_tensors(folder)
    return {name: read_stored(tensor) for name, tensor in stored.items() if name.startswith(PREFIX)}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_same(path: Path, stored: Shapes, expected: Shapes) -> None:
    """Raise CheckpointError unless exactly the expected tensors are stored, in the expected shapes."""
    odd = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if not odd:
        return
    name = odd[0]
    problem = (
        f"has shape {list(stored[name])}, expected is {list(expected[name])}"
        if (name in stored and name in expected)
        else ("is left over" if name in stored else "is missing")
    )
    raise CheckpointError(
        f"{path}: {len(odd)} tensors do not match this model, the first: {name} {problem}", hint=ITS_BASE
    )


def require_equal_numbers(path: Path, stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the model's trained weights equal the stored ones, to the last bit.

    Factors and prefixes are fp32 on any base. Weights that replace the base's own (freeze, PEFT's
    modules_to_save) have the type they are in. Weights of an outline, on torch's meta device, are not
    compared.
    """
    for name, weight in weights.items():
        if weight.is_meta:
            continue
        kind = torch.float32 if is_part(name) or name.startswith(PREFIX) else weight.dtype
        expected = stored[name].to(weight.device, kind)
        if weight.dtype != kind or not torch.equal(_bits(weight), _bits(expected)):
            raise CheckpointError(
                f"{path}: {name} is held with other numbers than the file's",
                hint="this should not happen: please report it with the versions of torch and peft",
            )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
