"""Scripts and configurations -> recipes with the same rows, ids, labels, steps, rates."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import old_scripts
from glmtune.data.split import count_holdout
from glmtune.errors import ConfigError
from glmtune.migration import Migration, migrate_path
from glmtune.migration.draft import _comment
from glmtune.recipe import Recipe, load_recipe


def bring(folder: Path, text: str, name: str = "run.sh", **settings: Any) -> tuple[Migration, Recipe]:
    """Migrate one script or configuration that makes one recipe."""
    (folder / name).write_text(text, encoding="utf-8")
    [done] = migrate_path(folder / name, folder / "new.yaml", **settings)
    assert done.made is not None
    return done, load_recipe(
        done.made, [] if "model" in yaml.safe_load(done.made.read_text()) else ["model=-"]
    )


def at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return str(value) if isinstance(value, Path) else value


def assert_has(recipe: Recipe, expected: dict[str, Any]) -> None:
    assert {key: at(recipe, key) for key in expected} == expected


THUDM = {
    "data.encoding": "thudm",
    "data.empty": "skip",
    "data.prompt_column": "content",
    "data.response_column": "summary",
}
ADGEN = {"data.train": "AdvertiseGen/train.json", "data.validation": "AdvertiseGen/dev.json"}
PREFIX = {
    "quant": "int4", "method.name": "ptuning", "method.num_prefix_tokens": 128, "method.projection": False,
    "dtype": "auto",
}  # fmt: skip
TRAINER = {
    "train.schedule": "linear", "train.warmup_steps": 0, "train.weight_decay": 0.0, "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999, "train.adam_epsilon": 1e-8, "train.max_grad_norm": 1.0, "train.log_every": 10,
    "train.gradient_checkpointing": "auto", "train.optimizer": "adamw", "train.seed": 42,
    "train.epochs": None,
}  # fmt: skip


def limits(source: int, target: int) -> dict[str, Any]:
    return {"data.max_source_tokens": source, "data.max_target_tokens": target}


def length(rows: int, at_once: int, steps: int, lr: float, save: int) -> dict[str, Any]:
    return {"train.batch_size": rows, "train.micro_batch_size": at_once, "train.steps": steps, "train.lr": lr,
            "train.save_every": save}  # fmt: skip


TRAININGS: dict[str, dict[str, Any]] = {
    "train": {**THUDM, **ADGEN, **PREFIX, **TRAINER, **length(16, 1, 3000, 2e-2, 1000)},
    "train_chat": {
        **PREFIX, **TRAINER, **length(16, 1, 3000, 1e-2, 1000), **limits(256, 256), "data.encoding": "thudm",
        "data.prompt_column": "prompt", "data.response_column": "response", "data.history_column": "history",
    },
    "ds_train_finetune": {
        **THUDM, **TRAINER, **length(4 * 4, 4, 5000, 1e-4, 1000), **limits(64, 64),
        "method.name": "full", "quant": None, "train.precision": "fp16",
        "data.train": "AdvertiseGen/train.json", "data.validation": None,
        "data.test": "AdvertiseGen/dev.json",
    },
}  # fmt: skip
"""What the tables of the scripts' settings say, in this program's words."""


@pytest.mark.parametrize("model", old_scripts.MODELS)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_script_becomes_its_recipe(name: str, model: str, tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, getattr(old_scripts, name)(model))
    assert recipe.model == f"THUDM/{model}"
    assert_has(recipe, TRAININGS[name])
    if name == "train":
        assert_has(recipe, limits(64, 64 if model == "chatglm-6b" else 128))
    assert {"overwrite_cache", "overwrite_output_dir", "predict_with_generate"} <= done.dropped.keys()


@pytest.mark.parametrize("model", old_scripts.MODELS)
def test_an_evaluation_script_becomes_its_recipe_and_a_command(model: str, tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, old_scripts.evaluate(model))
    checkpoint = f"./output/adgen-{model}-pt-128-2e-2/checkpoint-3000"
    assert recipe.model == checkpoint
    assert_has(recipe, {
        **THUDM, **limits(64, 64), "base": f"THUDM/{model}", "quant": "int4",
        "data.test": "AdvertiseGen/dev.json", "evaluate.batch_size": 1, "evaluate.max_new_tokens": 65,
    })  # fmt: skip
    assert any("top_p 0.7, temperature 0.95" in text for text in done.mended)
    [command] = done.next
    assert command == f"CUDA_VISIBLE_DEVICES=0 glmtune evaluate {tmp_path / 'new.yaml'}"


@pytest.mark.parametrize("model", old_scripts.MODELS)
def test_an_evaluation_of_the_whole_model_opens_its_checkpoint(model: str, tmp_path: Path) -> None:
    _, recipe = bring(tmp_path, old_scripts.evaluate_finetune(model))
    assert recipe.model == f"./output/adgen-{model}-ft-1e-4/checkpoint-5000"
    assert_has(recipe, {**THUDM, **limits(256, 256), "base": None, "quant": None, "dtype": "fp16"})


@pytest.mark.parametrize("model", old_scripts.MODELS)
def test_the_web_demo_becomes_a_command_and_no_file(model: str, tmp_path: Path) -> None:
    (tmp_path / "web_demo.sh").write_text(old_scripts.web_demo(model), encoding="utf-8")
    [done] = migrate_path(tmp_path / "web_demo.sh")
    assert done.made is None
    checkpoint = f"output/adgen-{model}-pt-128-2e-2/checkpoint-3000"
    asked = f"{checkpoint} --base THUDM/{model}"
    assert done.next == [
        f"CUDA_VISIBLE_DEVICES=0 glmtune chat {asked}",
        f"CUDA_VISIBLE_DEVICES=0 glmtune web {asked} --port 7860",
    ]


@pytest.mark.parametrize(
    ("typed", "port"),
    [
        ("python web_demo.py", "7860"),
        ("streamlit run web_demo2.py", "8501"),
        ("streamlit run web_demo2.py --server.port 6006", "6006"),
    ],
)
def test_a_page_becomes_ours_on_its_port(typed: str, port: str, tmp_path: Path) -> None:
    (tmp_path / "page.sh").write_text(f"{typed} --model_name_or_path THUDM/chatglm2-6b\n", encoding="utf-8")
    [done] = migrate_path(tmp_path / "page.sh")
    assert done.next[-1] == f"glmtune web THUDM/chatglm2-6b --port {port}"
    assert not done.lost


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method.name": "lora", "method.r": 8, "method.alpha": 32, "method.dropout": 0.1,
             "method.target_modules": None},
    "ptuning_v2": {"method.name": "ptuning", "method.num_prefix_tokens": 128, "method.projection": False},
    "sft": {"method.name": "full", "dtype": "fp32", "train.precision": "fp32"},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_becomes_its_recipe(name: str, tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, old_scripts.config(name), f"{name}.yaml", base="/models/chatglm3-6b")
    assert_has(recipe, {
        **METHODS[name], **TRAINER, **limits(256, 512), **length(4, 4, 3000, 5e-5, 500),
        "model": "/models/chatglm3-6b", "quant": None, "train.eval_every": 500, "data.encoding": "chatglm3",
        "data.train": "train.json", "data.validation": "dev.json", "data.test": "dev.json",
        "evaluate.max_new_tokens": 512, "evaluate.batch_size": 16,
    })  # fmt: skip
    assert any("first 50 rows" in text for text in done.mended)
    assert ("deepspeed ds_zero_3.json" in done.lost) == (name == "sft")


def test_a_script_that_starts_finetune_hf_names_rows_model_and_processes(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sft.yaml").write_text(old_scripts.config("sft"), encoding="utf-8")
    text = "torchrun --nproc_per_node=4 finetune_hf.py data/ads THUDM/chatglm3-6b configs/sft.yaml yes\n"
    done, recipe = bring(tmp_path, text)
    assert_has(recipe, {
        "model": "THUDM/chatglm3-6b", "data.train": "data/ads/train.json", "train.batch_size": 16,
        "train.micro_batch_size": 4,
    })  # fmt: skip
    assert done.next == [f"torchrun --standalone --nproc-per-node 4 -m glmtune train {tmp_path / 'new.yaml'}"]
    assert "resume yes" in done.lost


def test_without_a_model_the_recipe_asks_for_it(tmp_path: Path) -> None:
    done, _ = bring(tmp_path, old_scripts.config("lora"), "lora.yaml")
    assert done.next == [f"glmtune train {tmp_path / 'new.yaml'} model=MODEL"]
    assert "# model: the configuration names no model: name it" in (tmp_path / "new.yaml").read_text()


# Launchers


def script(start: str, *flags: str, end: str = "") -> str:
    common = (
        "--do_train", "--model_name_or_path m", "--train_file t.json", "--validation_file v.json",
        "--per_device_train_batch_size 2", "--gradient_accumulation_steps 8", "--max_steps 100",
        "--pre_seq_len 8",
    )  # fmt: skip
    return " \\\n  ".join([start, *common, *flags]) + end


@pytest.mark.parametrize(
    ("start", "rows", "command"),
    [
        ("python main.py", 16, ""),
        ("torchrun --standalone --nproc-per-node=3 main.py", 48,
         "torchrun --standalone --nproc-per-node 3 -m "),
        ("python -m torch.distributed.run --nproc_per_node 2 main.py", 32,
         "torchrun --standalone --nproc-per-node 2 -m "),
        ("deepspeed --num_gpus=4 main.py", 64, "torchrun --standalone --nproc-per-node 4 -m "),
        ("deepspeed --include localhost:0,1 main.py", 32, "torchrun --standalone --nproc-per-node 2 -m "),
        ("accelerate launch --num_processes 2 main.py", 32, "torchrun --standalone --nproc-per-node 2 -m "),
        ("torchrun --nnodes=2 --nproc-per-node=2 main.py", 64,
         "torchrun --nnodes 2 --rdzv-endpoint HOST:PORT --nproc-per-node 2 -m "),
        ("CUDA_VISIBLE_DEVICES=0,1 python main.py", 32,
         "CUDA_VISIBLE_DEVICES=0,1 torchrun --standalone --nproc-per-node 2 -m "),
        ("nohup torchrun --nproc-per-node=2 main.py", 32, "torchrun --standalone --nproc-per-node 2 -m "),
    ],
)  # fmt: skip
def test_a_steps_rows_are_those_of_all_processes(start: str, rows: int, command: str, tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, script(start))
    assert (recipe.train.batch_size, recipe.train.micro_batch_size) == (rows, 2)
    assert done.next == [f"{command}glmtune train {tmp_path / 'new.yaml'}"]


def test_a_configuration_of_deepspeed_that_is_not_there_is_said(tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, script("deepspeed --num_gpus 2 main.py", "--deepspeed ds.json"))
    assert recipe.distributed.name == "ddp"
    assert done.lost["deepspeed ds.json"].startswith("ds.json is not there to say how weights were shared")


def test_deepspeed_s_own_optimizer_is_named_as_not_carried_over(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam"}}
    (tmp_path / "ds.json").write_text(json.dumps(config), encoding="utf-8")
    done, recipe = bring(tmp_path, script("deepspeed --num_gpus 2 main.py", "--deepspeed ds.json"))
    assert recipe.distributed.model_dump().items() >= {"name": "deepspeed", "stage": 3}.items()
    assert "ds.json: optimizer" in done.lost


# The Trainer's flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning_rate 1e-3"], {"train.lr": 1e-3}),
        (["--lr_scheduler_type cosine"], {"train.schedule": "cosine"}),
        ([], {"train.lr": 5e-5, "train.log_every": 500, "train.save_every": 500, "train.eval_every": 500}),
        (["--warmup_ratio 0.1"], {"train.warmup_steps": 10}),
        (["--warmup_ratio 0.1", "--warmup_steps 7"], {"train.warmup_steps": 7}),
        (["--max_steps -1", "--num_train_epochs 2"], {"train.steps": None, "train.epochs": 2.0}),
        (["--max_steps=-1"], {"train.epochs": 3.0}),
        (["--weight_decay 0.01", "--adam_epsilon 1e-4", "--adam_beta2 0.95", "--max_grad_norm 0.5",
          "--seed 7"],
         {"train.weight_decay": 0.01, "train.adam_epsilon": 1e-4, "train.adam_beta2": 0.95,
          "train.max_grad_norm": 0.5, "train.seed": 7}),
        (["--optim adamw_bnb_8bit"], {"train.optimizer": "adamw_8bit"}),
        (["--bf16"], {"train.precision": "bf16"}),
        (["--bf16 False"], {"train.precision": "auto"}),
        (["--evaluation_strategy steps", "--eval_steps 50"], {"train.eval_every": 50}),
        (["--save_total_limit 3"], {"train.keep_checkpoints": 3}),
        (["--max_train_samples 64"], {"data.max_rows": 64}),
        (["--quantization_bit 8", "--prefix_projection"], {"quant": "int8", "method.projection": True}),
        (["--source_prefix '问题：'"], {"data.source_prefix": "问题："}),
        (["--max_source_length 32"], {"data.max_source_tokens": 32, "data.max_target_tokens": 128}),
    ],
)  # fmt: skip
def test_a_flag_is_a_setting(flags: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    assert_has(bring(tmp_path, script("python main.py", *flags))[1], expected)


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(160, 3, 30), (167, 3, 30), (174, 1.5, 15), (7, 2, 2)]
)  # fmt: skip
def test_epochs_of_rows_that_are_here_are_the_trainer_s_steps(
    rows: int, epochs: float, steps: int, tmp_path: Path
) -> None:
    """2 rows x 8 accumulated: 16 rows a step, an epoch's rest left out, at least one step an epoch."""
    lines = [json.dumps({"q": "a", "a": "b"})] * rows + [json.dumps({"q": "", "a": "b"})]
    (tmp_path / "t.json").write_text("\n".join(lines), encoding="utf-8")
    flags = ("--prompt_column q", "--response_column a", "--max_steps -1", f"--num_train_epochs {epochs}")
    _, recipe = bring(tmp_path, script("python main.py", *flags))
    assert (recipe.train.steps, recipe.train.epochs) == (steps, None)


def test_the_write_up_s_script_becomes_the_recipe_that_was_written_from_it(tmp_path: Path) -> None:
    """ChatGLM2-6B on two cards; recipes/adgen-ptuning-2gpu.yaml."""
    text = old_scripts.train("chatglm2-6b").replace("NUM_GPUS=1", "NUM_GPUS=2")
    text = text.replace("--max_steps 3000", "--max_steps 2000").replace(
        "--save_steps 1000", "--save_steps 500"
    )
    _, recipe = bring(tmp_path, text, base="/models/chatglm2-6b")
    ours = load_recipe(Path(__file__).parents[3] / "recipes" / "adgen-ptuning-2gpu.yaml")
    assert (recipe.model, recipe.quant, recipe.method) == (ours.model, ours.quant, ours.method)
    columns = {"prompt_column": "content", "response_column": "summary"}
    assert recipe.data == ours.data.model_copy(update=columns)
    saving = {"save_every": 500, "eval_every": 500, "log_every": 10, "micro_batch_size": 1}
    assert recipe.train == ours.train.model_copy(update=saving)


def test_every_other_flag_is_named_and_why(tmp_path: Path) -> None:
    flags = ("--num_beams 4", "--made_up 3", "--dataloader_num_workers 4", "--resume_from_checkpoint old")
    done, _ = bring(tmp_path, script("python main.py", *flags))
    assert done.lost.keys() >= {"num_beams 4", "made_up 3", "resume_from_checkpoint old"}
    assert "dataloader_num_workers" in done.dropped
    text = (tmp_path / "new.yaml").read_text(encoding="utf-8")
    assert "# Not carried over: made_up 3 (no setting here does this)." in text


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--max_steps many", "run.sh:1: max_steps many: not a number"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size 0: not a number that this setting"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps 0: not a number that this setting"),
        (
            "--gradient_accumulation_steps -1",
            "gradient_accumulation_steps -1: not a number that this setting",
        ),
        ("--learning_rate $RATE", r"run.sh:1: learning_rate \$RATE: not a number"),
        ("--lr_scheduler_type polynomial", "lr_scheduler_type polynomial: not a schedule here"),
        ("--quantization_bit 2", "run.sh:1: quantization_bit 2"),
        ("--per_device_eval_batch_size all", "run.sh:1: per_device_eval_batch_size all: not a number"),
        ("--do_train False", "neither --do_train nor --do_predict"),
        ("--weight_decay -1", "run.sh:1: train.weight_decay"),
    ],
)
def test_what_no_recipe_can_say_is_an_error_at_its_place(flag: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        bring(tmp_path, script("python main.py", flag))
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("kind", ["script", "configuration"])
def test_without_validation_rows_some_of_the_training_rows_are_held_out_and_that_is_said(
    kind: str, tmp_path: Path
) -> None:
    """ds_train_finetune.sh names 114,599 training rows and no others for the loss."""
    if kind == "script":
        done, recipe = bring(tmp_path, old_scripts.ds_train_finetune("chatglm-6b"))
    else:
        text = old_scripts.config("sft").replace("  val_file: dev.json\n", "")
        done, recipe = bring(tmp_path, text, "sft.yaml", base="m")
    assert recipe.data.validation is None
    assert count_holdout(114_599, recipe.data) == 200
    (said,) = [text for text in done.mended if "no validation rows are named" in text]
    assert "at most 200, are held out" in said
    (word,) = re.findall(r"data\.validation=FILE", said)
    assert_has(load_recipe(tmp_path / "new.yaml", [word]), {"data.validation": "FILE"})


@pytest.mark.parametrize("kind", ["script", "configuration"])
def test_full_fine_tuning_says_what_it_needs_and_what_needs_less(kind: str, tmp_path: Path) -> None:
    if kind == "script":
        done, _ = bring(tmp_path, old_scripts.ds_train_finetune("chatglm-6b"))
    else:
        done, _ = bring(tmp_path, old_scripts.config("sft"), "sft.yaml", base="m")
    (said,) = done.warnings
    assert said.startswith("each card needs 16 bytes a parameter")
    assert said.split("(")[0] in " ".join((tmp_path / "new.yaml").read_text().replace("#", "").split())
    words = re.findall(r"[\w.]+=\w+", said)
    assert words == ["train.optimizer=adamw_8bit", "method=lora"]
    recipes = [load_recipe(tmp_path / "new.yaml", [word]) for word in words]
    assert (recipes[0].train.optimizer, recipes[1].method.name) == ("adamw_8bit", "lora")


@pytest.mark.parametrize(
    ("text", "flag", "expected"),
    [
        (old_scripts.train("chatglm-6b"), "--max_eval_samples 50", {"data.max_validation_rows": 50}),
        (old_scripts.evaluate("chatglm-6b"), "--max_predict_samples 50", {"data.max_test_rows": 50}),
    ],
    ids=["training", "evaluation"],
)
def test_numbers_of_rows_are_carried(text: str, flag: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert_has(bring(tmp_path, f"{text.rstrip()} \\\n    {flag}\n")[1], expected)


# Traps


def test_flags_below_a_broken_continuation_are_carried_and_the_recipe_says_so(tmp_path: Path) -> None:
    """The write-up's own advice: `--quantization_bit 4 \\ # 8 is INT8`."""
    text = old_scripts.train("chatglm-6b").replace(
        "--pre_seq_len $PRE_SEQ_LEN \\", "--pre_seq_len 128 \\ # short"
    )
    done, recipe = bring(tmp_path, text)
    assert recipe.quant == "int4"
    assert any("a comment after the backslash" in line for line in done.mended)
    written = " ".join((tmp_path / "new.yaml").read_text(encoding="utf-8").replace("#", "").split())
    line = text.splitlines().index("    --pre_seq_len 128 \\ # short") + 1
    assert (
        f"Mended: line {line}: a comment after the backslash, so the shell ends the command there" in written
    )


@pytest.mark.parametrize(
    ("checkpoint", "step", "said"),
    [
        ("", 2500, "saves every 1000 of 3000 steps, so there is no checkpoint-2500"),
        ("", 4000, "saves every 1000 of 3000 steps, so there is no checkpoint-4000"),
        ("adgen-chatglm-6b-pt-8-1e-2", 3000, "train.sh:3 writes output/adgen-chatglm-6b-pt-128-2e-2"),
    ],
)
def test_a_checkpoint_that_no_training_makes_is_mended(
    checkpoint: str, step: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "train.sh").write_text(old_scripts.train("chatglm-6b"), encoding="utf-8")
    done, recipe = bring(tmp_path, old_scripts.evaluate("chatglm-6b", checkpoint, step), "evaluate.sh")
    assert recipe.model == "runs/adgen-chatglm-6b-pt-128-2e-2/last"
    assert any(said in text for text in done.mended)
    assert said in " ".join((tmp_path / "new.yaml").read_text(encoding="utf-8").replace("#", "").split())


@pytest.mark.parametrize(("step", "checkpoint"), [(3000, "last"), (1000, "checkpoints/step-001000")])
def test_the_checkpoint_that_the_script_names_is_evaluated_and_not_the_best(
    step: int, checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "train.sh").write_text(old_scripts.train("chatglm-6b"), encoding="utf-8")
    done, recipe = bring(tmp_path, old_scripts.evaluate("chatglm-6b", step=step), "evaluate.sh")
    assert recipe.model == f"runs/adgen-chatglm-6b-pt-128-2e-2/{checkpoint}"
    assert done.next[0].endswith(f"glmtune evaluate {tmp_path / 'new.yaml'}")
    written = " ".join((tmp_path / "new.yaml").read_text(encoding="utf-8").replace("#", "").split())
    assert ("give that training train.keep_checkpoints=3" in written) is (step == 1000)


@pytest.mark.parametrize("start", range(60, 110, 7))
def test_a_path_in_a_comment_is_never_broken(start: int) -> None:
    path = "output/adgen-chatglm-6b-pt-128-2e-2"
    assert any(path in line for line in _comment(f"{'x' * start} {path} and more"))


WEB_DEMO = old_scripts.web_demo("chatglm-6b").replace("adgen-chatglm-6b-pt-128-2e-2", "mine")
WHOLE = old_scripts.evaluate_finetune("chatglm-6b").replace("adgen-chatglm-6b-ft-1e-4", "mine")


@pytest.mark.parametrize(
    ("asking", "run"),
    [
        (WEB_DEMO, "runs/adgen-chatglm-6b-pt-128-2e-2/last"),
        (old_scripts.evaluate("chatglm-6b", "mine"), "runs/adgen-chatglm-6b-pt-128-2e-2/last"),
        (WHOLE, "runs/adgen-chatglm-6b-ft-1e-4/last"),
    ],
    ids=["web_demo", "evaluate", "evaluate_finetune"],
)
def test_a_checkpoint_of_any_name_is_of_the_method_that_its_flags_say(
    asking: str, run: str, tmp_path: Path
) -> None:
    folder = old_scripts.write_scripts(tmp_path / "ptuning", "chatglm-6b")
    (folder / "ask.sh").write_text(asking, encoding="utf-8")
    [done] = migrate_path(folder / "ask.sh", tmp_path / "new.yaml")
    answered = load_recipe(done.made).model if done.made else done.next[-1]
    assert run in answered
    assert any(text.startswith("the run of the recipe of ") for text in done.found)
    others = [text for text in done.found if "may be another script's" in text]
    assert [text for text in others if "train_chat.sh:3" in text] == (others if asking != WHOLE else [])


def test_of_several_trainings_that_may_have_made_a_checkpoint_none_is_taken_and_each_run_is_named(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        text = old_scripts.train("chatglm-6b").replace("output/adgen", f"output/{name}")
        (tmp_path / f"{name}.sh").write_text(text, encoding="utf-8")
    done, recipe = bring(tmp_path, old_scripts.evaluate("chatglm-6b", "mine"), "evaluate.sh")
    assert recipe.model == "./output/mine/checkpoint-3000"
    said = "a.sh:3 makes runs/a-chatglm-6b-pt-128-2e-2/last, "
    assert any(said in text and "b.sh:3 makes runs/b-" in text for text in done.found)


def test_a_checkpoint_that_is_there_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "output" / "adgen-chatglm-6b-pt-8-1e-2" / "checkpoint-3000"
    folder.mkdir(parents=True)
    (tmp_path / "train.sh").write_text(old_scripts.train("chatglm-6b"), encoding="utf-8")
    done, recipe = bring(tmp_path, old_scripts.evaluate("chatglm-6b", folder.parent.name), "evaluate.sh")
    assert Path(recipe.model) == folder
    start = f"glmtune migrate {folder} --base THUDM/chatglm-6b --output adapters/"
    assert [line.startswith(start) for line in done.next] == [True, False]


def test_an_evaluation_without_the_history_of_its_training_gets_it(tmp_path: Path) -> None:
    chat = old_scripts.train_chat("chatglm-6b").replace("$CHECKPOINT_NAME", "output/chat-pt-128-1e-2")
    (tmp_path / "train_chat.sh").write_text(chat, encoding="utf-8")
    text = old_scripts.evaluate("chatglm-6b", "chat-pt-128-1e-2")
    assert bring(tmp_path, text, "evaluate.sh")[1].data.history_column == "history"


def test_targets_that_do_not_exist_are_mended(tmp_path: Path) -> None:
    text = old_scripts.config("lora") + "  target_modules: [query, value]\n"
    done, recipe = bring(tmp_path, text, "lora.yaml", base="m")
    assert_has(recipe, {"method.target_modules": None})
    assert "target_modules: this model has no query, value; query_key_value is adapted" in done.mended


def test_glm4_s_combine_takes_glm4_s_encoding(tmp_path: Path) -> None:
    done, recipe = bring(tmp_path, old_scripts.config("lora") + "combine: true\nfreezeV: true\n", "lora.yaml")
    assert_has(recipe, {"data.encoding": "glm4", "data.combine": True})
    assert "freezeV True" in done.lost


def test_adalora_s_ignored_rank_is_named(tmp_path: Path) -> None:
    text = old_scripts.config("lora").replace("peft_type: LORA", "peft_type: ADALORA")
    done, recipe = bring(tmp_path, text, "ada.yaml", base="m")
    assert_has(
        recipe, {"method.name": "adalora", "method.init_r": 12, "method.target_r": 8, "method.alpha": 32}
    )
    assert any(line.startswith("r 8: PEFT's AdaLoRA ignores it") for line in done.mended)


def test_a_quantised_base_is_not_trained_whole(tmp_path: Path) -> None:
    text = script("python main.py", "--quantization_bit 4").replace("--pre_seq_len 8", "--do_eval")
    done, recipe = bring(tmp_path, text)
    assert_has(recipe, {"method.name": "full", "quant": None, "dtype": "fp32"})
    assert any("quantised weights cannot be trained" in line for line in done.mended)


def test_a_path_that_is_there_works_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "AdvertiseGen").mkdir()
    (tmp_path / "AdvertiseGen" / "train.json").write_text("[]", encoding="utf-8")
    _, recipe = bring(tmp_path, old_scripts.train("chatglm2-6b"))
    assert recipe.data.train == tmp_path / "AdvertiseGen" / "train.json"
    assert recipe.data.validation == Path("AdvertiseGen/dev.json")


def test_variables_that_are_set_elsewhere_are_left_open(tmp_path: Path) -> None:
    done, _ = bring(tmp_path, old_scripts.train_chat("chatglm2-6b"))
    assert done.next == [f"glmtune train {tmp_path / 'new.yaml'} data.train=FILE data.validation=FILE"]


# Files


def test_a_folder_gives_a_recipe_a_script_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = old_scripts.write_scripts(tmp_path / "ptuning", "chatglm2-6b")
    made = [done.made for done in migrate_path(folder, tmp_path / "new")]
    assert [path.name if path else None for path in made] == [
        "ds_train_finetune.yaml", "evaluate.yaml", "evaluate_finetune.yaml", "train.yaml", "train_chat.yaml",
        None,
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    with pytest.raises(ConfigError, match="will not be overwritten"):
        migrate_path(folder, tmp_path / "new")
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_a_script_of_another_kind_in_a_folder_is_left_alone_and_named(tmp_path: Path) -> None:
    folder = old_scripts.write_scripts(tmp_path / "ptuning", "chatglm-6b")
    (folder / "download.sh").write_text("wget https://example.org/data.tar.gz\n", encoding="utf-8")
    *others, left = migrate_path(folder, tmp_path / "new")
    assert len(others) == len(old_scripts.SCRIPTS)
    assert (left.source, left.made) == (str(folder / "download.sh"), None)
    assert "none of the official programs" in left.found[0]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.sh", "echo hello", "starts none of the official programs"),
        ("x.yaml", "model: m", "no training_args"),
        ("x.yaml", "a: [", "not valid YAML"),
        ("x.yaml", "training_args: {}\npeft_config: {peft_type: IA3}", "peft_type: IA3"),
        ("x.yaml", "training_args: {}", "no max_input_length"),
        (
            "x.yaml",
            "training_args: {}\npeft_config: {peft_type: LORA, r: big}",
            "x.yaml: r big: not a number",
        ),
        ("x.sh", "python finetune_hf.py data", "needs a data folder, a model and a configuration"),
    ],
)
def test_a_file_that_is_none_of_these_is_refused(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        migrate_path(tmp_path / name, tmp_path / "new.yaml")


def test_scripts_are_read_and_never_run(tmp_path: Path) -> None:
    text = f"touch {tmp_path}/ran\nX=$(touch {tmp_path}/ran)\n" + script("python main.py")
    bring(tmp_path, text)
    assert not (tmp_path / "ran").exists()


def test_no_recipe_is_written_without_a_place(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(script("python main.py"), encoding="utf-8")
    with pytest.raises(ConfigError, match="output: missing"):
        migrate_path(tmp_path / "train.sh")


@pytest.mark.parametrize(
    ("zero", "expected", "said"),
    [
        ({"stage": 2}, {"stage": 2, "offload_optimizer": False}, "needs 8 bytes .* 50 GB .*ZeRO-3 needs 5 "),
        ({"stage": 3}, {"stage": 3, "offload_weights": False}, "needs 5 bytes .* 31 GB .*method=lora 2"),
        (
            {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
            {"stage": 3, "offload_optimizer": True, "offload_weights": True},
            "needs 5 bytes .*, of which 4 bytes lie in main memory",
        ),
    ],
)
def test_weights_that_deepspeed_shared_out_are_shared_out_here(
    zero: dict[str, Any], expected: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "deepspeed.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    done, recipe = bring(tmp_path, old_scripts.ds_train_finetune("chatglm-6b"))
    assert recipe.distributed.model_dump().items() >= {"name": "deepspeed", **expected}.items()
    assert recipe.train.precision == "auto"
    (warning,) = done.warnings
    assert re.search(said, warning)
    assert not any("deepspeed" in name for name in done.lost)
