"""`glmtune info`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import MODEL, PATH, print_json
from glmtune.quants import BITS

if TYPE_CHECKING:
    from glmtune.info import AdapterFacts, Info
    from glmtune.models.outline import Parameter
    from glmtune.recipe import Method

WIDTH = 80
KEY_WIDTH = 16
ROW_WIDTH = 20


@click.command(short_help="Say what a model, run or adapter is.")
@click.argument("path", type=MODEL)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--recipe", type=PATH, help="Show what this recipe's method trains.")
@click.option("--names", is_flag=True, help="List every parameter by its full name.")
@click.option("--base", type=PATH, help="Base model of an adapter, if it has moved.")
@click.option("--revision", help="Branch, tag or commit of a model on a hub.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
def info(
    path: Path,
    words: tuple[str, ...],
    recipe: Path | None,
    names: bool,
    base: Path | None,
    revision: str | None,
    template: str | None,
    as_json: bool,
) -> None:
    """Say what PATH is: family, chat format, tokenizer, sizes and parameters. No weights are loaded.

    With method settings, also what that method would train of it:

    \b
      glmtune info /models/chatglm3-6b
      glmtune info /models/chatglm3-6b method.name=lora method.r=8
      glmtune info THUDM/chatglm3-6b --revision v1.0.2 --names
    """
    from dataclasses import asdict

    from glmtune.info import inspect

    method = _read_method(path, words, recipe)
    facts = inspect(path, base=base, revision=revision, template=template, method=method)
    if as_json:
        content = asdict(facts) | {"num_parameters": facts.num_parameters}
        print_json(content, default=str)
        return
    click.echo(facts.path)
    for key, value in _folder_lines(facts):
        _print_fact(key, value)
    total = "unknown"
    if facts.parameters:
        source = "" if facts.weight_files else ", counted from config.json"
        total = f"{facts.num_parameters:,} in {len(facts.parameters)} tensors{source}"
    _print_fact("parameters", total)
    for part in facts.parts:
        size = _size(part.num_bytes) if part.num_bytes else ""
        line = f"    {part.name:<{KEY_WIDTH - 2}} {part.count:>15,} {part.share:>6.1%} {size:>10}"
        click.echo(line.rstrip())
    for line in _parameter_lines(facts, in_full=names):
        click.echo(line)
    if facts.trainable:
        click.echo(facts.trainable)
    for warning in facts.warnings:
        click.echo(f"warning: {warning}")


def _read_method(path: Path, words: tuple[str, ...], recipe: Path | None) -> "Method | None":
    """Return the method of the KEY=VALUE words or the recipe. Raises `ConfigError` for other settings."""
    from glmtune.errors import ConfigError
    from glmtune.recipe import load_recipe

    for word in words:
        if word.partition("=")[0].partition(".")[0] != "method":
            raise ConfigError(
                f"{word}: not a setting of this command", hint="allowed: method=..., method.r=..., ..."
            )
    if not words and recipe is None:
        return None
    return load_recipe(recipe or {}, [f"model={path}", *words]).method


def _folder_lines(facts: "Info") -> Iterator[tuple[str, str]]:
    """Yield the name and text of each fact of the folder."""
    yield "kind", facts.kind
    if facts.adapter:
        yield from _adapter_lines(facts.adapter)
    yield "model" if facts.adapter else "folder", str(facts.folder)
    if facts.revision:
        yield "from", f"{facts.name}, revision {facts.revision}"
    revision = f", revision {facts.family_revision}" if facts.family_revision else ""
    yield "family", f"{facts.family}{revision} ({facts.family_rule})"
    yield "template", f"{facts.template or 'open'} ({facts.template_rule})"
    yield "stop tokens", ", ".join(f"{t.text} {t.id}".strip() for t in facts.stop_tokens) or "unknown"
    context = f"{facts.context:,} tokens" if facts.context else "unknown"
    yield "context", f"{context} ({facts.context_key})"
    if tokenizer := facts.tokenizer:
        # the embedding is often padded to more rows than the tokenizer has tokens
        rows = f"; the model has {facts.num_rows:,} rows" if facts.num_rows else ""
        yield (
            "tokenizer",
            f"{tokenizer.kind}, vocab_size={tokenizer.vocab_size}, "
            f"{tokenizer.num_tokens:,} with control tokens, padding_side={tokenizer.padding_side!r}{rows}",
        )
    else:
        yield "tokenizer", f"none: {facts.tokenizer_problem}"
    if facts.quant:
        packed = ", two weights in a byte" if BITS.get(facts.quant) == 4 else ""
        key = "quantization_bit" if facts.quant in BITS else "quantization_config"
        yield "quant", f"{facts.quant}{packed} ({key} in config.json)"
    yield "weights", _weights_text(facts)
    yield "other files", ", ".join(name for name in facts.files if not _is_weights(name))


def _adapter_lines(facts: "AdapterFacts") -> Iterator[tuple[str, str]]:
    """Yield the name and text of each fact of an adapter."""
    from glmtune.models.outline import show_numbers

    yield "checkpoint", str(facts.folder)
    settings = [facts.method["name"]] if "name" in facts.method else []
    for key, value in facts.method.items():
        if isinstance(value, list | tuple):
            settings.append(f"{key} {'+'.join(map(str, value))}")
        elif isinstance(value, bool):
            settings.append(f"{key} {'yes' if value else 'no'}")
        elif key != "name" and value is not None:
            settings.append(f"{key} {value}")
    yield "method", ", ".join(settings)
    if facts.num_trained is not None:
        trained = [f"{facts.num_trained:,} parameters"]
        if facts.layers:
            trained.append(f"in layer{'s' if len(facts.layers) > 1 else ''} {show_numbers(facts.layers)}")
        if facts.ranks and "r" not in facts.method:  # AdaLoRA: pruning left ranks of its own to each layer
            mean = f"{sum(facts.ranks) / len(facts.ranks):.1f}".removesuffix(".0")
            trained.append(f"ranks {mean} on average (min {min(facts.ranks)}, max {max(facts.ranks)})")
        yield "trained", ", ".join(trained)
    if facts.quant:
        yield "quant", f"{facts.quant}: its base is quantised so when this is opened"
    if facts.base:
        yield "trained from", facts.base
    if facts.parent:
        yield "going on from", facts.parent
    if facts.system:
        yield "system", facts.system
    if facts.source_prefix:
        yield "source prefix", facts.source_prefix
    if facts.glmtune_version:
        yield "written by", f"glmtune {facts.glmtune_version}"


def _weights_text(facts: "Info") -> str:
    """Return number, size and types of the files of weights, and the files that are not read."""
    if not facts.has_weights:
        return f"no weights here; config.json says {facts.dtype}"
    sizes = [facts.files[name] for name in facts.weight_files]
    unread = [name for name in facts.files if _is_weights(name) and name not in facts.weight_files]
    kinds = f"{facts.quant} and {facts.dtype}" if facts.quant in BITS else f"mostly {facts.dtype}"
    opened = f", opened as {facts.adapter.quant}" if facts.adapter and facts.adapter.quant else ""
    read = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {_size(sum(sizes))}, {kinds}{opened}"
    return "; ".join([*([read] if sizes else []), *([f"not read: {', '.join(unread)}"] if unread else [])])


def _is_weights(name: str) -> bool:
    from glmtune.files import WEIGHT_SUFFIXES

    return name.endswith(WEIGHT_SUFFIXES)


def _parameter_lines(facts: "Info", *, in_full: bool) -> Iterator[str]:
    """Yield a line per parameter; without `in_full`, equal layers share their lines. `*`: trainable."""
    from glmtune.models.outline import collapse

    if in_full:
        for parameter in facts.parameters:
            yield f"{_parameter_head(parameter)} {parameter.name}"
        return
    layer_above = ""
    for parameter in collapse(facts.parameters):
        # collapsed names: `transformer.encoder.layers.{0..27}.mlp.dense_h_to_4h.weight`
        layer, brace, rest = parameter.name.partition("}.")
        if brace and layer != layer_above:
            yield f"{'':{ROW_WIDTH}}{layer}}}"
        layer_above = layer if brace else ""
        yield f"{_parameter_head(parameter)} {f'  {rest}' if brace else parameter.name}"


def _parameter_head(parameter: "Parameter") -> str:
    """Return mark, shape and type of a parameter."""
    mark, dtype = "*" if parameter.is_trained else " ", parameter.dtype
    shape = " x ".join(map(str, parameter.shape))
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    short = names.get(dtype, "fp8" if dtype.startswith("float8") else dtype)
    return f"{mark} {shape:<12} {short:<4}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def _print_fact(key: str, value: str) -> None:
    """Print the name and text of a fact, wrapped at a terminal's usual width."""
    first = f"  {key:<{KEY_WIDTH}} "
    click.echo(click.wrap_text(value, width=WIDTH, initial_indent=first, subsequent_indent=" " * len(first)))
