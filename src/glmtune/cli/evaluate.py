"""`glmtune evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.console import PATH, counted, fail_on, leave_group, print_json, strength_option
from glmtune.cli.launch import is_to_launch, naming_ended_process, nproc_option, run_in_processes
from glmtune.errors import ConfigError
from glmtune.log import is_main_process

if TYPE_CHECKING:
    from glmtune.recipe import Recipe


@click.command(short_help="Answer and score the rows of a file.")
@click.argument("path", type=PATH)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", "data", type=PATH, help="Rows to answer; without it, the held-out rows.")
@click.option("--output", type=PATH, help="Folder of the results.")
@strength_option(None)
@click.option("--base", type=PATH, help="Base model of an adapter, if it has moved.")
@click.option("--revision", help="Branch, tag or commit of a model on a hub.")
@click.option(
    "--against",
    type=PATH,
    help="Folder of another evaluation, whose scores these are compared with.",
)
@click.option("--general", is_flag=True, help="Measure what it has kept of its base, on general prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option(
    "--fail-on-forgetting",
    is_flag=True,
    help="With --general: exit code 3 if the verdict is `forgot`; retain.forgot=0.05 is strict.",
)
@click.option("--tasks", metavar="NAME,...", help="Run tasks of lm-eval instead, such as arc_easy.")
@click.option("--include-path", type=PATH, help="With --tasks: a folder with tasks of your own.")
@click.option("--num-fewshot", type=int, help="With --tasks: examples in front; else as the task has it.")
@nproc_option()
@click.option("--limit", type=float, help="With --tasks: so many examples of each, below 1 a share.")
def evaluate(
    path: Path,
    words: tuple[str, ...],
    data: Path | None,
    output: Path | None,
    strength: float | None,
    base: Path | None,
    revision: str | None,
    against: Path | None,
    general: bool,
    as_json: bool,
    fail_on_forgetting: bool,
    tasks: str | None,
    nproc: int | None,
    **asking: Any,  # Any: options of lm-eval's tasks
) -> None:
    """Answer every row of FILE greedily and score the answers with ROUGE and BLEU-4.

    PATH is a model, run or adapter folder, or a recipe file that names one. Each answer is written to
    generated_predictions.txt as it finishes; run the same command again after an interruption and it goes on.
    Of rows with a history, the scores of each turn are told too.

    \b
      glmtune evaluate runs/chatglm3-6b-lora --data test.json
      glmtune evaluate /models/chatglm3-6b --data test.json evaluate.batch_size=32 data.max_test_rows=100
      glmtune evaluate runs/chatglm3-6b-lora --data test.json --against runs/evaluate-chatglm3-6b-test
      glmtune evaluate runs/chatglm3-6b-lora --data test.json --nproc 2
      glmtune evaluate runs/chatglm3-6b-lora --general
      glmtune evaluate merged --general --base /models/chatglm3-6b
      glmtune evaluate runs/chatglm3-6b-lora --tasks arc_easy,hellaswag --limit 100
    """
    from glmtune.workflows.early import recipe_for

    if nproc and is_to_launch(nproc):
        run_in_processes(nproc)
        return
    named = {
        "data.test": data, "output": output, "base": base, "revision": revision, "evaluate.strength": strength
    }  # fmt: skip
    words += tuple(f"{key}={value}" for key, value in named.items() if value is not None)
    source = path if path.suffix in (".yaml", ".yml") else {"model": str(path)}
    recipe = recipe_for(source, words, has_base=general)
    if general:
        verdict = _measure(recipe, as_json=as_json)
        if fail_on_forgetting and is_main_process():
            fail_on(verdict)
        return
    if tasks:
        _ask_tasks(recipe, [name.strip() for name in tasks.split(",")], asking, as_json=as_json)
        return
    if fail_on_forgetting:
        raise ConfigError(
            "--fail-on-forgetting: nothing is measured without --general",
            hint=f"`glmtune evaluate {path} --general --fail-on-forgetting`",
        )
    _require_tasks(asking)
    _score(recipe, against, as_json=as_json)


def _ask_tasks(recipe: "Recipe", tasks: list[str], asking: dict[str, Any], *, as_json: bool) -> None:
    """Run tasks of lm-eval, and print their scores."""
    from glmtune.workflows.events import drain
    from glmtune.workflows.show import Lines, Shown
    from glmtune.workflows.tasks import asking_tasks

    lines = Lines(on_stderr=as_json)
    with lines.bar("answering"), naming_ended_process():
        path, facts = drain(asking_tasks(recipe, tasks, **asking), Shown(lines))
    leave_group()
    if not is_main_process():
        return
    if as_json:
        print_json(facts)
        return
    for task, scores in facts["results"].items():
        for key, value in scores.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith("_stderr"):
                error = scores.get(f"{name}_stderr,{kind}")
                around = f" ± {error:.4f}" if isinstance(error, float) else ""
                lines.say(f"{task:24} {name:16} {value:.4f}{around}")
    lines.say(f"scores: {path}")


def _require_tasks(asking: dict[str, Any]) -> None:
    """Raise `ConfigError` if an option of lm-eval's tasks is given without a task."""
    if given := next((name for name, value in asking.items() if value is not None), ""):
        option = f"--{given.replace('_', '-')}"
        hint = f"`glmtune evaluate PATH --tasks NAME {option} ...`"
        raise ConfigError(f"{option}: a part of --tasks", hint=hint)


def _score(recipe: "Recipe", against: Path | None, *, as_json: bool) -> None:
    """Answer and score a recipe's rows, and print the scores."""
    # loads torch: after all cheap checks
    from glmtune.workflows.evaluating import differences_table, evaluating, scores_table, turns_table
    from glmtune.workflows.events import drain
    from glmtune.workflows.show import Lines, Shown

    lines = Lines(on_stderr=as_json)
    with lines.bar("answering"), naming_ended_process():
        result = drain(evaluating(recipe, against=against), Shown(lines))
    leave_group()
    if not is_main_process():
        return
    scores = result.scores
    if as_json:
        print_json(scores)
        return
    lines.say(f"{'':10} {'thudm':>16} {'chatglm3':>16}")
    for name, thudm, chatglm3 in scores_table(scores):
        lines.say(f"{name:10} {thudm:>16} {chatglm3:>16}")
    for turn, rows, *values in turns_table(scores):
        lines.say(f"{turn:>4} {rows:>6}" + "".join(f" {value:>9}" for value in values))
    for line in differences_table(scores):
        lines.say(line)
    lines.say(
        f"{counted(scores['num_rows'], 'row')}, {counted(scores['num_empty'], 'empty answer')} (score 0), "
        f"{100 * scores['stopped_share']:.1f}% ended by a stop token"
    )
    if (peak := scores["peak_memory_gib"]) is not None:  # not of an evaluation by an earlier version
        lines.say(f"peak memory: {peak:.2f} GiB")
    lines.say(f"answers: {result.path / 'generated_predictions.txt'}; scores: {result.path / 'scores.json'}")


def _measure(recipe: "Recipe", *, as_json: bool) -> str:
    """Measure what a model has kept of its base, print it, return the verdict."""
    from glmtune.workflows.events import drain
    from glmtune.workflows.general import advice_on_run, measuring
    from glmtune.workflows.report_forgetting import told
    from glmtune.workflows.show import Lines, Shown

    lines = Lines(on_stderr=as_json)
    shown = Shown(lines)
    with lines.bar("measuring"), naming_ended_process():
        folder, found = drain(measuring(recipe), shown)
    leave_group()
    if not is_main_process():
        return found.verdict
    if as_json:
        print_json(found.facts())
        return found.verdict
    for note in told(found):
        shown(note)
    if cure := advice_on_run(recipe, found):
        shown(cure)
    lines.say(f"all figures and answers: {folder / 'forgetting.json'}")
    return found.verdict
