"""An export that answers otherwise is refused."""

import math

import pytest
import torch

from glmtune.adapters.logit_tolerance import SAME
from glmtune.errors import OutputError
from glmtune.exports.verify import NEW_TOKENS, Answers, Expected, compare_answers

PROMPT = 5


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(PROMPT + NEW_TOKENS, 11, generator=torch.Generator().manual_seed(seed))


def answers(whole: torch.Tensor) -> Answers:
    """What a process says whose logits are these."""
    return Answers([whole[:PROMPT]], [whole[PROMPT - 1 : -1].argmax(-1).tolist()], {"class": "Any"})


def test_the_same_logits_pass_and_what_rounding_changed_is_told_apart() -> None:
    figures = compare_answers(answers(logits()), Expected([logits()], [logits() + 0.01]))
    assert figures["max_difference"] == 0
    assert figures["max_difference_to_trained"] == pytest.approx(0.01, rel=1e-3)
    assert figures["greedy_equal"]
    assert figures["greedy_equal_to_trained"]
    assert figures["tolerance"] == pytest.approx(SAME[torch.float32] * figures["max_logit"])


@pytest.mark.parametrize("off", [0.01, math.nan])
def test_other_logits_are_refused_with_their_distance(off: float) -> None:
    other = logits()
    other[2, 3] += off
    with pytest.raises(OutputError, match=f"its logits are off by {off:.3g}, allowed are"):
        compare_answers(answers(other), Expected([logits()], [logits()]))


def test_other_greedy_ids_are_refused() -> None:
    said = answers(logits())
    said.greedy[0][3] = (said.greedy[0][3] + 1) % 11
    with pytest.raises(OutputError, match="other greedy ids"):
        compare_answers(said, Expected([logits()], [logits()]))


def test_greedy_ids_that_only_base_and_adapter_would_not_write_are_refused_where_nothing_is_rounded() -> None:
    rounded, exact = logits(), logits()
    exact[PROMPT + 2] = -exact[PROMPT + 2]  # where only new ids stand
    with pytest.raises(OutputError, match="other greedy ids than base \\+ adapter"):
        compare_answers(answers(rounded), Expected([rounded], [exact]))
    figures = compare_answers(answers(rounded), Expected([rounded], [exact + 0.01]))
    assert not figures["is_exact"]
    assert not figures["greedy_equal_to_trained"]


def test_a_tie_within_the_tolerance_may_be_broken_either_way() -> None:
    whole = logits()
    said = answers(whole)
    taken = said.greedy[0][3]
    row = whole[PROMPT + 2]
    row[(taken + 1) % 11] = row[taken] + SAME[torch.float32] / 10
    figures = compare_answers(said, Expected([whole], [whole]))
    assert figures["greedy_equal"]
    assert not figures["greedy_equal_to_trained"]
