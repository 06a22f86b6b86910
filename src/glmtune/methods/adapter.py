"""What training leaves behind: the trained weights and a card that says what they belong to."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from glmtune.errors import CheckpointError
from glmtune.family import find_family
from glmtune.files import COPY_AGAIN, read_json, read_json_if_there, read_start
from glmtune.models import load_in_transformers

CARD_FILE = "glmtune.json"
ADAPTER_FILE = "adapter_config.json"
KINDS = ("LORA", "ADALORA")
"""PEFT's types of adapters that this version loads."""

_ITS_BASE = "load it on the base it was trained on"
_ANEW = "resume from a copy of this folder, or train anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the weights in a folder are, and how the model was talked to while it learned them."""

    base: str
    """The model that was trained: its folder, or its name on a hub or in the package."""
    template: str
    method: dict[str, Any]
    system: str | None = None
    source_prefix: str = ""
    quant: str | None = None
    """How the base was quantised while it was loaded: int8, int4 or not at all."""
    glmtune_version: str = ""
    base_revision: str | None = None
    """The base's revision on its hub."""

    def save(self, folder: Path) -> None:
        """Write glmtune.json."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card in a folder, None if there is none. Raises `CheckpointError` if it is broken."""
    content = read_json_if_there(folder / CARD_FILE)
    if not content:
        return None
    try:
        return Card(**content)
    except TypeError as err:
        raise CheckpointError(
            f"{folder / CARD_FILE}: not a card of this version: {err}",
            hint="copy it from the run it came from",
        ) from err


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """PEFT takes AdaLoRA's rank pattern for LoRA's, and a target of rank 0 for weights that were lost."""
    with warnings.catch_warnings():
        for text in (
            "The following rank_pattern keys did not",
            "Adapter .* invalid shape",
            "Initializing zero-el",
        ):
            warnings.filterwarnings("ignore", text)
        yield


@_without_false_alarms()
def save_trained(model: Any, folder: Path, card: Card) -> None:
    """Write the trained weights (an adapter in PEFT's layout, or the whole model) and the card.

    Raises OSError if the disk does not take them.
    """
    try:
        if isinstance(model, PeftModel):
            # "auto" would look up the base on the hub to see whether its vocabulary has grown
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder), max_shard_size="2GB")
    except SafetensorError as err:  # what its writer makes of a failing disk
        raise OSError(str(err)) from err
    card.save(folder)


@_without_false_alarms()
def load_adapter(model: Any, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """Put a LoRA-family adapter from PEFT's layout on a model.

    Raises `CheckpointError` if a tensor is missing, left over, or of another shape.
    """
    stored = stored_shapes(folder)
    kind = read_json(folder / ADAPTER_FILE).get("peft_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: peft_type is {kind!r}",
            hint=f"adapters of these types work: {', '.join(KINDS)}",
        )
    try:
        tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{folder}: does not fit this model: {reason}", hint=_ITS_BASE) from err
    except (OSError, ValueError, TypeError, SafetensorError) as err:
        raise CheckpointError(f"{folder}: cannot be read: {err}", hint=COPY_AGAIN) from err
    _require_same(folder, stored, _shapes(get_peft_model_state_dict(tuned, save_embedding_layers=False)))
    return tuned


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the adapter's weights. Looked at first: PEFT asks the hub for missing files."""
    if not (folder / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{folder}: no {ADAPTER_FILE}, so not an adapter this version reads",
            hint="LoRA adapters in PEFT's layout work; official P-Tuning folders are not supported yet",
        )
    for name, read in (("adapter_model.safetensors", load_file), ("adapter_model.bin", _load_pickle)):
        path = folder / name
        if path.exists():
            read_start(path)
            try:
                return _shapes(read(path))
            except (OSError, SafetensorError, RuntimeError, UnpicklingError, EOFError) as err:
                raise CheckpointError(f"{path}: truncated or damaged: {err}", hint=COPY_AGAIN) from err
    raise CheckpointError(
        f"{folder}: no weights; looked for adapter_model.safetensors and .bin", hint=COPY_AGAIN
    )


def _load_pickle(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return tensors


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_same(
    place: Path, stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """PEFT only warns about names that do not match, and the model then answers like its base."""
    odd = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if odd:
        what = (
            "is missing"
            if odd[0] not in stored
            else "is left over"
            if odd[0] not in expected
            else "has another shape"
        )
        raise CheckpointError(
            f"{place}: {len(odd)} tensors do not match this model, the first: {odd[0]} {what}", hint=_ITS_BASE
        )


def restore_trained(model: Any, folder: Path) -> None:
    """Put the weights that `save_trained` wrote back into a model of the same method, in place.

    Raises `CheckpointError` unless every one is there and fits.
    """
    if not isinstance(model, PeftModel) and find_family(model.config.model_type).is_in_transformers:
        # its files hold other tensors than the model does: GLM-4.5's experts one by one
        model.load_state_dict(load_in_transformers(folder, dtype="fp32", device=model.device).state_dict())
        return
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as err:
            raise CheckpointError(f"{path}: truncated or damaged: {err}", hint=_ANEW) from err
    if isinstance(model, PeftModel):
        _require_same(
            folder, _shapes(tensors), _shapes(get_peft_model_state_dict(model, save_embedding_layers=False))
        )
        set_peft_model_state_dict(model, tensors)
    else:
        _require_same(folder, _shapes(tensors), _shapes(model.state_dict()))
        model.load_state_dict(tensors)
