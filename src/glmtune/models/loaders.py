"""How the model of each family is opened: the one table that knows our own classes from transformers'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.families import FAMILIES, Identity, identify_family, name_family
from glmtune.folder import ModelFolder
from glmtune.models.config import describe_config, read_config
from glmtune.models.own import build_outline, load_base
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import check_stored, without_copies
from glmtune.models.shards import Stored
from glmtune.models.upstream import (
    build_upstream_outline,
    check_upstream_stored,
    load_in_transformers,
    name_stored,
    read_upstream_config,
)

Tensors = Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class FamilyLoader:
    """What opens the models of one kind of class."""

    load: Callable[..., Any]
    """The model of a `ModelFolder`; keywords `dtype`, `device`, `template`, `quant`, `reading`."""
    outline: Callable[[ModelFolder, str | None, Tensors], Any]
    """The model without weights, of a template; checked against the stored tensors, if there are any."""
    config: Callable[[ModelFolder, str | None], Any]
    """Its checked config, of a template."""
    describe: Callable[[ModelFolder], Any]
    """The config as the file has it, long contexts without a template too."""
    by_own_names: Callable[[Any, Tensors], Tensors]
    """The stored tensors by the names that the model has."""
    tied: Callable[[ModelFolder, str | None], Mapping[str, str]]
    """Names in the files that stand for one weight: each copy's, and that of the parameter itself."""
    is_stored_as_held: bool = True
    """Whether its files hold the tensors that the model does; GLM-4.5's hold its experts one by one."""
    outlines_quantised: bool = False
    """Whether there is an outline of weights that other programs quantised."""


def _own_outline(folder: ModelFolder, template: str | None, stored: Tensors) -> Any:
    model = build_outline(folder, template=template, stored=stored)
    if stored:
        check_stored(model, without_copies(model, stored))
    return model


def _upstream_outline(folder: ModelFolder, template: str | None, stored: Tensors) -> Any:
    model = build_upstream_outline(folder, stored)
    if stored:
        check_upstream_stored(folder.path, model, stored)
    return model


OWN = FamilyLoader(
    load=load_base,
    outline=_own_outline,
    config=lambda folder, template: read_config(folder, template=template),
    describe=describe_config,
    by_own_names=lambda _, stored: stored,
    tied=lambda folder, template: build_outline(folder, template=template).all_tied_weights_keys,
)
UPSTREAM = FamilyLoader(
    load=load_in_transformers,
    outline=_upstream_outline,
    config=lambda folder, _: read_upstream_config(folder),
    describe=read_upstream_config,
    by_own_names=name_stored,
    tied=lambda *_: {},
    is_stored_as_held=False,
    outlines_quantised=True,
)
FAMILY_LOADERS: dict[str, FamilyLoader] = {
    name: UPSTREAM if row.is_in_transformers else OWN for name, row in FAMILIES.items()
}
"""By the name of the family."""


def loader_of(folder: ModelFolder) -> FamilyLoader:
    """What opens a folder's model. Raises `CheckpointError` for a folder of no known family."""
    return FAMILY_LOADERS[identify_family(folder).family]


def loader_of_model(model: CausalLM) -> FamilyLoader:
    """What opened a model."""
    return FAMILY_LOADERS[name_family(model.config.model_type)]


def outline_of_folder(folder: ModelFolder, known: Identity, stored: Tensors) -> Any:
    """A folder's model on the meta device, `stored`, if anything, known to fit it.

    Raises `CheckpointError` where config.json makes no model, or the files hold another.
    """
    return FAMILY_LOADERS[known.family].outline(folder, known.template, stored)
