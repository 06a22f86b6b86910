"""Open a place: a model, a run, an adapter on its base. What was trained is proven on the way."""

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.origin import check_settings, check_template, check_tokenizer, check_tokenizer_files
from glmtune.adapters.probe import encode_probe
from glmtune.adapters.proof import Check, check_tensors, proof_line
from glmtune.adapters.proving import PutOn, proving_files, proving_whole, putting_on
from glmtune.adapters.store import load_adapter
from glmtune.errors import ConfigError
from glmtune.families import identify, require_template
from glmtune.locations import Location, resolve
from glmtune.log import tell
from glmtune.models.device import resolve_device
from glmtune.models.dtype import Choice, choose_dtype
from glmtune.models.loaders import FAMILY_LOADERS, loader_of, outline_of_folder
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading
from glmtune.models.shards import scan_tensors
from glmtune.possible import require_possible
from glmtune.tokenizers import check_fits, read_tokenizer


def load_model(
    path: str | Path,
    adapter: str | Path | None = None,
    quant: str | None = None,
    template: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    *,
    revision: str | None = None,
    verify: bool = True,
) -> Any:
    """Open a model, run or adapter, by its folder or its name on a hub, in evaluation mode.

    `adapter` puts an adapter folder on the model at `path`. dtype "auto" is what it was trained in; of a
    model the stored type on a GPU, and on a CPU bf16 for half precision if the processor has it, else fp32
    where memory allows that (`models.dtype.choose_dtype`): the line that tells what was opened says which.
    `quant`, int8, int4 or nf4, quantises the blocks' weights while loading; an adapter trained on such a base
    opens it so by itself. `template` says which chat format a ChatGLM2/3 folder has where its files do not.
    `revision` is that of a `path` on a hub; without it, the hub's main one. What was trained is proven to be
    on its base and to do what it did when it was saved, which costs two short passes; `verify=False` leaves
    that out. Raises `CheckpointError` or `ConfigError`.
    """
    location = resolve(path, revision=revision)
    if adapter is not None:
        if location.adapter:
            raise ConfigError(
                f"{path}: already an adapter; two cannot be combined", hint=f"give its base: {location.base}"
            )
        location = resolve(adapter, base=location.base)
    opened = load_location(
        location, template=template, dtype=dtype, device=device, quant=quant, verify=verify
    )
    return opened.eval()


def load_location(
    location: Location,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
    verify: bool = True,
) -> Any:
    """The model of a place, with its adapter on it; quantised as its card says, unless `quant` does.

    `dtype`: as settings have it, or what `choose_type` made of that. With `verify`, one line says what
    `load_proven` proves.
    """
    steps = load_proven(location, template=template, dtype=dtype, device=device, quant=quant, verify=verify)
    checks: list[Check] = []
    while True:
        try:
            checks.append(next(steps))
        except StopIteration as stop:
            _tell_proof(location, checks, verify=verify)
            return stop.value


def load_proven(
    location: Location,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
    verify: bool = True,
) -> Generator[Check, None, Any]:
    """Open a place, yield each thing that is proven, return the model.

    Raises `CheckpointError` for the first thing that is not so.
    """
    if location.card:
        check_template(location.trained, location.card, template)
    if verify:
        yield from _proving_files(location)
    is_sealed = verify and location.adapter is None and bool(location.card and location.card.tensors_sha256)
    reading = Reading(is_hashed=is_sealed)
    model = _open_base(location, reading, template=template, dtype=dtype, device=device, quant=quant)
    if location.card and is_sealed:
        yield check_tensors(location.trained, location.card, reading)
    _warn_of_other_base(location)
    if location.adapter and verify:
        return (yield from putting_on(model, location.adapter, location.card, partial(load_adapter, model)))
    if location.adapter:
        return load_adapter(model, location.adapter)
    if location.card and verify:
        yield from proving_whole(model, location.trained, location.card)
    return model


def put_on_proven(model: CausalLM, location: Location, put_on: PutOn) -> Generator[Check, None, Any]:
    """Put an adapter on its base, opened as `model`, by `put_on`, with `load_proven`'s proof."""
    assert location.adapter is not None
    yield from _proving_files(location)
    _warn_of_other_base(location)
    return (yield from putting_on(model, location.adapter, location.card, put_on))


def _proving_files(location: Location) -> Iterator[Check]:
    """Nothing of a model that is only a base."""
    if location.adapter or location.card:
        yield from proving_files(
            location.trained, location.card, location.folder, is_whole=location.adapter is None
        )


def _warn_of_other_base(location: Location) -> None:
    if location.other_base:
        tell(f"{location.adapter}: warning: {location.other_base}")


def _tell_proof(location: Location, checks: Sequence[Check], *, verify: bool) -> None:
    """What was proven of what was trained, in one line."""
    if not (location.adapter or location.card):
        return
    what = "adapter loaded" if location.adapter else "trained weights loaded"
    said = proof_line(checks) if verify else "not verified (verify=False)"
    tell(f"{location.trained}: {what}: {said}")


def _open_base(
    location: Location,
    reading: Reading,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None,
) -> Any:
    told_by = "the template setting" if template else "recorded with the adapter"
    known = identify(location.folder, template or location.template, rule=told_by)
    quant = quant or location.quant
    if quant is not None:
        require_possible(known.family, f"quant={quant}", f"quant: {quant!r}")
    chosen = choose_type(location, dtype, device, quant)
    model: CausalLM = FAMILY_LOADERS[known.family].load(
        location.folder,
        dtype=chosen.dtype,
        device=device,
        template=known.template,
        quant=quant,
        reading=reading,
    )
    first = next(model.parameters())
    what = f"{known.template or known.family} ({known.rule})"
    held = held_quant(model)
    blocks = f"{held} and " if held else ""
    why = f" ({chosen.why})" if chosen.why else ""
    tell(f"{location.base}: {what}, {blocks}{str(first.dtype).removeprefix('torch.')} on {first.device}{why}")
    if location.snapshot and location.snapshot.name.hub == "hf":
        model.name_or_path = location.snapshot.name.repository  # PEFT writes it down as the adapter's base
    return model


def check_outline(location: Location) -> None:
    """Go the way of every load without a weight: config, names, shapes, an adapter's settings.

    Raises `CheckpointError` for the first thing that a load would refuse.
    """
    model = outline_of_folder(
        location.folder, identify(location.folder, location.template), scan_tensors(location.folder)
    )
    if location.adapter and location.card:
        check_settings(location.adapter, location.card)
    if location.adapter:
        with torch.random.fork_rng(devices=[]):  # PEFT draws an adapter before it reads it
            load_adapter(model, location.adapter)


def choose_type(
    location: Location,
    dtype: str | torch.dtype | Choice,
    device: str | torch.device,
    quant: str | None = None,
) -> Choice:
    """In which type a place's weights are opened, and why: one rule for all who open it.

    Raises `ConfigError` for what cannot be.
    """
    if isinstance(dtype, Choice):
        return dtype
    stored = scan_tensors(location.folder)
    trained = location.card.dtype if location.card else ""
    return choose_dtype(dtype, stored, resolve_device(device), quant=quant or location.quant, trained=trained)


def load_tokenizer(path: str | Path, template: str | None = None, *, revision: str | None = None) -> Any:
    """The tokenizer of a model, run or adapter. Raises `CheckpointError` or `ConfigError`."""
    return _proven_tokenizer(resolve(path, revision=revision), template)


def _proven_tokenizer(location: Location, template: str | None) -> Any:
    """The tokenizer of a place, which encodes as it did in training."""
    if location.card:
        check_template(location.trained, location.card, template)
        check_tokenizer_files(location.trained, location.card, location.folder)
    tokenizer = read_tokenizer(location.folder, template or location.template)
    if location.card and location.card.probe:
        check_tokenizer(location.trained, location.card, encode_probe(tokenizer), tokenizer.stop_ids)
    tokenizer.taught = location.taught
    return tokenizer


def tokenizer_of(location: Location, *, template: str | None) -> Any:
    """The tokenizer of a place, for encoding chats: its template is known, it fits the model, and it encodes
    as it did in training.
    """
    tokenizer = _proven_tokenizer(location, template)
    require_template(tokenizer.template, str(location.base))
    config = loader_of(location.folder).config(location.folder, tokenizer.template)
    check_fits(tokenizer, config.vocab_size, config.eos_token_id, where=str(location.base))
    return tokenizer
