"""`glmtune demo`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, program

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.workflows.demo import DemoResult
    from glmtune.workflows.events import Event
    from glmtune.workflows.show import Lines


@click.command(short_help="See a small model being tuned: no data, no GPU, no download needed.")
@click.option("--name", default="小橙", show_default=True, help="The name that the model learns to have.")
@click.option("--author", default="橙子工作室", show_default=True, help="Who it learns to have been made by.")
@click.option("--output", type=PATH, help="New folder of the results; else runs/demo, -2, ...")
def demo(name: str, author: str, output: Path | None) -> None:
    """Tune the bundled glm-tiny on the example rows, and ask it the same before and after.

    It takes less than two minutes on two cores. Exit code 1 if it has not learned what it should.

    \b
      glmtune demo
      glmtune demo --name 小明 --author 明明科技
    """
    from transformers.utils.logging import disable_progress_bar

    from glmtune.log import quiet
    from glmtune.workflows.demo import run_demo
    from glmtune.workflows.events import drain
    from glmtune.workflows.show import Lines

    disable_progress_bar()
    lines = Lines()
    with lines.bar("demo"), quiet():  # the demo loads its model several times: no line for each
        result = drain(run_demo(name, author, output), partial(_show, lines))
    _print_result(result, lines)
    if result.failures:
        for words in result.failures:
            click.echo(f"the demo failed: {words}", err=True)
        sys.exit(1)


def _show(lines: "Lines", event: "Event") -> None:
    """Print the events of the demo; checkpoints are left out."""
    from glmtune.workflows.events import BeforeAndAfter, Evaluated, Note

    lines.follow(event)
    match event:
        case Note(text, is_warning):
            (lines.warn if is_warning else lines.say)(text)
        case Evaluated(step, loss, _, _):
            lines.say(f"loss of the held-out adverts at step {step}: {loss:.4f}")
        case BeforeAndAfter(pairs):
            lines.say("\nThe same questions, before and after\n")
            for pair in pairs:
                lines.say(pair.in_words())


def _print_result(result: "DemoResult", lines: "Lines") -> None:
    """Print scores before and after, the folders of the results, and commands to go on with."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_scores_table(result))
    run, data = result.run.path, result.path / "data"
    lines.say(
        f"""
What is where
  the run, as a web page       {run / "report.html"}
  the loss, as a picture       {run / "loss.png"}
  the rows that were learned   {data / "train.jsonl"}
  all answers                  {result.path / "before"}, {result.path / "after"}
  the adapter                  {run / "best"}
What to type next
  talk to it                   {program()} chat {run}
  talk to it as it was         {program()} chat glm-tiny
  tune it on your own rows     {program()} train model=glm-tiny data.train=my.json
  tune a real model on them    {program()} train model=/models/chatglm3-6b data.train=my.json
Your rows may look like {data / "train.jsonl"}, or like any format of docs/data.md."""
    )


def _scores_table(result: "DemoResult") -> "Table":
    """Return a table of the held-out rows' scores before and after training."""
    from rich.table import Table

    from glmtune.evaluation.metrics import with_scale

    table = Table(title="The held-out rows, which were not learned", title_justify="left")
    for head, justify in (("", "left"), ("before", "right"), ("after", "right")):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    before, after = result.before, result.after
    table.add_row("says its new name and author", f"{before.known:.0%}", f"{after.known:.0%}")
    table.add_row("loss of the adverts", f"{before.advert_loss:.3f}", f"{after.advert_loss:.3f}")
    for part in ("adverts", "talks"):
        for score in ("rouge-l", "bleu-4"):
            values = (
                with_scale(knowledge.scores[part][score], score, digits=1) for knowledge in (before, after)
            )
            table.add_row(f"{score.upper()} of the {part}", *values)
    return table
