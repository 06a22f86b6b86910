"""`glmtune info`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.console import MODEL, PATH
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
    from glmtune.info import inspect

    method = _method(path, words, recipe)
    found = inspect(path, base=base, revision=revision, template=template, method=method)
    if as_json:
        click.echo(_json(found))
        return
    click.echo(found.path)
    for key, value in _facts(found):
        _say(key, value)
    _say("parameters", _total(found))
    for line in (*_parts(found), *_names(found, in_full=names)):
        click.echo(line)
    if found.trainable:
        click.echo(found.trainable)
    for warning in found.warnings:
        click.echo(f"warning: {warning}")


def _method(path: Path, words: tuple[str, ...], recipe: Path | None) -> "Method | None":
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


def _facts(found: "Info") -> Iterator[tuple[str, str]]:
    """What is known of the folder, by name."""
    yield "kind", found.kind
    if found.adapter:
        yield from _adapter(found)
    yield "model" if found.adapter else "folder", str(found.folder)
    if found.revision:
        yield "from", f"{found.name}, revision {found.revision}"
    revision = f", revision {found.family_revision}" if found.family_revision else ""
    yield "family", f"{found.family}{revision} ({found.family_rule})"
    yield "template", f"{found.template or 'open'} ({found.template_rule})"
    yield "stop tokens", ", ".join(f"{t.text} {t.id}".strip() for t in found.stop_tokens) or "unknown"
    context = f"{found.context:,} tokens" if found.context else "unknown"
    yield "context", f"{context} ({found.context_key})"
    yield "tokenizer", _tokenizer(found)
    if found.quant:
        yield "quant", _quant(found.quant)
    yield "weights", _weights(found)
    yield "other files", ", ".join(name for name in found.files if not _is_weights(name))


def _adapter(found: "Info") -> Iterator[tuple[str, str]]:
    facts = found.adapter
    assert facts
    yield "checkpoint", str(facts.folder)
    yield "method", ", ".join(_settings(facts.method))
    if facts.num_trained is not None:
        yield "trained", ", ".join(_trained(facts))
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


def _settings(method: Mapping[str, Any]) -> Iterator[str]:
    """The method's name, then its settings."""
    if "name" in method:
        yield method["name"]
    for key, value in method.items():
        if key != "name" and value is not None:
            yield f"{key} {_plain(value)}"


def _trained(facts: "AdapterFacts") -> Iterator[str]:
    """How much was trained, where, and the ranks that AdaLoRA left."""
    from glmtune.models.outline import show_numbers

    yield f"{facts.num_trained:,} parameters"
    if facts.layers:
        yield f"in layer{'s' if len(facts.layers) > 1 else ''} {show_numbers(facts.layers)}"
    if facts.ranks and "r" not in facts.method:  # AdaLoRA's
        mean = f"{sum(facts.ranks) / len(facts.ranks):.1f}".removesuffix(".0")
        yield f"ranks {mean} on average (min {min(facts.ranks)}, max {max(facts.ranks)})"


def _quant(quant: str) -> str:
    packed = ", two weights in a byte" if BITS.get(quant) == 4 else ""
    key = "quantization_bit" if quant in BITS else "quantization_config"
    return f"{quant}{packed} ({key} in config.json)"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _tokenizer(found: "Info") -> str:
    facts = found.tokenizer
    if facts is None:
        return f"none: {found.tokenizer_problem}"
    rows = f"; the model has {found.num_rows:,} rows" if found.num_rows else ""
    return (
        f"{facts.kind}, vocab_size={facts.vocab_size}, {facts.num_tokens:,} with control tokens, "
        f"padding_side={facts.padding_side!r}{rows}"
    )


def _weights(found: "Info") -> str:
    if not found.has_weights:
        return f"no weights here; config.json says {found.dtype}"
    sizes = [found.files[name] for name in found.weight_files]
    unread = [name for name in found.files if _is_weights(name) and name not in found.weight_files]
    kinds = f"{found.quant} and {found.dtype}" if found.quant in BITS else f"mostly {found.dtype}"
    opened = f", opened as {found.adapter.quant}" if found.adapter and found.adapter.quant else ""
    read = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {_size(sum(sizes))}, {kinds}{opened}"
    return "; ".join([*([read] if sizes else []), *([f"not read: {', '.join(unread)}"] if unread else [])])


def _is_weights(name: str) -> bool:
    from glmtune.files import WEIGHT_SUFFIXES

    return name.endswith(WEIGHT_SUFFIXES)


def _total(found: "Info") -> str:
    if not found.parameters:
        return "unknown"
    source = "" if found.weight_files else ", counted from config.json"
    return f"{found.num_parameters:,} in {len(found.parameters)} tensors{source}"


def _parts(found: "Info") -> Iterator[str]:
    for part in found.parts:
        size = _size(part.num_bytes) if part.num_bytes else ""
        line = f"    {part.name:<{KEY_WIDTH - 2}} {part.count:>15,} {part.share:>6.1%} {size:>10}"
        yield line.rstrip()


def _names(found: "Info", *, in_full: bool) -> Iterator[str]:
    """Every name on its line; or equal layers as one, below the layer's name. `*` marks what is trained."""
    from glmtune.models.outline import collapse

    if in_full:
        for parameter in found.parameters:
            yield f"{_row(parameter)} {parameter.name}"
        return
    above = ""
    for parameter in collapse(found.parameters):
        layer, brace, rest = parameter.name.partition("}.")
        if brace and layer != above:
            yield f"{'':{ROW_WIDTH}}{layer}}}"
        above = layer if brace else ""
        yield f"{_row(parameter)} {f'  {rest}' if brace else parameter.name}"


def _row(parameter: "Parameter") -> str:
    mark = "*" if parameter.is_trained else " "
    shape = " x ".join(map(str, parameter.shape))
    return f"{mark} {shape:<12} {_short(parameter.dtype):<4}"


def _short(dtype: str) -> str:
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    return short.get(dtype, "fp8" if dtype.startswith("float8") else dtype)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def _say(key: str, value: str) -> None:
    """A line, broken to the terminal's usual width."""
    first = f"  {key:<{KEY_WIDTH}} "
    click.echo(click.wrap_text(value, width=WIDTH, initial_indent=first, subsequent_indent=" " * len(first)))


def _json(found: "Info") -> str:
    import json
    from dataclasses import asdict

    content = asdict(found) | {"num_parameters": found.num_parameters}
    return json.dumps(content, ensure_ascii=False, indent=2, default=str)
