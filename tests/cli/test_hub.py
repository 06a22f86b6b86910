"""A model by its name on a hub, from the first fetch to a chat without network."""

import json
from pathlib import Path

import pytest
import yaml

from commands import glmtune, glmtune_process
from fake_hub import COMMIT, serving
from models import tiny_folder

ROWS = [{"prompt": "早", "response": "早上好"}] * 4


@pytest.mark.slow
def test_a_run_on_a_hubs_model_pins_its_revision_and_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.json").write_text(json.dumps(ROWS), encoding="utf-8")
    words = (
        "train", "model=A/tiny", "data.train=my.json", "train.steps=1", "train.batch_size=1",
        "samples.max_new_tokens=4",
    )  # fmt: skip
    with serving({"A/tiny": tiny_folder(tmp_path / "served")}) as hub:
        for key, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(key, value)
        done = glmtune_process(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"hf:A/tiny: revision {COMMIT} in " in done.stderr
    run = tmp_path / "runs" / "tiny-lora"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["model"], recipe["revision"]) == ("hf:A/tiny", COMMIT)
    known = json.loads((run / "env.json").read_text(encoding="utf-8"))["model"]
    assert (known["name"], known["revision"], Path(known["folder"]).name) == ("hf:A/tiny", COMMIT, COMMIT)
    card = json.loads((run / "last" / "glmtune.json").read_text(encoding="utf-8"))
    assert (card["base"], card["base_revision"]) == ("hf:A/tiny", COMMIT)
    theirs = json.loads((run / "last" / "adapter_config.json").read_text(encoding="utf-8"))
    assert theirs["base_model_name_or_path"] == "A/tiny"

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = glmtune_process("info", "runs/tiny-lora", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kind             run" in done.stdout
    assert COMMIT in done.stdout
    resumed = glmtune_process(*words, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "0 of 1 steps to go" in resumed.stdout


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    for words in (
        ("info", "model", "--revision", "v1"),
        ("chat", "model", "--revision", "v1"),
        ("evaluate", "model", "--revision", "v1", "--data", "x.json"),
        ("train", "model=model", "revision=v1", "data.train=x.json"),
    ):
        done = glmtune(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert "error: revision: model is not a hub's name, so it has no revisions" in done.stderr


def test_a_folder_that_is_here_comes_before_a_hub(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "A" / "tiny")
    done = glmtune("info", "A/tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
