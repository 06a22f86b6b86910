"""Faults put in on purpose: each stops the run within a step, by the name of its layer and its row."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glmtune import encode_messages, load_model, load_tokenizer
from glmtune.data.batches import Steps, collate
from glmtune.data.row import TrainingRow
from glmtune.errors import TrainingError
from glmtune.methods import apply_method, begin_pruning
from glmtune.objectives import SftObjective
from glmtune.processor import has_bf16
from glmtune.recipe import AdaLora, Full, Lora, Method, Train
from glmtune.training.guard import Guard
from glmtune.training.loop import StepLog, fit
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from models import random_rows, tiny_folder, tiny_hf_folder, tiny_model, tiny_v1_folder

RARE = 1
"""A token that `random_rows` never draws."""
OTHER = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
WIDER = {"fp32": "train.precision=fp32", "bf16": "train.precision=bf16 dtype=bf16"}
"""The settings that compute in a type, over weights that are stored in another."""
"""What to take where fp16 is too narrow."""
DENSE = "transformer.encoder.layers.1.mlp.dense_4h_to_h"


@pytest.fixture
def processes() -> Processes:
    return Processes()


def run(
    model: nn.Module,
    rows: list[TrainingRow],
    processes: Processes,
    *,
    lr: float = 1e-3,
    steps: int = 3,
    method: Method | None = None,
) -> Iterator[StepLog]:
    """The loop over the rows in micro-batches of 2, in their own order of length."""
    settings = Train(lr=lr)
    order = Steps(rows, batch_size=len(rows), micro_batch_size=2, seed=1)
    optimizer = build_optimizer(model, settings)
    objective = SftObjective(model)
    batches = ((n, [collate(part, 0) for part in order.micro_batches(n)]) for n in range(1, steps + 1))
    schedule = build_schedule(optimizer, settings, steps)
    prepared = processes.prepare(optimizer)
    guard = Guard(objective, processes, lower_lr=lr / 10, rows_of=order.micro_batches)
    part = begin_pruning(model, method, steps) if method else None
    return fit(objective, objective, batches, prepared, schedule, processes, guard=guard, part=part)


def stopped(logs: Iterator[StepLog], model: nn.Module) -> TrainingError:
    """The error of the first step, which has left every weight as it was."""
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError) as caught:
        next(logs)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)
    return caught.value


def overflow(model: nn.Module, *, limit: float) -> None:
    """Give the last layer's MLP weights that are finite, and too large for what they meet, above `limit`."""
    mlp = next(part for name, part in model.named_modules() if name.endswith("layers.1.mlp"))
    mlp.dense_h_to_4h.weight.data.mul_(300 if limit < 1e5 else 1e8)
    mlp.dense_4h_to_h.weight.data.fill_(0.9 * limit)


def with_rare_token(rows: list[TrainingRow], index: int) -> TrainingRow:
    """The row at an index, its first token made one that no other row has."""
    rows[index].input_ids[0] = RARE
    return rows[index]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [Full(), Lora()])
def test_a_weight_that_is_no_number_is_named_with_its_layer(
    method: Full | Lora, checkpointing: bool, processes: Processes
) -> None:
    """Trained with `full`, frozen with LoRA."""
    base = tiny_model()
    base.get_submodule(DENSE).weight.data[3, 2] = math.nan
    model = apply_method(base, method)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = random_rows(4)
    shortest = min(rows, key=lambda row: len(row.input_ids))
    error = stopped(run(model, rows, processes), model)
    assert str(error) == (
        f"step 1: the loss is nan, first in {DENSE} at {shortest.where}; the weight {DENSE}.weight itself "
        "holds nan; checkpoints are left as they were"
    )
    assert error.hint == "its file is damaged: copy the model from its source again"


LAST = {
    "v1": "transformer.layers.1.mlp.dense_4h_to_h",
    "glm4": DENSE,
    "GLM-4-0414": "model.layers.1.mlp.down_proj",
    "GLM-4.5": "model.layers.1.mlp.shared_experts.down_proj",
}


@pytest.mark.parametrize(
    ("name", "quant"), [*((name, None) for name in LAST), ("v1", "int4"), ("glm4", "int4")]
)
def test_every_family_names_layers_in_its_own_words(
    name: str, quant: str | None, tmp_path: Path, processes: Processes
) -> None:
    make = {"v1": tiny_v1_folder, "glm4": partial(tiny_folder, template="glm4")}
    make.get(name, partial(tiny_hf_folder, family=name))(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    model = apply_method(load_model(tmp_path, dtype="fp32", quant=quant), Lora())
    part = model.get_submodule(f"base_model.model.{LAST[name]}")
    weight = "weight_scale" if quant else "weight"
    getattr(part, weight).data.flatten()[0] = math.nan
    prompt = encode_messages(tokenizer, [{"role": "user", "content": "你好"}])
    ids = np.array([*prompt, *prompt[-1:], tokenizer.eos_token_id], dtype=np.int32)
    rows = [TrainingRow(ids, np.where(np.arange(len(ids)) < len(prompt), -100, ids), "my.json:1")]
    error = stopped(run(model, rows, processes), model)
    assert f"first in {LAST[name]} at my.json:1; the weight {LAST[name]}.{weight} itself" in str(error)


def test_a_row_that_alone_is_no_number_is_named(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(6)
    model.transformer.embedding.word_embeddings.weight.data[RARE] = math.nan
    guilty = with_rare_token(rows, 4)
    error = stopped(run(model, rows, processes), model)
    assert f"first in transformer.embedding.word_embeddings at {guilty.where};" in str(error)


def test_a_layer_that_overflows_is_told_from_a_broken_weight(processes: Processes) -> None:
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    overflow(model, limit=3e38)
    error = stopped(run(model, rows, processes), model)
    assert f"first in {DENSE} at rows:" in str(error)
    assert "itself holds" not in str(error)
    assert error.hint.startswith("it does so before anything is learned")


@pytest.mark.parametrize(("precision", "safe"), [("bf16", "fp32"), ("fp16", OTHER)])
def test_half_precision_is_offered_the_next_safer_one(precision: str, safe: str) -> None:
    processes = Processes(precision="bf16")
    processes._accelerator.state._mixed_precision = processes.precision = precision
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    overflow(model, limit=3e38 if precision == "bf16" else 65504)
    guard = Guard(SftObjective(model), processes, lower_lr=1e-5)
    with pytest.raises(TrainingError, match=f"first in {DENSE}") as caught:
        guard.check_step(2, loss=math.nan, grad_norm=1.0, items=1, batches=[collate(rows, 0)])
    safer = f"train anew with {WIDER[safe]}; if it learned well up to here"
    assert caught.value.hint.startswith(safer)
    assert caught.value.hint.endswith("train.lr=1e-05")


@pytest.mark.parametrize(
    ("step", "first", "then"),
    [(3, "train.lr=0.0001", "train.precision=fp32"), (1, "train.precision=fp32", "train.lr=0.0001")],
    ids=["after steps at it", "before any step at it"],
)
def test_a_rate_above_the_methods_is_to_blame_before_half_precision_is(
    step: int, first: str, then: str
) -> None:
    processes = Processes(precision="bf16")
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    guard = Guard(SftObjective(model), processes, lower_lr=1e-4, is_rate_high=True)
    with pytest.raises(TrainingError) as caught:
        guard.check_step(step, loss=math.nan, grad_norm=1.0, items=1, batches=[collate(rows, 0)])
    assert caught.value.hint.startswith(f"train anew with {first}")
    assert then in caught.value.hint


def test_a_norm_that_overflows_over_finite_gradients_names_the_largest(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(4)
    guilty = with_rare_token(rows, 2)
    embeddings = model.transformer.embedding.word_embeddings

    def magnify(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if output.requires_grad and bool((inputs[0] == RARE).any()):
            output.register_hook(lambda gradient: gradient * 1e25)

    embeddings.register_forward_hook(magnify)
    error = stopped(run(model, rows, processes), model)
    words = "inf, of gradients that are finite row by row: the largest, "
    match = re.search(words + r".*e\+\d\d, is in the gradient of (.*) at (.*);", str(error))
    assert match, str(error)
    assert match.groups() == ("transformer.embedding.word_embeddings.weight", guilty.where)


def test_what_a_layer_is_given_is_not_blamed_on_it(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(4)
    attention = model.transformer.encoder.layers[0].self_attention
    attention.dense.register_forward_pre_hook(lambda _, inputs: (inputs[0] * math.inf,))
    error = stopped(run(model, rows, processes), model)
    assert "first in transformer.encoder.layers.0.self_attention at" in str(error)


def test_a_loss_that_a_high_rate_has_broken_is_offered_a_lower_one(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(4)
    logs = run(model, rows, processes, lr=1e30)
    next(logs)
    error = stopped(logs, model)
    assert str(error).startswith("step 2: the loss is ")
    assert "train.lr=1e+29" in error.hint


def test_a_trained_weight_that_breaks_on_the_way_is_not_blamed_on_its_file(processes: Processes) -> None:
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    logs = run(model, rows, processes)
    next(logs)
    name, weight = next((name, p) for name, p in model.named_parameters() if p.requires_grad)
    weight.data.flatten()[0] = math.inf
    error = stopped(logs, model)
    assert f"the weight {name.removeprefix('base_model.model.')} itself holds inf" in str(error)
    assert error.hint == "a step too far broke it: train anew with train.lr=0.0001"


def test_an_evaluation_that_is_no_number_is_named_too(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(4)
    overflow(model, limit=3e38)
    guard = Guard(SftObjective(model), processes, lower_lr=1e-5, rows_of=lambda _: [rows])
    for step, hint in ((0, "it does so before anything is learned"), (1, "train anew with train.lr=1e-05")):
        with pytest.raises(TrainingError, match=f"step {step}: the evaluation loss is nan") as caught:
            guard.check_evaluation(step, math.nan, batches=[collate(rows, 0)])
        assert f"first in {DENSE} at rows:1;" in str(caught.value)
        assert caught.value.hint.startswith(hint)


def test_rows_without_answers_stop_the_run(processes: Processes) -> None:
    model = tiny_model()
    rows = [TrainingRow(row.input_ids, row.labels * 0 - 100, row.where) for row in random_rows(4)]
    shortest = min(rows, key=lambda row: len(row.input_ids))
    error = stopped(run(model, rows, processes), model)
    assert f"the loss is exactly 0, for no token is learned, first at {shortest.where};" in str(error)
    assert "data.loss=all_turns" in error.hint


def test_rows_known_by_heart_stop_the_run(processes: Processes) -> None:
    model = tiny_model()
    row = random_rows(1)[0]
    row.labels[1:] = 7
    model.transformer.output_layer.weight.data.zero_()
    final = model.transformer.encoder.final_layernorm
    model.transformer.output_layer.register_forward_hook(
        lambda layer, inputs, output: output + 1e4 * (torch.arange(output.shape[-1]) == 7)
    )
    assert final.weight.requires_grad
    error = stopped(run(model, [row], processes), model)
    assert "the output layer gives every learned token a probability of 1, first at rows:1;" in str(error)


def test_a_gradient_that_is_no_number_is_named_where_it_begins(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(6)
    guilty = with_rare_token(rows, 2)
    embeddings = model.transformer.embedding.word_embeddings

    def spoil(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if output.requires_grad and bool((inputs[0] == RARE).any()):
            output.register_hook(lambda gradient: gradient * math.inf)

    embeddings.register_forward_hook(spoil)
    error = stopped(run(model, rows, processes), model)
    assert str(error).startswith("step 1: the gradient norm is nan, first in the gradient of ")
    assert f"word_embeddings at {guilty.where};" in str(error).replace(".weight", "")


def test_a_gradient_of_zeros_is_named_where_it_ends(processes: Processes) -> None:
    model, rows = tiny_model(), random_rows(4)
    tuned = apply_method(model, Lora(dropout=0.0))
    for name, weight in tuned.named_parameters():
        if "lora_A" in name:  # with B at 0 as it begins, neither gets a gradient
            weight.data.zero_()
    error = stopped(run(tuned, rows, processes), tuned)
    last = "transformer.encoder.layers.1.self_attention.query_key_value.lora_A.default"
    assert f"exactly 0, it ends at the gradient of the output of {last} at rows:" in str(error)
    assert error.hint.startswith("nothing that is trained reaches the loss")


def test_a_gradient_that_stops_at_a_layer_is_named_there(processes: Processes) -> None:
    model, rows = apply_method(tiny_model(), Lora(target_modules=("query_key_value",))), random_rows(4)
    norm = model.get_submodule("base_model.model.transformer.encoder.final_layernorm")
    norm.weight.data.zero_()
    error = stopped(run(model, rows, processes), model)
    assert "it ends at the gradient of the output of transformer.encoder.layers.1 at" in str(error)


@pytest.mark.parametrize("method", [Lora(), AdaLora()], ids=["lora", "adalora"])
def test_a_penalty_on_the_weights_does_not_pass_for_something_to_learn(
    method: Method, processes: Processes
) -> None:
    model, rows = tiny_model(), random_rows(4)
    model.transformer.output_layer.weight.data.zero_()
    tuned = apply_method(model, method)
    error = stopped(run(tuned, rows, processes, method=method), tuned)
    assert str(error).startswith("step 1: the gradient is exactly 0, it ends at the gradient of ")
    assert error.hint.startswith("nothing that is trained reaches the loss")


def test_adalora_that_learns_is_healthy(processes: Processes) -> None:
    tuned = apply_method(tiny_model(), AdaLora())
    logs = list(run(tuned, random_rows(4), processes, method=AdaLora()))
    assert all(log.grad_norm > 0 for log in logs)


def test_the_first_step_of_lora_and_a_warm_up_from_rate_0_are_healthy(processes: Processes) -> None:
    model = apply_method(tiny_model(), Lora())
    settings = Train(lr=1e-3, warmup_steps=2)
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, 3)
    batches = [(n, [collate(random_rows(4), 0)]) for n in (1, 2, 3)]
    objective = SftObjective(model)
    prepared = processes.prepare(optimizer)
    logs = list(fit(objective, objective, batches, prepared, schedule, processes))
    assert [log.lr for log in logs] == [0.0, 5e-4, 1e-3]


# Loss scaling, on a CPU: torch's own scaler and fp16 arithmetic there


@pytest.fixture
def scaling() -> Callable[[float], Processes]:
    def make(scale: float) -> Processes:
        processes = Processes(precision="bf16")
        processes._accelerator.state._mixed_precision = "fp16"  # which accelerate itself offers on GPUs only
        processes.precision = "fp16"
        processes._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        return processes

    return make


def test_a_step_that_loss_scaling_skips_changes_no_weight_and_no_rate(
    scaling: Callable[[float], Processes],
) -> None:
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    processes = scaling(2.0**40)
    logs, before = run(model, rows, processes, steps=60), None
    skipped = 0
    for log in logs:
        if math.isfinite(log.grad_norm):
            break
        now = [p.detach().clone() for p in model.parameters()]
        assert before is None or all(map(torch.equal, before, now))
        assert log.lr == 1e-3  # the first, as long as nothing was learned at it
        before, skipped = now, skipped + 1
    assert skipped > 3
    assert processes.loss_scale == 2.0 ** (40 - skipped)
    assert next(logs).lr < 1e-3


def test_a_loss_scale_that_collapses_stops_the_run(scaling: Callable[[float], Processes]) -> None:
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    dense = model.get_submodule(f"base_model.model.{DENSE}")
    dense.register_full_backward_hook(lambda *_: (torch.full_like(_[1][0], math.inf),))
    logs = run(model, rows, scaling(4.0), steps=60)
    assert [log.step for log in (next(logs), next(logs))] == [1, 2]
    error = stopped(logs, model)
    assert str(error).startswith(
        "step 3: the gradient overflows fp16 at every loss scale down to 1, first in"
    )
    assert "at rows:" in str(error)
    assert f"train anew with {WIDER[OTHER]}; if" in error.hint


def test_a_weight_too_large_for_fp16_is_told_from_a_damaged_file(
    scaling: Callable[[float], Processes],
) -> None:
    model, rows = tiny_model(), random_rows(4)
    model.get_submodule(DENSE).weight.data[0, 0] = 1e5
    tuned = apply_method(model.half(), Lora())
    error = stopped(run(tuned, rows, scaling(2.0**16)), tuned)
    assert f"the weight {DENSE}.weight itself holds inf" in str(error)
    assert error.hint == f"it is too large for fp16: train anew with train.precision={OTHER} dtype={OTHER}"


def test_a_loss_that_is_no_number_stops_at_once_with_loss_scaling_too(
    scaling: Callable[[float], Processes],
) -> None:
    model, rows = apply_method(tiny_model(), Lora()), random_rows(4)
    overflow(model, limit=65504)
    error = stopped(run(model, rows, scaling(2.0**16)), model)
    assert f"step 1: the loss is nan, first in {DENSE} at rows:" in str(error)


def test_adam_in_fp16_arithmetic_has_fp32_moments_in_which_its_epsilon_lives(
    scaling: Callable[[float], Processes],
) -> None:
    model = apply_method(tiny_model().half(), Lora())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    settings = Train(lr=1e-3)
    optimizer = build_optimizer(model, settings)
    processes = scaling(2.0**8)
    objective = SftObjective(model)
    batches = [(1, [collate(random_rows(4), 0)])]
    schedule = build_schedule(optimizer, settings, 1)
    next(fit(objective, objective, batches, processes.prepare(optimizer), schedule, processes))
    moments = {state["exp_avg_sq"].dtype for state in optimizer.state.values()}
    assert moments == {torch.float32}
    assert torch.tensor(settings.adam_epsilon, dtype=torch.float16) == 0
    assert torch.tensor(settings.adam_epsilon, dtype=torch.float32) > 0


def test_a_lost_signal_is_told_from_a_penalty_under_loss_scaling_too(
    scaling: Callable[[float], Processes],
) -> None:
    model, rows = tiny_model(), random_rows(4)
    model.transformer.output_layer.weight.data.zero_()
    tuned = apply_method(model, AdaLora())
    error = stopped(run(tuned, rows, scaling(2.0**8), method=AdaLora()), tuned)
    assert str(error).startswith("step 1: the gradient is exactly 0, it ends at")
