"""`glmtune settings`."""

import re
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmtune.language import Language
    from glmtune.recipe.describe import Description

MOST_WIDTH = 100
"""Width of the overview in characters; less on a narrower terminal."""
ASIDE = re.compile(r" \([^()]*\)|（[^（）]*）")
SENTENCE_END = re.compile(r"[;；。]|(?<!\.)\.(?= |$)")
MORE = {
    "en": "`glmtune settings PART`, such as train or data.loss, tells all of a setting; --lang zh: 中文",
    "zh": "`glmtune settings PART --lang zh`（如 train 或 data.loss）给出每个设置的全文",
}
HEADS = {"en": ("setting", "type", "default", "meaning"), "zh": ("设置", "类型", "默认值", "含义")}


@click.command(short_help="List every setting of a recipe.")
@click.argument("part", required=False)
@click.option("--markdown", is_flag=True, help="As the table of the reference page.")
@click.option("--lang", type=click.Choice(list(HEADS)), default="en", help="Language: en, or zh for 中文.")
def settings(part: str | None, markdown: bool, lang: "Language") -> None:
    """List every setting with its default, in a line each.

    PART, such as train, data.loss or lora, gives the type and the whole text of the settings in it.
    """
    from glmtune.errors import ConfigError
    from glmtune.near import nearest
    from glmtune.recipe.describe import describe
    from glmtune.recipe.names import name_here

    every_row = list(describe(lang))
    # with a dot behind both: `train` is not the beginning of a setting named `training`
    rows = [row for row in every_row if part is None or (row.key + ".").startswith(part + ".")]
    rows = rows or [row for row in every_row if (row.paths[0] + ".").startswith(f"method.{part}.")]
    if not rows:
        names = {name: row.key for row in every_row for name in (row.key, row.key.rpartition(".")[2])}
        near = nearest(str(part), names, has_parts=True)
        named = f"did you mean `glmtune settings {names[near]}`?" if near else ""
        hint = name_here(str(part).split(".")[-1]) or named or "`glmtune settings` without a word lists all"
        raise ConfigError(f"{part}: no such setting", hint=hint)
    if markdown:
        click.echo(f"| {' | '.join(HEADS[lang])} |\n|---|---|---|---|")
        for row in rows:
            kind = row.kind.replace("|", "\\|")
            click.echo(f"| `{row.key}` | {kind} | {row.default} | {row.text} |")
        return
    if part is None:
        _print_overview(rows)
        click.echo(f"\n{MORE[lang]}")
        return
    default = HEADS[lang][2]
    for row in rows:
        click.echo(f"{row.key} ({row.kind}; {default} {row.default})")
        click.echo(click.wrap_text(row.text, width=96, initial_indent="    ", subsequent_indent="    "))


def _print_overview(rows: Sequence["Description"]) -> None:
    """Print a line per setting: name, default, and the first sentence of its meaning, cut to the terminal."""
    from rich.cells import cell_len
    from rich.text import Text

    width = min(shutil.get_terminal_size((MOST_WIDTH, 24)).columns, MOST_WIDTH)
    # each method is a group of its own, headed by `method=NAME`
    names = [f"method={row.kind}" if row.key == "method.name" else row.key for row in rows]
    defaults = ["" if row.key == "method.name" else row.default for row in rows]
    columns = [max(map(cell_len, texts)) + 2 for texts in (names, defaults)]
    group = rows[0].key.rpartition(".")[0]
    for row, name, default in zip(rows, names, defaults, strict=True):
        if row.key == "method.name" or row.key.rpartition(".")[0] != group:
            group = row.key.rpartition(".")[0]
            click.echo()
        # by hand: a Chinese character takes two columns, which str.ljust does not know
        pads = [" " * (size - cell_len(text)) for size, text in zip(columns, (name, default), strict=True)]
        line = Text(f"{name}{pads[0]}{default}{pads[1]}{SENTENCE_END.split(ASIDE.sub('', row.text))[0]}")
        line.truncate(width, overflow="ellipsis")
        click.echo(line.plain)
