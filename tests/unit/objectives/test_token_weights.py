"""Weights of single tokens, as the experiments on forgetting train with them, against full logits."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import token_weights
from benchmarks.token_weights import KINDS, weighting
from torch import Tensor

from closeness import assert_close
from glmtune.data.batches import collate
from glmtune.methods import apply_method
from glmtune.objectives import OBJECTIVES, SftObjective, build_objective
from glmtune.objectives.targets import LIKELIEST
from glmtune.recipe.objective import Sft
from models import lively_model, random_rows
from tuned import settings_of


def tuned_model() -> Any:
    model = lively_model().double()
    model.get_output_embeddings().weight.data.mul_(6)  # so that the base finds some tokens very unlikely
    tuned = apply_method(model, settings_of({"name": "lora", "r": 4, "dropout": 0})).double().train()
    torch.manual_seed(3)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return tuned


def log_probs_of(model: Any, row: Any) -> tuple[Tensor, Tensor]:
    """Log probabilities (L, V) of a row's learned tokens, and these."""
    labels = torch.from_numpy(row.labels[1:].astype(np.int64))
    logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0, :-1]
    return logits[labels != -100].log_softmax(1), labels[labels != -100]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_weighted_cross_entropies(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_weights, "MOST_PERPLEXITY", 1e5)  # of random tokens
    tuned, rows = tuned_model(), random_rows(4)
    rows = [replace(row, source=i % 2) for i, row in enumerate(rows)]  # every other one is replay
    with weighting(kind):
        objective = build_objective(tuned, Sft())
    trained = [p for p in tuned.parameters() if p.requires_grad]
    loss = objective.loss(collate(rows, 0))
    gradients = torch.autograd.grad(loss, trained)
    due, all_weights = torch.zeros((), dtype=torch.float64), []
    for row in rows:
        log_probs, labels = log_probs_of(tuned, row)
        if kind == "entropy":
            best = log_probs.detach().topk(LIKELIEST, dim=1).values.log_softmax(1)
            weights = -(best.exp() * best).sum(1) / math.log(LIKELIEST)
        elif kind.startswith("replay x "):
            factor = int(kind.removeprefix("replay x ")) if row.source else 1
            weights = torch.full_like(log_probs[:, 0].detach(), factor)
        else:
            with torch.no_grad(), tuned.disable_adapter():
                of_base, _ = log_probs_of(tuned, row)
            weights = (of_base.gather(1, labels[:, None])[:, 0].exp() >= 1e-5).double()
        due = due - (weights * log_probs.gather(1, labels[:, None])[:, 0]).sum()
        all_weights.append(weights)
    assert_close(loss.detach(), due.detach(), share=1e-6)
    assert_close([*gradients], [*torch.autograd.grad(due, trained)], share=1e-5)
    together = torch.cat(all_weights)
    if kind.startswith("replay x "):
        together = together / int(kind.removeprefix("replay x "))  # the only weights above 1
    assert 0 <= float(together.min()) < float(together.max()) <= 1


def test_outside_and_in_evaluation_a_token_counts_once() -> None:
    tuned, rows = tuned_model(), random_rows(3)
    plain = SftObjective(tuned).eval().loss(collate(rows, 0))
    for kind in KINDS:
        with weighting(kind):
            weighted = build_objective(tuned, Sft()).eval()
        assert torch.equal(weighted.loss(collate(rows, 0)), plain)
    assert type(OBJECTIVES["sft"](tuned, Sft())) is SftObjective
