"""One model over several cards, `device=balanced`: accelerate's map of its parts, through transformers."""

from collections.abc import Mapping

from transformers.integrations.accelerate import (
    accelerate_dispatch,
    get_balanced_memory,
    infer_auto_device_map,
)

from glmtune.models.protocol import CausalLM
from glmtune.models.recomputing import layers_of


def map_over_cards(model: CausalLM, memory: Mapping[int, int] | None = None) -> dict[str, int | str]:
    """Return the card of each part, by its name, so that all hold about as much; no layer is cut in two.

    memory: bytes of each card; by default those that are free.
    """
    whole = sorted({type(layer).__name__ for layer in layers_of(model)})
    allowed = get_balanced_memory(model, max_memory=memory and dict(memory), no_split_module_classes=whole)
    found: dict[str, int | str] = infer_auto_device_map(
        model, max_memory=allowed, no_split_module_classes=whole
    )
    return found


def spread_over_cards(model: CausalLM) -> None:
    """Move a model that lies on the CPU to the cards, part by part; hooks hand on what flows between them."""
    accelerate_dispatch(model, None, map_over_cards(model), None, None, offload_buffers=False)
