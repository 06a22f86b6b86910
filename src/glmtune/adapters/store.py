"""Folders of trained weights: save, load and restore the weights and their card."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.card import CARD_FILE, Card, read_card
from glmtune.adapters.digest import ADAPTER_FILE, hash_weights, record_digests
from glmtune.adapters.factors import is_adalora
from glmtune.adapters.own_weights import (
    TRAINED_FILE,
    find_trained,
    load_weights,
    put_back,
    read_trained,
    save_weights,
    shapes_of,
    tell_method,
    trained_shapes,
    trained_weights,
)
from glmtune.adapters.peft_factors import adapter_weights, fill_adapter
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.peft_settings import explain_peft, require_ranks, require_supported
from glmtune.adapters.probe import last_logits
from glmtune.adapters.proof import check_logits, require_hash
from glmtune.errors import CheckpointError
from glmtune.files import COPY_AGAIN
from glmtune.folder import ModelFolder
from glmtune.log import without_false_alarms
from glmtune.models.loaders import loader_of_model
from glmtune.models.protocol import CausalLM
from glmtune.models.reading import hash_whole
from glmtune.models.shards import read_shard
from glmtune.models.wrapped import is_wrapped
from glmtune.recipe.method import Method, TrainedPart
from glmtune.recipe.parse import read_method

__all__ = [
    "ADAPTER_FILE", "CARD_FILE", "Card", "is_adapter", "load_adapter", "own_method", "read_card",
    "require_saved", "restore_trained", "save_trained", "stored_shapes", "stored_tensors",
]  # fmt: skip

Tensors = Mapping[str, Tensor]
_BY_NAME = (TrainedPart.WEIGHTS, TrainedPart.PREFIX)
"""Parts saved under the model's own names in `TRAINED_FILE`."""
_ANEW = "resume from a copy of this folder, or train anew"


def own_method(folder: Path) -> Method | None:
    """Return the method of a folder's trained weights, from its card or else from a prefix's shapes."""
    card = read_card(folder)
    if card is None:
        return tell_method(folder) if find_trained(folder) else None
    return _recorded_method(card)


def _recorded_method(card: Card | None) -> Method | None:
    return read_method(card.method) if card and card.method else None


def is_adapter(folder: ModelFolder, *, has_base: bool = False) -> bool:
    """Return True if a folder has trained weights for a base.

    `has_base` says that a base was named: then a whole model with a prefix in one folder is an adapter too.
    """
    if (folder.path / ADAPTER_FILE).exists():
        return True
    kind = find_trained(folder)
    return kind == "alone" or (kind == "whole" and has_base)


@without_false_alarms()
def save_trained(model: CausalLM, folder: Path, card: Card) -> None:
    """Write the trained weights (an adapter in PEFT's layout, some weights, or the whole model) and the card.

    Adapters and single weights are read again and compared. Raises OSError or SafetensorError if the disk
    does not take them, and OSError if it gives other numbers back.
    """
    if is_wrapped(model):
        # "auto" would look up the base on the hub to see whether its vocabulary has grown
        model.save_pretrained(str(folder), save_embedding_layers=False)
    elif card.kept in _BY_NAME:
        save_weights(model, folder)
    else:
        model.save_pretrained(str(folder), max_shard_size="2GB")
        replace(card, tensors_sha256=hash_whole(model)).save(folder)
        return
    written = stored_tensors(folder)
    for name, weight in _trained_weights(model).items():
        if name not in written or not torch.equal(weight.cpu(), written[name]):
            raise OSError(f"{folder}: {name} reads back other than it was written")
    record_digests(card, folder, written).save(folder)  # the card last: it hashes the other files


def _trained_weights(model: CausalLM) -> Mapping[str, Tensor]:
    """Return the weights that a model trains, by the names they are saved under."""
    return adapter_weights(model) if is_wrapped(model) else trained_weights(model)


@without_false_alarms()
def load_adapter(
    model: CausalLM, folder: Path, tensors: Tensors | None = None, *, is_trainable: bool = False
) -> Any:
    """Load a folder's trained weights on their base: an adapter in PEFT's layout, a prefix, or some weights.

    `tensors` is what `stored_tensors(folder)` gave, None to read them now. Official P-Tuning folders load
    too. Raises `CheckpointError` if a tensor is missing, left over, or of another shape.
    """
    tensors = stored_tensors(folder) if tensors is None else tensors
    if (folder / ADAPTER_FILE).exists():
        return _load_peft(model, folder, tensors, is_trainable=is_trainable)
    method = _recorded_method(read_card(folder))
    return load_weights(model, folder, method, tensors, is_trainable=is_trainable)


def _load_peft(model: CausalLM, folder: Path, stored: Tensors, *, is_trainable: bool) -> Any:
    """Wrap a model in PEFT as PEFT's own `from_pretrained` does, with tensors that have been read already."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    from glmtune.methods.fused_lora import fuse_lora

    if model.device.type == "meta" and is_adalora(read_adapter_config(folder)):
        # PEFT picks AdaLoRA's triplets by their values, which a meta tensor lacks: give each weight of the
        # outline a device, and by `expand` the memory of a single number
        for path, parameter in list(model.named_parameters()):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            module, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(zeros, requires_grad=False))
    with explain_peft(folder):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not is_trainable  # PEFT freezes the adapter's weights in inference mode
        tuned = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config)
        set_peft_model_state_dict(tuned, dict(stored))
    fill_adapter(folder, tuned, stored)
    if not is_trainable:
        return tuned.eval()
    fuse_lora(tuned)
    return tuned


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of an adapter's weights. Raises `CheckpointError` as `stored_tensors`."""
    if not (folder / ADAPTER_FILE).exists() and find_trained(folder):
        return trained_shapes(folder)
    return shapes_of(stored_tensors(folder))


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's trained weights, by their names in its files.

    Raises `CheckpointError` for missing files, and for settings that loading does not carry out.
    """
    if not (folder / ADAPTER_FILE).exists():
        if find_trained(folder):
            return read_trained(folder)
        raise CheckpointError(
            f"{folder}: no {ADAPTER_FILE}, so not an adapter this version reads",
            hint="LoRA adapters in PEFT's layout work, runs of this version, and official P-Tuning folders",
        )
    settings = read_adapter_config(folder)
    require_supported(folder, settings)
    # looked for here: PEFT would ask the hub for files that are missing
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            tensors = read_shard(folder / name)
            require_ranks(folder, settings, shapes_of(tensors))
            return tensors
    raise CheckpointError(
        f"{folder}: no weights; looked for adapter_model.safetensors and .bin", hint=COPY_AGAIN
    )


def restore_trained(model: CausalLM, folder: Path, tensors: Tensors | None = None) -> None:
    """Copy the weights that `save_trained` wrote back into a model of the same method, in place.

    `tensors` has all tensors of the folder's files, None to read them now. Raises `CheckpointError` for a
    tensor that is missing, does not fit, or is not the saved one.
    """
    is_whole = not is_wrapped(model) and not (folder / TRAINED_FILE).exists()
    loader = loader_of_model(model)
    if is_whole and not loader.is_stored_as_held:
        # files whose tensors the model holds in another form, as GLM-4.5's experts, go through its loader
        model.load_state_dict(loader.load(folder, dtype="fp32", device=model.device).state_dict())
        require_saved(model, folder)
        return
    if tensors is None:
        shards = map(read_shard, sorted(folder.glob("*.safetensors")))
        tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    if is_wrapped(model):
        fill_adapter(folder, model, tensors)
    else:
        put_back(folder, tensors, trained_weights(model))
    require_saved(model, folder)


@without_false_alarms()
def require_saved(model: CausalLM, folder: Path) -> None:
    """Raise `CheckpointError` unless a model's trained weights have the hash on a folder's card.

    The first versions recorded no hash of a whole model; for those the logits of the probe are compared.
    """
    card = read_card(folder)
    recorded = card and (card.tensors_sha256 or card.weights_sha256)
    if card and recorded:
        digest = hash_whole(model) if card.tensors_sha256 else hash_weights(_trained_weights(model))
        require_hash(folder, digest, recorded, hint=_ANEW)
    elif card and card.probe:
        check_logits(folder, card, model, base=None, tuned=last_logits(model, card.probe.input_ids))
