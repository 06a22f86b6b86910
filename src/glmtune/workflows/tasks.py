"""`glmtune evaluate --tasks`: tasks of lm-eval, asked of a model, run or adapter."""

import sys
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.extras import require
from glmtune.load import choose_type, tokenizer_of
from glmtune.locations import resolve
from glmtune.models.device import resolve_device
from glmtune.recipe import Recipe
from glmtune.run_files import make_folder, write_json
from glmtune.training.processes import Processes
from glmtune.workflows.evaluating import evaluation_folder, load_answering
from glmtune.workflows.events import Event, Working

TASKS_FILE = "tasks.json"
"""File of the scores: lm-eval's own results, versions and numbers of examples."""
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""Keys of lm-eval's result that the file keeps."""


def asking_tasks(
    recipe: Recipe,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
) -> Generator[Event, None, tuple[Path, dict[str, Any]]]:
    """Run tasks of lm-eval by name; write their scores, return the file and its content.

    `include_path`: a folder with tasks of the user's own; `limit`: so many examples of each task, or below 1
    a share of them. Several processes share the work; the first one writes. Raises `ConfigError` for an
    unknown task, `MissingDependencyError` without lm-eval.
    """
    lm_eval = require("lm_eval", extra="lm-eval")
    manager = require("lm_eval.tasks", extra="lm-eval").TaskManager(
        include_path=str(include_path) if include_path else None
    )
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ConfigError(
            f"tasks: lm-eval knows no task {unknown[0]!r}",
            hint="`lm_eval ls tasks` lists them; one of your own: "
            "`glmtune evaluate PATH --tasks NAME --include-path FOLDER`",
        )
    from glmtune.evaluation.harness import HarnessModel  # imports lm-eval

    strength = recipe.evaluate.strength
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision, has_base=strength != 1)
    tokenizer = tokenizer_of(location, template=recipe.template)
    dtype = choose_type(location, recipe.dtype, recipe.device, recipe.quant)
    processes = Processes(
        resolve_device(recipe.device), precision=dtype.computing_name, engine=recipe.distributed
    )
    model = load_answering(recipe, location, dtype, device=processes.own_card)
    yield Working("answering tasks")
    with redirect_stdout(sys.stderr):  # where it prints what it does; ours is for figures
        result = lm_eval.simple_evaluate(
            model=HarnessModel(model, tokenizer, processes),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
        )
    facts: dict[str, Any] = {"lm_eval": lm_eval.__version__, "model": str(location.trained)}
    facts |= {"strength": strength, "limit": limit}
    # lm-eval gives them to the first process of a machine alone
    facts |= processes.firsts({key: result[key] for key in KEPT if key in result} if result else {})
    folder = evaluation_folder(recipe, location, "tasks")
    if processes.is_main:
        make_folder(folder)
        write_json(folder / TASKS_FILE, facts)
    return folder / TASKS_FILE, facts
