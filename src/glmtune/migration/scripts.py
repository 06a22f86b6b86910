"""train.sh, train_chat.sh, ds_train_finetune.sh, evaluate.sh, evaluate_finetune.sh, web_demo.sh -> drafts.

Source: ptuning/ of github.com/THUDM/ChatGLM-6B and github.com/THUDM/ChatGLM2-6B: main.py, its arguments.py
and those scripts.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.files import is_there, read_text
from glmtune.migration.configs import draft_config
from glmtune.migration.draft import RecipeDraft
from glmtune.migration.launch import Launch, find_launches
from glmtune.migration.shell import read_commands
from glmtune.migration.trainer import carry_training, hold_out
from glmtune.quants import BITS
from glmtune.recipe.flags import MAIN, is_on

QUANT = {str(bits): name for name, bits in BITS.items()}
_CHECKPOINT = re.compile(r"(.*)/checkpoint-(\d{1,9})/?")
_PREFIX_IN_NAME = re.compile(r"-pt-(\d+)-")


def read_script(path: Path, base: str | None = None) -> list[RecipeDraft]:
    """A draft for each official program that a script starts. Raises ConfigError where there is none."""
    launches = _launches(path)
    if not launches:
        raise ConfigError(
            f"{path}: starts none of the official programs",
            hint="known are main.py, web_demo.py and cli_demo.py of ptuning/, and finetune_hf.py",
        )
    producers = list(_producers(path.parent))
    return [_draft(launch, path, base, producers) for launch in launches]


def starts_program(path: Path) -> bool:
    """Whether a script starts an official program, as far as it can be read."""
    try:
        return bool(_launches(path))
    except GlmtuneError:  # said where it is migrated
        return True


def _launches(path: Path) -> list[Launch]:
    return list(find_launches(read_commands(read_text(path, is_given=True), str(path))))


def _producers(folder: Path) -> Iterator[RecipeDraft]:
    """The trainings of the scripts in a folder: whose checkpoints its evaluations read."""
    for path in sorted(folder.glob("*.sh")):
        with suppress(GlmtuneError):  # said where that script is migrated
            for launch in _launches(path):
                if launch.program == "main.py" and is_on(launch.flags, "do_train"):
                    yield _draft(launch, path, None, [])


def _draft(launch: Launch, path: Path, base: str | None, producers: Sequence[RecipeDraft]) -> RecipeDraft:
    if launch.program == "finetune_hf.py":
        return _with_launch(_configured(launch, path, base), launch)
    where = f"{path}:{launch.command.line}"
    draft = _with_launch(
        RecipeDraft(where, path.stem, path.parent, dict(launch.flags), launch.command.unset), launch
    )
    if launch.program != "main.py":
        _read_demo(draft, base, producers)
    elif is_on(launch.flags, "do_train"):
        _read_training(draft, base)
    elif is_on(launch.flags, "do_predict") or is_on(launch.flags, "do_eval"):
        _read_evaluation(draft, base, producers)
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
    """finetune_hf.py DATA MODEL CONFIG [RESUME]."""
    if len(launch.arguments) < 3:
        raise ConfigError(
            f"{path}:{launch.command.line}: finetune_hf.py needs a data folder, a model and a configuration",
            hint="write all three into the script",
        )
    data, model, config, *resume = launch.arguments
    found = next((p for p in (path.parent / config, Path(config)) if is_there(p)), Path(config))
    draft = draft_config(
        found, base or model, data_folder=data, processes=launch.processes, folder=path.parent
    )
    draft.where, draft.name = f"{path}:{launch.command.line}", path.stem
    for word in resume:
        if word not in ("", "no"):
            draft.lost[f"resume {word}"] = "the Trainer's optimizer files are not read; this begins anew"
    return draft


def _read_training(draft: RecipeDraft, base: str | None) -> None:
    draft.verb = "train"
    _put_model(draft, base)
    _put_method(draft)
    draft.put_path("data.train", draft.take("train_file"))
    _put_validation(draft)
    draft.drop("do_predict", "the test rows are answered by glmtune evaluate RUN --data FILE")
    draft.put_path("data.test", draft.take("test_file"))
    draft.open.pop("data.test", None)  # training does not read it
    _put_encoding(draft)
    draft.drop("val_max_target_length", "no answer is written while training")
    carry_training(draft, is_full=draft.settings["method"] == "full")
    _put_answers(draft)
    _put_output(draft)


def _put_model(draft: RecipeDraft, base: str | None) -> None:
    named = draft.take("model_name_or_path")
    if base is not None:
        draft.put("model", base)
    elif named is not None:
        draft.put_path("model", named)
    else:
        draft.open["model"] = "the script names no model"


def _put_method(draft: RecipeDraft) -> None:
    prefix = draft.number("pre_seq_len", "0")
    is_projected = is_on(draft.flags, "prefix_projection")
    draft.take("prefix_projection")
    bits = draft.take("quantization_bit")
    draft.lose("ptuning_checkpoint", "a run begins with a new prefix, not with an earlier one")
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


def _put_validation(draft: RecipeDraft) -> None:
    named = draft.take("validation_file")
    draft.put_path("data.validation", named)
    if named is None:
        hold_out(draft)
    if "max_eval_samples" in draft.flags:
        draft.put("data.max_validation_rows", draft.number("max_eval_samples", "0"))


def _put_encoding(draft: RecipeDraft) -> None:
    draft.put("data.encoding", "thudm", "rows become the ids and labels of ptuning/main.py")
    draft.put("data.max_source_tokens", draft.number("max_source_length", MAIN["max_source_length"]))
    draft.put("data.max_target_tokens", draft.number("max_target_length", MAIN["max_target_length"]))
    draft.mend(
        "data.max_source_tokens",
        "longer questions were cut without a word, their newest part first; the run says how many",
    )
    if "ignore_pad_token_for_loss" in draft.flags and not is_on(draft.flags, "ignore_pad_token_for_loss"):
        draft.lose("ignore_pad_token_for_loss", "pads are never learned")
    draft.drop("ignore_pad_token_for_loss", "pads are never learned")


def _put_answers(draft: RecipeDraft) -> None:
    if "per_device_eval_batch_size" in draft.flags:
        draft.put("evaluate.batch_size", draft.number("per_device_eval_batch_size", "8"))


def _put_output(draft: RecipeDraft) -> None:
    draft.output = draft.take("output_dir") or ""
    if "$" in draft.output:
        draft.lost[f"output_dir {draft.output}"] = (
            "set outside of the script: runs/<model>-<recipe>, or output=..."
        )
    elif draft.output:
        draft.put("output", run_of(draft.output), "beside the script's own output, which is left alone")


def run_of(output: str) -> str:
    """The run that a migrated training writes in place of the script's output folder."""
    return f"runs/{Path(output).name or 'migrated'}"


def _read_evaluation(draft: RecipeDraft, base: str | None, producers: Sequence[RecipeDraft]) -> None:
    draft.verb = "evaluate"
    _put_answering(draft, base, producers)
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


def _put_answering(draft: RecipeDraft, base: str | None, producers: Sequence[RecipeDraft]) -> None:
    """The weights that answer, and what they are put on."""
    checkpoint, model = draft.take("ptuning_checkpoint"), draft.take("model_name_or_path")
    is_prefix = checkpoint is not None or "pre_seq_len" in draft.flags
    draft.drop("pre_seq_len", "the prefix's length is read from its weights")
    draft.drop("prefix_projection", "read from the weights")
    if checkpoint is not None:
        draft.put_path("base", base or model)
    text = checkpoint or (base if draft.verb == "chat" else None) or model
    _put_checkpoint(draft, text, producers, is_prefix=is_prefix)
    bits = draft.take("quantization_bit")
    if bits:
        draft.put("quant", _quant(draft, bits))


def _put_checkpoint(
    draft: RecipeDraft, text: str | None, producers: Sequence[RecipeDraft], *, is_prefix: bool
) -> None:
    """The trained weights: the folder that the script names, else the run that the scripts beside it make."""
    if text is None:
        draft.open["model"] = "the script names no model"
        return
    draft.put_path("model", text)
    found = _CHECKPOINT.fullmatch(text)
    if found is None or "model" in draft.open or is_there(Path(draft.settings["model"])):
        return
    output, step = found[1], int(found[2])
    maker, others = _find_maker(output, producers, is_prefix=is_prefix)
    if others:
        runs = ", ".join(f"{other.where} makes {_name_run(other)}" for other in others)
        draft.tell("model", f"{text} may be another script's: {runs}")
    if maker is None:
        return
    wrong = _never_made(output, step, maker)
    model, said = _checkpoint_of(maker, None if wrong else step)
    draft.put("model", model)
    draft.tell("model", said)
    draft.settings.pop("base", None)
    if wrong:
        draft.mend("model", f"{text}: {wrong}")
    history = maker.settings.get("data.history_column")
    if history and draft.verb == "evaluate" and "history_column" not in draft.flags:
        draft.put("data.history_column", history)
        draft.mend("data.history_column", "the script trains with --history_column and evaluates without it")


def _name_run(maker: RecipeDraft) -> str:
    return "a run that its output=... names" if "$" in maker.output else f"{run_of(maker.output)}/last"


def _checkpoint_of(maker: RecipeDraft, step: int | None) -> tuple[str, str]:
    """A checkpoint of the migrated training's run, by its step or else the last; and what to say of it."""
    run, said = run_of(maker.output), f"the run of the recipe of {maker.where}"
    every, last = maker.settings.get("train.save_every"), maker.settings.get("train.steps")
    if step is None or not every or not last or step == last:
        return f"{run}/last", f"{said}; its last checkpoint"
    keep = (last - step) // every + 1
    return (
        f"{run}/checkpoints/step-{step:06d}",
        f"{said}; a run keeps few of its checkpoints: give that training train.keep_checkpoints={keep}",
    )


def _find_maker(
    output: str, producers: Sequence[RecipeDraft], *, is_prefix: bool
) -> tuple[RecipeDraft | None, list[RecipeDraft]]:
    """The training whose weights are in this folder, and others whose they may be.

    One that writes the folder; else the only one that trains the same, a prefix or the whole model, on rows
    without a history.
    """
    same = [maker for maker in producers if Path(maker.output) == Path(output)]
    if same:
        return same[0], same[1:]
    is_prefix = is_prefix or _PREFIX_IN_NAME.search(output + "-") is not None
    alike = [m for m in producers if m.output and (m.settings["method"] != "full") == is_prefix]
    plain = [m for m in alike if "data.history_column" not in m.settings]
    maker = plain[0] if len(plain) == 1 else None
    return maker, [other for other in alike if other is not maker]


def _never_made(output: str, step: int, maker: RecipeDraft) -> str:
    """Why no training of these settings can have made the checkpoint; empty if it can."""
    if Path(maker.output) != Path(output):
        return f"no script beside this one writes it; {maker.where} writes {maker.output}"
    every, last = maker.settings.get("train.save_every"), maker.settings.get("train.steps")
    if every and last and (step > last or step % every):
        return f"{maker.where} saves every {every} of {last} steps, so there is no checkpoint-{step}"
    return ""


def _read_demo(draft: RecipeDraft, base: str | None, producers: Sequence[RecipeDraft]) -> None:
    """The web page and the terminal chat: a command to type, no recipe."""
    draft.verb = "chat"
    _put_answering(draft, base, producers)
