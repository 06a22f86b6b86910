"""The main job on real data: ADGEN rows, a genuine tokenizer, a random model of some 20 M parameters.

`--family` chooses ChatGLM3's architecture and tokenizer, or those of ChatGLM-6B.

Trains, evaluates and talks through the public commands, and prints the figures of docs/results.md as JSON.
The data and the tokenizer are third-party and lie outside this repository: in ../shared, or where
$GLMTUNE_SHARED says.

    .venv/bin/python benchmarks/adgen.py --work /tmp/adgen
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("GLMTUNE_SHARED", Path(__file__).parents[2] / "shared"))
SIZES: dict[str, Any] = {
    "num_layers": 12,
    "padded_vocab_size": 65024,
    "hidden_size": 128,
    "ffn_hidden_size": 384,
    "kv_channels": 32,
    "num_attention_heads": 4,
    "seq_length": 8192,
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


V1_SIZES: dict[str, Any] = {
    "num_layers": 12,
    "hidden_size": 128,
    "inner_hidden_size": 512,
    "num_attention_heads": 4,
    "max_sequence_length": 2048,
}


def make_model(folder: Path, family: str) -> int:
    """A folder in the official layout with random weights; returns the number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM

    from glmtune.models import ChatGLM6BConfig, ChatGLMConfig

    config, vocabulary, configs = {
        "chatglm": (ChatGLM6BConfig, ("ice_text.model", "ice_text.model"), "chatglm-6b_20230904"),
        "chatglm3": (
            ChatGLMConfig,
            ("chatglm2_3.tokenizer.model", "tokenizer.model"),
            "chatglm3-6b_20231207",
        ),
    }[family]
    torch.manual_seed(0)
    sizes = V1_SIZES if family == "chatglm" else SIZES
    model = AutoModelForCausalLM.from_config(config(**sizes), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="40MB")
    shutil.copyfile(SHARED / "tokenizers" / vocabulary[0], folder / vocabulary[1])
    shutil.copyfile(
        SHARED / "tokenizers/configs" / configs / "tokenizer_config.json", folder / "tokenizer_config.json"
    )
    return sum(p.numel() for p in model.parameters())


def timed(words: list[str], typed: str = "") -> tuple[float, str]:
    """Wall-clock seconds and output of one command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "glmtune", *words]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - start, done.stdout


def main(work: Path, *, family: str, steps: int, rows: int) -> dict[str, Any]:
    """Train, evaluate, chat; return the figures."""
    data = SHARED / "data/AdvertiseGen"
    run, model = work / "run", work / "model"
    parameters = make_model(model, family)
    train_s, _ = timed(
        [
            "train", f"model={model}", f"output={run}", "method=full", "dtype=fp32",
            f"data.train={data / 'train_first5000.json'}", f"data.validation={data / 'dev.json'}",
            "data.max_source_tokens=96", "data.max_target_tokens=128", f"train.steps={steps}",
            "train.batch_size=16", "train.micro_batch_size=8", "train.lr=2e-3", "train.warmup_steps=20",
            "train.schedule=cosine", "train.gradient_checkpointing=false", "train.eval_every=100",
            "train.keep_checkpoints=1", "samples.max_new_tokens=32", "retain.ratio=0",
        ]
    )  # fmt: skip
    evaluate_s, _ = timed(
        ["evaluate", str(run), "--data", str(data / "dev.json"), f"data.max_test_rows={rows}",
         "evaluate.batch_size=32", "evaluate.max_new_tokens=128", "--output", str(work / "scores")]
    )  # fmt: skip
    prompt = "类型#裙*颜色#红色"  # our own words in the data's attribute form
    chat_s, talk = timed(["chat", str(run), "--rounds", "1", "--temperature", "0"], f"{prompt}\nstop\n")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line for line in lines if "loss" in line]
    scores = json.loads((work / "scores/scores.json").read_text(encoding="utf-8"))
    return {
        "family": family,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "parameters": parameters,
        "steps": len(trained),
        "train_command_s": round(train_s, 1),
        "train_steps_s": round(sum(line["step_s"] for line in trained), 1),
        "tokens_per_s_median": round(sorted(line["tokens_per_s"] for line in trained)[len(trained) // 2]),
        "peak_memory_gib": round(trained[-1]["peak_memory_gib"], 2),
        "eval_loss": {line["step"]: round(line["eval_loss"], 4) for line in lines if "eval_loss" in line},
        "evaluate_command_s": round(evaluate_s, 1),
        "scores": scores,
        "chat_command_s": round(chat_s, 1),
        "chat_answer_characters": len(talk.partition("|>: ")[2].strip()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for model, run and scores")
    parser.add_argument("--family", choices=("chatglm3", "chatglm"), default="chatglm3")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=1070)
    options = parser.parse_args()
    print(json.dumps(main(**vars(options)), indent=2))
