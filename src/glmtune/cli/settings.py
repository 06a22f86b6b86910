"""`glmtune settings`."""

import click


@click.command(short_help="List every setting of a recipe.")
@click.argument("part", required=False)
@click.option("--markdown", is_flag=True, help="As the table of the reference page.")
def settings(part: str | None, markdown: bool) -> None:
    """List every setting with its type, default and meaning; PART (such as train or data.loss) selects."""
    from glmtune.errors import ConfigError
    from glmtune.near import nearest
    from glmtune.recipe.describe import describe

    rows = [row for row in describe() if part is None or (row.key + ".").startswith(part + ".")]
    if not rows:
        names = {name: row.key for row in describe() for name in (row.key, row.key.rpartition(".")[2])}
        near = nearest(str(part), names, has_parts=True)
        hint = f"did you mean {names[near]!r}?" if near else "`glmtune settings` without a word lists all"
        raise ConfigError(f"{part}: no such setting", hint=hint)
    if markdown:
        click.echo("| setting | type | default | meaning |\n|---|---|---|---|")
        for row in rows:
            kind = row.kind.replace("|", "\\|")
            click.echo(f"| `{row.key}` | {kind} | {row.default} | {row.text} |")
        return
    for row in rows:
        click.echo(f"{row.key} ({row.kind}; default {row.default})")
        click.echo(click.wrap_text(row.text, width=96, initial_indent="    ", subsequent_indent="    "))
