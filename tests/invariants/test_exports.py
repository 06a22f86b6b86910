"""Train, save, export: a fresh process that opens the export answers as base + adapter, to 1e-5 in fp32."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import glmtune
from closeness import ROUNDING
from glmtune.adapters.store import stored_tensors
from glmtune.errors import GlmtuneError
from glmtune.load import tokenizer_of
from glmtune.locations import resolve
from glmtune.models.shards import Stored, read_stored, scan_tensors
from glmtune.workflows import ExportResult
from glmtune.workflows.events import drain
from glmtune.workflows.exporting import Order, _tell_chat, exporting
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder

SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # nf4 needs rows of whole blocks of 64
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "v1_late": lambda folder: tiny_v1_folder(folder),
    "v1_mid": lambda folder: tiny_v1_folder(folder, "mid"),
    "v1_early": lambda folder: tiny_v1_folder(folder, "early"),
    "ChatGLM2": lambda folder: tiny_folder(folder, "chatglm2", **SIZES),
    "ChatGLM3": lambda folder: tiny_folder(folder, "chatglm3", **SIZES),
    "ChatGLM3 bf16": lambda folder: tiny_folder(folder, "chatglm3", dtype=torch.bfloat16, **SIZES),
    "GLM-4": lambda folder: tiny_folder(folder, "glm4", **SIZES),
    "GLM-4-hf": lambda folder: tiny_hf_folder(folder, "GLM-4-hf"),
    "GLM-4-0414": lambda folder: tiny_hf_folder(folder, "GLM-4-0414"),
    "GLM-4.5": lambda folder: tiny_hf_folder(folder, "GLM-4.5"),
}
LORA: dict[str, Any] = {"name": "lora", "dropout": 0}
ADALORA: dict[str, Any] = {"name": "adalora", "dropout": 0, "init_r": 6, "target_r": 4}
PTUNING: dict[str, Any] = {"name": "ptuning", "dropout": 0, "num_prefix_tokens": 8}
FREEZE: dict[str, Any] = {"name": "freeze", "num_layers": 1}
FULL: dict[str, Any] = {"name": "full"}
CASES: list[tuple[str, str, dict[str, Any], str | None]] = [
    ("merged", "v1_late", LORA, None),
    ("merged", "v1_mid", {**LORA, "use_rslora": True}, None),
    ("merged", "v1_early", LORA, None),
    ("merged", "v1_late", FULL, None),
    ("merged", "ChatGLM3 bf16", ADALORA, None),
    ("merged", "ChatGLM3", {**LORA, "use_dora": True}, "nf4"),
    ("merged", "ChatGLM3 bf16", LORA, None),
    ("merged", "ChatGLM3 bf16", FULL, None),
    ("merged", "ChatGLM3", FREEZE, None),
    ("merged", "GLM-4", LORA, "int4"),
    ("merged", "GLM-4-hf", LORA, None),
    ("merged", "GLM-4-0414", LORA, None),
    ("merged", "GLM-4-0414", LORA, "int8"),
    ("merged", "GLM-4.5", FULL, None),
    ("merged", "GLM-4.5", LORA, None),
    ("hf", "ChatGLM2", LORA, "int8"),
    ("hf", "ChatGLM3", FULL, None),
    ("hf", "ChatGLM3 bf16", {**LORA, "use_dora": True}, None),
    ("hf", "GLM-4", FREEZE, None),
    ("official-ptuning", "v1_late", {**PTUNING, "projection": True}, None),
    ("official-ptuning", "ChatGLM2", PTUNING, "int8"),
    ("official-ptuning", "ChatGLM3", PTUNING, "int4"),
    ("official-ptuning", "ChatGLM3", PTUNING, "nf4"),
    ("lora-from-adalora", "ChatGLM3 bf16", ADALORA, None),
    ("int8", "v1_late", LORA, None),
    ("int4", "ChatGLM3", LORA, "int4"),
]  # fmt: skip
FAST = (
    ("merged", "v1_late", "lora"),
    ("hf", "GLM-4", "freeze"),
    ("lora-from-adalora", "ChatGLM3 bf16", "adalora"),
)
"""Tried in every run; the others are slow: each starts a process."""


@dataclass
class Desk:
    """A folder with models, rows and what is made of them."""

    folder: Path

    def base(self, family: str) -> Path:
        path = self.folder / "bases" / family
        return path if path.exists() else FAMILIES[family](path)

    def int4(self) -> Path:
        """ChatGLM3 in the official int4, which a run can be trained on as on any base."""
        path = self.folder / "bases" / "int4"
        if not path.exists():
            glmtune.export(self.base("ChatGLM3"), to="int4", output=path)
        return path

    @property
    def rows(self) -> Path:
        path = self.folder / "rows.csv"
        lines = (f"问题{i},答案{i}。\n" for i in range(20))
        path.write_text("prompt,response\n" + "".join(lines), encoding="utf-8")
        return path

    def run(self, family: str, method: dict[str, Any], quant: str | None = None, **data: Any) -> Path:
        name = "-".join([family, *map(str, method.values()), str(quant), *data])
        path = self.folder / "runs" / name
        if not path.exists():
            glmtune.train(
                {
                    "model": str(self.base(family)),
                    "quant": quant,
                    "output": path,
                    "method": method,
                    "data": {"train": self.rows, **data},
                    "train": {"steps": 5, "batch_size": 4, "lr": 5e-3, "eval_every": 5},
                    "samples": {"prompts": []},
                }
            )
        return path


@pytest.fixture(autouse=True)
def _processes(request: pytest.FixtureRequest) -> None:
    """Forks prove the exports, but for two tests whose process starts as one does at a user's."""
    if not any(name in request.node.name for name in ("[merged-v1_late-lora]", "cannot_open")):
        request.getfixturevalue("warm_processes")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("exports"))


def marked(case: tuple[str, str, dict[str, Any], str | None]) -> Any:
    to, family, method, quant = case
    words = [word for word in ("rslora", "dora") if method.get(f"use_{word}")]
    name = "-".join([to, family, method["name"], *words, *([quant] if quant else [])])
    is_fast = (to, family, method["name"]) in FAST
    return pytest.param(*case, id=name, marks=() if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("to", "family", "method", "quant"), [marked(case) for case in CASES])
def test_a_fresh_process_answers_as_base_and_adapter(
    to: str, family: str, method: dict[str, Any], quant: str | None, desk: Desk, tmp_path: Path
) -> None:
    run = desk.run(family, method, quant)
    result = glmtune.export(run, to=to, output=tmp_path / "out", max_shard_size="100KB")
    figures = result.facts["verified"]
    is_rounded = to in ("int8", "int4") or ("bf16" in family and to in ("merged", "hf"))
    rounding = ROUNDING[torch.float32] * figures["max_logit"]
    assert figures["max_difference"] <= rounding
    assert (figures["max_difference_to_trained"] <= rounding) is not is_rounded
    assert figures["greedy_equal"]
    assert [len(ids) for ids in figures["greedy_ids"]] == [8, 8]
    assert json.loads((result.path / "export.json").read_text(encoding="utf-8")) == result.facts
    assert figures["imports_glmtune"] is (to != "hf")
    if to == "hf":
        assert figures["class"] == "GlmForCausalLM"
        assert figures["chat_ids_equal"]
        assert result.facts["chat"].startswith("its tokenizer.json and chat_template.jinja make the same ids")
    if quant and to in ("merged", "hf", "int4"):
        assert result.facts["difference_to_quantised_base"]["max"] > 10 * figures["max_difference"]
    if to in ("int8", "int4"):
        quality = result.facts["quality"]
        assert quality["rows"] == 1
        assert quality["before"]["perplexity"] != quality["after"]["perplexity"]
    is_adapter = method["name"] in ("lora", "adalora") and to in ("merged", "hf", "int8", "int4")
    assert (figures["proven_weights"] > 0) is is_adapter
    if to == "merged":
        assert_as_the_base(result, desk.base(family))


def assert_as_the_base(result: ExportResult, base: Path) -> None:
    ours, theirs = scan_tensors(result.path), scan_tensors(base)
    assert {name: at.shape for name, at in ours.items()} == {name: at.shape for name, at in theirs.items()}
    assert {name: at.dtype for name, at in ours.items()} == {name: at.dtype for name, at in theirs.items()}
    copied = [path for path in base.iterdir() if path.suffix in (".json", ".model", ".py", ".jinja")]
    assert len(copied) >= 3
    for path in copied:
        assert (result.path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_plain_transformers_chats_with_an_export_as_glmtune_does_with_the_run(
    desk: Desk, tmp_path: Path
) -> None:
    run = desk.run("ChatGLM3", LORA)
    out = glmtune.export(run, to="hf", output=tmp_path / "out").path
    code = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(out)!r})
model = AutoModelForCausalLM.from_pretrained({str(out)!r})
messages = [{{"role": "user", "content": "你好"}}]
ask = {{"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}}
inputs = tokenizer.apply_chat_template(messages, **ask)
whole = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0]
assert "glmtune" not in sys.modules
print(tokenizer.decode(whole[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    model, tokenizer = glmtune.load_model(run, dtype="fp32"), glmtune.load_tokenizer(run)
    said = "".join(glmtune.Chat(model, tokenizer, temperature=0, max_new_tokens=12).ask("你好"))
    assert done.stdout.strip() == said.strip()


def test_an_export_that_a_fresh_process_cannot_open_is_not_kept(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # so no python starts
    with pytest.raises(GlmtuneError, match="a fresh process cannot open it"):
        glmtune.export(desk.run("ChatGLM3", LORA), to="merged", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_in_fp32_has_the_numbers_that_freeze_trained(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("ChatGLM3 bf16", FREEZE)
    result = glmtune.export(run, to="merged", output=tmp_path / "out", dtype="fp32")
    out, figures = result.path, result.facts["verified"]
    assert figures["max_difference_to_trained"] <= figures["tolerance"]
    trained, written = stored_tensors((run / "best").resolve()), scan_tensors(out)
    assert trained
    for name, values in trained.items():
        assert torch.equal(read_stored(written[name]), values), name


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"base": torch.clone, "zeros": torch.zeros_like}


@pytest.mark.parametrize(("to", "family", "wrong"), [
    ("merged", "ChatGLM3", "base"),
    ("merged", "ChatGLM3 bf16", "base"),
    pytest.param("merged", "ChatGLM3 bf16", "zeros", marks=pytest.mark.slow),
    pytest.param("hf", "ChatGLM3", "zeros", marks=pytest.mark.slow),
    pytest.param("int4", "ChatGLM3", "base", marks=pytest.mark.slow),
])  # fmt: skip
def test_an_export_of_weights_that_are_merged_wrongly_is_not_kept(
    to: str, family: str, wrong: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(factors: Any, base: Stored) -> torch.Tensor:
        return WRONG[wrong](read_stored(base).float())

    run = desk.run(family, LORA)
    monkeypatch.setattr("glmtune.adapters.merge._merge", merge)
    with pytest.raises(GlmtuneError, match="base \\+ adapter"):
        glmtune.export(run, to=to, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_of_the_base_that_is_written_otherwise_is_not_kept(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, torch.Tensor], path: Path, **settings: Any) -> None:
        norm = {name: value * 1.01 for name, value in tensors.items() if "final_layernorm" in name}
        save_file(tensors | norm, path, **settings)

    monkeypatch.setattr("glmtune.exports.tensors.save_file", spoil)
    with pytest.raises(GlmtuneError, match=r"final_layernorm\.weight reads back other than it was written"):
        glmtune.export(desk.run("ChatGLM3 bf16", LORA), to="merged", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_chatting_with_an_hf_export_names_what_it_was_made_of(desk: Desk, tmp_path: Path) -> None:
    base = desk.base("ChatGLM3")
    out = glmtune.export(base, to="hf", output=tmp_path / "out").path
    with pytest.raises(GlmtuneError, match="none of the formats") as caught:
        tokenizer_of(resolve(out), template=None)
    assert str(base) in caught.value.hint
    assert f"`glmtune export {base} --to merged`" in caught.value.hint


def test_an_official_prefix_says_how_it_is_talked_to(desk: Desk, tmp_path: Path) -> None:
    notes: list[str] = []
    order = Order(desk.run("ChatGLM2", PTUNING), "official-ptuning", tmp_path / "out")
    drain(exporting(order), lambda note: notes.append(note.text))
    base = desk.base("ChatGLM2")
    assert notes[-1] == f"next: glmtune chat {order.output} --base {base} --template chatglm2"
    glmtune.load_model(base, adapter=order.output)


def test_an_hf_export_whose_chats_have_other_ids_says_so_in_its_file() -> None:
    facts: dict[str, Any] = {"verified": {"chat_ids": [1, 2]}}
    note = _tell_chat(facts, [1, 3])
    assert note.is_warning
    assert facts == {"verified": {"chat_ids_equal": False}, "chat": note.text}


def test_nothing_is_overwritten(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(GlmtuneError, match="is not empty and will not be overwritten"):
        glmtune.export(desk.run("ChatGLM3", LORA), to="merged", output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("words", "problem"), [
    ({"to": "gguf"}, "to: unknown 'gguf'"),
    ({"to": "merged", "dtype": "int8"}, "dtype: 'int8' is not a type"),
    ({"to": "merged", "max_shard_size": "big"}, "max_shard_size: 'big'"),
    ({"to": "official-ptuning"}, "has no prefix"),
    ({"to": "official-ptuning", "dtype": "bf16"}, "keeps its weights in fp32"),
    ({"to": "int8", "data": "nowhere.json"}, "nowhere.json"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: dict[str, Any], problem: str, desk: Desk, tmp_path: Path
) -> None:
    with pytest.raises(GlmtuneError, match=problem) as caught:
        glmtune.export(desk.run("ChatGLM3", LORA), output=tmp_path / "out", **words)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_base_is_refused_with_the_cure(desk: Desk, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "quantization_bit": 4}), encoding="utf-8")
    with pytest.raises(GlmtuneError, match="its own weights are int4") as caught:
        glmtune.export(base, to="merged", output=tmp_path / "out")
    assert caught.value.hint == "export the un-quantised model's folder"


def test_a_run_on_an_official_int4_folder_is_exported_onto_the_original(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = desk.base("ChatGLM3")
    desk.int4()
    run = desk.run("int4", LORA)
    with pytest.raises(GlmtuneError, match="its own weights are int4") as caught:
        glmtune.export(run, to="merged", output=tmp_path / "out")
    assert "base=" in caught.value.hint
    other = tiny_folder(tmp_path / "other", "chatglm3", seed=7, **SIZES)
    with pytest.raises(GlmtuneError, match="not the original"):
        glmtune.export(run, to="merged", output=tmp_path / "out", base=other)
    facts = glmtune.export(run, to="merged", output=tmp_path / "out", base=original).facts
    assert "cannot be proven" in facts["base_is_unproven"]
    assert facts["base"] == str(original)
    assert facts["verified"]["nearer_to_trained_than_to_base"]


@pytest.mark.parametrize(("to", "method"), [
    ("official-ptuning", PTUNING),
    pytest.param("lora-from-adalora", ADALORA, marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_not_merged_is_exported_onto_the_int4_folder_that_it_was_trained_on(
    to: str, method: dict[str, Any], desk: Desk, tmp_path: Path
) -> None:
    int4 = desk.int4()
    result = glmtune.export(desk.run("int4", method), to=to, output=tmp_path / "out")
    assert result.facts["base"] == str(int4)
    assert result.facts["base_is_unproven"] is None
    if to == "official-ptuning":
        config = json.loads((result.path / "config.json").read_text(encoding="utf-8"))
        assert (config["quantization_bit"], config["pre_seq_len"]) == (4, 8)
