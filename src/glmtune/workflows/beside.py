"""The memory of the answers that a run gives while it trains."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from glmtune.general import held_out_prompts
from glmtune.generate.beside import PREFILL_TOKENS, ROWS, bytes_held, column_bytes
from glmtune.generate.kv_cache import BLOCK
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Recipe
from glmtune.templates import Taught
from glmtune.training.memory import answering_bytes
from glmtune.training.probe import Extent, Need
from glmtune.workflows.base_answers import PromptTurns
from glmtune.workflows.before_after import built_in_questions, sample_questions
from glmtune.workflows.forgetting import is_reported

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan


def codes_beside(recipe: Recipe, model: nn.Module, device: torch.device) -> int:
    """Return the bytes that a model needs once more to give a run's answers: of int4 on a CPU, its codes."""
    return answering_bytes(model, device) if is_reported(recipe) or recipe.samples.prompts else 0


def bytes_beside(plan: "Plan", model: CausalLM, need: Need, *, device: torch.device, free: int) -> int:
    """Return the most bytes that a run's answers take beside the model on a device with so many free.

    With fewer free they take less: they are no reason to refuse a run, but for their codes.
    """
    recipe, tokenizer = plan.recipe, plan.tokenizer
    if not (is_reported(recipe) or recipe.samples.prompts):
        return 0
    samples = [*sample_questions(recipe.samples), *built_in_questions(recipe.samples)]
    # a turn has no more tokens than characters, or hardly more
    lengths = [sum(len(turn) + recipe.samples.max_new_tokens for turn in sample.turns) for sample in samples]
    if is_reported(recipe):
        turns, filler = PromptTurns(tokenizer, Taught.of(recipe.data)), tokenizer.encode_plain(".")[0]
        new, prompts = recipe.retain.max_new_tokens, held_out_prompts()[: recipe.retain.report_prompts]
        lengths += [len(ids) + new for prompt in prompts for ids in turns.longest(prompt, new, filler)]
    longest, rows = max(lengths), min(ROWS, len(lengths))  # of one kind at a time, but for a few
    columns = -(-longest // BLOCK) * BLOCK + getattr(model, "num_prefix_tokens", 0)
    held = max(columns, min(rows * columns, bytes_held(free) // column_bytes(model)))
    # with a prefix each row that is read has one of its own
    read_rows = min(rows, -(-PREFILL_TOKENS // min(lengths)))
    reading = need.evaluated_at(Extent(PREFILL_TOKENS, longest, read_rows))
    return codes_beside(recipe, model, device) + held * column_bytes(model) + reading
