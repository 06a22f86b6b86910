"""Migrate the flags of transformers' Trainer: batch, steps, learning rate, precision, evaluation, saving."""

import math
from pathlib import Path

from glmtune.charset import AUTO
from glmtune.data.reader import check_objects, read_raw_rows
from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import is_there, read_json_if_there
from glmtune.migration.draft import RecipeDraft
from glmtune.recipe.flags import OPTIMIZERS, SCHEDULES, TRAINER, is_on
from glmtune.values import shown


def carry_training(draft: RecipeDraft, *, is_full: bool) -> None:
    """Set the `train` settings from the Trainer's flags. Raises ConfigError for a number that is none."""
    steps = _carry_length(draft)
    _carry_optimizer(draft, steps, is_full=is_full)
    _carry_intervals(draft)
    stage = _carry_deepspeed(draft) if "deepspeed" in draft.flags else None
    if is_full:
        draft.warn("method", _FULL_MEMORY if stage is None else _memory_of(stage, draft))


def _carry_deepspeed(draft: RecipeDraft) -> int | None:
    """Set `distributed` as DeepSpeed's configuration has it; return ZeRO's stage if that shares gradients."""
    path = Path(draft.locate(draft.flags["deepspeed"] or ""))
    try:
        config = read_json_if_there(path)
    except CheckpointError as err:
        raise ConfigError(str(err), hint="mend it, or take deepspeed out of the script") from None
    given = config.get("zero_optimization")
    zero = given if isinstance(given, dict) else {}
    stage = zero.get("stage")
    what = "DeepSpeed" if stage is None else f"DeepSpeed's ZeRO-{shown(stage)}"
    for part in ("optimizer", "scheduler"):
        if part in config:
            draft.lost[f"{path.name}: {part}"] = "the recipe's AdamW and schedule are used"
    if stage in _SHARING and draft.processes > 1:
        parts = "weights, gradients and Adam's means" if stage == 3 else "gradients and Adam's means"
        text = f"ZeRO-{stage} as in the script (pip install 'glmtune[deepspeed]'): {parts} are shared out"
        draft.put("distributed", {"name": "deepspeed", **({"stage": stage} if stage != 2 else {})}, text)
        for setting, part in (
            ("offload_optimizer", "offload_optimizer"),
            ("offload_weights", "offload_param"),
        ):
            if isinstance(place := zero.get(part), dict) and place.get("device") == "cpu":
                draft.put(f"distributed.{setting}", True)
        if draft.settings.get("train.precision") == "fp16":
            text = "fp16 in the script: loss scaling is not shared out, so bf16 where the card has it"
            draft.put("train.precision", "auto", text)
        del draft.flags["deepspeed"]
        return int(stage)
    held = "each process holds the whole model and Adam's means"
    if not is_there(path):
        what = f"{path.name} is not there to say how weights were shared, so DeepSpeed"
        held += "; distributed=deepspeed shares gradients and means out"
    draft.lose("deepspeed", f"{what} is not used: {held}")
    return None


def _memory_of(stage: int, draft: RecipeDraft) -> str:
    """Return the memory of a card that trains every weight, with the sharing of a stage of ZeRO."""
    processes = draft.processes
    # means and copy of the weights, then the weights
    moved = sum(
        part * bool(draft.settings.get(f"distributed.{setting}"))
        for setting, part in (("offload_optimizer", 12), ("offload_weights", 4))
    )
    main = f", of which {moved / processes:.3g} bytes lie in main memory" if moved else ""
    # gradients, two means and DeepSpeed's own copy of the weights, all fp32, over the processes
    needed = {2: 4 + 16 / processes, 3: 20 / processes}
    less = f"ZeRO-3 needs {needed[3]:.3g} bytes, " if stage == 2 else ""
    return (
        f"each card needs {needed[stage]:.3g} bytes a parameter of the 20 (weights, gradients, AdamW's means "
        f"and DeepSpeed's copy of the weights in fp32): {6.2 * needed[stage]:.0f} GB for the 6.2 billion of "
        f"ChatGLM-6B, and activations{main}; {less}method=lora 2"
    )


_SHARING = (2, 3)
"""Stages of ZeRO that share out more than Adam's means. Source: arxiv.org/abs/1910.02054."""
_FULL_MEMORY = (
    "each card needs 16 bytes a parameter (weights, gradients and AdamW's means in fp32): 100 GB for the "
    "6.2 billion of ChatGLM-6B, and activations; train.optimizer=adamw_8bit needs 10 bytes, method=lora 2"
)
# docs/methods.md#memory and docs/cluster.md have the arithmetic


def hold_out(draft: RecipeDraft) -> None:
    """Note in a draft without a validation file that training rows are held out for validation."""
    draft.mend(
        "data.train",
        "no validation rows are named: 5 % of these, at least 1 and at most 200, are held out for the "
        "evaluation loss and not trained; with data.validation=FILE all are trained",
    )


def _carry_length(draft: RecipeDraft) -> int | None:
    """Set the batch size and the length. Return the number of steps, None if the rows are not here."""
    rows = draft.number("per_device_train_batch_size", TRAINER["per_device_train_batch_size"], least=1)
    micro = draft.number("gradient_accumulation_steps", TRAINER["gradient_accumulation_steps"], least=1)
    product = f"{rows} row{'s' if rows > 1 else ''} x {micro} accumulated x {draft.processes} process"
    # train.batch_size counts the rows of all processes: more cards make a step faster, not bigger
    draft.put(
        "train.batch_size",
        rows * micro * draft.processes,
        f"{product}{'es' if draft.processes > 1 else ''}; a step is these rows on any number of processes",
    )
    draft.put("train.micro_batch_size", rows)
    steps = draft.number("max_steps", "-1")
    epochs = draft.number("num_train_epochs", TRAINER["num_train_epochs"], float)
    if steps > 0:  # max_steps wins over num_train_epochs, as in the Trainer
        draft.put("train.steps", steps)
        return int(steps)
    num_rows = _count_rows(draft)
    if num_rows is None:
        draft.put("train.epochs", epochs, _PARTIAL)
        return None
    # github.com/huggingface/transformers v4.30, trainer.py, `num_update_steps_per_epoch`: batches rounded up,
    # whole steps of them rounded down, at least one
    at_once = rows * draft.processes
    steps = math.ceil(epochs * max(1, math.ceil(num_rows / at_once) // micro))
    draft.put("train.steps", steps, f"{epochs:g} epochs of {num_rows:,} rows; {_PARTIAL}")
    return int(steps)


_PARTIAL = "the Trainer leaves out an epoch's last rows where they fill no step; here they are a smaller step"


def _count_rows(draft: RecipeDraft) -> int | None:
    """Count the rows that main.py trains: those without an empty text. None if the file is not here."""
    path = draft.settings.get("data.train")
    if path is None or not is_there(Path(path)):
        return None
    columns = [draft.flags[name] for name in ("prompt_column", "response_column") if draft.flags.get(name)]
    rows = read_raw_rows(Path(path), AUTO)
    check_objects(rows)
    limit = draft.flags.get("max_train_samples")
    rows = rows[: draft.read("max_train_samples", limit, int)] if limit else rows
    return sum(all(row.value.get(name) for name in columns) for row in rows)


def _carry_optimizer(draft: RecipeDraft, steps: int | None, *, is_full: bool) -> None:
    """Set learning rate, schedule, warmup, optimizer and precision."""
    draft.put("train.lr", draft.number("learning_rate", TRAINER["learning_rate"], float))
    schedule = draft.take("lr_scheduler_type", TRAINER["lr_scheduler_type"]) or ""
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"{draft.where}: lr_scheduler_type {schedule}: not a schedule here",
            hint=f"choose another in the script: {', '.join(SCHEDULES)}",
        )
    draft.put("train.schedule", SCHEDULES[schedule])
    # warmup_steps wins over warmup_ratio, as in the Trainer; a ratio needs the number of steps
    ratio = draft.number("warmup_ratio", "0", float)
    warmup = draft.number("warmup_steps", "0")
    if ratio and not warmup and steps is None:
        draft.lost[f"warmup_ratio {ratio:g}"] = "set train.warmup_steps: the plan line says how many steps"
    warmup = warmup or math.ceil(ratio * (steps or 0))
    if warmup:
        draft.put("train.warmup_steps", warmup)
    optimizer = draft.flags.get("optim") or "adamw_torch"
    if optimizer in OPTIMIZERS:
        draft.take("optim")
        if OPTIMIZERS[optimizer] != "adamw":
            draft.put("train.optimizer", OPTIMIZERS[optimizer])
    else:
        draft.lose("optim", "it is trained with AdamW")
    # half precision if the script asks for it; without it a wholly trained model computes in fp32
    precision = next((name for name in ("bf16", "fp16") if is_on(draft.flags, name)), None)
    for name in ("bf16", "fp16"):
        draft.take(name)
    if precision:
        draft.put("train.precision", precision)
    elif is_full:
        draft.put("dtype", "fp32", "it trains in fp32 unless told fp16")
        draft.put("train.precision", "fp32")


def _carry_intervals(draft: RecipeDraft) -> None:
    """Set the numbers of steps between log lines, checkpoints and evaluations."""
    draft.put("train.log_every", draft.number("logging_steps", TRAINER["logging_steps"]))
    strategy = draft.take("save_strategy", "steps")
    save_every = draft.number("save_steps", TRAINER["save_steps"])
    if strategy == "steps":
        draft.put("train.save_every", save_every)
    elif strategy == "epoch":
        draft.lost["save_strategy epoch"] = "checkpoints are counted in steps: train.save_every"
    else:
        draft.dropped[f"save_strategy {strategy}"] = "a run keeps its best and its newest checkpoints"
    # evaluation_strategy became eval_strategy in transformers 4.41; eval_steps defaults to logging_steps
    strategy = draft.take("evaluation_strategy") or draft.take("eval_strategy") or "no"
    draft.take("eval_strategy")
    eval_every = draft.number("eval_steps", str(draft.settings["train.log_every"]))
    if strategy == "steps":
        draft.put("train.eval_every", eval_every)
        return
    if strategy == "epoch":
        draft.lost["evaluation_strategy epoch"] = "evaluations are counted in steps: train.eval_every"
    if "train.save_every" in draft.settings:
        draft.put(
            "train.eval_every",
            draft.settings["train.save_every"],
            "nothing looked at the validation rows; here the loss of at most 200 is taken at each checkpoint",
        )
