"""What is exported: a trained model on its un-quantised base, opened in the types that its files have."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.factors import is_adalora
from glmtune.adapters.peft_factors import held_adapter
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.store import ADAPTER_FILE, own_method, read_card, stored_tensors
from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.fresh import WeightSource
from glmtune.exports.original import require_original
from glmtune.families import FAMILIES, Family, Identity, identify
from glmtune.files import given_path
from glmtune.folder import ModelFolder
from glmtune.load import load_location
from glmtune.locations import Location, find_folder, resolve
from glmtune.log import quiet
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import stored_dtype
from glmtune.models.wrapped import is_wrapped
from glmtune.recipe import TrainedPart
from glmtune.run_files import find_checkpoint, follow, last_checkpoint


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A trained model and its base."""

    location: Location
    """Its base and adapter; of a fully trained model the folder of its own weights."""
    folder: ModelFolder
    """Of the un-quantised base."""
    identity: Identity
    method: str
    """Its method's name; empty for a model that is not ours."""
    kept: TrainedPart | None
    """What it trained; None for a model that is not ours."""
    unproven: str = ""
    """Of a base that stands for the quantised one of training: what is known of it, and what is not."""

    @property
    def base(self) -> Path:
        """The path of the un-quantised base's folder."""
        return self.folder.path

    @property
    def family(self) -> Family:
        """Its row in the table of families."""
        return FAMILIES[self.identity.family]

    @property
    def is_whole(self) -> bool:
        """Whether every weight was trained, so that no base is needed to open it."""
        return self.location.base != self.base

    @property
    def has_factors(self) -> bool:
        """Whether it is an adapter in PEFT's layout."""
        return self.location.adapter is not None and (self.location.adapter / ADAPTER_FILE).exists()

    @property
    def is_adalora(self) -> bool:
        """Whether plain LoRA can be made of it."""
        return self.location.adapter is not None and is_adalora(
            read_adapter_config_if_there(self.location.adapter)
        )

    @property
    def name(self) -> str:
        """What is exported, for messages."""
        return str(self.location.adapter or self.location.base)

    @property
    def quant(self) -> str | None:
        """How the base was quantised while this was trained."""
        return self.location.quant

    def open(
        self, *, quant: str | None = None, dtype: str | torch.dtype = "stored", device: str = "cpu"
    ) -> Any:
        """The trained model in evaluation mode; by default un-quantised, its types those of its files."""
        return self._open(replace(self.location, is_dense=quant is None), dtype, device, quant)

    def load_base(self) -> Any:
        """The same without what was trained; of a fully trained model that model."""
        return self._open(replace(self.location, card=None, adapter=None), "stored", "cpu", None)

    def load_untrained(self) -> Any:
        """The base, of a fully trained model too."""
        return self._open(Location(self.folder, snapshot=self.location.snapshot), "stored", "cpu", None)

    def as_trained(self, model: CausalLM) -> WeightSource:
        """Gives `logits_of` the numbers that were trained, where they stand rounded in the opened model.

        There freeze's weights have the type of the base whose own they stand for.
        """
        if self.location.adapter is None:
            return lambda _, held: held
        own = held_adapter(model) if is_wrapped(model) else dict(model.named_parameters())
        trained = {id(own[name]): value for name, value in stored_tensors(self.location.adapter).items()}
        return lambda _, held: trained.get(id(held), held)

    def _open(self, location: Location, dtype: str | torch.dtype, device: str, quant: str | None) -> Any:
        wanted = stored_dtype(location.folder) if dtype == "stored" else dtype
        with quiet():
            return load_location(
                location,
                template=self.identity.template,
                dtype=wanted,
                device=device,
                quant=quant,
                verify=not self.unproven,  # the card knows the quantised base
            ).eval()


def find_source(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    is_merging: bool = True,
) -> ExportSource:
    """What a path means for an export. Raises `CheckpointError`.

    And `ConfigError` for a quantised base that weights shall be merged into (`is_merging`).
    """
    whole = _find_whole(given_path(path))
    location = resolve(path, base=None if whole else base)
    card = location.card
    folder = location.folder
    if whole and card:
        folder = ModelFolder(find_folder(base or card.base, None if base else card.base_revision)[0])
        if not (folder.path / "config.json").exists():
            raise CheckpointError(
                f"{path}: its base model is not at {base or card.base}, and its files are part of an export",
                hint="name the base's folder: base=FOLDER",
            )
    bits = folder.json("config.json", is_required=True).get("quantization_bit")
    if bits and is_merging:
        raise _quantised(folder.path, bits, is_adapter=location.adapter is not None)
    return ExportSource(
        location,
        folder,
        identify(folder, template or location.template),
        *_tell_method(location),
        require_original(location.adapter, card, folder) if location.adapter and card and not bits else "",
    )


def _tell_method(location: Location) -> tuple[str, TrainedPart | None]:
    """The method's name and what it trained, by the card, else by what the adapter's own files say."""
    if location.card:
        return str(location.card.method.get("name", "")), location.card.kept
    if location.adapter is None:
        return "", None
    theirs = str(read_adapter_config_if_there(location.adapter).get("peft_type", ""))
    found = None if theirs else own_method(location.adapter)
    return (found.name, found.kept) if found else (theirs.lower(), TrainedPart.LAYERS)


def _find_whole(path: Path) -> bool:
    """Whether a run's or checkpoint's own folder is a whole model, trained in full."""
    for folder in (follow(path), find_checkpoint(path, "best"), last_checkpoint(path)):
        card = read_card(folder) if folder and folder.is_dir() else None
        if card:
            return card.kept is TrainedPart.MODEL
    return False


def _quantised(base: Path, bits: int, *, is_adapter: bool) -> ConfigError:
    return ConfigError(
        f"{base}: its own weights are int{bits}; an export is made of the original ones",
        hint="name the folder of the un-quantised model it was made from: base=FOLDER"
        if is_adapter
        else "export the un-quantised model's folder",
    )
