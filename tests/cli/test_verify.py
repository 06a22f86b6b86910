"""`glmtune verify` and `glmtune runs`, as a user types them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from commands import glmtune
from proofs import edit_card

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = Path(__file__).parents[2] / "src" / "glmtune" / "glm_tiny"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one of them scored."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(MODEL, folder / "model")
    for method in ("lora", "ptuning"):
        done = glmtune(
            "train", "model=model", f"method={method}", f"data.train={EXAMPLES / 'adverts.jsonl'}",
            "data.max_rows=40", "data.holdout_rows=4", "train.steps=2", "train.batch_size=4",
            "train.lr=1e-2", "samples.prompts=[]", f"output=runs/{method}", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "the probe's logits differ from the base's by " in done.stdout
    done = glmtune(
        "evaluate", "runs/lora", "--data", EXAMPLES / "adverts_heldout.jsonl", "evaluate.max_rows=2",
        "evaluate.max_new_tokens=4", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_each_check_is_printed_with_its_figures(work: Path, method: str) -> None:
    done = glmtune("verify", f"runs/{method}", cwd=work)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["tokenizer", "base", "update", "logits", "files"]
    assert lines[-1].endswith("step-000002: verified")


def test_a_flipped_bit_in_a_file_that_nothing_opens_is_told(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "runs" / "lora" / "checkpoints" / "step-000002", tmp_path / "adapter")
    state = tmp_path / "adapter" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    done = glmtune("verify", "adapter", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: adapter/state.pt: is not as it was saved" in done.stderr
    state.unlink()  # what is passed on needs none
    assert glmtune("verify", "adapter", cwd=tmp_path).returncode == 0


def test_a_precision_too_coarse_for_the_effect_is_said_not_to_prove_it(work: Path) -> None:
    done = glmtune("verify", "runs/ptuning", "--quant", "int4", cwd=work)
    assert done.returncode == 0, done.stderr
    warning, _, verdict = done.stdout.splitlines()[-3:]
    assert warning.startswith("warning: this precision proves nothing about the effect: ")
    assert verdict.endswith("step-000002: verified, but for its effect")


def test_what_fails_is_an_error_after_what_has_passed(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "runs" / "lora" / "checkpoints" / "step-000002", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    zeroed = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()}
    save_file(zeroed, file, {"format": "pt"})
    done = glmtune("verify", "adapter", cwd=tmp_path)
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["tokenizer", "base"]
    assert "error: adapter: changes nothing: its update is zero everywhere" in done.stderr
    assert "hint: " in done.stderr


def test_a_base_that_has_moved_is_named_and_found_to_be_the_same(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "runs" / "lora" / "checkpoints" / "step-000002", tmp_path / "adapter")
    edit_card(tmp_path / "adapter", lambda card: card.update(base="/gone/model"))
    assert glmtune("verify", "adapter", cwd=tmp_path).returncode == 2
    done = glmtune("verify", "adapter", "--base", work / "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_model_has_nothing_to_verify(work: Path) -> None:
    done = glmtune("verify", "model", cwd=work)
    assert done.returncode == 2
    assert "nothing that was trained from one" in done.stderr


def test_an_adapter_of_elsewhere_is_checked_as_far_as_can_be(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "runs" / "lora" / "checkpoints" / "step-000002", tmp_path / "adapter")
    (tmp_path / "adapter" / "glmtune.json").unlink()
    done = glmtune("verify", "adapter", "--base", work / "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing recorded; different from the base's by" in done.stdout
    assert (
        "warning: not proven: its base, its weights, its answers; nothing of it was recorded" in done.stdout
    )
    assert done.stdout.endswith("adapter: verified, but for its base, its weights, its answers\n")


def test_the_list_has_each_run_with_its_figures_in_80_columns(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "runs", tmp_path / "runs", symlinks=True)
    stopped = tmp_path / "runs" / "more" / "stopped"
    shutil.copytree(tmp_path / "runs" / "ptuning", stopped, symlinks=True)
    (stopped / "eval.json").unlink()
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(tmp_path / "runs" / "lora", broken, symlinks=True)
    (broken / "recipe.yaml").write_text("model: x\nlr: 3\n", encoding="utf-8")
    gone = tmp_path / "runs" / "gone"
    shutil.copytree(tmp_path / "runs" / "lora", gone, symlinks=True)
    shutil.rmtree(gone / "checkpoints")
    done = glmtune("runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    states = dict(line.split()[:2] for line in lines if not line.startswith(" "))
    assert states == {
        "lora": "finished", "ptuning": "finished", "more/stopped": "stopped", "broken": "broken",
        "gone": "broken",
    }  # fmt: skip
    text = " ".join(done.stdout.split())
    assert "model | lora | 2 steps | best loss " in text
    assert re.search(r"adverts_heldout\.jsonl, 2 rows: rouge-l [\d.]+ of 100, bleu-4 [\d.]+ of 100", text)
    assert "lr: unknown setting" in text
    listed = json.loads(glmtune("runs", "--json", cwd=tmp_path).stdout)
    assert {Path(entry["path"]).name: entry["state"] for entry in listed}["stopped"] == "stopped"


def test_a_folder_without_runs_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert "no runs here" in glmtune("runs", cwd=tmp_path).stdout
    assert "no such folder" in glmtune("runs", "else", cwd=tmp_path).stderr
