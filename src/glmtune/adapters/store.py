"""What training leaves behind: the trained weights and a card that says what they belong to."""

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
from glmtune.adapters.peft_factors import fill_adapter, held_adapter
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
_BY_NAME = (TrainedPart.WEIGHTS, TrainedPart.PREFIX)  # kept by their own names in `TRAINED_FILE`
_ANEW = "resume from a copy of this folder, or train anew"


def own_method(folder: Path) -> Method | None:
    """The method that a folder's weights were trained with, by its card or else by a prefix's shapes."""
    card = read_card(folder)
    if card is None:
        return tell_method(folder) if find_trained(folder) else None
    return _recorded_method(card)


def _recorded_method(card: Card | None) -> Method | None:
    return read_method(card.method) if card and card.method else None


def is_adapter(folder: ModelFolder, *, has_base: bool = False) -> bool:
    """Whether a folder holds trained weights for a base; `has_base`: one was named, so the folder is none."""
    if (folder.path / ADAPTER_FILE).exists():
        return True
    found = find_trained(folder)
    return found == "alone" or (found == "whole" and has_base)


@without_false_alarms()
def save_trained(model: CausalLM, folder: Path, card: Card) -> None:
    """Write the trained weights (an adapter in PEFT's layout, some weights, or the whole model) and the card.

    What was written is read again. Raises OSError or SafetensorError if the disk does not take it, OSError if
    it gives other numbers back.
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
    _require_written(folder, _held_weights(model), written)
    record_digests(card, folder, written).save(folder)


def _held_weights(model: CausalLM) -> Mapping[str, Tensor]:
    """What a model trains, by the names that it is saved under."""
    return held_adapter(model) if is_wrapped(model) else trained_weights(model)


def _require_written(folder: Path, held: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    odd = [name for name in held if name not in written or not torch.equal(held[name].cpu(), written[name])]
    if odd:
        raise OSError(f"{folder}: {odd[0]} reads back other than it was written")


@without_false_alarms()
def load_adapter(
    model: CausalLM, folder: Path, tensors: Tensors | None = None, *, is_trainable: bool = False
) -> Any:
    """Put a folder's trained weights on their base: an adapter of PEFT's layout, a prefix, a model's own.

    `tensors`: its `stored_tensors`, where they have been read. Official P-Tuning folders are opened too.
    Raises `CheckpointError` if a tensor is missing, left over, or of another shape.
    """
    tensors = stored_tensors(folder) if tensors is None else tensors
    if (folder / ADAPTER_FILE).exists():
        return _load_peft(model, folder, tensors, is_trainable=is_trainable)
    method = _recorded_method(read_card(folder))
    return load_weights(model, folder, method, tensors, is_trainable=is_trainable)


def _load_peft(model: CausalLM, folder: Path, stored: Tensors, *, is_trainable: bool) -> Any:
    """As PEFT's own `from_pretrained`, but that the files are not read again."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    if model.device.type == "meta" and is_adalora(read_adapter_config(folder)):
        _hollow_out(model)
    with explain_peft(folder):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not is_trainable
        tuned = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config)
        set_peft_model_state_dict(tuned, dict(stored))
    fill_adapter(folder, tuned, stored)
    return tuned if is_trainable else tuned.eval()


def _hollow_out(outline: Any) -> None:
    """Give an outline's weights a device, and no memory: PEFT picks AdaLoRA's triplets by their values."""
    for path, parameter in list(outline.named_parameters()):
        nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        module, _, leaf = path.rpartition(".")
        setattr(outline.get_submodule(module), leaf, torch.nn.Parameter(nothing, requires_grad=False))


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the adapter's weights. Looked at first: PEFT asks the hub for missing files."""
    if not (folder / ADAPTER_FILE).exists() and find_trained(folder):
        return trained_shapes(folder)
    return shapes_of(stored_tensors(folder))


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """An adapter's trained weights by their names in its files, once its settings are known to be supported.

    Raises `CheckpointError`.
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
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            tensors = read_shard(folder / name)
            require_ranks(folder, settings, shapes_of(tensors))
            return tensors
    raise CheckpointError(
        f"{folder}: no weights; looked for adapter_model.safetensors and .bin", hint=COPY_AGAIN
    )


def restore_trained(model: CausalLM, folder: Path, tensors: Tensors | None = None) -> None:
    """Put the weights that `save_trained` wrote back into a model of the same method, in place.

    `tensors`: all that its files hold, where they have been read. Raises `CheckpointError` unless every one
    is there, fits, and is the one that was saved.
    """
    _put_back(model, folder, tensors)
    require_saved(model, folder)


@without_false_alarms()
def require_saved(model: CausalLM, folder: Path) -> None:
    """Raise `CheckpointError` unless a model's trained weights are those that a folder's card records.

    To the last bit; the first versions took no hash of a whole model, of which the answer to the probe is
    compared then.
    """
    card = read_card(folder)
    recorded = card and (card.tensors_sha256 or card.weights_sha256)
    if card and recorded:
        found = hash_whole(model) if card.tensors_sha256 else hash_weights(_held_weights(model))
        require_hash(folder, found, recorded, hint=_ANEW)
    elif card and card.probe:
        check_logits(folder, card, model, base=None, tuned=last_logits(model, card.probe.input_ids))


def _put_back(model: CausalLM, folder: Path, tensors: Tensors | None) -> None:
    is_whole = not is_wrapped(model) and not (folder / TRAINED_FILE).exists()
    opening = loader_of_model(model)
    if is_whole and not opening.is_stored_as_held:
        model.load_state_dict(opening.load(folder, dtype="fp32", device=model.device).state_dict())
        return
    if tensors is None:
        shards = map(read_shard, sorted(folder.glob("*.safetensors")))
        tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    if is_wrapped(model):
        fill_adapter(folder, model, tensors)
    else:
        put_back(folder, tensors, trained_weights(model))
