"""`glmtune migrate`: what it prints, and small twins of what it makes, on one process."""

import json
import shlex
from pathlib import Path

import pytest

import old_scripts
from commands import Done, glmtune
from glmtune.migration import migrate_path
from golden import GOLDENS
from models import tiny_folder, tiny_v1_folder

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 64, "kv_channels": 16}
QUICK = ("train.steps=2", "train.eval_every=2", "samples.prompts=[]")


def rows_of(name: str, count: int = 20) -> list[dict[str, str]]:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def conversation(row: dict[str, str]) -> dict[str, object]:
    turns = ("user", row["content"]), ("assistant", row["summary"])
    return {"conversations": [{"role": role, "content": text} for role, text in turns]}


def succeed(*words: object, cwd: Path) -> Done:
    done = glmtune(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module", params=old_scripts.MODELS)
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk with a tiny base, rows where the scripts look for them, and the migrated scripts."""
    folder = tmp_path_factory.mktemp("desk")
    if request.param == "chatglm-6b":
        tiny_v1_folder(folder / "base", hidden_size=64)
    else:
        tiny_folder(folder / "base", "chatglm2", **SIZES)
    for name in ("train", "dev"):
        write_rows(folder / "AdvertiseGen" / f"{name}.json", rows_of("adverts.jsonl"))
    write_rows(folder / "chat.json", rows_of("chat_history.jsonl"))
    old_scripts.write_scripts(folder / "ptuning", request.param)
    succeed("migrate", "ptuning", "--output", "new", cwd=folder)
    return folder


TWINS = {
    "train": (),
    "train_chat": ("data.train=chat.json", "data.validation=chat.json", "output=runs/chat"),
    # there is no fp16 training on a CPU, and a single process has none to share weights with
    "ds_train_finetune": ("train.precision=auto", "distributed=ddp"),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_migrated_training_runs_on_one_process(name: str, desk: Path) -> None:
    succeed("train", f"new/{name}.yaml", "model=base", *TWINS[name], *QUICK, cwd=desk)
    runs = [path for path in (desk / "runs").iterdir() if (path / "best").exists()]
    kept = {"train": "-pt-128-2e-2", "train_chat": "chat", "ds_train_finetune": "-ft-1e-4"}[name]
    assert any(path.name.endswith(kept) for path in runs)


ANSWERED = {
    "evaluate": ("evaluate.max_rows=2", "evaluate.max_new_tokens=2"),
    "evaluate_finetune": ("evaluate.max_rows=2", "evaluate.max_new_tokens=2"),
    "web_demo": ("--max-new-tokens", "2", "--rounds", "1"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_to_be_typed_for_an_evaluation_or_a_demo_runs(name: str, desk: Path) -> None:
    """On the runs that the migrated trainings of the same folder made."""
    for training in ("train", "ds_train_finetune"):
        if not list((desk / "runs").glob(f"*-{'pt' if training == 'train' else 'ft'}-*")):
            succeed("train", f"new/{training}.yaml", "model=base", *TWINS[training], *QUICK, cwd=desk)
    [done] = migrate_path(desk / "ptuning" / f"{name}.sh", desk / "again" / f"{name}.yaml")
    verb, *words = shlex.split(done.next[0].partition("glmtune ")[2])
    done = glmtune(verb, *words, *ANSWERED[name], cwd=desk, typed="你好\nstop\n")
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    assert name == "web_demo" or "2 rows, " in done.stdout


@pytest.fixture(scope="module")
def desk3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk3")
    tiny_folder(folder / "base", "chatglm3", **SIZES)
    for name in ("train", "dev"):
        write_rows(folder / f"{name}.json", [conversation(row) for row in rows_of("adverts.jsonl", 8)])
    (folder / "configs").mkdir()
    for name in old_scripts.PEFT:
        (folder / "configs" / f"{name}.yaml").write_text(old_scripts.config(name), encoding="utf-8")
    succeed("migrate", "configs", "--base", "base", "--output", "new", cwd=folder)
    return folder


@pytest.mark.parametrize("name", old_scripts.PEFT)
def test_a_migrated_configuration_runs_on_one_process(name: str, desk3: Path) -> None:
    succeed("train", f"new/{name}.yaml", *QUICK, f"output=runs/{name}", cwd=desk3)
    assert (desk3 / "runs" / name / "best").exists()


# What is printed


def test_a_script_s_migration_says_what_it_found_made_mended_and_what_to_type(tmp_path: Path) -> None:
    text = old_scripts.train("chatglm-6b").replace(
        "--learning_rate $LR \\", "--learning_rate $LR \\  # high\\"
    )
    (tmp_path / "train.sh").write_text(text, encoding="utf-8")
    said = succeed("migrate", "train.sh", "--output", "mine.yaml", cwd=tmp_path).stdout
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "train.sh:3"
    assert "found: a training (ptuning): 3000 steps of 16 rows, learning rate 0.02" in lines
    assert "made: mine.yaml" in lines
    assert any(line.startswith("mended: line 22: a comment after the backslash") for line in lines)
    assert "not needed: overwrite_cache: no cache of rows is kept" in lines
    assert "next: CUDA_VISIBLE_DEVICES=0 glmtune train mine.yaml" in lines


def test_an_adapter_s_migration_is_talked_to(tmp_path: Path) -> None:
    words = ("--base", GOLDENS / "v3" / "ckpt", "--template", "chatglm3", "--output", "mine")
    said = succeed("migrate", GOLDENS / "v3" / "ckpt_prefix", *words, cwd=tmp_path).stdout
    assert "P-Tuning v2, 8 prefix tokens" in said
    assert "logits equal the source's" in said
    assert "glmtune chat mine" in said
    info = succeed("info", "mine", cwd=tmp_path).stdout
    assert "num_prefix_tokens 8" in info


@pytest.mark.parametrize("words", [["nothing"], ["."]])
def test_what_is_nothing_of_the_past_is_refused(words: list[str], tmp_path: Path) -> None:
    done = glmtune("migrate", *words, "--output", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "hint: " in done.stderr
