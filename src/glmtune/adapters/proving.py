"""The checks made while an adapter or trained model is loaded, in order."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from glmtune.adapters.card import Card
from glmtune.adapters.origin import (
    check_base,
    check_settings,
    check_tokenizer_files,
    check_whole,
    find_changed,
    tell_changed,
)
from glmtune.adapters.probe import last_logits, plain_probe
from glmtune.adapters.proof import (
    Check,
    check_difference,
    check_logits,
    check_probe,
    check_recorded,
    check_update,
    copy_own_weights,
)
from glmtune.adapters.store import Tensors, stored_tensors
from glmtune.folder import ModelFolder
from glmtune.models.protocol import CausalLM
from glmtune.recipe.method import TrainedPart

PutOn = Callable[[Path, Tensors], Any]
"""A function of an adapter's folder and its stored tensors that loads them on a base; returns the model."""


def file_checks(folder: Path, card: Card | None, base: ModelFolder, *, is_whole: bool) -> Iterator[Check]:
    """Yield the checks of the files before a model is loaded; for a whole model `base` is its own folder."""
    yield from check_recorded(card)
    if card is None:
        return
    if card.fingerprint:
        check = check_whole if is_whole else check_base
        yield check(folder, card, base)
    check_tokenizer_files(folder, card, base)
    # The optimizer's state is not loaded here. A whole model's weights are hashed while they are loaded.
    unread = (".pt", ".safetensors") if card.tensors_sha256 else (".pt",)
    tell_changed(folder, find_changed(folder, card, unread=unread))


def load_adapter_with_checks(
    base: CausalLM, adapter: Path, card: Card | None, put_on: PutOn
) -> Generator[Check, None, Any]:
    """Load an adapter on its base with `put_on`, yield each check, and return the tuned model."""
    if card:
        check_settings(adapter, card)
    tensors = stored_tensors(adapter)
    probe = card.probe if card else None
    if probe:
        check_probe(adapter, probe, base)
    ids = probe.input_ids if probe else plain_probe(base.config)
    replaced = copy_own_weights(base, tensors) if card and card.kept is TrainedPart.WEIGHTS else {}
    before = last_logits(base, ids)  # `put_on` changes the base in place
    tuned = put_on(adapter, tensors)
    yield check_update(adapter, tensors, card, replaced)
    after = last_logits(tuned, ids)
    if card and probe:
        yield check_logits(adapter, card, tuned, base=before, tuned=after)
    else:
        yield check_difference(adapter, before, after)
    return tuned


def whole_model_checks(model: CausalLM, folder: Path, card: Card) -> Iterator[Check]:
    """Yield the checks of a whole model after it was loaded."""
    if card.probe:
        check_probe(folder, card.probe, model)
        answer = last_logits(model, card.probe.input_ids)
        yield check_logits(folder, card, model, base=None, tuned=answer)
