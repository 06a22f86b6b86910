"""The table of family loaders: the functions that load, outline and describe the models of each family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.families import FAMILIES, Identity, identify_family, name_family
from glmtune.folder import ModelFolder
from glmtune.models.computing import compute_in
from glmtune.models.config import describe_config, read_config
from glmtune.models.dtype import Choice
from glmtune.models.fused_upstream import fuse_upstream
from glmtune.models.nf4 import quantise_as
from glmtune.models.own import build_empty, build_outline, load_base
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import check_stored, set_scale_types, without_copies
from glmtune.models.quant import held_quant
from glmtune.models.shards import Stored, scan_tensors, suppose_tensors
from glmtune.models.upstream import (
    build_upstream,
    build_upstream_outline,
    check_upstream_stored,
    load_in_transformers,
    name_stored,
    read_upstream_config,
)

Tensors = Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class FamilyLoader:
    """The functions that load a family's models: our own classes, or transformers'."""

    load: Callable[..., Any]
    """Load the model of a `ModelFolder`; keywords `dtype`, `device`, `template`, `quant`, `reading`."""
    outline: Callable[[ModelFolder, str | None, Tensors], Any]
    """Build the model without weights for a chat format; stored tensors (if any) are checked to fit it."""
    config: Callable[[ModelFolder, str | None], Any]
    """Read and check the config, for a chat format."""
    build: Callable[..., Any]
    """Build the model of a config, a dtype and stored tensors, on the meta device."""
    describe: Callable[[ModelFolder], Any]
    """Read the config unchecked, which works for long contexts without a chat format too."""
    by_own_names: Callable[[CausalLM, Tensors], Tensors]
    """Map the stored tensors to the parameter names of the model."""
    tied: Callable[[ModelFolder, str | None], Mapping[str, str]]
    """Map names in the files that are copies of a weight to the name of the weight itself."""
    is_stored_as_held: bool = True
    """True if the files hold the model's own tensors; False for GLM-4.5's, which hold experts one by one."""
    outlines_quantised: bool = False
    """True if `outline` also works for weights that another program quantised."""


def _outline_own(folder: ModelFolder, template: str | None, stored: Tensors) -> Any:
    model = build_outline(folder, template=template, stored=stored)
    if stored:
        check_stored(model, without_copies(model, stored))
    return model


def _outline_upstream(folder: ModelFolder, template: str | None, stored: Tensors) -> Any:
    model = build_upstream_outline(folder, stored)
    if stored:
        check_upstream_stored(folder.path, model, stored)
    return model


OWN = FamilyLoader(
    load=load_base,
    outline=_outline_own,
    config=lambda folder, template: read_config(folder, template=template),
    build=build_empty,
    describe=describe_config,
    by_own_names=lambda _, stored: stored,
    tied=lambda folder, template: build_outline(folder, template=template).all_tied_weights_keys,
)
UPSTREAM = FamilyLoader(
    load=load_in_transformers,
    outline=_outline_upstream,
    config=lambda folder, _: read_upstream_config(folder),
    build=build_upstream,
    describe=read_upstream_config,
    by_own_names=name_stored,
    tied=lambda *_: {},
    is_stored_as_held=False,
    outlines_quantised=True,
)
FAMILY_LOADERS: dict[str, FamilyLoader] = {
    name: UPSTREAM if row.is_in_transformers else OWN for name, row in FAMILIES.items()
}
"""The loader of each family, by its name in `FAMILIES`."""


def loader_of(folder: ModelFolder) -> FamilyLoader:
    """Return the loader of a folder's model. Raises CheckpointError for a folder of no known family."""
    return FAMILY_LOADERS[identify_family(folder).family]


def loader_of_model(model: CausalLM) -> FamilyLoader:
    """Return the loader that made a loaded model."""
    return FAMILY_LOADERS[name_family(model.config.model_type)]


def outline_of_folder(folder: ModelFolder, known: Identity, stored: Tensors) -> Any:
    """Build a folder's model on the meta device, without weights.

    stored: tensors to check against the model; empty for none. Raises CheckpointError where config.json makes
    no model, or the stored tensors do not fit it.
    """
    return FAMILY_LOADERS[known.family].outline(folder, known.template, stored)


def suppose_weights(folder: ModelFolder) -> None:
    """Have a folder without weights list the tensors of the model that its config.json describes."""
    suppose_tensors(folder, outline_of_folder(folder, identify_family(folder), {}).state_dict())


def outline_as_loaded(
    folder: ModelFolder,
    known: Identity,
    dtype: Choice,
    *,
    quant: str | None = None,
    num_layers: int | None = None,
) -> Any:
    """Build a folder's model as its loader gives it, in these types, but without weights, on the meta device.

    num_layers: the number of layers, if it is to have others than its config says. Raises as the loader.
    """
    loader, stored = FAMILY_LOADERS[known.family], scan_tensors(folder)
    config = loader.config(folder, known.template)
    if num_layers is not None:
        before = config.num_hidden_layers
        for name, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == before:  # a kind for each layer
                setattr(config, name, (value + value[-1:] * num_layers)[:num_layers])
        config.num_hidden_layers = num_layers
    model = loader.build(config, dtype.dtype, {})
    if quant and held_quant(model) is None:
        quantise_as(model, quant)
    set_scale_types(model, stored)
    compute_in(model, dtype.computing)
    fuse_upstream(model)
    return model.eval()
