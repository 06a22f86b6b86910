"""Reading prompts: prompt tokens a second, in turns on the same random bf16 weights of the 1 B shape.

Cases:
- `128`: one prompt of 128 tokens, beside transformers' GlmForCausalLM and llama.cpp q8_0 (where
  llama-cpp-python is installed);
- `packed`: 16 ADGEN prompts of different lengths, packed into one pass by our engine, padded on the left for
  GlmForCausalLM. Padding is no token here.

    python -m benchmarks.prefill
    python -m benchmarks.prefill --shape test --rounds 1 --dry      # shows that it runs
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.decode import add_llama
from benchmarks.measure import Record, agreement
from benchmarks.models import Reading, forward, ours
from glmtune.generate import choose_compute

ROWS = 16


def run_single(trio: dict[str, Any], options: argparse.Namespace) -> Record:
    """One prompt."""
    record = measure.begin(f"prefill {options.tokens}", "tokens/s", options)
    prompts = [models.numbered_prompt(options.tokens)]
    sides = _sides(trio, prompts)
    add_llama(record, sides, trio["exact"], lambda answer: Reading(answer, prompts), options)
    record["sides"] = measure.take_turns(sides, options.rounds)
    return record


def run_packed(trio: dict[str, Any], options: argparse.Namespace) -> Record:
    """Sixteen prompts at once."""
    record = measure.begin("prefill packed", "tokens/s", options)
    prompts = models.read_adgen(ROWS, options.work).asked.prompts
    sides = _sides(trio, prompts)
    record["sides"] = measure.take_turns(sides, options.rounds)
    lengths = [len(prompt) for prompt in prompts]
    record["checks"] = {
        "share of padding in the padded batch": round(1 - sum(lengths) / (ROWS * max(lengths)), 3),
        "first ids equal": agreement(sides["GlmForCausalLM bf16"].answers, sides["ours bf16"].answers),
    }
    return record


def _sides(trio: dict[str, Any], prompts: Sequence[list[int]]) -> dict[str, Any]:
    return {
        "GlmForCausalLM bf16": Reading(forward(trio["peer"]), prompts),
        "ours bf16": Reading(ours(trio["exact"]), prompts),
        "ours W8A8": Reading(ours(trio["fast"]), prompts),
    }


CASES = {"single": run_single, "packed": run_packed}


def main(words: Sequence[str] | None = None) -> list[Record]:
    """Run the cases; return their records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES, nargs="?", help="one of the two")
    parser.add_argument("--tokens", type=int, default=128, help="of the single prompt")
    parser.add_argument("--shape", choices=models.SHAPES, default="1b")
    options = measure.parse(parser, words)
    exact = models.build_model(options.shape, torch.bfloat16)
    trio = {"exact": exact, "peer": models.as_glm(exact), "fast": choose_compute(exact, "fast")}
    wanted = [options.case] if options.case else list(CASES)
    return [measure.finish(CASES[case](trio, options), "prefill", options) for case in wanted]


if __name__ == "__main__":
    main()
