"""The card of what was migrated: which base it goes on, and what both answered when that was proven."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.adapters.digest import hash_tokenizer, record_digests
from glmtune.adapters.probe import encode_probe, last_logits, take_probe
from glmtune.adapters.proof import name_dtype
from glmtune.adapters.store import stored_tensors
from glmtune.errors import CheckpointError
from glmtune.locations import Location
from glmtune.models.fingerprint import fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.tokenizers import read_tokenizer


def start_card(location: Location, template: str, method: dict[str, Any], quant: str | None = None) -> Card:
    """What is known before anything is computed."""
    here = fingerprint(location.folder)
    return Card(
        base=location.name,
        base_revision=location.revision,
        template=template,
        method=method,
        quant=quant,
        glmtune_version=version("glmtune"),
        family=here.family,
        family_revision=here.revision,
        fingerprint={"config": here.config, "weights": here.weights},
    )


@dataclass(frozen=True, slots=True)
class Untuned:
    """What the base answers to the probe."""

    stop_ids: list[int]
    tokenizer_sha256: dict[str, str]
    ids: list[int]
    logits: Tensor
    """At the probe's end, (V,)."""


def ask_untuned(model: CausalLM, location: Location, template: str) -> Untuned | str:
    """The base's answer, or, where its tokenizer cannot be opened, why there is none."""
    try:
        tokenizer = read_tokenizer(location.folder, template)
    except CheckpointError as err:
        return f"no tokenizer is with the base ({err}), so no answer to the probe is recorded"
    ids = encode_probe(tokenizer)
    return Untuned(tokenizer.stop_ids, hash_tokenizer(tokenizer), ids, last_logits(model, ids))


def finish_card(card: Card, folder: Path, tuned: Any, untuned: Untuned | str) -> None:
    """Write the card of the weights in a folder, which `tuned` was opened with."""
    card = replace(record_digests(card, folder, stored_tensors(folder)), dtype=name_dtype(tuned))
    if isinstance(untuned, Untuned):
        probe = take_probe(untuned.ids, untuned.logits, last_logits(tuned, untuned.ids))
        card = replace(card, stop_ids=untuned.stop_ids, tokenizer_sha256=untuned.tokenizer_sha256)
        card = replace(card, probe=probe)
    card.save(folder)
