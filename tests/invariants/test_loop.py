"""Our loop against transformers' Trainer, and the ways of cutting a step that must not matter."""

import copy
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Trainer, TrainingArguments

from closeness import assert_close, distance
from glmtune.data.batches import Steps, collate
from glmtune.data.row import TrainingRow
from glmtune.methods import apply_method
from glmtune.models.frozen_linear import HeldLinear
from glmtune.objectives import SftObjective, sft
from glmtune.recipe import Lora, Train
from glmtune.training.loop import StepLog, fit, mean_loss
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from models import VOCABULARY, random_rows, tiny_model


def run(model: torch.nn.Module, rows: list[TrainingRow], settings: Train, steps: int) -> list[StepLog]:
    processes = Processes()
    batches = Steps(
        rows, batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size, seed=settings.seed
    )
    optimizer = build_optimizer(model, settings)
    objective = SftObjective(model)
    return list(
        fit(
            objective,
            objective,
            ((n, [collate(part, 0) for part in batches.micro_batches(n)]) for n in range(1, steps + 1)),
            processes.prepare(optimizer),
            build_schedule(optimizer, settings, steps),
            processes,
            max_grad_norm=settings.max_grad_norm,
        )
    )


def figures(logs: list[StepLog]) -> torch.Tensor:
    return torch.tensor([(log.loss, log.grad_norm) for log in logs])


def test_the_time_of_a_step_holds_what_its_batches_take_and_nothing_between_two_steps() -> None:
    model, settings, pause = tiny_model(), Train(lr=1e-3), 0.05
    processes, objective = Processes(), SftObjective(model)
    optimizer = build_optimizer(model, settings)
    taken = []

    def slowly():
        for step in (1, 2):
            time.sleep(pause)  # at least that long
            yield step, [collate(random_rows(2, seed=step), 0)]

    schedule = build_schedule(optimizer, settings, 2)
    start = time.perf_counter()
    for log in fit(objective, objective, slowly(), processes.prepare(optimizer), schedule, processes):
        taken.append(log.step_s)
        time.sleep(pause)
    assert min(taken) >= pause
    assert sum(taken) <= time.perf_counter() - start - 2 * pause
    assert log.tokens_per_s * log.step_s == pytest.approx(
        sum(len(r.input_ids) for r in random_rows(2, seed=2))
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_loop_equals_the_trainer_step_by_step(tmp_path: Path, schedule: str) -> None:
    settings = Train(
        batch_size=8, micro_batch_size=2, lr=1e-3, schedule=schedule, warmup_steps=2, weight_decay=0.1
    )
    rows, ours, theirs = random_rows(48), tiny_model(), tiny_model()
    steps = Steps(rows, batch_size=8, micro_batch_size=2, seed=settings.seed)
    in_our_order = [row for n in range(1, 7) for part in steps.micro_batches(n) for row in part]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=6,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=2,
        weight_decay=0.1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        theirs, arguments, train_dataset=in_our_order, data_collator=lambda batch: collate(batch, 0).padded()
    )
    trainer.train()
    history = [line for line in trainer.state.log_history if "grad_norm" in line]
    logs = run(ours, rows, settings, 6)
    expected = torch.tensor([(line["loss"], line["grad_norm"]) for line in history])
    assert_close(figures(logs), expected)
    assert [log.lr for log in logs] == pytest.approx([line["learning_rate"] for line in history])
    assert_close(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8])
def test_the_size_of_the_micro_batches_does_not_matter(micro_batch_size: int) -> None:
    rows = random_rows(48)
    whole = run(tiny_model(), rows, Train(batch_size=8, micro_batch_size=8, lr=1e-3), 6)
    parts = run(tiny_model(), rows, Train(batch_size=8, micro_batch_size=micro_batch_size, lr=1e-3), 6)
    assert_close(figures(parts), figures(whole))


def test_padding_does_not_change_loss_or_gradient() -> None:
    rows = random_rows(6)
    model = tiny_model()
    objective = SftObjective(model)
    together = collate(rows, 0)
    objective(together).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row in rows:
        objective(collate([row], 0)).backward()
    assert_close(gradients, [single.grad for single in model.parameters()])


@pytest.mark.parametrize("chunk_logits", [VOCABULARY, 5 * VOCABULARY, 2**24])
@pytest.mark.parametrize("is_lora", [False, True])
def test_the_objective_equals_the_models_own_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk_logits: int, is_lora: bool
) -> None:
    monkeypatch.setattr(sft, "CHUNK_LOGITS", chunk_logits)
    model, batch = tiny_model(), collate(random_rows(5), 0)
    if is_lora:
        model = apply_method(model, Lora(dropout=0.0, target_modules=("query_key_value", "output_layer")))
    objective = SftObjective(model)
    (model(**batch.padded()).loss * objective.weight(batch)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = objective(batch)
    assert_close(ours, model(**batch.padded()).loss * objective.weight(batch))
    (ours * 3).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert_close(list(found.values()), [3 * expected[name] for name in found])
    with torch.no_grad():
        assert_close(objective(batch), ours)


def test_a_held_head_gives_the_loss_of_its_weights_in_fp32() -> None:
    dense = nn.Linear(32, VOCABULARY, bias=False).bfloat16().requires_grad_(False)
    targets = torch.randint(VOCABULARY, (30,))
    found = []
    for head in (HeldLinear(dense), copy.deepcopy(dense).float()):
        hidden = torch.randn(30, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = sft.summed_cross_entropy(hidden, targets, head)
        loss.backward()
        assert hidden.grad is not None
        found.append([loss, hidden.grad])
        with torch.no_grad():
            assert_close(sft.summed_cross_entropy(hidden, targets, head), loss)
    assert_close(*found)


def test_checkpointing_changes_no_gradient() -> None:
    rows = random_rows(24)
    plain, checkpointed = tiny_model(), tiny_model()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    settings = Train(batch_size=4, lr=1e-3)
    assert run(plain, rows, settings, 4)[-1].loss == run(checkpointed, rows, settings, 4)[-1].loss


def test_the_mean_loss_is_over_tokens_whatever_the_batches() -> None:
    rows, processes = random_rows(10), Processes()
    one = mean_loss(SftObjective(tiny_model()), [collate(rows, 0)], processes)
    many = mean_loss(SftObjective(tiny_model()), [collate([row], 0) for row in rows], processes)
    assert one == pytest.approx(many, rel=1e-6)


def test_positions_that_rows_bring_are_those_they_are_trained_at() -> None:
    """Rotary attention sees distances alone: shifting a row changes nothing, spreading its tokens does."""
    model, rows = tiny_model(), random_rows(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4  # as they begin, it hardly looks at one token more than at another

    def loss(positions: Callable[[int], NDArray[np.int64]]) -> torch.Tensor:
        placed = [replace(row, position_ids=positions(len(row.input_ids))) for row in rows]
        return SftObjective(model).loss(collate(placed, 0))

    as_counted = SftObjective(model).loss(collate(rows, 0))
    assert_close(loss(np.arange), as_counted)
    assert_close(loss(lambda length: np.arange(length) + 5), as_counted)
    assert distance(loss(lambda length: 3 * np.arange(length)), as_counted) > 1e-3


def test_the_losses_of_a_step_by_source_are_those_of_its_rows_alone() -> None:
    rows = [replace(row, source=i % 3) for i, row in enumerate(random_rows(9)) if i % 3 != 1]
    model, processes, settings = tiny_model(), Processes(), Train(lr=1e-3)
    objective = SftObjective(model)
    sums, counts = Counter[int](), Counter[int]()
    with torch.no_grad():
        for row in rows:
            alone = collate([row], 0)
            sums[row.source] += float(objective(alone))
            counts[row.source] += objective.weight(alone)
    optimizer = build_optimizer(model, settings)
    micro = [collate(rows[:4], 0), collate(rows[4:], 0)]
    parts = {"sources": "abc", "processes": processes, "optimizer": processes.prepare(optimizer)}
    (log,) = fit(objective, objective, [(1, micro)], schedule=build_schedule(optimizer, settings, 1), **parts)
    assert log.losses == pytest.approx({"abc"[source]: sums[source] / counts[source] for source in (0, 2)})
    assert log.loss == pytest.approx(sums.total() / counts.total())
