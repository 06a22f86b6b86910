"""Tokens a second of the engine and of transformers' `generate`: the same weights and prompts, in turns.

Cases: `tiny` (the bundled glm-tiny, batch 1), `170m` (12 layers x 768, real ADGEN prompts, each answer as
long as its reference; `generate` in padded batches), `1b` (16 x 2048 in bf16, batch 1, against transformers'
own GLM of that shape, with the machine's read bandwidth). Weights of the last two are random. Each case is
appended to benchmarks/results/decode.jsonl with medians and spread.

    .venv/bin/python benchmarks/decode.py tiny
    .venv/bin/python benchmarks/decode.py 170m --rows 4 --longest 8 --repeats 1      # shows that it runs
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

import glmtune
from glmtune.data.encode import encode_examples
from glmtune.data.source import read_examples
from glmtune.generate import Engine, Request, Sampling, choose_compute
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import Data

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `tools`
SHARED = Path(os.environ.get("GLMTUNE_SHARED", ROOT.parent / "shared"))
RESULTS = Path(__file__).parent / "results" / "decode.jsonl"
BATCH = 16
SIZES: dict[str, dict[str, int]] = {
    "170m": {"num_layers": 12, "hidden_size": 768, "ffn_hidden_size": 2048, "num_attention_heads": 12},
    "1b": {"num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 6848, "num_attention_heads": 16},
}
HEAD = {"170m": 64, "1b": 128}

Side = Callable[[], list[list[int]]]
"""Answers the case's prompts."""


def build_model(size: str, dtype: torch.dtype) -> Any:
    """ChatGLM3's architecture in a size, random weights."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        **SIZES[size], padded_vocab_size=65024, kv_channels=HEAD[size], seq_length=8192, add_qkv_bias=True,
        multi_query_attention=True, multi_query_group_num=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(config)
    return fill(model, dtype)


def build_peer(dtype: torch.dtype) -> Any:
    """Transformers' own GLM in the 1 B size."""
    from transformers import GlmConfig, GlmForCausalLM

    size = SIZES["1b"]
    config = GlmConfig(
        vocab_size=65024, hidden_size=size["hidden_size"], intermediate_size=size["ffn_hidden_size"],
        num_hidden_layers=size["num_layers"], num_attention_heads=16, num_key_value_heads=2, head_dim=128,
        attention_bias=True, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = GlmForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def fill(model: Any, dtype: torch.dtype) -> Any:
    """Draw the weights of a model that has none yet."""
    model = model.to(dtype).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0)
    model.generation_config.eos_token_id = None
    return model


def ours(
    model: Any, prompts: Sequence[list[int]], lengths: Sequence[int], rows: int, *, is_compiled: bool = False
) -> Side:
    """The engine, so many rows at once."""
    engine = Engine(model, max_rows=rows, compile_step=is_compiled)
    calls = count()

    def run() -> list[list[int]]:
        first = len(prompts) * next(calls)
        for prompt, length in zip(prompts, lengths, strict=True):
            engine.submit(Request(prompt, Sampling(do_sample=False, max_new_tokens=length)))
        answers: list[list[int]] = [[] for _ in prompts]
        while not engine.is_idle:
            for token in engine.step():
                answers[token.request - first].append(token.id)
        return answers

    return run


def theirs(model: Any, prompts: Sequence[list[int]], lengths: Sequence[int], rows: int) -> Side:
    """`generate`, in batches padded on the left; each runs until its longest answer is done."""

    def run() -> list[list[int]]:
        answers: list[list[int]] = []
        for start in range(0, len(prompts), rows):
            batch, wanted = prompts[start : start + rows], lengths[start : start + rows]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max(wanted),
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            answers += [row[width : width + n].tolist() for row, n in zip(out, wanted, strict=True)]
        return answers

    return run


def time_in_turns(sides: dict[str, Side], repeats: int) -> dict[str, Any]:
    """Tokens a second of each side: every round runs all of them, the first one uncounted."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            answers[name] = side()
            took = time.perf_counter() - start
            if turn:
                speeds[name].append(sum(map(len, answers[name])) / took)
    figures: dict[str, Any] = {name: summarise(found) for name, found in speeds.items()}
    return figures | {"answers": answers}


def summarise(found: Sequence[float]) -> dict[str, Any]:
    """Median and extremes."""
    return {"tokens_per_s": round(median(found), 2), "spread": [round(min(found), 2), round(max(found), 2)]}


def agreement(one: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    """Share of answers that are equal, over the prompts that both have answered."""
    pairs = list(zip(one, other, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs)


def measure_bandwidth() -> float:
    """GB a second that a sum over 1 GB reads: what bounds a decode step."""
    block = torch.ones(2**28)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return float(block.nbytes / min(times) / 1e9)


@torch.inference_mode()
def measure_perplexity(model: Any, tokenizer: Any, work: Path) -> float:
    """Of the answers in 200 rows that were held out when the bundled model was trained."""
    from tools.glm_tiny import corpus

    corpus.write(work)
    examples = read_examples(work / "heldout.jsonl", Data())[:200]
    total, learned = 0.0, 0
    for row in encode_examples(tokenizer, examples, Data()).rows:
        labels = torch.from_numpy(row.labels).long()[None]
        ids = torch.from_numpy(row.input_ids).long()[None]
        count = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss) * count
        learned += count
    return round(math.exp(total / learned), 4)


def run_tiny(options: argparse.Namespace) -> dict[str, Any]:
    """Batch 1 on the bundled model; W8A8 with its perplexity beside the exact one."""
    model, tokenizer = glmtune.load_model("glm-tiny", dtype="fp32"), glmtune.load_tokenizer("glm-tiny")
    prompt = glmtune.encode_messages(tokenizer, [{"role": "user", "content": "类型#裙*颜色#红色"}])
    asked = ([prompt], [options.longest or 128], 1)
    fast = choose_compute(model, "fast")
    sides = {
        "generate fp32": theirs(model, *asked),
        "ours fp32": ours(model, *asked),
        "ours fp32, compiled": ours(model, *asked, is_compiled=True),
        "ours W8A8": ours(fast, *asked),
    }
    found = time_in_turns(sides, options.repeats)
    answers = found.pop("answers")
    found["greedy_ids_equal"] = agreement(answers["generate fp32"], answers["ours fp32"])
    found["perplexity"] = {
        "exact": measure_perplexity(model, tokenizer, options.work),
        "W8A8": measure_perplexity(fast, tokenizer, options.work),
    }
    return found


def read_adgen(options: argparse.Namespace) -> tuple[list[list[int]], list[int]]:
    """Prompts of the first rows of ADGEN's dev.json, and the lengths of their references."""
    from glmtune.tokenizers import load_tokenizer

    folder = options.work / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    source = SHARED / "tokenizers"
    (folder / "tokenizer.model").write_bytes((source / "chatglm2_3.tokenizer.model").read_bytes())
    config = source / "configs/chatglm3-6b_20231207/tokenizer_config.json"
    (folder / config.name).write_bytes(config.read_bytes())
    tokenizer = load_tokenizer(folder, "chatglm3")
    lines = (SHARED / "data/AdvertiseGen/dev.json").read_text(encoding="utf-8").splitlines()[: options.rows]
    rows = [json.loads(line) for line in lines]
    prompts = [glmtune.encode_messages(tokenizer, [{"role": "user", "content": r["content"]}]) for r in rows]
    lengths = [len(tokenizer.encode(row["summary"], add_special_tokens=False)) for row in rows]
    return prompts, [min(length, options.longest or length) for length in lengths]


def run_170m(options: argparse.Namespace) -> dict[str, Any]:
    """96 ADGEN prompts at batch 16; batch 1 over the first few of them."""
    prompts, lengths = read_adgen(options)
    few = (prompts[: options.single_rows], lengths[: options.single_rows], 1)
    exact, half = build_model("170m", torch.float32), build_model("170m", torch.bfloat16)
    fast = choose_compute(exact, "fast")
    found = time_in_turns(
        {
            "generate fp32, batch 1": theirs(exact, *few),
            "generate bf16, batch 1": theirs(half, *few),
            f"generate fp32, batch {BATCH}": theirs(exact, prompts, lengths, BATCH),
            f"generate bf16, batch {BATCH}": theirs(half, prompts, lengths, BATCH),
            "ours fp32, batch 1": ours(exact, *few),
            f"ours fp32, batch {BATCH}": ours(exact, prompts, lengths, BATCH),
            f"ours bf16, batch {BATCH}": ours(half, prompts, lengths, BATCH),
            f"ours W8A8, batch {BATCH}": ours(fast, prompts, lengths, BATCH),
            "ours fp32, all at once": ours(exact, prompts, lengths, len(prompts)),
            "ours bf16, all at once": ours(half, prompts, lengths, len(prompts)),
            "ours W8A8, all at once": ours(fast, prompts, lengths, len(prompts)),
        },
        options.repeats,
    )
    answers = found.pop("answers")
    peer = answers[f"generate fp32, batch {BATCH}"]
    found["greedy_ids_equal"] = agreement(peer, answers[f"ours fp32, batch {BATCH}"])
    return found


def run_1b(options: argparse.Namespace) -> dict[str, Any]:
    """Batch 1 in bf16 and W8A8: decoding, and reading a prompt of 128 tokens."""
    new = options.longest or 48
    prompt = [[(7 * i) % 60000 + 100 for i in range(128)]]
    peer, model = build_peer(torch.bfloat16), build_model("1b", torch.bfloat16)
    fast = choose_compute(model, "fast")
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    found = time_in_turns(
        {
            "GlmForCausalLM.generate bf16": theirs(peer, [prompt[0][:16]], [new], 1),
            "ours bf16": ours(model, [prompt[0][:16]], [new], 1),
            "ours W8A8": ours(fast, [prompt[0][:16]], [new], 1),
        },
        options.repeats,
    )
    bandwidth = measure_bandwidth()
    found["bandwidth_gb_per_s"] = round(bandwidth, 2)
    for name, size in (("ours bf16", 2), ("ours W8A8", 1)):
        found[name]["share_of_bandwidth"] = round(
            found[name]["tokens_per_s"] * weights * size / 1e9 / bandwidth, 3
        )
    reading = time_in_turns(
        {
            "prefill: GlmForCausalLM.generate bf16": theirs(peer, prompt, [1], 1),
            "prefill: ours bf16": ours(model, prompt, [1], 1),
            "prefill: ours W8A8": ours(fast, prompt, [1], 1),
        },
        options.repeats,
    )
    for side in (found, reading):
        side.pop("answers")
    for each in reading.values():
        each["prompts_per_s"] = each.pop("tokens_per_s")
    return found | reading


CASES = {"tiny": run_tiny, "170m": run_170m, "1b": run_1b}


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Run one case; return its figures and the machine's."""
    torch.set_num_threads(options.threads)
    return {
        "case": options.case,
        "machine": platform.machine(),
        "threads": options.threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "repeats": options.repeats,
        **CASES[options.case](options),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, default=96, help="prompts of 170m")
    parser.add_argument("--single-rows", type=int, default=4, help="of these, prompts at batch 1")
    parser.add_argument("--longest", type=int, help="cut the answers")
    parser.add_argument("--work", type=Path, default=Path("/tmp/glmtune-decode"), help="for small files")
    parser.add_argument("--dry", action="store_true", help="print the figures, keep none")
    chosen = parser.parse_args()
    figures = main(chosen)
    print(json.dumps(figures, indent=2))
    if not chosen.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
