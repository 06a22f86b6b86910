"""`glmtune train`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, fail_on, leave_group, program
from glmtune.cli.launch import is_to_launch, naming_ended_process, nproc_option, run_in_processes
from glmtune.cli.plan import look_ahead, page_lines
from glmtune.log import is_main_process

if TYPE_CHECKING:
    from glmtune.recipe import Recipe


@click.command(short_help="Fine-tune a model on your rows.")
@click.argument("words", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the run's folder.")
@click.option(
    "--dry-run", is_flag=True, help="Check all that needs no weights, print the plan, write nothing."
)
@click.option(
    "--force", is_flag=True, help="Begin even if the memory does not suffice; else that is refused."
)
@click.option(
    "--detach",
    is_flag=True,
    help="Train in the background, from the first step on; `glmtune logs RUN -f` shows its lines.",
)
@click.option(
    "--fail-on-forgetting",
    is_flag=True,
    help="End with exit code 3 if the run's verdict is `forgot`; retain.forgot=0.05 is strict.",
)
@nproc_option()
def train(
    words: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    force: bool,
    detach: bool,
    fail_on_forgetting: bool,
    nproc: int | None,
) -> None:
    """Fine-tune a model: RECIPE is a YAML file or the folder of an earlier run, KEY=VALUE words come on top.

    \b
      glmtune train model=/models/chatglm3-6b data.train=my.json
      glmtune train recipes/lora.yaml model=/models/chatglm3-6b train.lr=2e-4 --dry-run
      glmtune train runs/chatglm3-6b-lora --resume
      glmtune train recipes/lora.yaml model=/models/chatglm3-6b --detach
      glmtune train model=runs/chatglm3-6b-lora data.train=new.json output=runs/more
      glmtune train recipes/lora.yaml model=/models/chatglm3-6b --nproc 2

    A run or adapter as the model is gone on from: its weights and its method, all else anew.

    `glmtune settings` lists every KEY. The run's files go to a new folder (output=...): recipe.yaml,
    metrics.jsonl, report.html (all of it on one page), loss.png, samples.jsonl, checkpoints/, and the links
    best and last.
    """
    from glmtune.errors import ConfigError
    from glmtune.files import read_json_if_there
    from glmtune.run_files import RESULT_FILE

    if nproc and is_to_launch(nproc) and not detach:  # a run in the background starts them itself
        run_in_processes(nproc)
        return
    recipe = _recipe_of(words, resume=resume)
    if fail_on_forgetting and recipe.retain.report == "off":
        raise ConfigError(
            "--fail-on-forgetting: retain.report=off, so nothing is measured",
            hint="retain.report=end measures it, at the end of the run",
        )
    # nothing left to do is no error; with settings typed behind the run, the plan refuses what differs
    if resume and len(words) == 1 and _is_finished(run := Path(words[0])):
        if fail_on_forgetting:
            verdict = read_json_if_there(run / RESULT_FILE, is_ours=True).get("verdict")
            if verdict:
                click.echo(f"general prompts, as the run found: {verdict}")
            fail_on(verdict)
        return
    if detach and not dry_run:
        flags = {"--resume": resume, "--force": force, "--fail-on-forgetting": fail_on_forgetting}
        options = [name for name, is_set in flags.items() if is_set]
        _detach(words, options + (["--nproc", str(nproc)] if nproc else []))
        return
    if not dry_run:
        verdict = run_recipe(recipe, resume=resume, force=force)
        if fail_on_forgetting and is_main_process():  # which knows it
            fail_on(verdict)
        return
    _show_outlook(recipe, resume=resume, force=force)


def _recipe_of(words: tuple[str, ...], *, resume: bool) -> "Recipe":
    """Return the recipe that the words name. Raises `ConfigError` for a run to resume that none names."""
    from glmtune.errors import ConfigError
    from glmtune.locations import newest_runs_hint
    from glmtune.workflows.early import training_recipe

    has_source = bool(words) and "=" not in words[0]
    if resume and not has_source and not any(word.startswith("model=") for word in words):
        runs = newest_runs_hint()
        raise ConfigError(
            "--resume: no run named",
            hint="name its folder: `glmtune train RUN --resume`" + (f"; {runs}" if runs else ""),
        )
    if has_source:
        return training_recipe(PATH.convert(words[0], None, None), words[1:])
    return training_recipe({}, words)


def _show_outlook(recipe: "Recipe", *, resume: bool, force: bool) -> None:
    """Print what the run takes, or what is left of it; raise what training would refuse it with."""
    from glmtune.errors import ConfigError
    from glmtune.run_files import list_checkpoints
    from glmtune.workflows.early import run_folder

    folder = run_folder(recipe)
    if resume and recipe.train.copy_to and not list_checkpoints(folder):
        raise ConfigError(
            f"{folder}: no checkpoint here, and a dry run fetches none from {recipe.train.copy_to}",
            hint="leave dry-run out: the newest whole one is fetched, then gone on with",
        )
    outlook = look_ahead(recipe, resume=resume, begins=True)
    if is_main_process():
        for line in ("", *page_lines(outlook)):
            click.echo(line)
    if resume:
        from glmtune.workflows.checkpoints import newest_whole

        found = newest_whole(folder)  # every byte is read, as in earnest
        if is_main_process():
            for path, problem in found.damaged:
                click.echo(f"warning: {path.name} is not whole: {problem}", err=True)
            left = outlook.steps - found.state["standing"]["step"]
            click.echo(f"goes on from {found.folder.name}: {left:,} of {outlook.steps:,} steps to go")
    leave_group()
    from glmtune.workflows.room import find_refusal

    if (refusal := find_refusal(outlook.here, is_resumed=resume)) and not force:
        raise refusal


def _detach(words: tuple[str, ...], options: list[str]) -> None:
    """Start the run in a process of its own, and print how to follow it."""
    from glmtune.workflows.runner import start

    started = start(words, options=options, show=click.echo)
    run = shlex.quote(str(started.folder))
    click.echo(
        f"{started.folder}: goes on in the background, process {started.pid}; this terminal may be closed\n"
        f"next: {program()} logs {run} -f\n"
        f"      {program()} status {run}\n"
        f"      {program()} stop {run}"
    )


def _is_finished(run: Path) -> bool:
    """Return True for a finished run, and print how to train on from it."""
    from glmtune.errors import GlmtuneError
    from glmtune.locations import resolve
    from glmtune.reports.listing import summarise_runs
    from glmtune.workflows.resuming import train_on_command
    from glmtune.workflows.show import Lines

    try:
        entries = summarise_runs(run)
        resolve(run)  # raises for a broken link `best`, which resuming repairs
    except GlmtuneError:
        return False
    if [entry.state for entry in entries] != ["finished"]:
        return False
    command = train_on_command(run)
    Lines().say(f"{run}: finished, at step {entries[0].steps}; to train on from its weights: {command}")
    return True


def run_recipe(recipe: "Recipe", *, resume: bool, force: bool) -> str | None:
    """Train and print the events: first what can be checked without torch, then the run.

    Returns the verdict on what was forgotten; None without a report.
    """
    from glmtune.workflows.early import check_training

    rows = check_training(recipe, resume=resume)
    # only now, for loading torch takes seconds: mistakes in paths and rows are errors before it
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    from glmtune.training.stopping import terminable
    from glmtune.workflows.events import drain
    from glmtune.workflows.execute import training
    from glmtune.workflows.show import Lines, Shown

    disable_progress_bar()  # transformers' bar of loading weights; the training's own bar is enough
    enable_progress_bars()  # a download takes minutes: it shows its bar
    lines = Lines()
    with lines.bar("training"), terminable(), naming_ended_process():
        result = drain(training(recipe, resume=resume, force=force, rows=rows), Shown(lines))
    leave_group()
    lines.say(f"next: {program()} chat {result.path}")
    lines.say(f"      {program()} evaluate {result.path}")
    return result.metrics.get("verdict")
