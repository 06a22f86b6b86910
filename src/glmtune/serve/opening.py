"""Opens what a server answers with: one model, or a base with any number of adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.chat import REUSED_TOKENS
from glmtune.errors import ConfigError
from glmtune.generate.compute import choose_compute
from glmtune.generate.lanes import Lanes
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.serve.limits import ServerLimits
from glmtune.serve.service import ServedModel


def open_models(
    path: Path,
    adapters: Mapping[str, Path],
    limits: ServerLimits,
    *,
    template: str | None = None,
    revision: str | None = None,
    compute: str = "exact",
    **loading: Any,  # Any: dtype, quant and device of `load_model`
) -> tuple[Lanes, list[ServedModel]]:
    """Load a model, run or adapter, or a base with adapters by name; return the engine and the names served.

    Raises `ConfigError` and `CheckpointError` as `load_model` and `Adapters.add`.
    """
    location = resolve(path, revision=revision)
    name = (location.run or path).absolute().name
    if name in adapters:
        raise ConfigError(f"adapter: {name} is the base's own name", hint="choose another NAME=PATH")
    tokenizer = tokenizer_of(location, template=template)
    sizes: dict[str, Any] = {
        "max_rows": limits.max_rows,
        "max_held_tokens": limits.max_held_tokens,
        "reused_tokens": REUSED_TOKENS,
    }
    if not adapters:
        model = load_location(location, template=template, **loading).eval()
        model = choose_compute(model, compute, rows=limits.max_rows)
        return Lanes(model, **sizes), [ServedModel(name, tokenizer, None, model.generation_config)]
    from glmtune.several import Adapters  # imports PEFT, which takes seconds

    if compute != "exact":
        raise ConfigError(
            f"compute: {compute} cannot answer each request under its own adapter", hint="compute=exact"
        )
    loaded = Adapters(path, template=template, revision=revision, **loading)
    generation = loaded.model.generation_config
    models = [ServedModel(name, tokenizer, None, generation)]
    for adapter_name, adapter in adapters.items():
        loaded.add(adapter_name, adapter)
        # now, and not at the first request that shares a batch with another adapter's
        loaded.check_mixable(adapter_name)
        own = tokenizer_of(resolve(adapter, base=location.base), template=None)
        models.append(ServedModel(adapter_name, own, adapter_name, generation))
    return Lanes(loaded, **sizes), models
