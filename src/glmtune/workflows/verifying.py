"""Proof of what was trained, alone: nothing is done with the model."""

from collections.abc import Generator
from pathlib import Path

import torch

from glmtune.errors import ConfigError
from glmtune.load import open_tokenizer, opening
from glmtune.methods.probe import encode_probe
from glmtune.methods.proof import Check, check_files, check_tokenizer
from glmtune.places import Place, resolve


def verify(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
    device: str = "auto",
) -> list[Check]:
    """Prove that a run, checkpoint or adapter folder does what it did when it was saved; what was proven.

    The arguments open it as `load_model`'s do; `base` is its base where that has moved. Raises
    `CheckpointError` for the first thing that is not so, `ConfigError` for a model that was not trained here.
    """
    place = resolve(path, base=base)
    return list(verifying(place, template=template, dtype=dtype, device=device, quant=quant))


def verifying(
    place: Place, *, template: str | None, dtype: str | torch.dtype, device: str, quant: str | None = None
) -> Generator[Check, None, None]:
    """Open all of what was trained, yield each thing that is proven. Raises `CheckpointError` as `opening`.

    Raises `ConfigError` for a model that was not trained here.
    """
    if not (place.adapter or place.card):
        raise ConfigError(
            f"{place.base}: a model, nothing that was trained from one: there is nothing to verify",
            hint="give a run (runs/...), a checkpoint or an adapter folder",
        )
    if place.card and place.card.probe:
        tokenizer = open_tokenizer(place, template=template)
        yield check_tokenizer(place.trained, place.card, encode_probe(tokenizer), tokenizer.stop_ids)
    yield from opening(place, template=template, dtype=dtype, device=device, quant=quant)
    if place.card and place.card.files:  # last: what is wrong with a file is told better by what it does
        yield check_files(place.trained, place.card)
