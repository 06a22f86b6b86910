"""The source of an export: a trained model on its un-quantised base, loaded in the types of its files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.factors import START, is_adalora, is_part
from glmtune.adapters.peft_factors import adapter_weights
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.store import ADAPTER_FILE, own_method, read_card, stored_tensors
from glmtune.adapters.strength import blend, require_strength
from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.fresh import WeightSource
from glmtune.exports.original import require_original
from glmtune.families import FAMILIES, Family, Identity, identify
from glmtune.files import given_path
from glmtune.folder import ModelFolder
from glmtune.load import load_location
from glmtune.locations import Location, find_folder, resolve
from glmtune.log import quiet
from glmtune.models.dtype import Choice
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import stored_dtype
from glmtune.models.shards import read_stored, scan_tensors
from glmtune.models.wrapped import is_wrapped
from glmtune.recipe import TrainedPart
from glmtune.run_files import find_checkpoint, follow, last_checkpoint


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A trained model and its base."""

    location: Location
    """Folders of base and adapter; of a fully trained model the folder of its own weights."""
    folder: ModelFolder
    """Folder of the un-quantised base."""
    identity: Identity
    method: str
    """Name of the method; empty for a model that was not trained here."""
    kept: TrainedPart | None
    """Part of the model that the method trains; None for a model that was not trained here."""
    unproven: str = ""
    """Known and unknown facts of a base that replaces the quantised one of training; else empty."""
    strength: float = 1.0
    """How much of what was trained is exported (`adapters.strength`)."""

    @property
    def base(self) -> Path:
        """Path of the un-quantised base's folder."""
        return self.folder.path

    @property
    def family(self) -> Family:
        """The model's row in the table of families."""
        return FAMILIES[self.identity.family]

    @property
    def is_whole(self) -> bool:
        """True if every weight was trained, so that the base is not needed to load it."""
        return self.location.base != self.base

    @property
    def has_factors(self) -> bool:
        """True for an adapter in PEFT's layout."""
        return self.location.adapter is not None and (self.location.adapter / ADAPTER_FILE).exists()

    @property
    def is_adalora(self) -> bool:
        """True for AdaLoRA, which plain LoRA can be made of."""
        return self.location.adapter is not None and is_adalora(
            read_adapter_config_if_there(self.location.adapter)
        )

    @property
    def name(self) -> str:
        """Path of the exported adapter or model, for messages."""
        return str(self.location.adapter or self.location.base)

    @property
    def quant(self) -> str | None:
        """Quantisation of the base while training."""
        return self.location.quant

    def open(
        self, *, quant: str | None = None, dtype: str | torch.dtype | Choice = "stored", device: str = "cpu"
    ) -> Any:
        """Load the trained model in evaluation mode; by default un-quantised, in the types of its files."""
        location = replace(self.location, is_dense=quant is None)
        return self._open(location, dtype, device, quant, self.strength)

    def load_base(self) -> Any:
        """Load the base without the adapter; of a fully trained model that model itself."""
        return self._open(replace(self.location, card=None, adapter=None), "stored", "cpu", None)

    def load_untrained(self) -> Any:
        """Load the base as it was before training, also of a fully trained model."""
        return self._open(Location(self.folder, snapshot=self.location.snapshot), "stored", "cpu", None)

    def as_trained(self, model: CausalLM) -> WeightSource:
        """Return a source of weights for `logits_of` that gives trained weights unrounded.

        In the loaded model, weights trained with freeze are rounded to the type of the base.
        """
        if self.location.adapter is None:
            return lambda _, weight: weight
        weights = adapter_weights(model) if is_wrapped(model) else dict(model.named_parameters())
        values: dict[int, Tensor] = {}
        for name, trained in stored_tensors(self.location.adapter).items():
            # by identity: the names inside PEFT's wrapper are others than those in the adapter's files
            values[id(weights[name])] = self.at_strength(name.removeprefix(START), trained)
        return lambda _, weight: values.get(id(weight), weight)

    def at_strength(self, name: str, trained: Tensor) -> Tensor:
        """Return a trained tensor of the adapter's files, mixed with the base's weight that it replaces."""
        if self.strength == 1 or is_part(name) or self.kept is TrainedPart.PREFIX:
            return trained
        return blend(read_stored(scan_tensors(self.folder)[name]), trained, self.strength)

    def _open(
        self,
        location: Location,
        dtype: str | torch.dtype | Choice,
        device: str,
        quant: str | None,
        strength: float = 1.0,
    ) -> Any:
        weights_dtype = stored_dtype(location.folder) if dtype == "stored" else dtype
        with quiet():
            return load_location(
                location,
                template=self.identity.template,
                dtype=weights_dtype,
                device=device,
                quant=quant,
                verify=not self.unproven,  # the card's fingerprint is the quantised base's
                strength=strength,
                base=Location(self.folder, snapshot=self.location.snapshot),
            ).eval()


def find_source(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    is_merging: bool = True,
    strength: float = 1.0,
) -> ExportSource:
    """Find model, base and card of a path to export, at a strength of what was trained.

    Raises `CheckpointError`, and with `is_merging` also `ConfigError` for a quantised base, which weights
    cannot be merged into.
    """
    # A fully trained model is loaded without its base, so `base` must not turn it into an adapter. The base
    # only gives the files around the weights.
    is_whole = _is_whole_run(given_path(path))
    location = resolve(path, base=None if is_whole else base)
    card = location.card
    folder = location.folder
    require_strength(strength, location.adapter)
    if strength != 1 and not (location.adapter or is_whole):
        raise ConfigError(
            f"strength: {path} is a model, with no base recorded",
            hint="export the run or adapter that it was made of",
        )
    if is_whole and card:
        folder = ModelFolder(find_folder(base or card.base, None if base else card.base_revision)[0])
        if not (folder.path / "config.json").exists():
            raise CheckpointError(
                f"{path}: its base model is not at {base or card.base}, and its files are part of an export",
                hint="name the base's folder: base=FOLDER",
            )
    bits = folder.json("config.json", is_required=True).get("quantization_bit")
    if bits and is_merging:
        raise ConfigError(
            f"{folder}: its own weights are int{bits}; an export is made of the original ones",
            hint="export the un-quantised model's folder"
            if location.adapter is None
            else "name the folder of the un-quantised model it was made from: base=FOLDER",
        )
    return ExportSource(
        location,
        folder,
        identify(folder, template or location.template),
        *_method_of(location),
        require_original(location.adapter, card, folder) if location.adapter and card and not bits else "",
        strength,
    )


def _is_whole_run(path: Path) -> bool:
    """True if a run's or checkpoint's folder holds a fully trained model."""
    for folder in (follow(path), find_checkpoint(path, "best"), last_checkpoint(path)):
        card = read_card(folder) if folder and folder.is_dir() else None
        if card:
            return card.kept is TrainedPart.MODEL
    return False


def _method_of(location: Location) -> tuple[str, TrainedPart | None]:
    """Return the method's name and the part it trained, from the card or else the adapter's own files."""
    if location.card:
        return str(location.card.method.get("name", "")), location.card.kept
    if location.adapter is None:
        return "", None
    peft_type = str(read_adapter_config_if_there(location.adapter).get("peft_type", ""))
    method = None if peft_type else own_method(location.adapter)
    return (method.name, method.kept) if method else (peft_type.lower(), TrainedPart.LAYERS)
