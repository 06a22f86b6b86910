"""`glmtune report` and `glmtune card`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.console import PATH

if TYPE_CHECKING:
    from glmtune.language import Language


def page_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a page or picture: `--output`, `--lang`, `--force`."""
    lang = click.Choice(["en", "zh"])
    # in reverse: click shows the option that is added last first
    for option in (
        click.option("--force", is_flag=True, help="Replace a file that is there."),
        click.option("--lang", type=lang, help="Language: en, or zh for 中文; else that of the locale."),
        click.option("--output", type=PATH, help="File to write, by default in the run's folder."),
    ):
        command = option(command)
    return command


@click.command(short_help="Show a run, or several side by side, as a web page of one file.")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@page_options
def report(runs: tuple[Path, ...], output: Path | None, lang: "Language | None", force: bool) -> None:
    """Write RUN as a web page: curves, memory, rows, scores, answers by step, settings, environment.

    The page is one file that loads nothing from elsewhere: send it, print it, read it on a phone. It has
    both languages, --lang chooses the first one. Training and `glmtune evaluate` write it by themselves as
    report.html in the run's folder; several runs go side by side into one page, report.html beside the
    first one's folder.

    \b
      glmtune report runs/lora
      glmtune report runs/lora runs/ptuning --output lora-or-ptuning.html --lang zh
    """
    from glmtune.reports.html.page import write_report

    click.echo(write_report(runs, output=output, language=lang, force=force))


@click.command(short_help="Draw a run as one picture to share.")
@click.argument("run", type=PATH)
@page_options
def card(run: Path, output: Path | None, lang: "Language | None", force: bool) -> None:
    """Draw RUN as a PNG: answers before and after, scores, time, memory, versions.

    \b
      glmtune card runs/lora
      glmtune card runs/lora --output lora.png --lang zh
    """
    from glmtune.reports.card import write_card

    click.echo(write_card(run, output=output, language=lang, force=force))
