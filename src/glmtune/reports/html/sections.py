"""The contents of a run's part of the page, from the run's files."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glmtune.evaluation.metrics import METRICS, VARIANTS
from glmtune.files import read_json_if_there, read_text
from glmtune.reports.before_after import SampleAnswer, group_answers
from glmtune.reports.comparable import describe_evaluation_rows, describe_training_rows
from glmtune.reports.compare import flatten
from glmtune.reports.curves import is_wide, read_curve, read_source_curves
from glmtune.reports.html.charts import (
    Chart,
    RankMap,
    Series,
    curve_chart,
    histogram,
    rank_map,
    run_series,
    smoothed,
)
from glmtune.reports.html.forgetting import Kept, describe_forgetting
from glmtune.reports.recorded_run import RecordedRun, Scores, describe_method, read_forgetting, read_scores
from glmtune.reports.texts import Text, in_bytes, in_time, text, text_or_name
from glmtune.run_files import DATA_FILE, MEMORY_FILE, RANKS_FILE, RECIPE_FILE, read_json_lines

EVALUATION_COLOUR = 1


class Figure(NamedTuple):
    """A figure of each step that has a chart of its own."""

    key: str
    """Its key in metrics.jsonl."""
    title: Text
    unit: Text
    is_noisy: bool
    """True to draw its running mean too."""
    from_zero: bool


FIGURES = (
    Figure("lr", text("rate"), Text.of(""), is_noisy=False, from_zero=False),
    Figure("tokens_per_s", text("throughput"), text("throughput_unit"), is_noisy=True, from_zero=True),
    Figure("memory_gib", text("memory_curve"), text("memory_unit"), is_noisy=False, from_zero=True),
    Figure("grad_norm", text("gradient"), text("gradient_unit"), is_noisy=True, from_zero=False),
    Figure("kl", text("near_curve"), text("near_unit"), is_noisy=True, from_zero=True),
    Figure("general_kl", text("kept_curve"), text("kept_unit"), is_noisy=False, from_zero=True),
)
"""The charts below that of the loss."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in the head of a run, with its name and a remark."""

    name: Text
    value: str
    note: Text | None = None


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Memory of one part, planned and measured, in words and in percent of the largest sum."""

    name: Text
    predicted: tuple[str, float]
    measured: tuple[str, float]


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Memory by part, its sums, and remarks on them."""

    parts: list[MemoryPart]
    total: MemoryPart
    notes: list[Text]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sample prompt with its answers: those of the first and of the best evaluation, and all by step."""

    asked: Text
    prompt: str
    shown: list[tuple[Text, str]]
    answers: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Counts of the training or the validation rows."""

    name: Text
    files: str
    counts: list[tuple[Text, Text]]


@dataclass(frozen=True, slots=True)
class RunPage:
    """All that the page says of a run."""

    name: str
    path: str
    base: str
    method: str
    state: Text
    tiles: list[Tile]
    charts: list[Chart]
    prompts: list[Prompt]
    scores: list[tuple[Text, Text, list[tuple[str, str, Text, float]]]]
    """Rows of an evaluation, by which checkpoint, and of each score its name, value, best and share of it."""
    kept: Kept | None
    memory: MemoryTable | None
    rows: list[RowCounts]
    lengths: Chart | None
    ranks: RankMap | None
    settings: list[tuple[str, str]]
    recipe: str
    environment: list[tuple[str, str]]
    commands: list[tuple[Text, str]]


def describe_run(run: RecordedRun, name: str) -> RunPage:
    """Return the contents of a run's part of the page. Raises `CheckpointError` for a damaged file."""
    ranks = read_json_lines(run.path / RANKS_FILE)
    facts = read_json_if_there(run.path / DATA_FILE, is_ours=True)
    memory = read_json_if_there(run.path / MEMORY_FILE, is_ours=True)
    scores = read_scores(run)
    kept = describe_forgetting(read_forgetting(run))
    state = "state_finished" if run.is_finished else "state_stopped" if run.training else "state_new"
    files_of_rows = {"train": describe_training_rows(run), "validation": describe_evaluation_rows(run)}
    set_here = run.recipe.model_dump(mode="json", exclude_defaults=True)
    return RunPage(
        name=name,
        path=str(run.path.resolve()),
        base=Path(run.base).name or run.base,
        method=describe_method(run.recipe.method),
        state=text(state, step=f"{run.num_steps:,}"),
        tiles=list(_tiles(run, memory, kept)),
        charts=list(_charts(run)),
        prompts=list(_prompts(run)),
        scores=[_scores(each) for each in scores],
        kept=kept,
        memory=_memory(memory) if memory else None,
        rows=[
            RowCounts(text(f"rows_{name}"), files, list(_counts(facts[name])) if facts.get(name) else [])
            for name, files in files_of_rows.items()
        ],
        lengths=histogram(facts["train"]) if facts else None,
        ranks=rank_map(ranks, run.num_steps) if ranks else None,
        settings=[
            ("method", run.recipe.method.name),
            *((key, shown_value(value)) for key, value in flatten(set_here)),
        ],
        recipe=read_text(run.path / RECIPE_FILE),
        environment=[
            (key, shown_value(value))
            for key, value in flatten(run.environment)
            if key != "command" and not key.startswith("memory.")
        ],
        commands=list(_commands(run)),
    )


def loss_chart(title: Text, series: list[Series], *, best: tuple[int, float] | None = None) -> Chart | None:
    """Lay out losses; the unit says it if their axis is logarithmic."""
    losses = [value for each in series for value in each.curve.values()]
    return curve_chart(title, text("loss_log" if is_wide(losses) else "loss_unit"), series, best=best)


def _tiles(run: RecordedRun, memory: Mapping[str, Any], kept: Kept | None) -> Iterator[Tile]:
    best, seconds = run.best_step, run.seconds[max(run.seconds)]
    if best is not None:
        first = f"{run.evaluation[0]:.3g} → " if 0 in run.evaluation else ""
        value = f"{first}{run.evaluated[best]:.3g}"
        yield Tile(text("evaluation_loss"), value, text("best_at", step=f"{best:,}"))
    if kept:
        yield Tile(text("verdict"), kept.verdict, text("verdict_note", kl=kept.kl))
    yield Tile(text("training_time"), in_time(seconds), text("num_steps", steps=f"{run.num_steps:,}"))
    if (rate := run.tokens_per_s()) is not None:
        note = text("steps_s", value=f"{len(run.training) / seconds:.3g}") if seconds else None
        yield Tile(text("tokens_s"), f"{rate:,.0f}", note)
    if (peak := run.peak_memory_gib()) is not None:
        limit = text("available", value=in_bytes(memory["limit"])) if memory else None
        yield Tile(text("peak_memory"), in_bytes(peak * 2**30), limit)
    if (trained := run.trainable_parameters()) is not None:
        every = run.environment.get("all_parameters")
        note = text("share_of_all", share=f"{100 * trained / every:.3g}", all=f"{every:,}") if every else None
        yield Tile(text("trained"), f"{trained:,}", note)
    if (size := run.size_bytes()) is not None:
        yield Tile(text("size"), in_bytes(size), text("size_note"))


def _charts(run: RecordedRun) -> Iterator[Chart]:
    """Yield the chart of the losses, and that of each figure that the run recorded."""
    evaluation = Series(
        name=text("evaluation"), curve=run.evaluation, colour=EVALUATION_COLOUR, has_points=True
    )
    losses = [*run_series(run.training, "training"), evaluation]
    best = None if run.best_step is None else (run.best_step, run.evaluated[run.best_step])
    charts = [loss_chart(text("loss"), losses, best=best)]
    by_source = [
        Series(name=Text.of(Path(name).name), curve=smoothed(curve), colour=number)
        for number, (name, curve) in enumerate(read_source_curves(run.metrics).items())
    ]
    if by_source:
        charts.append(loss_chart(text("source_losses"), by_source))
    for each in FIGURES:
        series = run_series(read_curve(run.metrics, each.key), "figure", is_noisy=each.is_noisy)
        charts.append(curve_chart(each.title, each.unit, series, from_zero=each.from_zero))
    yield from filter(None, charts)


def _prompts(run: RecordedRun) -> Iterator[Prompt]:
    for asked, by_step in group_answers(run.samples).items():
        after = run.samples_step if run.samples_step in by_step else max(by_step)
        shown = [(_when(text("before"), by_step[0]), by_step[0].text)] if 0 in by_step else []
        if after:
            when = text("best_step" if after == run.best_step else "at_step", step=f"{after:,}")
            shown.append((_when(when, by_step[after]), by_step[after].text))
        label = text("asked") if asked.seed is None else text("asked_with_seed", seed=asked.seed)
        by_number = [(step, answer.text) for step, answer in sorted(by_step.items())]
        yield Prompt(label, "\n".join(asked.turns), shown, by_number)


def _when(when: Text, answer: SampleAnswer) -> Text:
    """Return the head of an answer: when it was given, the time that it took, whether it is right."""
    heads = [when]
    if answer.seconds is not None:
        heads.append(Text.of(in_time(answer.seconds)))
    if answer.is_right is not None:
        heads.append(text("right" if answer.is_right else "wrong"))
    return Text(*(" · ".join(words) for words in zip(*heads, strict=True)))


def _scores(scores: Scores) -> tuple[Text, Text, list[tuple[str, str, Text, float]]]:
    head = text(
        "score_rows", data=scores.data, rows=f"{scores.num_rows:,}", tokens=f"{scores.max_new_tokens:,}"
    )
    values = []
    for name, value in scores.values.items():
        best = METRICS[name].best(VARIANTS["thudm"]) if name in METRICS else 100
        values.append(
            (name, f"{value:.2f}", text("score_of", best=best), min(max(100 * value / best, 0), 100))
        )
    return head, text("score_from", checkpoint=scores.checkpoint), values


def _memory(memory: Mapping[str, Any]) -> MemoryTable:
    columns = [dict(memory[name] or {}) for name in ("predicted", "measured")]
    sums = [column.pop("bytes", sum(column.values())) for column in columns]
    most = max(*sums, 1)

    def part(name: Text, predicted: int, measured: int) -> MemoryPart:
        both = ((in_bytes(size) if size else "–", 100 * size / most) for size in (predicted, measured))
        return MemoryPart(name, *both)

    names = dict.fromkeys(name for column in columns for name in column)
    parts = [part(text_or_name("part", name), *(column.get(name, 0) for column in columns)) for name in names]
    notes = [text("available", value=in_bytes(memory["limit"]))]
    if all(sums):
        notes.append(text("difference", share=f"{100 * sums[1] / sums[0]:.0f}"))
    return MemoryTable(parts, part(text("total"), *sums), notes)


def _counts(facts: Mapping[str, Any]) -> Iterator[tuple[Text, Text]]:
    """Yield the counts of data.json that are not 0, with their names."""
    yield text("num_rows"), Text.of(f"{facts['rows']:,}")
    for key in ("p50", "p99", "longest"):
        yield text(key), text("num_tokens", count=f"{facts['tokens'].get(key, 0):,}")
    for kind in ("cut", "drop"):
        for name, count in facts[f"{kind}s"].items():
            if count:
                yield text_or_name(kind, name), Text.of(f"{count:,}")
    if facts["tokens_lost"]:
        yield text("tokens_lost"), Text.of(f"{facts['tokens_lost']:,}")


def _commands(run: RecordedRun) -> Iterator[tuple[Text, str]]:
    """Yield commands to type, each with its purpose; first the one that was typed, if it was recorded."""
    if typed := run.environment.get("command"):
        yield text("typed"), typed
    folder = shlex.quote(str(run.path))
    yield text("again"), f"glmtune train {shlex.quote(str(run.path / RECIPE_FILE))} output=NEW"
    if not run.is_finished:
        yield text("go_on"), f"glmtune train {folder} --resume"
    yield text("talk"), f"glmtune chat {folder}"
    yield text("score_it"), f"glmtune evaluate {folder} --data FILE"
    yield text("measure_it"), f"glmtune evaluate {folder} --general"
    yield text("renew"), f"glmtune report {folder}"


def shown_value(value: object) -> str:
    """Return a setting or a fact as the page shows it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
