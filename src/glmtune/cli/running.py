"""`glmtune status`, `glmtune logs`, `glmtune stop`: runs that train in the background."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, print_json, program

if TYPE_CHECKING:
    from glmtune.workflows.runner import RunState

UNUSUAL_END = 1
"""Exit code of `glmtune status RUN` for a run that has failed or was killed."""


@click.command(short_help="Tell how far a run is, and whether it still trains.")
@click.argument("run", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON array.")
def status(run: Path | None, as_json: bool) -> None:
    """Tell the state of RUN: step of steps, losses, time left, process, last line; without RUN, of all runs
    below runs that train now.

    Exit code 1 for a RUN that has failed or was killed.

    \b
      glmtune status
      glmtune status runs/mine
    """
    from dataclasses import asdict

    from glmtune.workflows.runner import find_live, state_of

    states = [state_of(run)] if run else find_live()
    if as_json:
        print_json([asdict(state) for state in states], default=str)
    for state in states if not as_json else ():
        click.echo("\n".join(_lines_of(state)))
    if not states and not as_json:
        click.echo("no run below runs trains now; `glmtune runs` lists those that there are")
    if run and states[0].state in ("failed", "killed"):
        sys.exit(UNUSUAL_END)


@click.command(short_help="Show the lines of a run in the background; -f follows them.")
@click.argument("run", type=PATH)
@click.option("-f", "--follow", is_flag=True, help="Go on with each new line until the run has ended.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last LINES lines only.")
def logs(run: Path, follow: bool, lines: int | None) -> None:
    """Show what RUN has printed since it was begun with `glmtune train ... --detach`.

    Ctrl-C ends the showing, not the run.

    \b
      glmtune logs runs/mine -n 20
      glmtune logs runs/mine -f
    """
    from glmtune.workflows.runner import follow_log

    skipped = 0
    if lines is not None:
        skipped = max(0, sum(1 for _ in follow_log(run, is_followed=False)) - lines)
    try:
        for number, line in enumerate(follow_log(run, is_followed=follow)):
            if number >= skipped:
                click.echo(line)
    except KeyboardInterrupt:
        click.echo("", err=True)  # behind the terminal's ^C


@click.command(short_help="Save and end a run that trains; it can be gone on with.")
@click.argument("run", type=PATH)
@click.option("--now", is_flag=True, help="End it at once: the steps since its last checkpoint are lost.")
def stop(run: Path, now: bool) -> None:
    """Have RUN finish its step, save a checkpoint and end.

    \b
      glmtune stop runs/mine
      glmtune train runs/mine --resume --detach
    """
    from glmtune.workflows.runner import stop as ask_to_stop
    from glmtune.workflows.runner import wait_for_end

    state = ask_to_stop(run, at_once=now)
    if state.is_live and not now:
        click.echo(f"{run}: process {state.pid} is asked to save and end; this waits for it")
    state = wait_for_end(run)
    click.echo("\n".join(_lines_of(state)))


def _lines_of(state: "RunState") -> list[str]:
    """Return a state in words: what and how far; which process; its last line, or how to go on."""
    from glmtune.run_files import list_checkpoints
    from glmtune.run_process import read_record
    from glmtune.training.progress import clock_time
    from glmtune.workflows.resuming import resume_words

    of = "" if state.steps is None else f" of {state.steps:,} ({state.share:.0%})"
    step = "" if state.state == "broken" else f", step {state.step:,}{of}"
    figures = [f"{state.state}{step}"]
    if state.loss is not None:
        figures.append(f"loss {state.loss:.4f}")
    if state.eval_loss is not None:
        figures.append(f"evaluation loss {state.eval_loss:.4f}")
    if state.eta_s is not None:
        figures.append(f"{clock_time(state.eta_s)} left")
    lines = [f"{state.folder}: {', '.join(figures)}"]
    if state.is_live or state.state == "unknown":
        lines.append(f"  process {state.pid} on {state.host}, since {state.began}")
    if state.state == "killed":
        lines.append(f"  its process {state.pid} is gone without a word: killed, or the machine went down")
    if state.last_line and not state.message:
        lines.append(f"  last line: {state.last_line}")
    lines += [f"  {text}" for text in (state.message, state.hint) if text]
    if state.state in ("stopped", "failed", "killed") and "--resume" not in state.message:
        if list_checkpoints(state.folder):
            record = read_record(state.folder)
            words = resume_words(state.folder, record.command if record else "")
            lines.append(f"  go on with: {words.replace('glmtune', program(), 1)}")
        else:
            lines.append("  it has saved no checkpoint: train anew")
    return lines
