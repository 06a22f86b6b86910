"""The recipes hold the published settings, and run; so do their twins on glm-tiny."""

import re
import shlex
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from commands import glmtune
from glmtune.data.reader import read_examples
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.workflows.early import run_folder, training_recipe
from models import tiny_folder, tiny_v1_folder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FILES = sorted(FOLDER.rglob("*.yaml"))
ids = {"ids": lambda path: path.relative_to(FOLDER).with_suffix("").as_posix()}

ADGEN = {
    "data.train": Path("AdvertiseGen/train.json"), "data.validation": Path("AdvertiseGen/dev.json"),
}  # fmt: skip
PREFIX = {"quant": "int4", "method.name": "ptuning", "method.num_prefix_tokens": 128,
          "method.projection": False, "method.dropout": 0.1}  # fmt: skip
ADAMW = {"train.schedule": "linear", "train.weight_decay": 0.0, "train.warmup_steps": 0,
         "train.adam_beta1": 0.9, "train.adam_beta2": 0.999, "train.adam_epsilon": 1e-8,
         "train.max_grad_norm": 1.0, "train.seed": 42}  # fmt: skip
"""What transformers' Trainer does unless told otherwise."""


def lora(r: int, alpha: float, dropout: float) -> dict[str, Any]:
    return {"method.name": "lora", "method.r": r, "method.alpha": alpha, "method.dropout": dropout,
            "method.target_modules": None, "method.use_rslora": False, "method.use_dora": False}  # fmt: skip


def limits(source: int, target: int, encoding: str = "chat") -> dict[str, Any]:
    return {
        "data.max_source_tokens": source,
        "data.max_target_tokens": target,
        "data.encoding": encoding,
        "data.empty": "skip" if encoding == "thudm" else "error",
    }


def length(
    batch_size: int, lr: float, *, steps: int | None = None, epochs: float | None = None
) -> dict[str, Any]:
    """`batch_size` is rows x accumulation x processes of the source."""
    return {"train.batch_size": batch_size, "train.lr": lr, "train.steps": steps, "train.epochs": epochs}


PUBLISHED: dict[str, dict[str, Any]] = {
    "adgen-ptuning": {
        "model": "/models/chatglm-6b", **ADGEN, **PREFIX, **ADAMW,
        **limits(64, 64, "thudm"), **length(1 * 16, 2e-2, steps=3000),
    },
    "adgen-ptuning-2gpu": {
        "model": "/models/chatglm2-6b", **ADGEN, **PREFIX, **ADAMW,
        **limits(64, 128, "thudm"), **length(1 * 16 * 2, 2e-2, steps=2000),
    },
    "chat-ptuning": {
        "model": "/models/chatglm2-6b", **PREFIX, **ADAMW,
        **limits(256, 256, "thudm"), **length(1 * 16, 1e-2, steps=3000),
        "data.prompt_column": "prompt", "data.response_column": "response", "data.history_column": "history",
    },
    "few-rows-ptuning": {
        "model": "/models/chatglm-6b", **PREFIX, **ADAMW, "train.weight_decay": 1e-3,
        "train.warmup_steps": 12 * 500 // 10, **limits(300, 300), **length(1, 2e-4, epochs=500),
    },
    "few-rows-lora": {
        "model": "/models/chatglm-6b", "quant": None, **lora(4, 32, 0.1), **ADAMW, "train.weight_decay": 1e-3,
        "train.warmup_steps": 12 * 250 // 2 // 10, **limits(230, 230), **length(2, 2e-4, epochs=250),
    },
    "alpaca-lora-int8": {
        "model": "/models/chatglm-6b", "quant": "int8", **lora(8, 32, 0.1), **ADAMW,
        "data.max_tokens": 200, "data.overlong": "drop", **length(6 * 1, 1e-4, steps=52_000),
    },
    "alpaca-lora": {
        "model": "/models/chatglm3-6b-base", "quant": None, **lora(8, 8, 0.0), **ADAMW,
        "data.max_tokens": 256, **length(2 * 16, 1e-4),
    },
    "few-shot-adalora": {
        "model": "/models/chatglm2-6b", "quant": None, **ADAMW, **limits(64, 128, "thudm"),
        "method.name": "adalora", "method.init_r": 12, "method.target_r": 8, "method.alpha": 32,
        "method.dropout": 0.1, "train.patience": 5,
        "train.schedule": "constant", "train.weight_decay": 1e-2,  # torch's AdamW, no schedule
        **length(1 * 16, 5e-3, epochs=50),
    },
    "identity": {
        "model": "/models/chatglm3-6b", "quant": None, "method.name": "lora", "method.r": 8,
        "train.schedule": "cosine", "train.warmup_steps": ceil(ceil(258 / 8) * 3 * 0.1),
        **length(1 * 8, 1e-4, epochs=3),
    },
    "qlora": {
        "model": "/models/chatglm2-6b", "quant": "nf4", **ADGEN, **lora(4, 32, 0.05), **ADAMW,
        "train.warmup_steps": ceil(ceil(114_599 / (4 * 8)) * 0.1),
        **length(4 * 8, 1e-3, epochs=1),
    },
    "lora": {
        "model": "/models/chatglm3-6b", "quant": None, **lora(8, 32, 0.1), **ADAMW, **limits(256, 512),
        **length(16, 1e-4, epochs=2),
    },
    "freeze": {
        "model": "/models/chatglm3-6b", "quant": None, "method.name": "freeze", "method.num_layers": 3,
        **limits(256, 512), **length(16, 5e-5, epochs=2),
    },
    "full": {
        "model": "/models/chatglm3-6b", "quant": None, "method.name": "full", **limits(256, 512),
        **length(16, 5e-5, epochs=2),
    },
}  # fmt: skip
"""Each recipe's settings that a source sets; the sources stand in the recipes themselves."""
FILLED = {"identity": ["name=小橙", "author=橙子工作室"]}
"""Words that a recipe needs for the placeholders of its rows."""
ROWS = {
    "identity": "identity.json",
    "chat-ptuning": "chat_history.jsonl", "alpaca-lora": "alpaca.json", "alpaca-lora-int8": "alpaca.json",
}  # fmt: skip
"""The example rows of a recipe's format, where it is not that of the adverts."""
QUICK = (
    "train.epochs=null", "train.steps=2", "train.batch_size=2", "train.micro_batch_size=1",
    "samples.prompts=[]",
)  # fmt: skip


def flat(settings: BaseModel, place: str = "") -> dict[str, Any]:
    """Every setting by its full name."""
    found: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inner = flat(value, f"{place}{name}.") if isinstance(value, BaseModel) else {place + name: value}
        found.update(inner)
    return found


def command(path: Path) -> list[str]:
    """The words behind `glmtune train` in a recipe's header."""
    found = re.findall(r"^# (?:torchrun .* -m )?glmtune train (.+)$", path.read_text("utf-8"), re.MULTILINE)
    assert len(found) == 1, path
    return shlex.split(found[0])


def test_every_recipe_has_a_table_of_its_source_a_twin_and_a_line_in_the_index() -> None:
    assert sorted(PUBLISHED) == NAMES
    assert sorted(path.stem for path in (FOLDER / "tiny").glob("*.yaml")) == NAMES
    listed = re.findall(
        r"^\| \[(.+)\]\((.+)\.yaml\)", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted([(name, name) for name in NAMES] * 2)  # English and Chinese


@pytest.mark.parametrize("path", FILES, **ids)
def test_a_recipe_is_short_and_its_header_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= (15 if path.parent.name == "tiny" else 25)
    assert max(map(len, lines)) <= 120
    file, *words = command(path)
    assert ROOT / file == path
    load_recipe(path, words)


def test_the_recipes_as_documented_write_to_folders_of_their_own() -> None:
    folders = [str(run_folder(training_recipe(file, words))) for file, *words in map(command, FILES)]
    assert len(set(folders)) == len(FILES)
    assert {"runs/chatglm3-6b-lora", "runs/glm-tiny-lora", "runs/glm-tiny-alpaca-lora"} < set(folders)


@pytest.mark.parametrize(
    ("file", "words", "folder"),
    [
        ("mine.yaml", [], "runs/glm-tiny-mine-lora"),
        ("lora.yaml", ["method=ptuning"], "runs/glm-tiny-lora-ptuning"),
        ("lora.yaml", ["model=/m/chatglm3-6b"], "runs/chatglm3-6b-lora"),
        ("lora.yaml", ["output=here"], "here"),
        ("recipe.yaml", [], "runs/glm-tiny-lora"),
    ],
    ids=["its method", "another method", "another model", "named", "a run's own"],
)
def test_a_run_is_named_after_its_recipe_and_what_it_trains(
    tmp_path: Path, file: str, words: list[str], folder: str
) -> None:
    (tmp_path / file).write_text("model: glm-tiny\nmethod: lora\n", "utf-8")
    assert run_folder(training_recipe(tmp_path / file, words)) == Path(folder)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "tiny"], **ids)
def test_a_twin_finds_its_rows_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = load_recipe(path).data
    for rows in filter(None, (data.train, data.validation)):
        assert rows == ROOT / "examples" / rows.name
        assert rows.is_file()


def test_rows_that_are_here_come_before_the_bundled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "adverts.jsonl").write_text('{"prompt": "q", "response": "a"}', "utf-8")
    [example] = read_examples(Path("examples/adverts.jsonl"), Data())
    assert example.messages[0].content == "q"
    assert len(read_examples(Path("examples/alpaca.json"), Data())) == 30
    assert load_recipe({"model": "m", "data": {"train": "examples/adverts.jsonl"}}).data.train == Path(
        "examples/adverts.jsonl"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_sets_what_its_source_sets(name: str) -> None:
    header = (FOLDER / f"{name}.yaml").read_text("utf-8")
    assert "# Source: " in header and "# Memory: " in header
    settings = flat(load_recipe(FOLDER / f"{name}.yaml", FILLED.get(name, ())))
    assert {key: settings[key] for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_keeps_base_precision_method_rate_and_schedule(name: str) -> None:
    words = FILLED.get(name, ())
    large, small = (load_recipe(FOLDER / place / f"{name}.yaml", words) for place in ("", "tiny"))
    assert kept(small) == kept(large)
    assert small.model == "glm-tiny"
    assert small.data.train is not None and small.data.train.parent.name == "examples"


def kept(recipe: Recipe) -> Mapping[str, Any]:
    """What a twin has of its recipe: all but the model, the rows and their number."""
    train = {"lr", "schedule", "weight_decay", "adam_epsilon", "max_grad_norm", "patience"}
    data = {"prompt_column", "response_column", "history_column", "loss", "overlong"}
    return recipe.model_dump(include={"quant": True, "method": True, "train": train, "data": data}) | {
        "warms up": recipe.train.warmup_steps > 0
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_trains(name: str, tmp_path: Path) -> None:
    require_packages(name)
    done = glmtune(
        "train", FOLDER / "tiny" / f"{name}.yaml", *QUICK, "train.warmup_steps=0", "train.eval_every=2",
        "data.validation=null", "data.max_rows=6", f"output={tmp_path / 'run'}", cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_a_tiny_model_of_its_family(name: str, tmp_path: Path) -> None:
    require_packages(name)
    path, words = FOLDER / f"{name}.yaml", FILLED.get(name, [])
    rows = ROOT / "examples" / ROWS.get(name, "adverts.jsonl")
    done = glmtune(
        "train", path, *QUICK, *words, f"model={tiny_model_of(load_recipe(path, words).model, tmp_path)}",
        f"data.train={rows}", "data.validation=null", "data.overlong=cut_any", "data.max_rows=8",
        "train.eval_every=2", f"output={tmp_path / 'run'}", cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def require_packages(name: str) -> None:
    """Skip where a recipe needs an extra that is not installed."""
    if PUBLISHED[name].get("quant") == "nf4":
        pytest.importorskip("bitsandbytes")


def tiny_model_of(model: str, folder: Path) -> Path:
    """A folder of the same family; its rows of weights are 64 long, as NF4 wants them."""
    family = Path(model).name.partition("-")[0]
    if family == "chatglm":
        return tiny_v1_folder(folder / "model", hidden_size=64)
    sizes = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 64, "kv_channels": 16}
    return tiny_folder(folder / "model", family, **sizes)
