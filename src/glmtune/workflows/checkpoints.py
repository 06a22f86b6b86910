"""A run's checkpoints: saved, and gone on from."""

from dataclasses import asdict, replace
from pathlib import Path

from glmtune.adapters.card import Card
from glmtune.adapters.origin import check_base, require_files
from glmtune.adapters.proof import check_recorded, proof_line, recorded_difference
from glmtune.adapters.store import read_card, require_saved, restore_trained, save_trained
from glmtune.files import copy_small_files
from glmtune.load import check_outline
from glmtune.locations import resolve
from glmtune.recipe import TrainedPart
from glmtune.run_files import last_checkpoint, make_folder, replacing
from glmtune.training.state import STATE_FILE, as_state, collect_state, read_state, restore_state, write_state
from glmtune.workflows.assemble import Run
from glmtune.workflows.cards import write_card
from glmtune.workflows.events import Note, Saved


def save_checkpoint(run: Run, *, is_best: bool) -> Saved:
    """Weights, card, and all that an exact continuation needs. Every process is to call it."""
    state = collect_state(run.optimizer, run.schedule, run.processes)
    state["standing"] = asdict(run.standing)
    if run.pruning:
        state["pruning"] = run.pruning.state_dict()
    plan, step = run.plan, run.standing.step
    card = write_card(
        run.recipe,
        plan.location,
        run.base,
        plan.tokenizer,
        run.model,
        row_hashes=plan.row_hashes,
        step=step,
    )
    path = run.record.checkpoint_path(step)
    if run.is_main:
        make_folder(path.parent)
        with replacing(path) as partial:
            partial.mkdir()
            if run.recipe.method.kept is TrainedPart.MODEL:
                copy_small_files(plan.location.base, partial)
            write_state(state, partial)
            save_trained(run.model, partial, card)
            if not last_checkpoint(run.record.folder):
                _require_openable(run, partial)
        run.record.link_checkpoint(step, best_step=run.standing.best_step)
        run.record.prune(run.recipe.train.keep_checkpoints, best_step=run.standing.best_step)
    run.processes.wait()
    assert card.probe is not None
    return Saved(path, is_best, recorded_difference(card.probe))


def _require_openable(run: Run, checkpoint: Path) -> None:
    """Of a run's first checkpoint: can it be opened at all?"""
    is_whole = run.recipe.method.kept is TrainedPart.MODEL
    check_outline(resolve(checkpoint, base=None if is_whole else run.plan.location.base))


def take_up(run: Run) -> Note:
    """Weights, optimizer, schedule, random numbers and standing of the last checkpoint; both links."""
    last = last_checkpoint(run.record.folder)
    assert last is not None
    card = read_card(last)
    if card:
        require_files(last, card)
    if card and card.fingerprint:
        check_base(last, card, run.plan.location.folder)
    if run.pruning is None:
        restore_trained(run.model, last)
    state = read_state(last, step=card.step if card else None, num_processes=run.processes.number)
    with as_state(last / STATE_FILE):
        restore_state(state, run.optimizer, run.schedule, run.processes)
        if run.pruning:  # its weights too: the adapter's files are without what is pruned
            run.pruning.load_state_dict(state["pruning"])
        run.standing = replace(run.standing, **state["standing"])
    if run.pruning:
        require_saved(run.model, last)
    if run.is_main:
        keep = run.recipe.train.keep_checkpoints
        run.record.go_back(run.standing.step, keep=keep, best_step=run.standing.best_step)
    return Note(_taken_up(run, last, card))


def _taken_up(run: Run, last: Path, card: Card | None) -> str:
    num_steps = run.plan.num_steps
    left = f"resumed from {last.name}: {num_steps - run.standing.step} of {num_steps} steps to go"
    before, now = card.dtype if card else "", run.base.dtype
    changed = f"the base was in {before} so far, from here it is in {now}" if before not in ("", now) else ""
    return "; ".join(filter(None, [left, changed, proof_line(check_recorded(card))]))
