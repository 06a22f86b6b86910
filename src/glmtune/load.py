"""Loads models, runs and adapters, and proves adapters and trained weights on the way."""

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.origin import (
    check_base,
    check_settings,
    check_template,
    check_tokenizer,
    check_tokenizer_files,
)
from glmtune.adapters.own_weights import require_same, shapes_of
from glmtune.adapters.probe import encode_probe
from glmtune.adapters.proof import Check, check_tensors, proof_line
from glmtune.adapters.proving import PutOn, file_checks, load_adapter_with_checks, whole_model_checks
from glmtune.adapters.store import load_adapter, own_method, stored_shapes
from glmtune.adapters.strength import require_strength, set_strength
from glmtune.errors import ConfigError
from glmtune.families import identify, require_template
from glmtune.locations import Location, find_base, resolve
from glmtune.log import tell
from glmtune.models.computing import computes_in
from glmtune.models.device import BALANCED, resolve_device
from glmtune.models.dtype import Choice, choose_dtype
from glmtune.models.loaders import FAMILY_LOADERS, loader_of, outline_of_folder
from glmtune.models.outline import describe_quantised
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading
from glmtune.models.shards import scan_tensors
from glmtune.models.spread import spread_over_cards
from glmtune.possible import require_possible
from glmtune.recipe.method import TrainedPart
from glmtune.tokenizers import check_fits, read_tokenizer
from glmtune.tokenizers.protocol import Tokenizer


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
    strength: float = 1.0,
) -> Any:
    """Load a model, run or adapter, by its folder or its name on a hub, in evaluation mode.

    `adapter`: folder of an adapter to put on the model at `path`. dtype "auto" holds the weights in the type
    that an adapter or run was trained in, and those of a model in the stored type. Products are computed in
    that type on a GPU; on a CPU in bf16 for half precision if the processor has bf16 instructions, where
    weights stored in fp16 are held in bf16 too, else in fp32 (`models.dtype.choose_dtype`). A log line names
    both types. `quant` (int8, int4 or nf4) quantises the
    blocks' weights while loading; the base of an adapter that was trained on quantised weights is quantised
    without it. `template`: chat format of a ChatGLM2/3 folder whose files do not tell it. `revision`: branch,
    tag or commit of a `path` on a hub; None: the main branch. `verify` proves that an adapter or trained
    model is on its base and gives the logits it gave when it was saved, which costs two short forward passes.
    `strength`: how much of what was trained is applied once it is proven: base + strength x update, from 0,
    the base, to 1; up to 2 goes beyond (`adapters.strength`). Raises `CheckpointError` or `ConfigError`.
    """
    location = resolve(path, revision=revision)
    if adapter is not None:
        if location.adapter:
            raise ConfigError(
                f"{path}: already an adapter; two cannot be combined", hint=f"give its base: {location.base}"
            )
        location = resolve(adapter, base=location.base)
    opened = load_location(
        location, template=template, dtype=dtype, device=device, quant=quant, verify=verify, strength=strength
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
    strength: float = 1.0,
    base: Location | None = None,
) -> CausalLM:
    """Load the model of a location, with its adapter; quantised as its card says, unless `quant` is given.

    `dtype`: a setting, or the result of `choose_type`. `strength` and `base` as in `load_with_checks`, whose
    proofs one log line lists.
    """
    steps = load_with_checks(
        location,
        template=template,
        dtype=dtype,
        device=device,
        quant=quant,
        verify=verify,
        strength=strength,
        base=base,
    )
    checks: list[Check] = []
    while True:  # no `for`: it would lose the generator's return value, the model
        try:
            checks.append(next(steps))
        except StopIteration as stop:
            if location.adapter or location.card:
                what = "adapter loaded" if location.adapter else "trained weights loaded"
                proof = proof_line(checks) if verify else "not verified (verify=False)"
                tell(f"{location.trained}: {what}: {proof}")
            model: CausalLM = stop.value
            return model


def load_with_checks(
    location: Location,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
    verify: bool = True,
    strength: float = 1.0,
    base: Location | None = None,
) -> Generator[Check, None, CausalLM]:
    """Load the model of a location; yield each check that holds, return the model.

    `strength` is given to what was trained once it is proven. Below 1, a whole model is mixed with its
    `base`, by default the one that its card records. Raises `CheckpointError` for the first check that fails.
    """
    require_strength(strength, location.adapter)
    if strength != 1 and location.adapter is None:
        if quant:
            raise ConfigError(
                f"strength: {location.base} is a whole model, and codes of {quant} cannot be mixed",
                hint="leave quant out; or export it at this strength and quantise the export",
            )
        base = base or find_base(location, wanted_by="strength")
    if location.card:
        check_template(location.trained, location.card, template)
    if verify:
        yield from _file_checks(location)
    # a whole trained model is hashed while its weights are read, so that they are read only once
    is_hashed = verify and location.adapter is None and bool(location.card and location.card.tensors_sha256)
    reading = Reading(is_hashed=is_hashed)
    model = _load_without_adapter(
        location, reading, template=template, dtype=dtype, device=device, quant=quant
    )
    if location.card and is_hashed:
        yield check_tensors(location.trained, location.card, reading)
    _warn_of_other_base(location)
    replaced = _replaced_by(location.adapter, model) if location.adapter and strength != 1 else {}
    # the adapter's own checks compare logits before and after it is put on, so they put it on themselves
    if location.adapter and verify:
        model = yield from load_adapter_with_checks(
            model, location.adapter, location.card, partial(load_adapter, model)
        )
    elif location.adapter:
        model = load_adapter(model, location.adapter)
    elif location.card and verify:
        yield from whole_model_checks(model, location.trained, location.card)
    if strength != 1:
        if base is not None and location.adapter is None:
            if location.card and location.card.fingerprint:
                check_base(location.trained, location.card, base.folder)
            chosen = choose_type(location, dtype, device)
            beneath = _load_without_adapter(base, Reading(), template=template, dtype=chosen, device=device)
            replaced = dict(beneath.named_parameters())
            require_same(location.base, shapes_of(dict(model.named_parameters())), shapes_of(replaced))
        set_strength(model, strength, replaced)
        beyond = ", beyond what was trained" if strength > 1 else ""
        tell(f"{location.trained}: at strength {strength:g}{beyond}")
    return model


def _replaced_by(adapter: Path, base: CausalLM) -> dict[str, Tensor]:
    """Return copies of the base's own weights that an adapter will replace, by name; only freeze has some."""
    method = own_method(adapter)
    if method is None or method.kept is not TrainedPart.WEIGHTS:
        return {}
    own = dict(base.named_parameters())
    return {name: own[name].detach().clone() for name in stored_shapes(adapter) if name in own}


def put_on_with_checks(
    model: CausalLM, location: Location, put_on: PutOn
) -> Generator[Check, None, CausalLM]:
    """Put an adapter on its base `model` by `put_on`; yield each check that holds, return the model.

    Raises `CheckpointError` for the first check that fails.
    """
    assert location.adapter is not None
    yield from _file_checks(location)
    _warn_of_other_base(location)
    model = yield from load_adapter_with_checks(model, location.adapter, location.card, put_on)
    return model


def _file_checks(location: Location) -> Iterator[Check]:
    """Yield the checks of the files of an adapter or trained model; a plain base has none."""
    if location.adapter or location.card:
        yield from file_checks(
            location.trained, location.card, location.folder, is_whole=location.adapter is None
        )


def _warn_of_other_base(location: Location) -> None:
    if location.other_base:
        tell(f"{location.adapter}: warning: {location.other_base}")


def _load_without_adapter(
    location: Location,
    reading: Reading,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
) -> CausalLM:
    rule = "the template setting" if template else "recorded with the adapter"
    known = identify(location.folder, template or location.template, rule=rule)
    quant = quant or location.quant
    if quant is not None:
        require_possible(known.family, f"quant={quant}", f"quant: {quant!r}")
    chosen = choose_type(location, dtype, device, quant)
    model: CausalLM = FAMILY_LOADERS[known.family].load(
        location.folder,
        dtype=chosen,
        device="cpu" if device == BALANCED else device,
        template=known.template,
        quant=quant,
        reading=reading,
    )
    if device == BALANCED:
        spread_over_cards(model)
    held, computing = (str(kind).removeprefix("torch.") for kind in (model.dtype, computes_in(model)))
    computed = "" if held == computing else f", computed in {computing}"
    what = f"{known.template or known.family} ({known.rule})"
    loaded_quant = held_quant(model)
    blocks = f"{loaded_quant} and " if loaded_quant else ""
    why = f" ({chosen.why})" if chosen.why else ""
    tell(f"{location.base}: {what}, {blocks}{held} on {model.device}{computed}{why}")
    if loaded_quant:
        tell(f"{location.base}: {describe_quantised(model)}")
    if location.snapshot and location.snapshot.name.hub == "hf":
        model.name_or_path = location.snapshot.name.repository  # PEFT writes it down as the adapter's base
    return model


def check_outline(location: Location) -> None:
    """Check a location without reading weights: config, tensor names, shapes, an adapter's settings.

    Raises `CheckpointError` for the first problem that a load would meet.
    """
    model = outline_of_folder(
        location.folder, identify(location.folder, location.template), scan_tensors(location.folder)
    )
    if location.adapter and location.card:
        check_settings(location.adapter, location.card)
    if location.adapter:
        with torch.random.fork_rng(devices=[]):  # PEFT draws random weights before it loads an adapter's
            load_adapter(model, location.adapter)


def choose_type(
    location: Location,
    dtype: str | torch.dtype | Choice,
    device: str | torch.device,
    quant: str | None = None,
) -> Choice:
    """Choose the types in which a location's weights are held and computed: one rule for all loads.

    device: a `torch.device` may be one that is not there. Raises `ConfigError` for a type that the device
    does not have.
    """
    if isinstance(dtype, Choice):
        return dtype
    card = location.card
    return choose_dtype(
        dtype,
        scan_tensors(location.folder),
        device if isinstance(device, torch.device) else resolve_device(device),
        quant=quant or location.quant,
        trained=card.dtype if card else "",
        computed=card.computing if card else "",
    )


def load_tokenizer(path: str | Path, template: str | None = None, *, revision: str | None = None) -> Any:
    """Load the tokenizer of a model, run or adapter. Raises `CheckpointError` or `ConfigError`."""
    return _read_checked_tokenizer(resolve(path, revision=revision), template)


def _read_checked_tokenizer(location: Location, template: str | None) -> Tokenizer:
    """Load the tokenizer of a location; raise `CheckpointError` if it encodes otherwise than in training."""
    if location.card:
        check_template(location.trained, location.card, template)
        check_tokenizer_files(location.trained, location.card, location.folder)
    tokenizer = read_tokenizer(location.folder, template or location.template)
    if location.card and location.card.probe:
        check_tokenizer(location.trained, location.card, encode_probe(tokenizer), tokenizer.stop_ids)
    tokenizer.taught = location.taught
    return tokenizer


def tokenizer_of(location: Location, *, template: str | None) -> Tokenizer:
    """Load the tokenizer of a location for encoding chats.

    Raises `ConfigError` if its chat format is unknown, `CheckpointError` if it does not fit the model's
    vocabulary or encodes otherwise than in training.
    """
    tokenizer = _read_checked_tokenizer(location, template)
    require_template(tokenizer.template, str(location.base))
    config = loader_of(location.folder).config(location.folder, tokenizer.template)
    check_fits(tokenizer, config.vocab_size, config.eos_token_id, where=str(location.base))
    return tokenizer
