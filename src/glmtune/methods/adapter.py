"""What training leaves behind: the trained weights and a card that says what they belong to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from glmtune.errors import CheckpointError

CARD_FILE = "glmtune.json"
ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the weights in a folder are, and how the model was talked to while it learned them."""

    base: str
    """Folder of the model that was trained."""
    template: str
    method: dict[str, Any]
    system: str | None = None
    source_prefix: str = ""
    glmtune_version: str = ""

    def save(self, folder: Path) -> None:
        """Write glmtune.json."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card in a folder, None if there is none. Raises `CheckpointError` if it is broken."""
    path = folder / CARD_FILE
    if not path.exists():
        return None
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise CheckpointError(
            f"{path}: not a card of this version: {err}", hint="copy it again from the run it came from"
        ) from err


def save_trained(model: Any, folder: Path, card: Card) -> None:
    """Write the trained weights (an adapter in PEFT's layout, or the whole model) and the card."""
    if isinstance(model, PeftModel):
        # "auto" would look up the base on the hub to see whether its vocabulary has grown
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder), max_shard_size="2GB")
    card.save(folder)


def load_adapter(model: Any, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """Put a LoRA-family adapter from PEFT's layout on a model.

    Raises `CheckpointError` if a tensor is missing, left over, or of another shape.
    """
    if not (folder / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{folder}: no {ADAPTER_FILE}, so not an adapter this version reads",
            hint="LoRA adapters in PEFT's layout work; official P-Tuning folders are not supported yet",
        )
    try:
        tuned = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"{folder}: does not fit this model: {reason}", hint="load it on the base it was trained on"
        ) from err
    except (OSError, ValueError, SafetensorError) as err:
        raise CheckpointError(f"{folder}: cannot be read: {err}", hint="copy the folder again") from err
    _require_same_keys(folder, tuned)
    return tuned


def _require_same_keys(folder: Path, tuned: PeftModel) -> None:
    """PEFT only warns about keys that do not match, and the model then answers like its base."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():  # an older .bin: PEFT's state dict names are the same, but it must be read whole
        return
    with safe_open(str(path), framework="pt") as tensors:
        stored = set(tensors.keys())
    expected = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    if stored != expected:
        odd = sorted(stored ^ expected)
        what = "left over" if odd[0] in stored else "missing"
        raise CheckpointError(
            f"{path}: {len(odd)} tensors do not match this model, the first {what}: {odd[0]}",
            hint="load it on the base it was trained on",
        )


def restore_trained(model: Any, folder: Path) -> None:
    """Put the weights that `save_trained` wrote back into a model of the same method, in place."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(
            f"{folder}: no weights (*.safetensors)", hint="train anew, with another output="
        )
    for path in paths:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as err:
            raise CheckpointError(
                f"{path}: cannot be read: {err}", hint="train anew, with another output="
            ) from err
        if isinstance(model, PeftModel):
            set_peft_model_state_dict(model, tensors)
        else:
            model.load_state_dict(tensors, strict=False)
