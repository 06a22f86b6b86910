"""AdaLoRA's schedule, its scores and its penalty against PEFT's own; exact ranks; plain LoRA made of it."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from closeness import assert_close, distance
from glmtune.adapters.store import Card, load_adapter, read_card, save_trained
from glmtune.adapters.to_lora import save_as_lora
from glmtune.data.batches import collate
from glmtune.errors import CheckpointError, ConfigError
from glmtune.methods import apply_method, begin_pruning, trainable_line
from glmtune.methods.ranks import plan_pruning
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.objectives import SftObjective
from glmtune.recipe import AdaLora, Lora, load_recipe
from glmtune.training.loop import fit
from glmtune.training.processes import Processes
from models import random_rows, tiny_model

ALL_FOUR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
CARD = Card(base="/base", template="chatglm3", method={"name": "adalora"})
NUM_TARGETS = 8  # two layers


def settings(**values: Any) -> AdaLora:
    return AdaLora(**{"init_r": 6, "target_r": 3, "dropout": 0.0, "target_modules": ALL_FOUR, **values})


def make(model: Any, method: AdaLora, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return apply_method(model, method)


def train(tuned: Any, part: Any, num_steps: int, *, lr: float = 1e-2) -> list[float]:
    """`num_steps` steps on random rows; the losses."""
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=lr)
    objective, rows = SftObjective(tuned), random_rows(4 * num_steps)
    steps = ((n + 1, [collate(rows[4 * n + i :: 2][:2], 0) for i in range(2)]) for n in range(num_steps))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    logs = fit(objective, objective, steps, optimizer, schedule, Processes(), part=part)
    return [log.loss for log in logs]


def live_triplets(tuned: Any) -> dict[str, int]:
    return {name: int((p != 0).sum()) for name, p in tuned.named_parameters() if "lora_E" in name}


@pytest.fixture(scope="module")
def pruned() -> tuple[Any, Any]:
    """A trained adapter and its Pruning; one target has lost all its rank."""
    method = settings(target_r=2)
    tuned = make(tiny_model(), method)
    name = "base_model.model.transformer.encoder.layers.1.mlp.dense_4h_to_h"
    tuned.get_submodule(name).lora_A["default"].data *= 1e-6
    tuned.get_submodule(name).lora_B["default"].data *= 1e-6
    part = begin_pruning(tuned, method, 10)
    train(tuned, part, 10)
    assert 0 in part.ranks.values()
    assert max(part.ranks.values()) > 2
    return tuned.eval(), part


# The schedule


@pytest.mark.parametrize("num_steps", [1, 2, 12])
def test_the_sum_of_ranks_is_what_was_asked_for_and_without_the_schedule_it_is_not(num_steps: int) -> None:
    tuned = make(tiny_model(), settings())
    part = begin_pruning(tuned, settings(), num_steps)
    train(tuned, part, num_steps)
    assert sum(part.ranks.values()) == sum(live_triplets(tuned).values()) == 3 * NUM_TARGETS
    assert part.has_settled
    assert part.line().startswith("ranks: 6 -> 3 on average (min ")
    never_pruned = make(tiny_model(), settings())
    train(never_pruned, None, num_steps)
    assert sum(live_triplets(never_pruned).values()) == 6 * NUM_TARGETS


def test_ranks_are_exact_where_all_scores_tie() -> None:
    tuned = make(tiny_model(), settings())
    part = begin_pruning(tuned, settings(), 5)
    train(tuned, part, 5, lr=0.0)  # E stays 0, so every score is 0
    assert sum(part.ranks.values()) == 3 * NUM_TARGETS


@pytest.mark.parametrize(("every", "final"), [(1, 0), (1, 4), (3, 4)])
def test_ranks_scores_and_weights_are_those_of_pefts_own_loop(every: int, final: int) -> None:
    method = settings(warmup_steps=2, final_steps=final, prune_every=every)
    ours, theirs = (make(tiny_model(), method) for _ in range(2))
    part = begin_pruning(ours, method, 12)
    config = theirs.peft_config["default"]
    config.tinit, config.tfinal, config.deltaT, config.total_step = 2, final, every, 12
    batch = collate(random_rows(6), 0)
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for model in (ours, theirs)
    ]
    for step in range(1, 13):
        objective = SftObjective(ours)
        (objective(batch) / objective.weight(batch) + part.penalty()).backward()
        theirs(**batch.padded()).loss.backward()  # PEFT adds its penalty here
        for optimizer in optimizers:
            optimizer.step()
        part.after_step(step)
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert live_triplets(ours) == live_triplets(theirs), step
    assert_close(list(ours.parameters()), list(theirs.parameters()), share=1e-4)
    assert set(part.ranks.values()) != {3}  # they differ from each other


def test_the_penalty_counts_once_a_step_and_is_not_logged() -> None:
    whole, parts = (make(tiny_model(), settings(warmup_steps=3, final_steps=0)) for _ in range(2))
    rows = random_rows(4)
    for model, sizes in ((whole, 4), (parts, 1)):
        part = begin_pruning(model, settings(warmup_steps=3, final_steps=0), 4)
        micro = [collate(rows[i : i + sizes], 0) for i in range(0, 4, sizes)]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
        objective, steps = SftObjective(model), [(n, micro) for n in (1, 2)]
        before = objective(collate(rows, 0)).detach() / objective.weight(collate(rows, 0))
        logs = list(fit(objective, objective, steps, optimizer, schedule, Processes(), part=part))
        assert logs[0].loss == pytest.approx(float(before), rel=1e-6)
    assert_close(list(parts.parameters()), list(whole.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_adapters_weights_change_and_all_of_them_do(dtype: torch.dtype) -> None:
    tuned = make(tiny_model().to(dtype), settings())
    before = {name: p.clone() for name, p in tuned.named_parameters()}
    train(tuned, begin_pruning(tuned, settings(), 4), 4)
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name or "ranknum" in name else dtype)


def test_a_step_whose_gradients_overflow_leaves_the_scores_as_they_were() -> None:
    tuned = make(tiny_model(), settings())
    part = begin_pruning(tuned, settings(), 20)
    train(tuned, part, 2)
    scores = tuned.base_model.rankallocator
    before = dict(scores.exp_avg_unc)
    for gradient, is_new in ((float("inf"), False), (1.0, True)):
        for parameter in tuned.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        part.after_step(3)
        equal = [torch.equal(score, before[name]) for name, score in scores.exp_avg_unc.items()]
        assert not any(equal) if is_new else all(equal)


def test_adalora_on_a_published_chatglm2_counts_its_parameters_without_weights() -> None:
    config = ChatGLMConfig(
        num_layers=28, padded_vocab_size=65024, hidden_size=4096, ffn_hidden_size=13696, kv_channels=128,
        num_attention_heads=32, add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = apply_method(ChatGLMForConditionalGeneration(config), AdaLora())
    # 28 layers of rank 12 on query_key_value: 28 * 12 * (4096 + 4608 + 1)
    assert trainable_line(model).startswith("trainable params: 2,924,880 || all params: 6,246,508,908 ||")


# Its settings


@pytest.mark.parametrize(
    ("values", "num_steps", "expected"),
    [
        ({}, 1, (0, 1, 1)),
        ({}, 100, (10, 80, 1)),
        ({}, 3000, (300, 2400, 30)),
        ({"warmup_steps": 0, "final_steps": 0, "prune_every": 7}, 9, (0, 9, 7)),
    ],
)
def test_what_the_schedule_leaves_open_comes_from_the_number_of_steps(
    values: dict[str, int], num_steps: int, expected: tuple[int, int, int]
) -> None:
    assert plan_pruning(AdaLora(**values), num_steps) == expected


def test_a_schedule_that_leaves_no_step_to_prune_in_is_refused_by_its_settings_names() -> None:
    with pytest.raises(
        ConfigError, match=r"method.warmup_steps 6 and method.final_steps 4 leave none"
    ) as caught:
        plan_pruning(AdaLora(warmup_steps=6, final_steps=4), 10)
    assert "train.steps" in caught.value.hint
    with pytest.raises(ConfigError, match="target_r 8 is not below init_r 8: nothing to prune"):
        load_recipe({"model": "m", "method": {"name": "adalora", "init_r": 8}})


def test_other_methods_have_no_ranks_to_prune() -> None:
    assert begin_pruning(apply_method(tiny_model(), Lora(r=2)), Lora(r=2), 10) is None


# On disk


def test_a_pruned_adapter_that_is_saved_and_loaded_gives_the_same_logits(
    pruned: tuple[Any, Any], tmp_path: Path
) -> None:
    tuned, part = pruned
    save_trained(tuned, tmp_path, CARD)
    loaded = load_adapter(tiny_model(), tmp_path).eval()
    assert_close(loaded(IDS).logits, tuned(IDS).logits)
    assert distance(loaded(IDS).logits, tiny_model()(IDS).logits) > 1e-2
    stored = {name: len(p) for name, p in loaded.named_parameters() if "lora_E" in name}
    assert sorted(stored.values()) == sorted(part.ranks.values())


def test_an_adapter_that_is_saved_while_ranks_still_fall_gives_the_same_logits(tmp_path: Path) -> None:
    tuned = make(tiny_model(), settings())
    part = begin_pruning(tuned, settings(prune_every=4), 20)
    train(tuned, part, 10)  # pruned at 8, then some have come back
    assert not part.has_settled
    assert part.line().endswith("; 3 at step 16")
    save_trained(tuned, tmp_path, CARD)
    loaded = load_adapter(tiny_model(), tmp_path).eval()
    assert_close(loaded(IDS).logits, tuned.eval()(IDS).logits)


@pytest.mark.parametrize("stop", [6, 9])  # while ranks fall; settled
def test_an_adapter_goes_on_from_its_state_as_if_nothing_had_been(tmp_path: Path, stop: int) -> None:
    method = settings(prune_every=2)
    tuned, fresh = make(tiny_model(), method), make(tiny_model(), method, seed=5)
    part, again = (begin_pruning(model, method, 10) for model in (tuned, fresh))
    train(tuned, part, stop)
    save_trained(tuned, tmp_path, CARD)  # PEFT edits its settings while saving
    again.load_state_dict(part.state_dict())
    assert (again.ranks, again.has_settled) == (part.ranks, stop >= 8)
    for model, its in ((tuned, part), (fresh, again)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(stop + 1, 11):
            optimizer.zero_grad()
            SftObjective(model).train()(collate(random_rows(2, seed=step), 0)).backward()
            optimizer.step()
            its.after_step(step)
    for one, other in zip(tuned.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)
    assert part.ranks == again.ranks


# As plain LoRA


@pytest.mark.parametrize("is_saved_first", [False, True])
def test_plain_lora_made_of_it_gives_the_same_logits_in_peft_alone_and_merged(
    pruned: tuple[Any, Any], tmp_path: Path, is_saved_first: bool
) -> None:
    tuned, part = pruned
    source = tuned
    if is_saved_first:
        save_trained(tuned, tmp_path / "adalora", CARD)
        source = load_adapter(tiny_model(), tmp_path / "adalora")
    save_as_lora(source, tmp_path / "lora", CARD)
    plain = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "lora")).eval()
    assert plain.peft_config["default"].peft_type == "LORA"
    assert_close(plain(IDS).logits, tuned(IDS).logits)
    ours = load_adapter(tiny_model(), tmp_path / "lora").eval()
    assert torch.equal(ours(IDS).logits, plain(IDS).logits)
    ranks = sorted(len(p) for name, p in plain.named_parameters() if "lora_A" in name)
    assert ranks == sorted(rank for rank in part.ranks.values() if rank)
    merged = plain.merge_and_unload(safe_merge=True)
    assert_close(merged(IDS).logits, tuned(IDS).logits)
    card = read_card(tmp_path / "lora")
    assert card is not None
    assert load_recipe({"model": "m", "method": card.method}).method.name == "lora"


def test_what_is_no_adalora_or_has_no_rank_is_not_made_lora(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not AdaLoRA's"):
        save_as_lora(apply_method(tiny_model(), Lora(r=2)), tmp_path)
    with pytest.raises(CheckpointError, match="ranks are all 0"):
        save_as_lora(make(tiny_model(), settings()), tmp_path)
