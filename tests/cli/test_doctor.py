"""`glmtune doctor`, as a user types it: alone, and on a model's folder."""

import json
import os
import re
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from commands import glmtune
from glmtune.conversation import encode_messages
from glmtune.load import load_model, load_tokenizer
from glmtune.models.dtype import num_bytes
from glmtune.models.shards import scan_tensors
from glmtune.workflows import examining, first_run, machine
from glmtune.workflows.findings import Finding
from glmtune.workflows.first_run import ANSWER, ASKED, try_model
from glmtune.workflows.machine import find_conflicts, has_code, look_at_cards
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder

TRIED = [
    "train",
    "verify",
    "decode",
    *(["decode, W8A8"] if torch.backends.quantized.engine == "x86" else []),
    *(f"decode, {quant}" for quant in ("int8", "int4", "nf4")),
]
MODEL = ["files", "load", "logits", "decode", "train"]


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a temporary folder of the test's own, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the doctor uses the network")

    for name in ("home", "scratch", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def names(text: str, part: str) -> list[str]:
    """The names of a part's lines; a line that goes on has none."""
    section = text.partition(f"{part}\n")[2]
    return [line[2:16].strip() for line in section.splitlines() if re.match("  [^ ]", line)]


def test_the_doctor_tries_machine_and_model_and_leaves_nothing(apart: Path) -> None:
    folder = tiny_folder(apart / "home" / "chatglm3-6b")
    done = glmtune("doctor", folder, cwd=apart / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(done.stdout, "self-test") == [*TRIED, *MODEL]
    assert f"torch {torch.__version__}" in " ".join(done.stdout.split())
    losses = re.search(r"loss ([\d.]+) to ([\d.]+)", done.stdout)
    assert losses and float(losses[2]) < float(losses[1]) - 0.5
    assert str(apart / "home") not in done.stdout
    assert not list((apart / "work").iterdir()) + list((apart / "scratch").iterdir())


def test_what_fails_is_a_finding_and_the_rest_goes_on(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "NAME", "GLM-Huge")  # which the answers do not hold
    monkeypatch.setattr(examining, "STEPS", 2)
    monkeypatch.setattr(examining, "QUANTS", ["int8"])
    tried = [name for name in TRIED if name not in ("decode, int4", "decode, nf4")]
    folder = tiny_folder(apart / "work" / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    done = glmtune("doctor", folder, "--json", cwd=apart / "work")
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert [found["name"] for found in findings if found["has_failed"]] == [*tried[2:], "files"]
    assert [found["name"] for found in findings if found["part"] == "self-test"] == tried
    assert "which names no GLM-Huge; paste this report into an issue" in findings[-2]["text"]
    assert ": model/model.safetensors: " in findings[-1]["text"]
    assert str(apart) not in findings[-1]["text"]


FOLDERS = {
    "ChatGLM-6B": tiny_v1_folder,
    "ChatGLM-6B early": lambda folder: tiny_v1_folder(folder, "early"),
    "ChatGLM2": lambda folder: tiny_folder(folder, "chatglm2"),
    "ChatGLM3": tiny_folder,
    "GLM-4": lambda folder: tiny_folder(folder, "glm4"),
    **{
        family: lambda folder, family=family: tiny_hf_folder(folder, family)
        for family in ("GLM-4-hf", "GLM-4-0414", "GLM-4.5")
    },
}


def tried(folder: Path, quant: str | None = None) -> dict[str, Finding]:
    events = try_model(folder, template=None, dtype="fp32", quant=quant, device="cpu")
    return {found.name: found for found in events if isinstance(found, Finding)}


@pytest.mark.parametrize("family", FOLDERS)
def test_a_model_of_every_family_is_opened_asked_and_trained(family: str, tmp_path: Path) -> None:
    folder = FOLDERS[family](tmp_path / "model")
    found = tried(folder)
    assert list(found) == MODEL
    assert not [one.text for one in found.values() if one.has_failed]
    assert found["logits"].text.partition(": ")[2] == tried(folder)["logits"].text.partition(": ")[2]
    model, tokenizer = load_model(folder, dtype="fp32", device="cpu"), load_tokenizer(folder)
    prompt = encode_messages(tokenizer, [{"role": "user", "content": ASKED}])
    with torch.no_grad():
        likeliest = model(torch.tensor([prompt])).logits[0, -1].argmax()
    said = found["decode"].text.partition(f"{ASKED} ")[2]
    ends = int(likeliest) in tokenizer.stop_ids
    assert ends or tokenizer.decode([int(likeliest)]).strip("� ") in said


def test_the_loss_is_the_models_own(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    model, tokenizer = load_model(folder, dtype="fp32", device="cpu"), load_tokenizer(folder)
    messages = [{"role": "user", "content": ASKED}]
    prompt = encode_messages(tokenizer, messages)
    answer = encode_messages(
        tokenizer, [*messages, {"role": "assistant", "content": ANSWER}], add_generation_prompt=False
    )[len(prompt) :]
    ids = torch.tensor([[*prompt, *answer, tokenizer.stop_ids[0]]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        expected = float(model(ids, labels=labels).loss)
    shown = re.search(r"loss ([\d.]+),", tried(folder)["train"].text)
    assert shown and float(shown[1]) == pytest.approx(expected, abs=1e-3)


def test_a_model_that_does_not_fit_is_not_loaded_and_the_cure_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "model")
    stored = scan_tensors(folder)
    for quant, other in (("int8", None), ("int4", None), ("int4", "int8")):
        size = int(num_bytes(stored, quant)) + 1
        monkeypatch.setattr(first_run, "free_memory", lambda _, size=size: size)
        found = tried(folder, other)
        assert list(found) == ["files", "load"]
        assert found["load"].text.endswith(f" are free; quant={quant}")
        assert list(tried(folder, quant)) == MODEL
    monkeypatch.setattr(first_run, "free_memory", lambda _: 0)
    for quant in (None, "int4"):
        assert "take a smaller model, or a machine with more than" in tried(folder, quant)["load"].text


def test_an_adapter_is_refused_with_what_to_type_instead(tmp_path: Path) -> None:
    words = ["model=glm-tiny", "data.train=examples/adverts.jsonl", "data.max_rows=4", "train.steps=1"]
    assert glmtune("train", *words, "samples.prompts=[]", "output=run", cwd=tmp_path).returncode == 0
    done = glmtune("doctor", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "hint: `glmtune verify run` proves it; `glmtune doctor " in done.stderr


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_75", "sm_80", "sm_90", "compute_90"], (6, 0), False),  # P100
        (["sm_75", "sm_80", "sm_90", "compute_90"], (7, 0), False),  # V100
        (["sm_50", "sm_60", "sm_70"], (6, 0), True),
        (["sm_75", "sm_80"], (8, 9), True),  # an RTX 4090 runs code for the A100
        (["sm_86"], (8, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),
        (["sm_80", "sm_90a"], (9, 0), True),
        (["sm_90", "sm_100", "sm_120"], (10, 0), True),
        (["gfx90a", "gfx1100"], (9, 0), True),
    ],
)
def test_a_build_has_code_for_a_card_or_not(
    architectures: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert has_code(architectures, *capability) is runs


def test_packages_that_do_not_go_together_are_told_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "logger-1.0.dist-info"
    folder.mkdir()
    lines = ["Name: logger", "Version: 1.0", "Requires-Dist: torch<2", "Requires-Dist: pyyaml>=5"]
    (folder / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    told = f"logger needs torch<2, installed is {torch.__version__}: pip install 'torch<2'"
    assert list(find_conflicts("logger")) == [told]
    assert list(find_conflicts("glmtune")) == []


@pytest.mark.gpu
def test_a_card_is_described_and_tried(apart: Path) -> None:
    done = glmtune("doctor", cwd=apart / "work")
    assert done.returncode == 0, done.stdout
    assert "  card 0 " in done.stdout


@pytest.mark.skipif(sys.platform == "win32" or torch.cuda.is_available(), reason="a script stands for a card")
@pytest.mark.parametrize("hidden", [False, True])
def test_a_card_that_torch_does_not_see_is_told_with_the_cure(
    hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla P100, 535.1'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [found] = look_at_cards()
    assert found.text == "Tesla P100, driver 535.1: PyTorch sees none"
    assert ("unset it" if hidden else machine.CURE) in found.warning
