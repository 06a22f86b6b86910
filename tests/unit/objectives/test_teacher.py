"""What is recorded of a model, and how far another strays from it, against full logits row by row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from closeness import assert_close
from glmtune.data.batches import collate
from glmtune.data.row import TrainingRow
from glmtune.objectives import SftObjective, teacher
from glmtune.objectives.teacher import LIKELIEST, compare_with_recorded, record_likeliest
from glmtune.training.processes import Processes
from models import lively_model, random_rows

PAD = 0


def sure_model() -> Any:
    """A model in fp64 whose distributions are as peaked as those of a trained one."""
    model = lively_model().double()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
    return model


def log_probs_of(model: Any, row: TrainingRow) -> Tensor:
    """The log probabilities (L, V) of a row's learned tokens, row by row with full logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
    is_learned = torch.from_numpy(row.labels != -100)
    is_learned[0] = False
    return logits.double().log_softmax(1)[is_learned.nonzero()[:, 0] - 1]


def learned(row: TrainingRow) -> Tensor:
    labels = torch.from_numpy(row.labels.astype(np.int64))[1:]
    return labels[labels != -100]


def rows_with_a_learned_first_token() -> list[TrainingRow]:
    rows = random_rows(6)
    rows[2] = replace(rows[2], labels=rows[2].input_ids.copy())
    rows[4] = replace(rows[4], labels=np.full_like(rows[4].labels, -100))
    return rows


@pytest.fixture(params=[16, 2048])
def recorded(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[TrainingRow]]:
    """A base in fp64, and rows with its distributions: a row at a time, and all at once."""
    monkeypatch.setattr(teacher, "LOOKED_TOKENS", request.param)
    base = sure_model()
    rows = rows_with_a_learned_first_token()
    return base, record_likeliest(base, rows, processes=Processes(), pad_id=PAD)


def test_rows_are_recorded_as_row_by_row_with_full_logits(recorded: tuple[Any, list[TrainingRow]]) -> None:
    base, rows = recorded
    for row in rows:
        assert row.target_ids is not None and row.target_log_probs is not None
        labels = row.labels[row.labels != -100]
        assert np.array_equal(row.target_ids[:, :1], labels[:, None])
        exact, num = log_probs_of(base, row), len(learned(row))
        ids = torch.from_numpy(row.target_ids[len(labels) - num :].astype(np.int64))
        log_probs = torch.from_numpy(row.target_log_probs[len(labels) - num :])
        assert ids.shape == (num, LIKELIEST)
        if num:
            assert_close(log_probs, exact.gather(1, ids).float(), share=1e-6)
            best = exact.scatter(1, ids[:, :1], -torch.inf).topk(LIKELIEST - 1).values
            assert_close(exact.gather(1, ids[:, 1:]), best, share=1e-12)


def test_a_model_strays_by_nearly_the_divergence_over_the_vocabulary(
    recorded: tuple[Any, list[TrainingRow]],
) -> None:
    base, rows = recorded
    torch.manual_seed(7)
    tuned = sure_model()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.std())
    for row, figures in zip(
        rows, compare_with_recorded(tuned, rows, processes=Processes(), pad_id=PAD), strict=True
    ):
        p, q = log_probs_of(base, row), log_probs_of(tuned, row)
        assert len(figures.losses) == len(figures.kls) == len(p)
        if not len(p):
            continue
        losses = -q.gather(1, learned(row)[:, None])[:, 0]
        assert_close(torch.from_numpy(figures.losses), losses, share=1e-12)
        ids = torch.from_numpy(row.target_ids.astype(np.int64))[-len(p) :]  # type: ignore[union-attr]
        parts = [
            torch.cat((x.gather(1, ids), x.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)), 1)
            for x in (p, q)
        ]
        assert_close(torch.from_numpy(figures.kls), _divergence(*parts), share=1e-5)  # recorded in fp32
        exact = _divergence(p, q)
        assert bool((torch.from_numpy(figures.kls) <= exact + 1e-7).all())
        assert figures.kls.sum() >= 0.8 * float(exact.sum()) > 0.01


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(1)


def test_a_model_does_not_stray_from_itself(recorded: tuple[Any, list[TrainingRow]]) -> None:
    base, rows = recorded
    for figures in compare_with_recorded(base, rows, processes=Processes(), pad_id=PAD):
        assert np.abs(figures.kls).max(initial=0) < 1e-6


def test_the_mode_of_the_model_stays_and_its_dropout_is_not_used() -> None:
    base = lively_model(attention_dropout=0.5)
    rows = random_rows(3)
    before = record_likeliest(base.eval(), rows, processes=Processes(), pad_id=PAD)
    again = record_likeliest(base.train(), rows, processes=Processes(), pad_id=PAD)
    assert base.training
    for one, other in zip(before, again, strict=True):
        assert np.array_equal(one.target_log_probs, other.target_log_probs)  # type: ignore[arg-type]


class _Gathered(Exception):
    """A process's share of what is exchanged."""


class _OfTwo:
    """One of two processes, that knows what both have found if it is told."""

    number, device = 2, torch.device("cpu")

    def __init__(self, rank: int, found: list[Any] | None = None) -> None:
        self.rank, self.found = rank, found
        self.autocast = Processes().autocast

    def gather(self, value: Any) -> list[Any]:
        if self.found is None:
            raise _Gathered(value)
        return self.found


def test_processes_share_the_rows_and_all_get_them_in_their_order() -> None:
    base, rows, found = lively_model(), random_rows(5), []
    for rank in range(2):
        with pytest.raises(_Gathered) as gathered:
            record_likeliest(base, rows, processes=_OfTwo(rank), pad_id=PAD)
        found.append(gathered.value.args[0])
    assert [len(share) for share in found] == [3, 2]
    shared = record_likeliest(base, rows, processes=_OfTwo(1, found), pad_id=PAD)
    alone = record_likeliest(base, rows, processes=Processes(), pad_id=PAD)
    for one, other in zip(alone, shared, strict=True):
        assert np.array_equal(one.target_ids, other.target_ids)  # type: ignore[arg-type]
        assert_close(*(torch.from_numpy(x.target_log_probs) for x in (one, other)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["recorded alone", "beside labels"])
def test_the_loss_of_recorded_rows_is_their_cross_entropy(kind: str) -> None:
    base, rows = lively_model(), random_rows(4)
    rows = record_likeliest(base, rows, processes=Processes(), pad_id=PAD)
    if kind == "beside labels":
        rows[1:3] = [replace(row, target_ids=None, target_log_probs=None) for row in rows[1:3]]
    tuned = lively_model(seed=4)
    objective = SftObjective(tuned)
    loss = objective.loss(collate(rows, PAD))
    expected = []
    for row in rows:
        q = log_probs_of(tuned, row)
        if row.target_ids is None:
            expected.append(-q.gather(1, learned(row)[:, None])[:, 0])
            continue
        count = len(learned(row))
        ids = torch.from_numpy(row.target_ids.astype(np.int64))[-count:]
        p = log_probs_of(base, row)
        listed = -(p.gather(1, ids).exp() * q.gather(1, ids)).sum(1)
        rest = [x.scatter(1, ids, -torch.inf).logsumexp(1) for x in (p, q)]
        expected.append(listed - rest[0].exp() * rest[1])
    assert objective.losses is not None
    assert_close(objective.losses, torch.cat(expected).float(), share=1e-5)
    assert_close(loss, torch.cat(expected).sum().float(), share=1e-5)
