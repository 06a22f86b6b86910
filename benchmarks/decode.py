"""Decoding: our engine, transformers' `generate` and llama.cpp in turns, on the same weights and prompts.

Cases:
- `tiny`: the bundled glm-tiny, batch 1, in bf16, as it is stored and answers on a CPU, and in fp32, with
  W8A8's perplexity beside the exact one;
- `170m`: 12 layers x 768, random weights, ADGEN's prompts, each answer as long as its reference; `generate`
  in batches padded on the left;
- `1b`: 16 x 2048, random bf16 weights, batch 1, beside transformers' GlmForCausalLM, llama.cpp q8_0 (where
  llama-cpp-python is installed) and what the machine's read bandwidth allows.
- `6b`: ChatGLM3-6B's shape on a GPU, random weights: batch 1 in bf16 and int8, batch 32, and 1,070 rows in
  one batch (28 KB of keys and values a token).

    python -m benchmarks.decode tiny
    python -m benchmarks.decode 170m --rows 4 --longest 8 --shape test --dry      # shows that it runs
"""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any

import torch

import glmtune
from benchmarks import llama, measure, models
from benchmarks.measure import Probe, Record, agreement, measure_bandwidth
from benchmarks.models import Answer, Answering, Asked, generate, ours
from glmtune.generate import choose_compute
from glmtune.models.computing import computes_in
from glmtune.models.quant import quantise_linears

BATCH = 16
ADGEN_TOKENS = (44, 76)
"""Mean of a prompt and of a reference, in ChatGLM3's tokens."""
PROMPT_TOKENS = 4
"""So few are read in the time of one step: then tokens a second are steps a second."""


def run_tiny(options: argparse.Namespace) -> Record:
    """Batch 1; every side answers all of it once before it is timed, so that compiling does not count."""
    from tools.glm_tiny import corpus

    record = measure.begin("decode tiny", "tokens/s", options)
    half, exact = (glmtune.load_model("glm-tiny", dtype=dtype) for dtype in ("bf16", "fp32"))
    tokenizer = glmtune.load_tokenizer("glm-tiny")
    prompt = glmtune.encode_messages(tokenizer, [{"role": "user", "content": "类型#裙*颜色#红色"}])
    asked = Asked([prompt], [options.longest or 128])
    fast = choose_compute(exact, "fast")
    answers = {
        "generate bf16": generate(half),
        "ours bf16": ours(half),
        "generate fp32": generate(exact),
        "ours fp32": ours(exact),
        "ours fp32, compiled step": ours(exact, is_compiled=True),
        "ours W8A8": ours(fast),
    }
    if computes_in(half) == torch.bfloat16:  # weights that are cast for each product are not compiled
        answers["ours bf16, compiled step"] = ours(half, is_compiled=True)
    if options.no_compile:
        answers = {name: answer for name, answer in answers.items() if "compiled" not in name}
    sides = {name: Answering(answer, asked, warm=asked) for name, answer in answers.items()}
    record["sides"] = measure.take_turns(sides, options.rounds)
    corpus.write(options.work)
    held = options.work / "heldout.jsonl"  # in no training row of the bundled model
    record["checks"] = {
        "greedy ids equal": agreement(sides["generate fp32"].answers, sides["ours fp32"].answers),
        "perplexity, exact": models.measure_perplexity(exact, tokenizer, held, options.held_rows),
        "perplexity, W8A8": models.measure_perplexity(fast, tokenizer, held, options.held_rows),
    }
    return record


def run_170m(options: argparse.Namespace) -> Record:
    """Every prompt at batch 16; the first few of them at batch 1."""
    record = measure.begin("decode 170m", "tokens/s", options)
    asked = models.read_adgen(options.rows, options.work, longest=options.longest).asked
    few = asked.first(options.single_rows)
    shape = options.shape or "170m"
    exact, half = models.build_model(shape, torch.float32), models.build_model(shape, torch.bfloat16)
    fast = choose_compute(exact, "fast")
    sides = {
        "generate fp32, batch 1": Answering(generate(exact), few),
        "generate bf16, batch 1": Answering(generate(half), few),
        "generate fp32, batch 16": Answering(generate(exact, BATCH), asked),
        "generate bf16, batch 16": Answering(generate(half, BATCH), asked),
        "ours fp32, batch 1": Answering(ours(exact), few.first(1)),
        "ours W8A8, batch 1": Answering(ours(fast), few.first(1)),
        "ours W8A8, batch 16": Answering(ours(fast, BATCH), asked),
        "ours fp32, all at once": Answering(ours(exact, options.rows), asked),
        "ours bf16, all at once": Answering(ours(half, options.rows), asked),
        "ours W8A8, all at once": Answering(ours(fast, options.rows), asked),
    }
    record["sides"] = measure.take_turns(sides, options.rounds)
    peer, own = sides["generate fp32, batch 16"], sides["ours fp32, all at once"]
    record["checks"] = {"greedy ids equal": agreement(peer.answers, own.answers)}
    return record


def run_1b(options: argparse.Namespace) -> Record:
    """Batch 1, a short prompt; the bandwidth is measured in turn with the sides."""
    record = measure.begin("decode 1b", "tokens/s", options)
    asked = Asked([models.numbered_prompt(PROMPT_TOKENS)], [options.longest or 48])
    model = models.build_model(options.shape or "1b", torch.bfloat16)
    fast = choose_compute(model, "fast")
    size = models.decoded_bytes(model)
    sides: dict[str, Any] = {
        "GlmForCausalLM.generate bf16": Answering(generate(models.as_glm(model)), asked),
        "ours bf16": Answering(ours(model), asked),
        "ours W8A8": Answering(ours(fast), asked),
        "bandwidth, bf16 weights": allowed(size),
        "bandwidth, int8 weights": allowed(size // 2),
    }
    add_llama(record, sides, model, lambda answer: Answering(answer, asked), options)
    record["sides"] = measure.take_turns(sides, options.rounds)
    read = [rate * size / 1e9 for rate in record["sides"]["bandwidth, bf16 weights"]]
    record["checks"] = {"read bandwidth, GB/s": round(median(read), 2)}
    return record


def run_6b(options: argparse.Namespace) -> Record:
    """Ours alone; prompts and answers have the mean lengths of ADGEN's."""
    record = measure.begin("decode 6b", "tokens/s", options)
    device = options.device
    model = models.build_model(options.shape or "6b", torch.bfloat16, device)
    small = deepcopy(model)
    quantise_linears(small, 8)
    length = options.longest or ADGEN_TOKENS[1]
    prompt = models.numbered_prompt(ADGEN_TOKENS[0])

    def many(rows: int) -> Asked:
        return Asked([prompt] * rows, [length] * rows)

    def answering(model: Any, rows: int) -> Answering:
        is_captured = device != "cpu"  # a CUDA graph; on a CPU it would be compiled
        return Answering(ours(model, rows, is_compiled=is_captured), many(rows))

    sides: dict[str, Any] = {
        "ours bf16": answering(model, 1),
        "ours int8": answering(small, 1),
        "ours bf16, batch 32": answering(model, 32),
        "ours int8, batch 32": answering(small, 32),
        "ours bf16, all rows at once": Answering(ours(model, options.all_rows), many(options.all_rows)),
        "bandwidth, bf16 weights": allowed(models.decoded_bytes(model), device),
        "bandwidth, int8 weights": allowed(models.decoded_bytes(small), device),
    }
    record["sides"] = measure.take_turns(sides, options.rounds)
    return record


def allowed(size: int, device: str = "cpu") -> Probe:
    """Steps a second if nothing but reading so many bytes took time."""
    return Probe(lambda: measure_bandwidth(device) * 1e9 / size)


def add_llama(
    record: Record,
    sides: dict[str, Any],
    model: Any,
    build: Callable[[Answer], Any],
    options: argparse.Namespace,
) -> None:
    """Let llama.cpp take part where it is installed; else the record says that it does not, and why."""
    if why := llama.missing():
        record["skipped"] = {"llama.cpp q8_0": why}
        return
    peer = llama.LlamaCpp(llama.make_gguf(model, options.work), options.threads)
    record["llama.cpp"] = peer.system
    sides["llama.cpp q8_0"] = build(peer)


CASES = {"tiny": run_tiny, "170m": run_170m, "1b": run_1b, "6b": run_6b}


def main(words: Sequence[str] | None = None) -> Record:
    """Run one case; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rows", type=int, default=96, help="prompts of 170m")
    parser.add_argument("--single-rows", type=int, default=2, help="of these, prompts at batch 1")
    parser.add_argument("--longest", type=int, help="cut the answers")
    parser.add_argument("--shape", choices=models.SHAPES, help="another shape than the case's")
    parser.add_argument("--device", default="cpu", help="of 6b, such as cuda")
    parser.add_argument("--all-rows", type=int, default=1070, help="of 6b: as many as ADGEN's dev split has")
    parser.add_argument("--held-rows", type=int, default=200, help="rows of tiny's perplexity")
    parser.add_argument("--no-compile", action="store_true", help="tiny without the compiled step")
    options = measure.parse(parser, words)
    return measure.finish(CASES[options.case](options), "decode", options)


if __name__ == "__main__":
    main()
