"""`glmtune settings`."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmtune.recipe.describe import Language

HEADS = {"en": ("setting", "type", "default", "meaning"), "zh": ("设置", "类型", "默认值", "含义")}


@click.command(short_help="List every setting of a recipe.")
@click.argument("part", required=False)
@click.option("--markdown", is_flag=True, help="As the table of the reference page.")
@click.option("--lang", type=click.Choice(list(HEADS)), default="en", help="Language: en, or zh for 中文.")
def settings(part: str | None, markdown: bool, lang: "Language") -> None:
    """List every setting with its type, default and meaning; PART (train, data.loss, lora) selects."""
    from glmtune.errors import ConfigError
    from glmtune.near import nearest
    from glmtune.recipe.describe import describe
    from glmtune.recipe.names import name_here

    every = list(describe(lang))
    rows = [row for row in every if part is None or (row.key + ".").startswith(part + ".")]
    rows = rows or [row for row in every if (row.paths[0] + ".").startswith(f"method.{part}.")]
    if not rows:
        names = {name: row.key for row in every for name in (row.key, row.key.rpartition(".")[2])}
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
    default = HEADS[lang][2]
    for row in rows:
        click.echo(f"{row.key} ({row.kind}; {default} {row.default})")
        click.echo(click.wrap_text(row.text, width=96, initial_indent="    ", subsequent_indent="    "))
