"""`glmtune plan`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, counted, leave_group, print_json
from glmtune.log import is_main_process

if TYPE_CHECKING:
    from glmtune.recipe import Recipe
    from glmtune.workflows.forecast import Forecast
    from glmtune.workflows.outlook import Outlook

WIDTH = 100


@click.command(short_help="Say what a run needs, whether it fits, how long it takes.")
@click.argument("words", nargs=-1, metavar="[RECIPE]... [KEY=VALUE]...")
@click.option("--probe", is_flag=True, help="Load the model and time 20 steps: how long the run takes.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object, or an array of them.")
def plan(words: tuple[str, ...], probe: bool, as_json: bool) -> None:
    """Say what a training run needs before it is begun: memory by part, disk, steps; here and on cards.

    RECIPE and KEY=VALUE words are those of `glmtune train`. No weight is read and nothing is written. Where a
    run does not fit, the settings that make it fit stand in its line, to be typed behind the command. Several
    recipes make one table.

    \b
      glmtune plan model=/models/chatglm3-6b data.train=my.json quant=int4
      glmtune plan recipes/lora.yaml recipes/full.yaml model=/models/chatglm3-6b data.train=my.json
      glmtune plan runs/chatglm3-6b-lora --probe
    """
    from glmtune.errors import GlmtuneError
    from glmtune.workflows.early import training_recipe

    sources = [word for word in words if "=" not in word]
    settings, outlooks = [word for word in words if "=" in word], {}
    for source in sources or [""]:
        try:
            recipe = training_recipe(PATH.convert(source, None, None) if source else {}, settings)
            outlooks[source] = look_ahead(recipe, probe=probe)
        except GlmtuneError as err:
            if len(sources) < 2 or str(err).startswith(source):
                raise
            raise type(err)(f"{source}: {err}", hint=err.hint) from err
    leave_group()
    if not is_main_process():
        return
    if as_json:
        facts = [outlook.facts() for outlook in outlooks.values()]
        print_json(facts if len(facts) > 1 else facts[0])
        return
    for line in table_lines(outlooks) if len(outlooks) > 1 else page_lines(*outlooks.values()):
        click.echo(line)


def look_ahead(
    recipe: "Recipe", *, resume: bool = False, begins: bool = False, probe: bool = False
) -> "Outlook":
    """Return the outlook of a run. If it `begins` all is said as in a training, else warnings on stderr."""
    from glmtune.workflows.early import check_training

    rows = check_training(recipe, resume=resume, begins=begins)
    from transformers.utils.logging import disable_progress_bar

    from glmtune.workflows.events import Event, FirstRow, Note, drain
    from glmtune.workflows.outlook import looking_ahead
    from glmtune.workflows.show import Lines, Shown

    disable_progress_bar()
    lines = Lines(on_stderr=not begins)
    show = Shown(lines)

    def hear(event: Event) -> None:
        is_said = event.is_warning if isinstance(event, Note) else not isinstance(event, FirstRow)
        if begins or is_said:
            show(event)

    with lines.bar("timing"):
        return drain(looking_ahead(recipe, resume=resume, rows=rows, begins=begins, probe=probe), hear)


def page_lines(outlook: "Outlook") -> Iterator[str]:
    """Yield the page of one run: its steps, its memory by part, and the machines on which it fits."""
    here = outlook.here
    recipe = here.recipe
    types = f"{recipe.train.precision} arithmetic, weights {recipe.quant or f'in {recipe.dtype}'}"
    yield f"{Path(outlook.model).name}, {outlook.method}: {types}"
    yield (
        f"{outlook.rows:,} rows to train on, {outlook.validation_rows:,} to evaluate on; "
        f"longest {outlook.longest_row:,} tokens, longest micro-batch {here.tokens:,}"
    )
    yield (
        f"{outlook.steps:,} steps of up to {counted(outlook.batch_size, 'row')}, "
        f"{outlook.samples:,} samples, {outlook.epochs:.2f} epochs; disk {_size(here.disk)} at most"
    )
    if outlook.replay:
        yield outlook.replay
    if outlook.longest_replay > outlook.longest_row:
        yield (
            f"replay's longest row: up to {outlook.longest_replay:,} tokens, every answer in it as long as "
            "it may become; micro-batch and memory have room for it"
        )
    yield from filter(None, (outlook.nearness, outlook.report))
    if speed := outlook.speed:
        from glmtune.training.progress import clock_time

        yield (
            f"about {clock_time(speed.total_s)} in all: a step takes {speed.step_s:.3g} s (the slowest of "
            f"{speed.steps}: {speed.slowest_s:.3g}), an evaluation {speed.evaluation_s:.3g} s"
        )
    yield ""
    yield from part_lines(here, processes=outlook.processes)
    yield ""
    yield from machine_lines(outlook)


def part_lines(figures: "Forecast", *, processes: int) -> Iterator[str]:
    """Yield a line per part, with a column for each phase of the run's life."""
    phases = figures.phases
    greatest = max(phase.num_bytes for phase in phases)
    unit, scale = ("GiB", 2**30) if greatest >= 2**30 else ("MiB", 2**20)
    names = sorted({name: 0 for phase in phases for name in phase.parts}, key=lambda name: name == "process")
    head = (
        f"{unit} on {figures.machine.name}" if processes == 1 else f"{unit} of each of {processes} processes"
    )
    width = max(map(len, (head, *names)))
    yield f"{head:<{width}}" + "".join(f"{phase.name:>13}" for phase in phases)
    for name in names:
        shown = (f"{phase.parts[name] / scale:.2f}" if name in phase.parts else "" for phase in phases)
        yield (f"{name:<{width}}" + "".join(f"{text:>13}" for text in shown)).rstrip()
    yield f"{'together':<{width}}" + "".join(f"{phase.num_bytes / scale:>13.2f}" for phase in phases)


def machine_lines(outlook: "Outlook") -> Iterator[str]:
    """Yield a line per machine: what is free, what the run takes, and how it fits or what makes it fit."""
    yield f"{'machine':<21}{'free':>10}{'training':>10}  fits"
    for figures in (*outlook.cards, outlook.here):
        machine = figures.machine
        has_twin = any(each.machine.name == machine.name and each is not figures for each in outlook.cards)
        name = machine.name + (", no bf16" if has_twin and not machine.has_bf16 else "")
        needed = _size(figures.phases[0].num_bytes) if figures.phases else "-"
        start = f"{name:<21}{_size(machine.free):>10}{needed:>10}  {'yes' if figures.fits else 'no':<6}"
        text = figures.override or figures.hint
        if figures.fits:
            text = f"{figures.tokens:,} tokens at once"
            if figures.recomputed:
                text += f", {counted(figures.recomputed, 'layer')} recomputed"
        if len(start) + len(text) <= WIDTH:
            yield start + text
        else:  # in one piece, so that it can be pasted
            yield from (start.rstrip(), f"      {text}")


def table_lines(outlooks: "dict[str, Outlook]") -> Iterator[str]:
    """Yield a line per recipe."""
    rows = [("recipe", "method", "quant", "steps", "tokens", "weights", "training", "fits on", "here")]
    for source, outlook in outlooks.items():
        here, card = outlook.here, outlook.smallest_card
        weights = sum(here.phases[0].parts.get(name, 0) for name in WEIGHTS)
        rows.append(
            (
                Path(source).stem if source.endswith((".yaml", ".yml")) else Path(source).name,
                outlook.method,
                here.recipe.quant or "-",
                f"{outlook.steps:,}",
                f"{here.tokens:,}",
                _size(weights),
                _size(here.phases[0].num_bytes),
                card.machine.name if card else "no card",
                "yes" if here.fits else "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, "<<<>>>><<", strict=True)
        yield "  ".join(f"{text:{side}{width}}" for text, width, side in cells).rstrip()


WEIGHTS = ("weights", "codes", "scales", "not quantised")
"""Parts of a phase that are the base's weights."""


def _size(num_bytes: int) -> str:
    from glmtune.workflows.remedies import in_words

    return in_words(num_bytes)
