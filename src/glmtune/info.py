"""What a model, run or adapter is: told in seconds, from names, headers and small files alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.store import load_adapter, own_method, stored_shapes
from glmtune.errors import GlmtuneError
from glmtune.families import FAMILIES, Identity, context_of, identify, identify_family
from glmtune.folder import ModelFolder
from glmtune.locations import Location, resolve
from glmtune.methods import apply_method, trainable_line
from glmtune.models.config_checks import refuse_quantised
from glmtune.models.dtype import main_dtype
from glmtune.models.loaders import FAMILY_LOADERS, outline_of_folder
from glmtune.models.outline import (
    Parameter,
    Part,
    count_parts,
    find_layers,
    list_parameters,
    list_stored,
    stored_name,
)
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import name_linears
from glmtune.models.shards import Stored, scan_tensors
from glmtune.quants import BITS
from glmtune.recipe import Method
from glmtune.tokenizers import check_fits, read_identified_tokenizer
from glmtune.tokenizers.protocol import Tokenizer

PEFT_KEYS: tuple[str, ...] = ("peft_type", "r", "lora_alpha", "target_modules")
"""What is shown of an adapter that is not ours, by PEFT's names."""


CARD_RULE = "the format it was trained with, in its glmtune.json"


@dataclass(frozen=True, slots=True)
class StopToken:
    """A token that ends an answer."""

    id: int
    text: str
    """Empty where no tokenizer or no chat format tells it."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a folder's tokenizer is."""

    kind: str
    """The name of its class."""
    vocab_size: int
    num_tokens: int
    """With the control tokens."""
    padding_side: str


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a run or adapter says of itself."""

    folder: Path
    base: str
    """The model that was trained, as it was written down; empty if it was not."""
    parent: str
    """The folder that its run went on from; empty where that was an untrained model."""
    method: dict[str, Any]
    quant: str | None
    """How its base is quantised when it is opened: int8, int4, nf4 or not at all."""
    system: str | None
    source_prefix: str
    glmtune_version: str
    num_trained: int | None
    """Numbers in an adapter's file; None where the whole model was trained, or it cannot be read."""
    layers: tuple[int, ...]
    """The layers that those lie in."""
    ranks: tuple[int, ...]
    """Of each target of an adapter; AdaLoRA's differ."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a path means and what is there."""

    path: str
    kind: str
    """`model`, `run` or `adapter`."""
    folder: Path
    """Of the model; for an adapter, of its base."""
    name: str
    revision: str | None
    """Of a hub, where the model came from one."""
    family: str
    family_revision: str
    family_rule: str
    template: str | None
    template_rule: str
    context: int | None
    """Longest context in tokens."""
    context_key: str
    stop_tokens: tuple[StopToken, ...]
    tokenizer: TokenizerFacts | None
    tokenizer_problem: str
    """Why there is no tokenizer."""
    num_rows: int | None
    """Of the embedding: how many tokens the model knows."""
    has_weights: bool
    weight_files: tuple[str, ...]
    """Files of weights that a load would read; none where there are none, or they cannot be read."""
    dtype: str
    """Of most weights that are not quantised; where none are read, what config.json says."""
    quant: str | None
    """How the folder's weights are quantised: int8, int4, or another's word, as fp8; None for not."""
    parameters: tuple[Parameter, ...]
    parts: tuple[Part, ...]
    files: Mapping[str, int]
    """The folder's files and their bytes."""
    adapter: AdapterFacts | None
    method: str | None
    """What the parameters are shown wrapped in."""
    trainable: str | None
    warnings: tuple[str, ...] = field(default=())

    @property
    def num_parameters(self) -> int:
        """All parameters, those of the method's own included."""
        return sum(part.count for part in self.parts)


def inspect(
    path: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    template: str | None = None,
    method: Method | None = None,
) -> Info:
    """Tell what a path means; `method` shows the parameters as that method would train them.

    An adapter or run is shown with its own method. What is odd or missing in a folder is a warning; raises
    `CheckpointError` and `ConfigError` for what is no model at all.
    """
    location = resolve(path, base=base, revision=revision)
    warnings: list[str] = [location.other_base] if location.other_base else []
    known = _identify(location.folder, template or location.template, warnings)
    model, stored, parameters = _parameters(location, known, method, warnings)
    method = method or own_method(location.trained)
    num_rows = next((p.shape[0] for p in parameters if p.part == "embedding"), None)
    config = location.folder.config
    tokenizer, problem = _open_tokenizer(location.folder, known)
    if tokenizer is not None and num_rows is not None:
        warnings += _misfit(tokenizer, num_rows, _stated_stops(config), location.base)
    return Info(
        path=str(path),
        kind="adapter" if location.adapter and not location.run else "run" if location.run else "model",
        folder=location.base.resolve(),
        name=location.name,
        revision=location.revision,
        family=known.family,
        family_revision=known.revision,
        family_rule=known.family_rule,
        template=known.template,
        template_rule=CARD_RULE if location.template and not template else known.rule,
        context=context_of(location.folder),
        context_key=FAMILIES[known.family].context_key,
        stop_tokens=_stop_tokens(tokenizer, config),
        tokenizer=_tokenizer_facts(tokenizer),
        tokenizer_problem=problem,
        num_rows=num_rows,
        has_weights=location.folder.has_weights,
        weight_files=tuple(sorted({held.file.name for held in stored.values()})),
        dtype=_dtype(stored, config),
        quant=_quant(config),
        parameters=tuple(parameters),
        parts=tuple(count_parts(parameters)),
        files={file.name: file.stat().st_size for file in sorted(location.base.iterdir()) if file.is_file()},
        adapter=_adapter_facts(location, warnings),
        method=method.name if method and model is not None else None,
        trainable=trainable_line(model) if method and model is not None else None,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _parameters(
    location: Location, known: Identity, method: Method | None, warnings: list[str]
) -> tuple[Any, Mapping[str, Stored], list[Parameter]]:
    """The outline with what is trained, None for none; what the files hold by its names; its parameters."""
    stored = _scan(location.folder, warnings)
    model = _outline(location.folder, known, stored, warnings)
    if model is None:
        return None, stored, list_stored(stored)
    stored = FAMILY_LOADERS[known.family].by_own_names(model, stored)
    codes = {f"{name}.weight" for name in name_linears(model)} if location.quant else set()
    model = _with_trained(model, location, method, warnings)
    parameters = list_stored(stored) if model is None else list_parameters(model, stored)
    return model, stored, [_as_opened(parameter, codes, location.quant) for parameter in parameters]


def _with_trained(model: CausalLM, location: Location, method: Method | None, warnings: list[str]) -> Any:
    """The outline with what a method would train, or else with what the place has; None if that won't go."""
    if method is None and location.adapter:
        try:
            return load_adapter(model, location.adapter, is_trainable=True)
        except GlmtuneError as err:
            warnings.append(f"this adapter cannot be loaded: {_within(location.adapter, err)}")
            return None
    method = method or own_method(location.base)
    return apply_method(model, method) if method else model


def _as_opened(parameter: Parameter, codes: Collection[str], quant: str | None) -> Parameter:
    """As a run opens its base: the type of what is quantised then, at its size on disk."""
    return replace(parameter, dtype=quant) if quant and stored_name(parameter.name) in codes else parameter


def _scan(folder: ModelFolder, warnings: list[str]) -> Mapping[str, Stored]:
    if not folder.has_weights:
        return {}
    try:
        return scan_tensors(folder)
    except GlmtuneError as err:
        warnings.append(f"these weights cannot be read: {_within(folder, err)}")
        return {}


def _identify(folder: ModelFolder, template: str | None, warnings: list[str]) -> Identity:
    """What the folder is; where nothing else is wrong than its chat format, the rest."""
    try:
        return identify(folder, template)
    except GlmtuneError as err:
        if template is not None:
            raise
        known = identify_family(folder)
        unless = " without template=..." if "template=" in str(err.hint) else ""
        warnings.append(f"no chat and no training{unless}: {_within(folder, err)}")
        return known


def _outline(folder: ModelFolder, known: Identity, stored: Mapping[str, Stored], warnings: list[str]) -> Any:
    """The model on the meta device, None where config.json makes none, or the files hold another."""
    is_closed = FAMILY_LOADERS[known.family].outlines_quantised and _is_quantised(folder, warnings)
    try:
        model = outline_of_folder(folder, known, {} if is_closed else stored)
    except GlmtuneError as err:
        warnings.append(f"this folder cannot be loaded: {_within(folder, err)}")
        return None
    return model.requires_grad_(False)


def _is_quantised(folder: ModelFolder, warnings: list[str]) -> bool:
    """Whether the weights are so that they cannot be loaded; what the model is, is known nevertheless."""
    try:
        refuse_quantised(folder.config, folder.path / "config.json")
    except GlmtuneError as err:
        warnings.append(f"this folder cannot be loaded: {_within(folder, err)}")
        return True
    return False


def _open_tokenizer(folder: ModelFolder, known: Identity) -> tuple[Any, str]:
    try:
        return read_identified_tokenizer(folder, known), ""
    except GlmtuneError as err:
        return None, _within(folder, err)


def _misfit(tokenizer: Tokenizer, num_rows: int, stops: list[int], folder: Path) -> list[str]:
    try:
        check_fits(tokenizer, num_rows, stops, where=folder.name)
    except GlmtuneError as err:
        return [f"the tokenizer is not this model's: {_within(folder, err)}"]
    return []


def _within(folder: Path | ModelFolder, err: GlmtuneError) -> str:
    """The error as it reads inside the folder, which is named already."""
    return str(err).replace(f"{folder}/", "").replace(f"{folder}: ", "")


def _stop_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> tuple[StopToken, ...]:
    """From the chat format; from config.json's eos where that is open."""
    if tokenizer is not None and tokenizer.template is not None:
        texts = tokenizer.chat_format.stop_tokens
        return tuple(StopToken(i, text) for i, text in zip(tokenizer.stop_ids, texts, strict=True))
    return tuple(StopToken(i, "") for i in _stated_stops(config))


def _stated_stops(config: Mapping[str, Any]) -> list[int]:
    stated = config.get("eos_token_id")
    return [i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int)]


def _tokenizer_facts(tokenizer: Tokenizer) -> TokenizerFacts | None:
    if tokenizer is None:
        return None
    return TokenizerFacts(
        type(tokenizer).__name__, tokenizer.vocab_size, len(tokenizer), tokenizer.padding_side
    )


def _dtype(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> str:
    stated = config.get("dtype") or config.get("torch_dtype") or "unknown"
    return str(main_dtype(stored) if stored else stated).removeprefix("torch.")


def _quant(config: Mapping[str, Any]) -> str | None:
    bits, theirs = config.get("quantization_bit"), config.get("quantization_config")
    if theirs:
        return str(theirs.get("quant_method") if isinstance(theirs, dict) else theirs)
    return next((name for name, known in BITS.items() if bits == known), None)


def _adapter_facts(location: Location, warnings: list[str]) -> AdapterFacts | None:
    card, folder = location.card, location.adapter or location.base
    if card is None and location.adapter is None:
        return None
    theirs = read_adapter_config_if_there(folder)
    told = {key: theirs[key] for key in PEFT_KEYS if key in theirs}
    if card is None and not theirs and (method := own_method(folder)):
        told = method.model_dump(mode="json")
    shapes = _stored_shapes(location.adapter, warnings) if location.adapter else {}
    return AdapterFacts(
        folder=folder,
        base=str(card.base if card else theirs.get("base_model_name_or_path") or ""),
        parent=card.parent.get("path", "") if card else "",
        method=card.method if card else told,
        quant=location.quant,
        system=card.system if card else None,
        source_prefix=card.source_prefix if card else "",
        glmtune_version=card.glmtune_version if card else "",
        num_trained=sum(map(prod, shapes.values())) if shapes else None,
        layers=find_layers(shapes),
        ranks=tuple(shape[0] for name, shape in shapes.items() if ".lora_A" in name),
    )


def _stored_shapes(adapter: Path, warnings: list[str]) -> dict[str, tuple[int, ...]]:
    try:
        return stored_shapes(adapter)
    except GlmtuneError as err:
        warnings.append(f"this adapter cannot be loaded: {_within(adapter, err)}")
        return {}
