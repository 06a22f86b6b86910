"""Trained weights that are not PEFT's: a prefix or some of the model's own, under the model's own names.

Ours lie in one safetensors file beside a card. Official P-Tuning folders are opened too: a pytorch_model.bin
of the prefix alone, or of the whole model with it.
Source: github.com/THUDM/ChatGLM-6B, ptuning/trainer.py (what it saves) and ptuning/main.py (what it reads).
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
from glmtune.models.prefix import DROPOUT, PrefixEncoder, new_prefix
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import quantised_layers
from glmtune.models.shards import Stored, read_shard, read_stored, scan_tensors
from glmtune.possible import require_possible
from glmtune.recipe.method import Method, Ptuning, TrainedPart
from glmtune.tensor_file import read_shapes

TRAINED_FILE = "trained.safetensors"
PREFIX = "transformer.prefix_encoder."
"""How the names of a prefix's weights begin."""

Shapes = Mapping[str, tuple[int, ...]]

ITS_BASE = "load it on the base it was trained on"
"""The cure for weights that do not fit."""


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the trainable weights, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in trained_weights(model).items()}
    save_file(tensors, folder / TRAINED_FILE, metadata={"format": "pt"})


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_back(path: Path, tensors: Mapping[str, Tensor], target: Mapping[str, nn.Parameter]) -> None:
    """Copy stored tensors into weights, in the weights' types. Raises CheckpointError as `require_same`."""
    require_same(path, shapes_of(tensors), shapes_of(target))
    for name, parameter in target.items():
        parameter.copy_(tensors[name])
    require_equal_numbers(path, tensors, target)


def find_trained(folder: Path | ModelFolder) -> Literal["", "alone", "whole"]:
    """Whether trained weights of these kinds lie in a folder, `alone`, or in it with a `whole` model.

    A folder of a model without a prefix whose weights cannot be read holds none.
    """
    folder = ModelFolder.of(folder)
    if (folder.path / TRAINED_FILE).exists():
        return "alone"
    is_plain = bool(folder.config) and not folder.config.get("pre_seq_len")
    if not folder.has_weights or (is_plain and _is_sharded(folder.path)):
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


def _is_sharded(folder: Path) -> bool:
    return any(folder.glob("*.index.json"))


def trained_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trained weights in a folder that `find_trained` found."""
    if (folder / TRAINED_FILE).exists():
        return read_shapes(folder / TRAINED_FILE)
    return {name: held.shape for name, held in scan_tensors(folder).items() if name.startswith(PREFIX)}


def tell_method(folder: Path, shapes: Shapes | None = None) -> Ptuning:
    """The method that made a prefix, by its `trained_shapes`. Raises CheckpointError where they tell none."""
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
    """Put the trained weights of a folder on the base they were trained on, in the types that it computes in.

    `method` is what the folder's card says, if it has one; `tensors` what `read_trained` gives. Raises
    CheckpointError for anything missing, left over or of another shape, and ConfigError for a model that can
    have no prefix.
    """
    model.requires_grad_(False)
    choose = METHODS[method.name].choose if method else None
    if choose:
        chosen = set(choose(model, method))
        target = {name: p for name, p in model.named_parameters() if name in chosen}
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
    """A folder's prefix, in fp32 where the model is; nothing of it is drawn first."""
    require_possible(name_family(model.config.model_type), "method=ptuning", f"{folder}: P-Tuning's prefix")
    told = tell_method(folder, shapes_of(tensors))
    its = cast(Ptuning, method) if method and method.kept is TrainedPart.PREFIX else None
    _check_stated(folder, told, its)
    if not (folder / TRAINED_FILE).exists():
        _check_others(model, scan_tensors(folder))
    encoder = new_prefix(
        model.config,
        told.num_prefix_tokens,
        told.projection,
        dropout=its.dropout if its else DROPOUT,
        device=torch.device("meta"),
    )
    require_same(folder, shapes_of(tensors), shapes_of(encoder.state_dict(prefix=PREFIX)))
    values = {
        name.removeprefix(PREFIX): tensor.to(model.device, torch.float32, copy=True)
        for name, tensor in tensors.items()
    }
    encoder.load_state_dict(values, assign=True)
    require_equal_numbers(folder, tensors, encoder.state_dict(prefix=PREFIX))
    return encoder


def _check_stated(folder: Path, told: Ptuning, method: Ptuning | None) -> None:
    """The folder's own words, its config.json's and its card's, against the shapes of its tensors."""
    config = read_json_if_there(folder / "config.json")
    stated = [("config.json: pre_seq_len", config.get("pre_seq_len") or None, told.num_prefix_tokens)]
    if stated[0][1] is not None:
        stated.append(
            ("config.json: prefix_projection", config.get("prefix_projection", False), told.projection)
        )
    if method:
        stated += [
            ("glmtune.json: num_prefix_tokens", method.num_prefix_tokens, told.num_prefix_tokens),
            ("glmtune.json: projection", method.projection, told.projection),
        ]
    for key, said, found in stated:
        if said is not None and said != found:
            raise CheckpointError(
                f"{folder}/{key} = {said}, but its tensors make it {found}",
                hint="the folder's files are of different runs: take all of them from one",
            )


def _check_others(model: nn.Module, stored: Mapping[str, Stored]) -> None:
    """What lies beside the prefix in an official folder is the base again: it must be this one's."""
    quantised = quantised_layers(model)
    known = shapes_of(model.state_dict())
    for name, held in stored.items():
        plain = name.removesuffix("_scale")
        if name.startswith(PREFIX) or name.endswith("inv_freq"):
            continue
        is_dense = plain.rpartition(".")[0] not in quantised and f"{plain}_scale" not in stored
        if plain not in known or (is_dense and known[plain] != held.shape):
            problem = "is left over" if plain not in known else f"has shape {list(held.shape)}"
            allowed = "" if plain not in known else f", this model's is {list(known[plain])}"
            raise CheckpointError(f"{held.file}: {name} {problem}{allowed}", hint=ITS_BASE)


def read_trained(folder: Path) -> dict[str, Tensor]:
    """The trained weights in a folder that `find_trained` found."""
    if not (folder / TRAINED_FILE).exists():
        return _read(scan_tensors(folder))
    return read_shard(folder / TRAINED_FILE)


def _read(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The prefix's tensors, from whichever files hold them."""
    return {name: read_stored(held) for name, held in stored.items() if name.startswith(PREFIX)}


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes by name."""
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


def require_equal_numbers(path: Path, stored: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless trained weights are held as they are stored, to the last bit.

    Factors and prefixes are held in fp32, whatever they lie on. What stands in place of the base's own
    weights (freeze, PEFT's modules_to_save) is held in the type that the base is opened in. An outline holds
    no numbers.
    """
    for name, ours in held.items():
        if ours.is_meta:
            continue
        kind = torch.float32 if is_part(name) or name.startswith(PREFIX) else ours.dtype
        wanted = stored[name].to(ours.device, kind)
        if ours.dtype != kind or not torch.equal(_bits(ours), _bits(wanted)):
            raise CheckpointError(
                f"{path}: {name} is held with other numbers than the file's",
                hint="this should not happen: please report it with the versions of torch and peft",
            )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
