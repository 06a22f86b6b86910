"""What transformers' Trainer was told: rows of a step, length, rate, precision, when it looks and saves."""

import math
from pathlib import Path
from typing import Any

from glmtune.charset import AUTO
from glmtune.data.reader import check_objects, read_raw_rows
from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import is_there, read_json_if_there
from glmtune.migration.draft import RecipeDraft
from glmtune.recipe.flags import OPTIMIZERS, SCHEDULES, TRAINER, is_on
from glmtune.values import shown


def carry_training(draft: RecipeDraft, *, is_full: bool) -> None:
    """Set `train` from the Trainer's flags. Raises ConfigError for a number that is none."""
    if is_full:
        draft.warn("method", _FULL_MEMORY)
    _carry_batch(draft)
    steps = _carry_length(draft)
    draft.put("train.lr", draft.number("learning_rate", TRAINER["learning_rate"], float))
    _carry_schedule(draft, steps)
    _carry_optimizer(draft)
    _carry_precision(draft, is_full=is_full)
    draft.put("train.log_every", draft.number("logging_steps", TRAINER["logging_steps"]))
    _carry_saving(draft)
    _carry_evaluation(draft)
    _carry_deepspeed(draft)


_FULL_MEMORY = (
    "each card needs 16 bytes a parameter (weights, gradients and AdamW's means in fp32): 100 GB for the "
    "6.2 billion of ChatGLM-6B, and activations; train.optimizer=adamw_8bit needs 10 bytes, method=lora 2"
)
"""docs/methods.md#memory has the arithmetic."""


def hold_out(draft: RecipeDraft) -> None:
    """Without a validation file some training rows become one, few of many, and that is said."""
    draft.mend(
        "data.train",
        "no validation rows are named: 5 % of these, at least 1 and at most 200, are held out for the "
        "evaluation loss and not trained; with data.validation=FILE all are trained",
    )


def _carry_batch(draft: RecipeDraft) -> None:
    """A step's rows are those of all processes: more cards make it faster, not bigger."""
    rows = draft.number("per_device_train_batch_size", TRAINER["per_device_train_batch_size"])
    micro = draft.number("gradient_accumulation_steps", TRAINER["gradient_accumulation_steps"])
    product = f"{rows} row{'s' if rows > 1 else ''} x {micro} accumulated x {draft.processes} process"
    draft.put(
        "train.batch_size",
        rows * micro * draft.processes,
        f"{product}{'es' if draft.processes > 1 else ''}; a step is these rows on any number of processes",
    )
    draft.put("train.micro_batch_size", rows)


def _carry_length(draft: RecipeDraft) -> int | None:
    steps = draft.number("max_steps", "-1")
    epochs = draft.number("num_train_epochs", TRAINER["num_train_epochs"], float)
    if steps > 0:
        draft.put("train.steps", steps)
        return int(steps)
    rows = _count_rows(draft)
    if rows is None:
        draft.put("train.epochs", epochs, _PARTIAL)
        return None
    at_once = draft.settings["train.micro_batch_size"] * draft.processes
    micro = draft.settings["train.batch_size"] // at_once
    steps = math.ceil(epochs * max(1, math.ceil(rows / at_once) // micro))
    draft.put("train.steps", steps, f"{epochs:g} epochs of {rows:,} rows; {_PARTIAL}")
    return int(steps)


_PARTIAL = "the Trainer leaves out an epoch's last rows where they fill no step; here they are a smaller step"


def _count_rows(draft: RecipeDraft) -> int | None:
    """How many rows are trained; None where they are not here. main.py skips those with an empty text.

    The Trainer's count: github.com/huggingface/transformers v4.30, trainer.py, `num_update_steps_per_epoch`.
    """
    path = draft.settings.get("data.train")
    if path is None or not is_there(Path(path)):
        return None
    columns = [draft.flags[name] for name in ("prompt_column", "response_column") if draft.flags.get(name)]
    rows = read_raw_rows(Path(path), AUTO)
    check_objects(rows)
    limit = draft.flags.get("max_train_samples")
    rows = rows[: draft.read("max_train_samples", limit, int)] if limit else rows
    return sum(all(row.value.get(name) for name in columns) for row in rows)


def _carry_schedule(draft: RecipeDraft, steps: int | None) -> None:
    name = draft.take("lr_scheduler_type", TRAINER["lr_scheduler_type"]) or ""
    if name not in SCHEDULES:
        raise ConfigError(
            f"{draft.where}: lr_scheduler_type {name}: not a schedule here",
            hint=f"choose another in the script: {', '.join(SCHEDULES)}",
        )
    draft.put("train.schedule", SCHEDULES[name])
    ratio = draft.number("warmup_ratio", "0", float)
    warmup = draft.number("warmup_steps", "0")
    if ratio and not warmup and steps is None:
        draft.lost[f"warmup_ratio {ratio:g}"] = "set train.warmup_steps: the plan line says how many steps"
    warmup = warmup or math.ceil(ratio * (steps or 0))
    if warmup:
        draft.put("train.warmup_steps", warmup)


def _carry_optimizer(draft: RecipeDraft) -> None:
    name = draft.flags.get("optim") or "adamw_torch"
    if name in OPTIMIZERS:
        draft.take("optim")
        if OPTIMIZERS[name] != "adamw":
            draft.put("train.optimizer", OPTIMIZERS[name])
        return
    draft.lose("optim", "it is trained with AdamW")


def _carry_precision(draft: RecipeDraft, *, is_full: bool) -> None:
    """Half precision where the script asks for it; without it a wholly trained model computes in fp32."""
    asked = next((name for name in ("bf16", "fp16") if is_on(draft.flags, name)), None)
    for name in ("bf16", "fp16"):
        draft.take(name)
    if asked:
        draft.put("train.precision", asked)
    elif is_full:
        draft.put("dtype", "fp32", "it trains in fp32 unless told fp16")
        draft.put("train.precision", "fp32")


def _carry_saving(draft: RecipeDraft) -> None:
    strategy = draft.take("save_strategy", "steps")
    every = draft.number("save_steps", TRAINER["save_steps"])
    if strategy == "steps":
        draft.put("train.save_every", every)
    elif strategy == "epoch":
        draft.lost["save_strategy epoch"] = "checkpoints are counted in steps: train.save_every"
    else:
        draft.dropped[f"save_strategy {strategy}"] = "a run keeps its best and its newest checkpoints"


def _carry_evaluation(draft: RecipeDraft) -> None:
    strategy = draft.take("evaluation_strategy") or draft.take("eval_strategy") or "no"
    draft.take("eval_strategy")
    every = draft.number("eval_steps", str(draft.settings["train.log_every"]))
    if strategy == "steps":
        draft.put("train.eval_every", every)
        return
    if strategy == "epoch":
        draft.lost["evaluation_strategy epoch"] = "evaluations are counted in steps: train.eval_every"
    if "train.save_every" in draft.settings:
        draft.put(
            "train.eval_every",
            draft.settings["train.save_every"],
            "nothing looked at the validation rows; here the loss of at most 200 is taken at each checkpoint",
        )


def _carry_deepspeed(draft: RecipeDraft) -> None:
    """DeepSpeed spreads memory over the cards; steps and rows are those of its processes."""
    if "deepspeed" not in draft.flags:
        return
    path = Path(draft.locate(draft.flags["deepspeed"] or ""))
    config = _read_config(path)
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    what = "DeepSpeed" if stage is None else f"DeepSpeed's ZeRO-{shown(stage)}"
    for part in ("optimizer", "scheduler"):
        if part in config:
            draft.lost[f"{path.name}: {part}"] = "the recipe's AdamW and schedule are used"
    draft.lose("deepspeed", f"{what} is not used: each process holds the whole model and Adam's means")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json_if_there(path)
    except CheckpointError as err:
        raise ConfigError(str(err), hint="mend it, or take deepspeed out of the script") from None
