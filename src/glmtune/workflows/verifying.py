"""`glmtune verify`: check an adapter or trained model against the facts in its card, and do nothing else."""

from collections.abc import Generator
from pathlib import Path

import torch

from glmtune.adapters.origin import check_files, check_tokenizer
from glmtune.adapters.probe import encode_probe
from glmtune.adapters.proof import Check
from glmtune.errors import ConfigError
from glmtune.load import load_proven, tokenizer_of
from glmtune.locations import Location, resolve
from glmtune.workflows.events import Note

NAME_WIDTH = 10
UNRECORDED = "nothing of it was recorded when this was saved (PEFT, an official script or an earlier version)"
NO_EFFECT = (
    "this precision proves nothing about the effect: the logits may be off by more than the adapter changes; "
    "least is allowed in the type and quantisation that it was saved in"
)


def proving_trained(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None,
    dtype: str | torch.dtype,
    device: str,
    quant: str | None = None,
) -> Generator[Note, None, list[Check]]:
    """Verify the run, checkpoint or adapter at a path; yield a note per check and one in the end.

    Raises as `verifying`.
    """
    location = resolve(path, base=base)
    checks: list[Check] = []
    missing: list[str] = []
    for check in verifying(location, template=template, dtype=dtype, device=device, quant=quant):
        checks.append(check)
        if not check.is_proven:
            missing.append(check.found)
            yield Note(f"not proven: {check.found}; {UNRECORDED}", is_warning=True)
            continue
        yield Note(f"{check.name:<{NAME_WIDTH}} {check.found}")
        if not check.proves_effect:
            missing.append("its effect")
            yield Note(NO_EFFECT, is_warning=True)
    yield Note(f"{location.trained}: verified{', but for ' if missing else ''}{', '.join(missing)}")
    return checks


def verifying(
    location: Location,
    *,
    template: str | None,
    dtype: str | torch.dtype,
    device: str,
    quant: str | None = None,
) -> Generator[Check, None, None]:
    """Load the trained model and yield each check that it passes.

    Raises `CheckpointError` for the first check that fails, `ConfigError` for a model that was not trained by
    glmtune or PEFT.
    """
    if not (location.adapter or location.card):
        raise ConfigError(
            f"{location.base}: a model, nothing that was trained from one: there is nothing to verify",
            hint="give a run (runs/...), a checkpoint or an adapter folder",
        )
    # first: a wrong tokenizer is told before the weights are loaded
    if location.card and location.card.probe:
        tokenizer = tokenizer_of(location, template=template)
        yield check_tokenizer(location.trained, location.card, encode_probe(tokenizer), tokenizer.stop_ids)
    yield from load_proven(location, template=template, dtype=dtype, device=device, quant=quant)
    # last: a check of weights or logits above names the fault better than a changed file does
    if location.card and location.card.files:
        yield check_files(location.trained, location.card)
