"""The pages for readers of the five write-ups: their five commands run as they stand, on tiny models."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from commands import Done, glmtune
from glmtune import load_tokenizer
from hints import follow_command, follow_setting
from models import tiny_folder, tiny_v1_folder
from test_docs import ROOT, TUTORIALS, blocks, both
from test_mission import DEMANDS

PAGES = TUTORIALS[1:]
DEMAND = re.compile(r"\bS\d-\d\d\b")
SHORT = ["samples.prompts=[]", "train.warmup_steps=2"]
"""Of every replayed training; each adds how long it is."""
ANSWER = ["--max-new-tokens", "8"]
"""Of every replayed chat."""


def page(number: int) -> Path:
    return both(PAGES[number])[0]


def commands(path: Path) -> list[str]:
    """The commands of a page: its first block without a language."""
    return blocks(path, language="")[0].splitlines()


@pytest.mark.parametrize("path", [path for name in PAGES for path in both(name)], ids=lambda path: path.name)
def test_a_page_needs_five_commands_at_most_and_each_word_of_it_is_one_of_ours(path: Path) -> None:
    assert len(commands(path)) <= 5
    text = path.read_text(encoding="utf-8")
    for quoted in (*commands(path), *re.findall(r"`([^`\n]+)`", text)):
        assert not list(follow_command(quoted)), quoted
        assert not quoted.startswith("glmtune migrate ") or "--output" in quoted, quoted
        for word in shlex.split(quoted) if re.match(r"'?(?:[a-z]+\.[a-z_]+|quant)=", quoted) else ():
            key, _, value = word.partition("=")
            assert not list(follow_setting(key, value)), quoted


@pytest.mark.parametrize("number", range(5))
def test_a_page_answers_every_demand_of_its_write_up(number: int) -> None:
    for path in both(PAGES[number]):
        named = set(DEMAND.findall(path.read_text(encoding="utf-8")))
        assert named == {demand for demand in DEMANDS if demand.startswith(f"S{number}-")}


def test_a_folder_in_a_hubs_cache_is_taken_as_it_lies_there(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "huggingface" / "hub" / "models--THUDM--chatglm-6b"
    folder = cache / "snapshots" / "aa51e62ddc9c9f334858b0af44cf59b05c70148a"
    folder.mkdir(parents=True)
    for file in tiny_v1_folder(cache / "blobs").iterdir():
        (folder / file.name).symlink_to(Path("../../blobs") / file.name)
    done = glmtune("chat", folder, *ANSWER, cwd=tmp_path, typed="你好\n")
    assert done.returncode == 0, done.stderr
    assert f"{folder}: chatglm" in done.stderr


# The replays


class Desk:
    """A folder with what a page's reader has: recipes, examples, a model in the official layout, rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("recipes", "examples"):
            (folder / name).symlink_to(ROOT / name)

    def model(self, name: str) -> Path:
        """A tiny folder of the family that the name tells; its rows of weights are 64 long."""
        folder = self.folder / "models" / name
        if name == "chatglm-6b":
            return tiny_v1_folder(folder, hidden_size=64, lively=(12, 12))
        sizes = {"num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 64, "kv_channels": 16}
        return tiny_folder(folder, name.partition("-")[0], lively=8, seq_length=2048, **sizes)

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Rows as JSON lines."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")

    def type(self, line: str, more: Sequence[str], typed: str) -> Done:
        """Run a page's command with `more` words, and the desk's models in place of /models."""
        program, *words = shlex.split(line.replace("/models/", f"{self.folder}/models/"))
        if program == "torchrun":
            command = [sys.executable, "-m", "torch.distributed.run", *words, *more]
            ran = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, encoding="utf-8", timeout=600,
                check=False,
            )  # fmt: skip
            return Done(ran.returncode, ran.stdout, ran.stderr)
        return glmtune(*words, *more, cwd=self.folder, typed=typed)

    def replay(self, number: int, more: dict[str, list[str]], typed: str = "你好\nstop\n") -> list[Done]:
        """Run all commands of a page; `more`: further words by verb."""
        ran = []
        for line in commands(page(number)):
            words = next((more[word] for word in line.split() if word in more), [])
            done = self.type(line, words, typed)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            ran.append(done)
        return ran

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def num_answers(self, run: str) -> int:
        """How many rows an evaluation of a run has answered."""
        [path] = (self.folder / run).glob("evaluations/*/generated_predictions.txt")
        return len(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def examples(name: str) -> list[dict[str, Any]]:
    """Rows of ours."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))


def first_row(train: Done) -> tuple[str, str]:
    """The first row as a training shows it: as the model reads it, and what is learned of it."""
    found = re.search(
        r"reads it:\n(.+?)\nwhat is learned of it:\n((?:    [^\n]*\n)+)", train.stdout, re.DOTALL
    )
    assert found
    read, learned = (re.sub(r"^    ", "", text, flags=re.MULTILINE) for text in found.groups())
    return read, learned.strip()


@pytest.mark.slow
def test_write_up_0_conversations_are_tuned_evaluated_and_gone_on_with(desk: Desk) -> None:
    desk.model("chatglm2-6b")
    row = json.loads(blocks(page(0), language="json")[0])
    desk.write("my.json", [{**row, "prompt": f"{row['prompt']}{i}"} for i in range(8)])
    desk.write("test.json", [row, {"prompt": "你好", "response": "你好！", "history": []}])
    limits = ["data.max_source_tokens=600", "data.max_target_tokens=200"]
    words = {
        "plan": limits,
        "train": [*limits, *SHORT, "train.steps=4", "train.batch_size=4"],
        "evaluate": ["evaluate.max_new_tokens=8"],
        "chat": [*ANSWER, "--rounds", "2"],
    }
    stats, plan, train, evaluated, talk = desk.replay(0, words, "链条掉了\n还是掉\nstop\n")
    assert "with history             8 (100.0%)" in stats.stdout
    assert "codes" in plan.stdout and "11 GB card" in plan.stdout
    assert f"trainable params: {128 * 3 * 2 * 32:,} ||" in train.stdout
    rounds = [*row["history"], [f"{row['prompt']}0", f" {row['response']}</s>"]]
    asked = [f"[Round {i}]\n\n问：{q}\n\n答：{a}" for i, (q, a) in enumerate(rounds, start=1)]
    assert first_row(train) == ("[gMASK]sop" + "\n\n".join(asked), f"{row['response']}</s>")
    assert "plan: 4 steps of up to 4 rows, 14 samples in all, 2.00 epochs of 7 examples" in train.stdout
    assert "2 rows, " in evaluated.stdout
    assert re.findall(r"^ +(\d) +1 ", evaluated.stdout, re.MULTILINE) == ["1", "3"]  # rows of these turns
    assert desk.num_answers("runs/mine") == 2
    assert talk.stdout.count("<|") == 2


@pytest.mark.slow
def test_write_up_1_a_base_model_learns_to_chat_from_a_saved_data_set(desk: Desk) -> None:
    datasets = pytest.importorskip("datasets")
    desk.model("chatglm3-6b-base")
    rows = examples("alpaca.json")
    datasets.Dataset.from_list(rows).save_to_disk(str(desk.folder / "alpaca-gpt4-data-zh"))
    words = {"train": [*SHORT, "data.max_tokens=600", "train.batch_size=8"], "chat": ANSWER}
    info, stats, train, answer, compared = desk.replay(1, words, "如何写简历?\nstop\n")
    assert info.stdout.count("lora_") == 2
    assert f"trainable params: {3 * 8 * (64 + 128):,} ||" in info.stdout
    assert rows[0]["output"] in stats.stdout
    read, learned = first_row(train)
    row = next(row for row in rows if f"{row['output']}</s>" == learned)
    asked = f"{row['instruction']}\n{row['input']}".strip()
    assert read == f"[gMASK]sop<|user|>\n {asked}<|assistant|>\n {row['output']}</s>"
    assert "1.00 epochs" in train.stdout
    assert answer.stdout.startswith("<|alpaca|>: ")
    assert "(base)|>: " in compared.stdout and "(tuned)|>: " in compared.stdout


@pytest.mark.shared
def test_the_printed_tokenizer_has_the_published_facts(shared: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "chatglm3-6b-base")
    shutil.copy(shared / "tokenizers" / "chatglm2_3.tokenizer.model", folder / "tokenizer.model")
    tokenizer = load_tokenizer(folder)
    facts = ("vocab_size=64798", "padding_side='left'", "truncation_side='right'", "special_tokens={}")
    assert str(tokenizer).startswith("ChatGLMTokenizer(")
    assert all(f", {fact}, " in str(tokenizer) for fact in facts)
    assert not tokenizer.is_fast


@pytest.mark.slow
def test_write_up_2_two_methods_and_two_cards_are_compared_step_by_step(desk: Desk) -> None:
    desk.model("chatglm-6b")
    rows = [
        {"context": f"Instruction: {row['content']}\nAnswer: ", "target": row["summary"]}
        for row in examples("adverts.jsonl")[:14]
    ]
    desk.write("train.jsonl", rows[:12])
    desk.write("test.jsonl", rows[12:])
    words = {"train": [*SHORT, "train.epochs=5", "method.dropout=0"], "chat": [*ANSWER, "--rounds", "1"]}
    ptuning, lora, two_cards, compared, talk = desk.replay(2, words)
    ends = [re.findall(r"global step (\d+) \( ([\d.]+)% \) , epoch: (\d+)", done.stdout)[-1]
            for done in (ptuning, lora, two_cards)]  # fmt: skip
    assert ends == [("60", "100.00", "5"), ("30", "100.00", "5"), ("30", "100.00", "5")]
    losses = [
        [float(loss) for loss in re.findall(r"Evaluation Loss: ([\d.]+)", done.stdout)]
        for done in (lora, two_cards)
    ]
    assert len(losses[0]) == 11
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for run in ("ptuning", "lora", "lora-2"):
        for picture in ("loss.png", "memory.png"):
            assert (desk.folder / "runs" / run / picture).exists()
    assert all(name in compared.stdout for name in ("ptuning", "lora", "lora-2"))
    assert (desk.folder / "runs/compare/compare.png").exists()
    assert "(base)|>: " in talk.stdout and "(tuned)|>: " in talk.stdout


@pytest.mark.slow
def test_write_up_3_a_few_rows_are_learned_pruned_merged_and_saved_in_shards(desk: Desk) -> None:
    desk.model("chatglm2-6b")
    rows = [{"prompt": row["content"], "response": row["summary"]} for row in examples("adverts.jsonl")[:5]]
    desk.write("my.jsonl", rows[:3])
    desk.write("test.jsonl", rows[3:])
    words = {
        "train": ["samples.prompts=[]", "train.eval_every=10", "data.max_source_tokens=300",
                  "data.max_target_tokens=400"],
        "chat": [*ANSWER, "--temperature", "0"],
        "export": ["--max-shard-size", "100KB"],
    }  # fmt: skip
    before, train, tuned, _, merged = desk.replay(3, words)
    assert "plan: 50 steps of up to 16 rows" in train.stdout
    ranks = json.loads(desk.read("runs/coramini/ranks.jsonl").splitlines()[-1])
    assert "ranks" in ranks
    folder = desk.folder / "chatglm2-6b-adalora"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.model", "model.safetensors.index.json"} <= names
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    said = [done.stdout.partition(">: ")[2] for done in (before, tuned, merged)]
    assert said[1] == said[2] != said[0]


@pytest.mark.slow
def test_write_up_4_adverts_by_p_tuning_alpaca_on_int8_and_every_weight(desk: Desk) -> None:
    desk.model("chatglm-6b")
    adverts = examples("adverts.jsonl")
    desk.write("AdvertiseGen/train.json", adverts[:16])
    desk.write("AdvertiseGen/dev.json", adverts[16:20])
    shutil.copy(ROOT / "examples" / "alpaca.json", desk.folder / "alpaca_data.json")
    words = {
        "train": ["samples.prompts=[]", "train.warmup_steps=0", "train.epochs=null", "train.steps=2",
                  "train.batch_size=4"],
        "evaluate": ["evaluate.max_new_tokens=8"],
        "chat": [*ANSWER, "--rounds", "1"],
    }  # fmt: skip
    ptuning, evaluated, talk, int8, full = desk.replay(4, words, "类型#裙*颜色#蓝色\nstop\n")
    assert f"trainable params: {128 * 2 * 2 * 64:,} ||" in ptuning.stdout
    assert all(f"\n{name}" in evaluated.stdout for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4"))
    assert desk.num_answers("runs/adgen") == 4
    assert "(base)|>: " in talk.stdout and "(tuned)|>: " in talk.stdout
    assert "of codes" in int8.stderr and "quant: int8" in desk.read("runs/alpaca/recipe.yaml")
    total = re.search(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+)", full.stdout)
    assert total and total[1] == total[2]
    assert (desk.folder / "runs/full/last/model.safetensors").exists()
