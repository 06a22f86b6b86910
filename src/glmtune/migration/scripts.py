"""Migrate train.sh, train_chat.sh, ds_train_finetune.sh, evaluate*.sh, web_demo.sh to recipe drafts.

Source: ptuning/ of github.com/THUDM/ChatGLM-6B and github.com/THUDM/ChatGLM2-6B: main.py, its arguments.py
and those scripts.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.files import is_there, read_text
from glmtune.migration.configs import draft_config
from glmtune.migration.draft import RecipeDraft
from glmtune.migration.launch import PORTS, Launch, find_launches
from glmtune.migration.shell import read_commands
from glmtune.migration.trainer import carry_training, hold_out
from glmtune.quants import BITS
from glmtune.recipe.flags import MAIN, is_on

# main.py's --quantization_bit
QUANT = {str(bits): name for name, bits in BITS.items()}
_CHECKPOINT = re.compile(r"(.*)/checkpoint-(\d{1,9})/?")
# the official train.sh writes to output/adgen-chatglm-6b-pt-128-2e-2
_PREFIX_IN_NAME = re.compile(r"-pt-(\d+)-")


def read_script(path: Path, base: str | None = None) -> list[RecipeDraft]:
    """Return a draft for each official program that a script starts. Raises ConfigError if it starts none."""
    launches = _launches(path)
    if not launches:
        raise ConfigError(
            f"{path}: starts none of the official programs",
            hint="known are main.py, web_demo.py, cli_demo.py of ptuning/, web_demo2.py, finetune_hf.py",
        )
    # the trainings of all scripts next to this one: an evaluation or chat may read the checkpoint of one
    trainings: list[RecipeDraft] = []
    for other in sorted(path.parent.glob("*.sh")):
        with suppress(GlmtuneError):  # raised again when that script is migrated
            # extend() keeps the drafts made before the one that raises
            trainings.extend(
                _draft(launch, other, None, [])
                for launch in _launches(other)
                if launch.program == "main.py" and is_on(launch.flags, "do_train")
            )
    return [_draft(launch, path, base, trainings) for launch in launches]


def starts_program(path: Path) -> bool:
    """Return True for a script that starts an official program, and for one that cannot be read."""
    try:
        return bool(_launches(path))
    except GlmtuneError:  # raised again when it is migrated
        return True


def _launches(path: Path) -> list[Launch]:
    return list(find_launches(read_commands(read_text(path, is_given=True), str(path))))


def _draft(launch: Launch, path: Path, base: str | None, trainings: Sequence[RecipeDraft]) -> RecipeDraft:
    if launch.program == "finetune_hf.py":
        return _with_launch(_configured(launch, path, base), launch)
    where = f"{path}:{launch.command.line}"
    draft = _with_launch(
        RecipeDraft(where, path.stem, path.parent, dict(launch.flags), launch.command.unset), launch
    )
    if launch.program != "main.py":  # web_demo.py, cli_demo.py: commands to type, no recipe
        draft.verb = "chat"
        if launch.program in PORTS:
            draft.port = draft.take("server.port", PORTS[launch.program]) or ""
        _put_answering(draft, base, trainings)
    elif is_on(launch.flags, "do_train"):
        _read_training(draft, base)
    elif is_on(launch.flags, "do_predict") or is_on(launch.flags, "do_eval"):
        _read_evaluation(draft, base, trainings)
    else:
        raise ConfigError(
            f"{where}: main.py with neither --do_train nor --do_predict", hint="say in the script which it is"
        )
    draft.carry_rest()
    return draft


def _with_launch(draft: RecipeDraft, launch: Launch) -> RecipeDraft:
    draft.devices = launch.devices
    draft.processes, draft.nodes = launch.processes, launch.nodes
    starts = f"{launch.launcher}, {launch.processes} process{'es' if launch.processes > 1 else ''}"
    draft.header[:0] = [f"Migrated from {draft.where} ({launch.program} by {starts})."]
    for text in (*launch.command.mended, *launch.mended):
        draft.header.append(f"Mended: {text}.")
        draft.mended.append(text)
    return draft


def _configured(launch: Launch, path: Path, base: str | None) -> RecipeDraft:
    """Migrate `finetune_hf.py DATA MODEL CONFIG [RESUME]`."""
    if len(launch.arguments) < 3:
        raise ConfigError(
            f"{path}:{launch.command.line}: finetune_hf.py needs a data folder, a model and a configuration",
            hint="write all three into the script",
        )
    data, model, config, *resume = launch.arguments
    config_path = next((p for p in (path.parent / config, Path(config)) if is_there(p)), Path(config))
    draft = draft_config(
        config_path, base or model, data_folder=data, processes=launch.processes, folder=path.parent
    )
    draft.where, draft.name = f"{path}:{launch.command.line}", path.stem
    for word in resume:
        if word not in ("", "no"):
            draft.lost[f"resume {word}"] = "the Trainer's optimizer files are not read; this begins anew"
    return draft


def _read_training(draft: RecipeDraft, base: str | None) -> None:
    draft.verb = "train"
    model = draft.take("model_name_or_path")
    if base is not None:
        draft.put("model", base)
    elif model is not None:
        draft.put_path("model", model)
    else:
        draft.open["model"] = "the script names no model"
    _put_method(draft)
    draft.put_path("data.train", draft.take("train_file"))
    validation = draft.take("validation_file")
    draft.put_path("data.validation", validation)
    if validation is None:
        hold_out(draft)
    if "max_eval_samples" in draft.flags:
        draft.put("data.max_validation_rows", draft.number("max_eval_samples", "0"))
    draft.drop("do_predict", "the test rows are answered by glmtune evaluate RUN --data FILE")
    draft.put_path("data.test", draft.take("test_file"))
    draft.open.pop("data.test", None)  # training does not read it
    _put_encoding(draft)
    draft.drop("val_max_target_length", "no answer is written while training")
    carry_training(draft, is_full=draft.settings["method"] == "full")
    if "per_device_eval_batch_size" in draft.flags:
        draft.put("evaluate.batch_size", draft.number("per_device_eval_batch_size", "8"))
    draft.output = draft.take("output_dir") or ""
    if "$" in draft.output:
        draft.lost[f"output_dir {draft.output}"] = (
            "set outside of the script: runs/<model>-<recipe>, or output=..."
        )
    elif draft.output:
        draft.put("output", run_of(draft.output), "beside the script's own output, which is left alone")


def _put_method(draft: RecipeDraft) -> None:
    prefix = draft.number("pre_seq_len", "0")
    is_projected = is_on(draft.flags, "prefix_projection")
    draft.take("prefix_projection")
    bits = draft.take("quantization_bit")
    draft.lose("ptuning_checkpoint", "a run begins with a new prefix, not with an earlier one")
    # without a prefix the script trains the base itself, and quantised weights have no gradients
    if not prefix:
        draft.put("method", "full", "without --pre_seq_len the script trains the whole model")
        if bits:
            draft.mend("method", f"--quantization_bit {bits} left out: quantised weights cannot be trained")
        return
    if bits:
        draft.put("quant", _quant(draft, bits))
    method = {"name": "ptuning", "num_prefix_tokens": prefix}
    draft.put("method", method | ({"projection": True} if is_projected else {}))


def _quant(draft: RecipeDraft, bits: str) -> str:
    if bits not in QUANT:
        raise ConfigError(f"{draft.where}: quantization_bit {bits}", hint="the official code has 4 and 8")
    return QUANT[bits]


def _put_encoding(draft: RecipeDraft) -> None:
    draft.put("data.encoding", "thudm", "rows become the ids and labels of ptuning/main.py")
    draft.put("data.max_source_tokens", draft.number("max_source_length", MAIN["max_source_length"]))
    draft.put("data.max_target_tokens", draft.number("max_target_length", MAIN["max_target_length"]))
    draft.put("data.empty", "skip", "main.py leaves out rows with an empty question or answer")
    draft.mend(
        "data.max_source_tokens",
        "longer questions were cut without a word, their newest part first; the run says how many",
    )
    if "ignore_pad_token_for_loss" in draft.flags and not is_on(draft.flags, "ignore_pad_token_for_loss"):
        draft.lose("ignore_pad_token_for_loss", "pads are never learned")
    draft.drop("ignore_pad_token_for_loss", "pads are never learned")


def run_of(output: str) -> str:
    """Return the run folder that a migrated training writes to instead of the script's output folder."""
    return f"runs/{Path(output).name or 'migrated'}"


def _read_evaluation(draft: RecipeDraft, base: str | None, trainings: Sequence[RecipeDraft]) -> None:
    draft.verb = "evaluate"
    _put_answering(draft, base, trainings)
    draft.drop("output_dir", "answers and scores go beside the run, or to --output")
    if is_on(draft.flags, "fp16_full_eval"):
        draft.put("dtype", "fp16")
    draft.take("fp16_full_eval")
    validation = draft.take("validation_file")
    draft.put_path("data.test", draft.take("test_file") or validation)
    val_target = draft.take("val_max_target_length")
    if val_target is not None:
        draft.flags["max_target_length"] = val_target
    _put_encoding(draft)
    draft.put("evaluate.max_new_tokens", draft.settings["data.max_target_tokens"] + 1, _LONGEST_ANSWER)
    draft.put("evaluate.batch_size", draft.number("per_device_eval_batch_size", "8"))
    if "max_predict_samples" in draft.flags:
        draft.put("data.max_test_rows", draft.number("max_predict_samples", "0"))
    draft.mend("evaluate.batch_size", _GREEDY)


_LONGEST_ANSWER = "source + target + 1 tokens in all, of which the padded question has the source part"
_GREEDY = (
    "answers are the likeliest ones: the script draws them (top_p 0.7, temperature 0.95), so that its scores "
    "differ from run to run"
)


def _put_answering(draft: RecipeDraft, base: str | None, trainings: Sequence[RecipeDraft]) -> None:
    """Set `model` to the weights that answer, `base` to the base of a prefix, and `quant`."""
    checkpoint, model = draft.take("ptuning_checkpoint"), draft.take("model_name_or_path")
    is_prefix = checkpoint is not None or "pre_seq_len" in draft.flags
    draft.drop("pre_seq_len", "the prefix's length is read from its weights")
    draft.drop("prefix_projection", "read from the weights")
    if checkpoint is not None:
        draft.put_path("base", base or model)
    # --base names the base of a checkpoint, or else the model to chat with; an evaluation has its own model
    text = checkpoint or (base if draft.verb == "chat" else None) or model
    _put_checkpoint(draft, text, trainings, is_prefix=is_prefix)
    bits = draft.take("quantization_bit")
    if bits:
        draft.put("quant", _quant(draft, bits))


def _put_checkpoint(
    draft: RecipeDraft, text: str | None, trainings: Sequence[RecipeDraft], *, is_prefix: bool
) -> None:
    """Set `model` to the folder that the script names, or to the run of the training that makes it."""
    if text is None:
        draft.open["model"] = "the script names no model"
        return
    draft.put_path("model", text)
    match = _CHECKPOINT.fullmatch(text)
    # an open model holds a variable; a checkpoint that is here is used as it is
    if match is None or "model" in draft.open or is_there(Path(draft.settings["model"])):
        return
    output, step = match[1], int(match[2])
    training, others = _find_training(output, trainings, is_prefix=is_prefix)
    if others:
        runs = ", ".join(
            f"{other.where} makes "
            + ("a run that its output=... names" if "$" in other.output else f"{run_of(other.output)}/last")
            for other in others
        )
        draft.tell("model", f"{text} may be another script's: {runs}")
    if training is None:
        return
    model, origin, wrong = _find_checkpoint(training, output, step)
    draft.put("model", model)
    draft.tell("model", origin)
    draft.settings.pop("base", None)  # a run knows its base
    if wrong:
        draft.mend("model", f"{text}: {wrong}")
    history = training.settings.get("data.history_column")
    if history and draft.verb == "evaluate" and "history_column" not in draft.flags:
        draft.put("data.history_column", history)
        draft.mend("data.history_column", "the script trains with --history_column and evaluates without it")


def _find_checkpoint(training: RecipeDraft, output: str, step: int) -> tuple[str, str, str]:
    """Return the checkpoint of the migrated training's run, its origin, and a fault in the script's own.

    The fault says why no training of these settings can have made `output` at `step`; then the run's last
    checkpoint is returned, else the one of that step.
    """
    every, last = training.settings.get("train.save_every"), training.settings.get("train.steps")
    wrong = ""
    if Path(training.output) != Path(output):
        wrong = f"no script beside this one writes it; {training.where} writes {training.output}"
    elif every and last and (step > last or step % every):
        wrong = f"{training.where} saves every {every} of {last} steps, so there is no checkpoint-{step}"
    run, origin = run_of(training.output), f"the run of the recipe of {training.where}"
    if wrong or not every or not last or step == last:
        return f"{run}/last", f"{origin}; its last checkpoint", wrong
    # a run keeps its newest checkpoints: so many until this one is among them
    keep = (last - step) // every + 1
    return (
        f"{run}/checkpoints/step-{step:06d}",
        f"{origin}; a run keeps few of its checkpoints: give that training train.keep_checkpoints={keep}",
        wrong,
    )


def _find_training(
    output: str, trainings: Sequence[RecipeDraft], *, is_prefix: bool
) -> tuple[RecipeDraft | None, list[RecipeDraft]]:
    """Return the training that writes the folder `output`, if any, and others that may be meant.

    If none writes the folder, the training is the only one of the same kind (prefix or whole model) whose
    rows have no history.
    """
    same = [training for training in trainings if Path(training.output) == Path(output)]
    if same:
        return same[0], same[1:]
    is_prefix = is_prefix or _PREFIX_IN_NAME.search(output + "-") is not None
    alike = [t for t in trainings if t.output and (t.settings["method"] != "full") == is_prefix]
    plain = [t for t in alike if "data.history_column" not in t.settings]
    training = plain[0] if len(plain) == 1 else None
    return training, [other for other in alike if other is not training]
