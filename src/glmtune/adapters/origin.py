"""Checks that trained weights lie on the base, tokenizer and settings they were trained with.

Each check returns its figures, or raises a `CheckpointError` of one sentence with a hint.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from glmtune.adapters.card import Card
from glmtune.adapters.digest import ADAPTER_FILE, deciding_settings
from glmtune.adapters.proof import ANEW, OTHER_FILES, Check
from glmtune.errors import CheckpointError
from glmtune.files import hash_file
from glmtune.folder import ModelFolder
from glmtune.log import tell
from glmtune.models.fingerprint import fingerprint
from glmtune.run_files import train_on_hint

_WHOLE_FOLDER = "take the whole folder from a copy, or train anew"
_ITS_BASE = "name the base it was trained on: base=FOLDER, or in Python load_model(base, adapter=...)"
_ITS_TOKENIZER = "take the tokenizer's files from the base it was trained on"


# The files


FOR_PEOPLE = "README.md"
"""PEFT's text for people, which no program reads: its reader may change it."""


def find_changed(folder: Path, card: Card, *, unread: tuple[str, ...] = ()) -> list[str]:
    """Return the names of files that differ from the card's hashes, except those ending in `unread`."""
    return [
        name
        for name, digest in card.files.items()
        if not name.endswith(unread) and (folder / name).is_file() and hash_file(folder / name) != digest
    ]


def tell_changed(folder: Path, changed: Sequence[str]) -> None:
    """Warn of changed files that no other check refuses: they may be edited on purpose."""
    if changed:
        tell(f"{folder}: warning: changed since it was saved: {', '.join(changed)}")


def check_files(folder: Path, card: Card) -> Check:
    """Check that every file in the folder is as it was saved; files may be missing, as in a copy to share."""
    _require_none(folder, find_changed(folder, card, unread=(FOR_PEOPLE,)))
    count = sum((folder / name).is_file() for name in card.files)
    return Check("files", f"{count} beside the card, as they were saved")


def require_files(folder: Path, card: Card) -> None:
    """Raise `CheckpointError` unless every file that the card records is there and as it was saved."""
    missing = [name for name in card.files if name != FOR_PEOPLE and not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: is missing", hint=_WHOLE_FOLDER)
    changed = find_changed(folder, card)
    _require_none(folder, [name for name in changed if name != FOR_PEOPLE])
    tell_changed(folder, changed)


def _require_none(folder: Path, changed: Sequence[str]) -> None:
    for name in changed:
        problem = "is not as it was saved: its hash is not the card's"
        # only the optimizer's state is damaged: the weights are good, so training can start from them
        is_state = all(other.endswith(".pt") for other in changed)
        raise CheckpointError(
            f"{folder / name}: {problem}", hint=train_on_hint(folder) if is_state else _WHOLE_FOLDER
        )


# The base


def check_base(folder: Path, card: Card, base: ModelFolder) -> Check:
    """Check that the base, wherever it lies now, is the trained one. The card must have its fingerprint."""
    assert card.fingerprint is not None
    here = fingerprint(base)
    config, weights = card.fingerprint["config"], card.fingerprint["weights"]
    problem = ""
    # from the coarsest difference to the finest, for the message that helps most
    if here.kind != card.kind:
        problem = f"trained on {card.kind}, but {base} is {here.kind}"
    elif odd := here.find_odd_key(config):
        before, now = config.get(odd), here.config.get(odd)
        problem = f"trained on a base whose {odd} is {before}, but {base} has {now}"
    elif weights != here.weights:
        problem = (
            f"trained on other weights than those in {base}: fingerprint {weights[:12]}, "
            f"there it is {here.weights[:12]}"
        )
    if problem:
        raise CheckpointError(f"{folder}: {problem}", hint=_ITS_BASE)
    return Check("base", f"{here.kind}, fingerprint {here.weights[:12]}, as recorded")


def check_whole(folder: Path, card: Card, whole: ModelFolder) -> Check:
    """Check that a fully trained model's weights differ from its base's.

    The card must have the base's fingerprint.
    """
    assert card.fingerprint is not None
    here = fingerprint(whole)
    if here.weights == card.fingerprint["weights"]:
        raise CheckpointError(f"{folder}: nothing was learned: its weights are its base's", hint=ANEW)
    return Check(
        "update", f"fingerprint {here.weights[:12]}, its base's is {card.fingerprint['weights'][:12]}"
    )


# The tokenizer and template


def check_template(folder: Path, card: Card, template: str | None) -> None:
    """Raise `CheckpointError` if another chat format is asked for than was trained with."""
    if template is not None and template != card.template:
        raise CheckpointError(
            f"{folder}: trained with the chat format {card.template}, not with {template}",
            hint="leave template out",
        )


def check_tokenizer(folder: Path, card: Card, input_ids: list[int], stop_ids: list[int]) -> Check:
    """Check that tokenizer and template still give the ids of the probe and the stop ids of training.

    The card must have a probe.
    """
    assert card.probe is not None
    for what, before, now in (
        ("encodes the probe", list(card.probe.input_ids), input_ids),
        ("stops", list(card.stop_ids), stop_ids),
    ):
        if before == now:
            continue
        at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
        # one list may be the beginning of the other
        difference = (
            f"{len(now)} ids, recorded are {len(before)}"
            if at is None
            else f"id {now[at]} at place {at + 1}, recorded is {before[at]}"
        )
        raise CheckpointError(
            f"{folder}: trained with another tokenizer or template: this one {what} with {difference}",
            hint=_ITS_TOKENIZER,
        )
    return Check("tokenizer", f"the probe's {len(input_ids)} ids and stop ids {stop_ids}, as recorded")


def check_tokenizer_files(folder: Path, card: Card, base: ModelFolder) -> None:
    """Raise `CheckpointError` if a file of the base's tokenizer is not, to the byte, that of training."""
    for name, before in card.tokenizer_sha256.items():
        now = base.hash(name) or before
        if now != before:
            raise CheckpointError(
                f"{base.path / name}: not the tokenizer's file of training: its hash is {now[:12]}, in "
                f"{folder} it is {before[:12]}",
                hint=_ITS_TOKENIZER,
            )


# PEFT's settings


def check_settings(folder: Path, card: Card) -> None:
    """Raise `CheckpointError` if adapter_config.json has other settings than the card records, if it does."""
    recorded, now = card.adapter_config, deciding_settings(folder)
    for key in sorted(recorded.keys() | now.keys()) if recorded else ():
        if recorded.get(key) != now.get(key):
            before, current = (json.dumps(settings.get(key)) for settings in (recorded, now))
            raise CheckpointError(
                f"{folder / ADAPTER_FILE}: {key} is {current}, recorded is {before}", hint=OTHER_FILES
            )
