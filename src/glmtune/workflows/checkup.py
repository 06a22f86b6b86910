"""`glmtune checkup`: what anyone's adapter or tuned model does, keeps and needs, compared with its base."""

import shlex
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.factors import START
from glmtune.adapters.merge import changed_weights
from glmtune.adapters.own_weights import ITS_BASE, tell_method
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.proof import ANEW
from glmtune.adapters.proving import file_checks
from glmtune.adapters.store import ADAPTER_FILE, own_method, stored_tensors
from glmtune.errors import CheckpointError
from glmtune.families import identify
from glmtune.load import check_outline
from glmtune.locations import Location, find_base, resolve
from glmtune.models.shards import read_stored, scan_tensors
from glmtune.recipe import Recipe
from glmtune.recipe.method import TrainedPart
from glmtune.reports.checkup import GIVEN, RECORDED, Change, Checkup
from glmtune.workflows.events import Event, Working
from glmtune.workflows.general import compare_with_base


@dataclass(frozen=True, slots=True)
class _Weights:
    """Changes of the base's weights, and the number of those that were looked at."""

    changes: tuple[Change, ...] = ()
    number: int = 0
    prefix_tokens: int = 0


def checking(recipe: Recipe, path: Path) -> Generator[Event, None, Checkup]:
    """Look at the tuned model that a recipe names, given as `path`, and compare it with its base.

    Raises `CheckpointError` for a model that changes nothing, does not fit its base, or is not the one that
    was saved; `ConfigError` for a whole model without a base to compare it with.
    """
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision, has_base=True)
    base = find_base(location, recipe.base, wanted_by="checkup")
    # before any weight is loaded: whatever a file alone tells
    check_outline(location)
    whole = location.adapter is None
    checks = list(file_checks(location.trained, location.card, location.folder, is_whole=whole))
    yield Working("comparing the weights")
    if whole:
        changes = tuple(_whole_changes(location, base))
        weights = _Weights(changes, len(changes))
    else:
        weights = _adapter_changes(location)
    if weights.changes and not any(change.length for change in weights.changes):
        raise CheckpointError(f"{location.trained}: changes nothing: its weights are its base's", hint=ANEW)
    found = yield from compare_with_base(location, recipe)
    asked = None if location.template else recipe.template
    known = identify(location.folder, location.template or asked)
    opened = [str(path)]
    opened += ["--base", str(recipe.base)] if recipe.base and location.adapter else []
    opened += ["--template", asked] if asked else []
    return Checkup(
        path=str(location.trained),
        base=base.name,
        kind=_kind(location),
        template=known.template or "",
        rule=RECORDED if location.template else GIVEN if asked else known.rule,
        system=location.taught.system,
        source_prefix=location.taught.source_prefix,
        command=f"glmtune chat {shlex.join(opened)}",
        changes=weights.changes,
        num_weights=weights.number,
        prefix_tokens=weights.prefix_tokens,
        unproven=tuple(check.found for check in checks if not check.is_proven),
        forgetting=found.facts(),
        has_rows=found.training_loss is not None,
    )


def _kind(location: Location) -> str:
    """Return the method, and the program that made it as far as the files tell."""
    if location.card:
        version = location.card.glmtune_version
        return f"{location.card.method.get('name', 'model')}, glmtune {version}".rstrip()
    if location.adapter is None:
        return "model"
    peft_type = read_adapter_config_if_there(location.adapter).get("peft_type")
    return f"{str(peft_type).lower()}, PEFT" if peft_type else "ptuning, official"


def _adapter_changes(location: Location) -> _Weights:
    """Return the changes that an adapter makes, by the definition of its method."""
    adapter = location.adapter
    assert adapter is not None
    stored = scan_tensors(location.folder)
    if (adapter / ADAPTER_FILE).exists():
        changed = changed_weights(adapter)
        pairs = ((name, make(stored[name])) for name, make in changed.items() if name in stored)
    else:
        tensors, method = stored_tensors(adapter), own_method(adapter)
        if method is None or method.kept is TrainedPart.PREFIX:
            return _Weights(prefix_tokens=tell_method(adapter).num_prefix_tokens)
        pairs = ((name, tensor) for name, tensor in tensors.items() if name in stored)
    changes = tuple(_change(name.removeprefix(START), read_stored(stored[name]), new) for name, new in pairs)
    return _Weights(changes, len(changes))


def _whole_changes(location: Location, base: Location) -> Iterator[Change]:
    """Yield the changes of a whole model's weights from its base's, read one by one."""
    ours, theirs = scan_tensors(location.folder), scan_tensors(base.folder)
    for name, stored in theirs.items():
        if not stored.dtype.is_floating_point or name.endswith("inv_freq"):
            continue
        own = ours.get(name)
        if own is None or own.shape != stored.shape:
            what = "it has none" if own is None else f"its is {list(own.shape)}"
            raise CheckpointError(
                f"{location.base}: {name} of {base.name} is {list(stored.shape)}, {what}", hint=ITS_BASE
            )
        yield _change(name, read_stored(stored), read_stored(own))


@torch.no_grad()
def _change(name: str, base: Tensor, new: Tensor) -> Change:
    difference = new.float().cpu() - base.float()
    return Change(name, float(difference.norm()), float(base.float().norm()))
