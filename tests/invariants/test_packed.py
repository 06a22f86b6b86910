"""Rows packed without padding against one row at a time, and against the model's own padded forward pass."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from closeness import assert_close, distance
from glmtune.data.batches import Batch, collate
from glmtune.data.row import TrainingRow
from glmtune.generate.decoding import complete
from glmtune.generate.sampling import Sampling
from glmtune.methods import apply_method
from glmtune.models import ChatGLM6BConfig, ChatGLM6BForConditionalGeneration, load_in_transformers
from glmtune.models.computing import HeldExperts, compute_in
from glmtune.models.dtype import Choice
from glmtune.models.frozen_linear import HeldLinear
from glmtune.models.wrapped import causal_of
from glmtune.objectives import SftObjective
from glmtune.recipe import Train
from glmtune.training.loop import fit
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from models import VOCABULARY, hf_settings, random_rows, tiny_model
from tuned import settings_of

BOS = VOCABULARY - 4
MASKS = {"early": BOS - 4, "mid": BOS - 3, "late": 5}
"""The mask token that the rows fill, by ChatGLM-6B's revision: early's [MASK], the others' [gMASK]."""
EXACT = 1e-10
"""Share of the largest magnitude by which two orders of float64's sums may differ, after 20 steps too."""
ROUTED = 1e-6
"""The same where a router computes in fp32 whatever the model's type is."""
LOSS, GRADIENT = 1e-6, 1e-5
"""The same in fp32: of a loss, and of the largest number in a gradient or of the losses of 20 steps."""
SILENT = 1e-6
"""A gradient smaller by this share than the largest of all is zero but for rounding, as a key bias's is."""


def chatglm_6b(revision: str) -> Any:
    torch.manual_seed(0)
    ids = {"late": {}, "mid": {"mask_token_id": None}, "early": {"mask_token_id": None, "pad_token_id": None}}
    named = {"pad_token_id": 0, "mask_token_id": 4, "gmask_token_id": 5} | ids[revision]
    if revision != "late":
        named["gmask_token_id"] = None
    config = ChatGLM6BConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_attention_heads=4, inner_hidden_size=48,
        bos_token_id=BOS, eos_token_id=BOS + 1, **named,
    )  # fmt: skip
    assert config.revision == revision
    return ChatGLM6BForConditionalGeneration(config).eval()


def in_transformers(model_type: str, rounded_to: torch.dtype = torch.float32) -> Any:
    """The class as transformers builds it, in fp32: the oracle of the loaded ones, which users train."""
    torch.manual_seed(0)
    sizes = hf_settings(model_type)
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():  # not `to` and back: it would round the frequencies of the rotation too
        weight.data = weight.data.to(rounded_to).float()
    return eager(model)


def loaded(model_type: str, held: torch.dtype = torch.float32, computing: torch.dtype = torch.float32) -> Any:
    """The same weights as they are read from a folder to be trained."""
    with TemporaryDirectory() as folder:
        in_transformers(model_type).to(held).save_pretrained(folder)
        return eager(load_in_transformers(Path(folder), dtype=Choice(held, computing), device="cpu"))


def eager(model: Any) -> Any:
    model.config._experts_implementation = "eager"  # the usual one has no float64
    return model


def held_in_bf16(native: Callable[[], Any], computing: torch.dtype) -> Any:
    model = native().to(torch.bfloat16)
    compute_in(model, computing)
    return model


NATIVE: dict[str, Callable[[], Any]] = {
    "v1 early": lambda: chatglm_6b("early"),
    "v1 mid": lambda: chatglm_6b("mid"),
    "v1 late": lambda: chatglm_6b("late"),
    "v2": lambda: tiny_model(multi_query_group_num=4, add_qkv_bias=False),
    "v3": tiny_model,
    "glm4": lambda: tiny_model(rope_ratio=500, rope_scaling_by="base", num_layers=3),
}
IN_TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "hf glm": lambda: loaded("glm"),
    "hf glm4": lambda: loaded("glm4"),
    "hf glm4_moe": lambda: loaded("glm4_moe"),
}
FAMILIES = NATIVE | IN_TRANSFORMERS
HELD: dict[str, Callable[[torch.dtype], Any]] = {
    "v1 late": partial(held_in_bf16, NATIVE["v1 late"]),
    "v2": partial(held_in_bf16, NATIVE["v2"]),
    **{f"hf {kind}": partial(loaded, kind, torch.bfloat16) for kind in ("glm", "glm4", "glm4_moe")},
}
"""Frozen weights in bf16, as published; of the type to compute in."""
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4, "dropout": 0},
    "all layers": {"name": "lora", "r": 2, "dropout": 0, "target_modules": "all"},
    "dora": {"name": "lora", "r": 4, "dropout": 0, "use_dora": True},
    "adalora": {"name": "adalora", "init_r": 6, "target_r": 4, "dropout": 0},
    "freeze": {"name": "freeze", "num_layers": 1},
    "full": {"name": "full"},
}
PREFIXES: dict[str, dict[str, Any]] = {
    "ptuning": {"name": "ptuning", "num_prefix_tokens": 3, "dropout": 0},
    "projected": {"name": "ptuning", "num_prefix_tokens": 5, "dropout": 0, "projection": True},
}
GRID = [(family, method) for family in FAMILIES for method in METHODS]
GRID += [(family, method) for family in NATIVE for method in PREFIXES]


def exact(family: str) -> float:
    return ROUTED if family.endswith("moe") else EXACT


def targets(model: Any) -> list[str]:
    """All linear layers inside the blocks; of a model with experts those of the attention."""
    if hasattr(model.config, "n_routed_experts"):
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    names = {name.rpartition(".")[2] for name, x in model.named_modules() if isinstance(x, torch.nn.Linear)}
    return sorted(names - {"lm_head", "output_layer"})


def tuned(family: str, method: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model in training whose trained weights are not at their start, where half of a LoRA is zero."""
    return with_method(FAMILIES[family](), method, dtype).to(dtype)


def tuned_on_held(family: str, method: str, dtype: torch.dtype = torch.float64) -> Any:
    """The same on frozen weights in bf16, computing in `dtype`."""
    return with_method(HELD[family](dtype), method, dtype)


def with_method(model: Any, method: str, dtype: torch.dtype) -> Any:
    settings = dict((METHODS | PREFIXES)[method])
    if settings.get("target_modules") == "all":
        settings["target_modules"] = targets(model)
    torch.manual_seed(2)
    model = apply_method(model, settings_of(settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                drawn = torch.randn(weight.shape, generator=generator, dtype=dtype) * 0.1
                weight.data = weight.to(dtype) + drawn
    return model.train()


def rows_for(family: str, count: int = 4, seed: int = 1) -> list[TrainingRow]:
    """Rows of uneven length; ChatGLM-6B's have a context, of another length each, and a mask token in it."""
    rows = random_rows(count, seed=seed)
    if not family.startswith("v1"):
        return rows
    made = []
    for i, row in enumerate(rows):
        ids, labels, bos = row.input_ids.copy() % BOS, row.labels.copy(), 2 + i % 4
        ids[ids == 5] = 6
        ids[bos - 1 - i % 2] = MASKS[family.split()[1]]
        ids[bos] = BOS
        labels[:bos] = -100
        labels[bos + 1 :] = np.where(labels[bos + 1 :] == -100, -100, ids[bos + 1 :])
        made.append(replace(row, input_ids=ids, labels=labels))
    return made


def packed(model: Any, batch: Batch) -> Tensor:
    """The loss of a batch, its gradients added to the weights'."""
    objective = SftObjective(model)
    with objective.passes():
        loss: Tensor = objective(batch)
        loss.backward()
    return loss.detach()


def one_by_one(model: Any, batch: Batch) -> Tensor:
    return torch.stack([packed(model, row) for row in batch.rows()]).sum()


def padded(model: Any, batch: Batch) -> Tensor:
    """The same by the model's own forward pass: masks, and each position through all layers and the head."""
    inputs = batch.padded()
    labels = inputs.pop("labels")[:, 1:]
    logits = causal_of(model)(**inputs, use_cache=False).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    return loss.detach()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_each_close(found: dict[str, Tensor], expected: dict[str, Tensor], share: float) -> None:
    """Each tensor by its own largest number, or by all tensors' where it is zero but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    assert largest > 0
    for name, theirs in expected.items():
        size = float(theirs.abs().max())
        off = float((found[name] - theirs).abs().max())
        assert off <= share * (size if size > SILENT * largest else largest), (name, off, size)


@pytest.mark.parametrize(("family", "method"), GRID)
def test_packed_rows_have_the_loss_and_gradients_of_one_row_at_a_time_and_of_padded_ones(
    family: str, method: str
) -> None:
    model, batch = tuned(family, method), collate(rows_for(family), 0)
    loss = packed(model, batch)
    ours = gradients(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == ours.keys()
    for other in (one_by_one, padded):
        assert_close(loss, other(model, batch), share=exact(family))
        assert_each_close(ours, gradients(model), exact(family))


ON_HELD = [(family, method) for family in HELD for method in ("lora", "all layers", "dora")]
ON_HELD += [("v1 late", "ptuning"), ("v2", "ptuning"), ("hf glm4", "adalora")]


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize(("family", "method"), ON_HELD)
def test_on_weights_held_in_bf16_packed_rows_are_one_row_at_a_time_too(
    family: str, method: str, is_recomputed: bool
) -> None:
    """Without a difference in type anywhere: float64 through weights that are cast where they are used."""
    model, batch = tuned_on_held(family, method), collate(rows_for(family), 0)
    assert any(isinstance(part, HeldLinear) for part in model.modules())
    assert any(isinstance(part, HeldExperts) for part in model.modules()) == family.endswith("moe")
    others = [(way(model, batch), gradients(model)) for way in (one_by_one, padded)]
    loss = packed(recomputing(model) if is_recomputed else model, batch)
    ours = gradients(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == ours.keys()
    for expected_loss, expected in others:
        assert_close(loss, expected_loss, share=exact(family))
        assert_each_close(ours, expected, exact(family))


@pytest.mark.parametrize("family", HELD)
def test_on_weights_held_in_bf16_and_computed_in_fp32_too(family: str) -> None:
    model, batch = tuned_on_held(family, "lora", torch.float32), collate(rows_for(family), 0)
    loss = packed(model, batch)
    ours = gradients(model)
    assert_close(loss, one_by_one(model, batch), share=LOSS)
    assert_each_close(ours, gradients(model), GRADIENT)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["glm", "glm4", "glm4_moe"])
def test_what_is_loaded_trains_packed_as_the_class_of_transformers_trains_padded(
    model_type: str, held: torch.dtype
) -> None:
    """Fused norms and MLPs, and weights cast where they are used, against plain layers in fp32."""
    ours, oracle = loaded(model_type, held), in_transformers(model_type, rounded_to=held)
    batch = collate(rows_for("hf"), 0)
    model, plain = (with_method(x, "lora", torch.float32) for x in (ours, oracle))
    started = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        if weight.requires_grad:  # PEFT draws an adapter's start in the type that the base is held in
            weight.data = started[name].detach().clone()
    loss, expected = packed(model, batch), padded(plain, batch)
    assert_close(loss, expected, share=LOSS)
    assert_each_close(gradients(model), gradients(plain), GRADIENT)


@pytest.mark.parametrize(("family", "method"), [(family, "full") for family in FAMILIES])
def test_packed_rows_have_in_fp32_the_same_but_for_its_rounding(family: str, method: str) -> None:
    model, batch = tuned(family, method, torch.float32), collate(rows_for(family), 0)
    loss = packed(model, batch)
    ours = gradients(model)
    assert_close(loss, one_by_one(model, batch), share=LOSS)
    assert_each_close(ours, gradients(model), GRADIENT)


def twenty_steps(
    family: str, method: str, pass_rows: Callable[[Any, Batch], Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The losses of 20 AdamW steps on three rows each, and the weights after them.

    AdamW divides by the gradient's own size plus eps: at 1e-8, weights with gradients of that size move by
    rounding alone, 5e-10 on one processor, less on others.
    """
    model, losses = tuned(family, method, dtype), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-6)
    for step in range(20):
        batch = collate(rows_for(family, 3, seed=step), 0)
        losses.append(pass_rows(model, batch) / SftObjective(model).weight(batch))
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses), [p.detach() for p in model.parameters() if p.requires_grad]


SOME = [(family, "lora") for family in FAMILIES]
SOME += [("v3", method) for method in METHODS if method != "lora"]
SOME += [("v3", "ptuning"), ("v1 late", "projected"), ("v1 mid", "full"), ("hf glm4_moe", "full")]


@pytest.mark.parametrize(("family", "method"), SOME)
def test_twenty_steps_of_packed_rows_are_those_of_one_row_at_a_time(family: str, method: str) -> None:
    losses, weights = twenty_steps(family, method, packed, torch.float64)
    expected, expected_weights = twenty_steps(family, method, one_by_one, torch.float64)
    assert losses[-1] != losses[0]
    assert_close(losses, expected, share=exact(family))
    assert_close(weights, expected_weights, share=exact(family))


@pytest.mark.parametrize(("family", "method"), [("v1 late", "ptuning"), ("v3", "lora"), ("hf glm4", "full")])
def test_twenty_steps_in_fp32_have_the_same_losses_but_for_its_rounding(family: str, method: str) -> None:
    losses, _ = twenty_steps(family, method, packed, torch.float32)
    expected, _ = twenty_steps(family, method, one_by_one, torch.float32)
    assert_close(losses, expected, share=GRADIENT)


def recomputing(model: Any) -> Any:
    causal_of(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_attend_by_row_too(family: str, method: str) -> None:
    """With the model's own attention in the backward pass, gradients would be across rows."""
    model, batch = tuned(family, method), collate(rows_for(family), 0)
    loss = one_by_one(model, batch)
    expected = gradients(model)
    assert_close(packed(recomputing(model), batch), loss, share=exact(family))
    assert_each_close(gradients(model), expected, exact(family))


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_one_row_says_changes_nothing_for_the_others(family: str, is_recomputed: bool) -> None:
    model = tuned(family, "full")
    if is_recomputed:
        recomputing(model)
    rows = rows_for(family, 3)
    silent = np.full_like(rows[1].labels, -100)

    def of_others(middle: np.ndarray[Any, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        silent_row = replace(rows[1], input_ids=middle, labels=silent)
        return packed(model, collate([rows[0], silent_row, rows[2]], 0)), gradients(model)

    other = rows[1].input_ids.copy()
    free = other < BOS - 4 if family.startswith("v1") else np.ones_like(other, dtype=bool)
    free &= other > 6
    other[free] = 7 + (other[free] - 7 + 11) % (BOS - 14)
    assert (other != rows[1].input_ids).sum() > 2
    loss, found = of_others(rows[1].input_ids)
    changed, expected = of_others(other)
    assert_close(changed, loss, share=exact(family))
    assert_each_close(found, expected, exact(family))
    told = collate([rows[0], replace(rows[1], labels=rows[1].input_ids), rows[2]], 0)
    assert distance(packed(model, told), loss) > 0.1  # the middle row itself is not silent by nature


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_attention_is_back_after_a_step_and_after_an_error(
    family: str, is_recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tuned(family, "lora"), collate(rows_for(family), 0)
    if is_recomputed:
        recomputing(model)
    config = causal_of(model).config
    own = config._attn_implementation
    assert own == "sdpa"
    packed(model, batch)
    assert config._attn_implementation == own
    with torch.no_grad():
        SftObjective(model)(batch)
    assert config._attn_implementation == own
    monkeypatch.setattr(causal_of(model), "get_output_embeddings", lambda: None)
    objective = SftObjective(model)
    with pytest.raises(AttributeError), objective.passes():
        objective(batch)
    assert config._attn_implementation == own


def test_a_pass_whose_backward_pass_would_attend_across_rows_is_refused() -> None:
    model, batch = recomputing(tuned("v3", "lora")), collate(rows_for("v3"), 0)
    with pytest.raises(RuntimeError, match=r"passes\(\)"):
        SftObjective(model)(batch)
    with torch.no_grad():
        SftObjective(model)(batch)  # without a backward pass there is nothing to hold


def test_a_model_that_does_not_attend_by_row_is_refused() -> None:
    model = tuned("glm4", "full")
    model.base_model.config = deepcopy(model.base_model.config)  # its layers read another one
    with pytest.raises(RuntimeError, match="not all layers attend by row"):
        SftObjective(model)(collate(rows_for("glm4"), 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_labels_has_a_loss_of_zero_and_gradients_of_zero(family: str) -> None:
    """As the one that a process without rows of its own gives to DistributedDataParallel."""
    model, (row, *_) = tuned(family, "lora"), rows_for(family)
    blank = collate([replace(row, labels=np.full_like(row.labels, -100))], 0)
    assert float(packed(model, blank)) == 0
    found = gradients(model)
    assert found
    assert not any(bool(x.any()) for x in found.values())


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", NATIVE)
def test_a_prefix_drops_what_it_drops_in_a_padded_batch(family: str, projection: bool) -> None:
    """Officially each row of a batch has its own dropout, drawn for all rows at once: so it is packed."""
    model = FAMILIES[family]().double()
    model.attach_prefix(4, projection=projection, dropout=0.5)
    model.requires_grad_(requires_grad=False)
    for weight in model.base_model.prefix_encoder.parameters():
        weight.requires_grad = True
    model.train()
    batch = collate(rows_for(family), 0)
    results = []
    for pass_rows in (packed, padded):
        torch.manual_seed(7)
        results.append((pass_rows(model, batch), gradients(model)))
    (loss, ours), (expected_loss, expected) = results
    assert_close(loss, expected_loss, share=exact(family))
    assert_each_close(ours, expected, exact(family))
    torch.manual_seed(8)
    assert distance(packed(model, batch), loss) > 1e-6


def test_positions_that_rows_bring_stay_those_of_their_row() -> None:
    rows = rows_for("v1 late")
    model = tuned("v1 late", "full")
    batch = collate(rows, 0)
    places = [np.arange(len(row.input_ids)) for row in rows]
    together = collate(
        [replace(row, position_ids=np.stack([2 * i, i])) for row, i in zip(rows, places, strict=True)], 0
    )
    loss = packed(model, together)
    assert_close(loss, one_by_one(model, together), share=EXACT)
    assert_close(loss, padded(model, together), share=EXACT)
    assert distance(loss, packed(model, batch)) > 1e-6


@pytest.mark.parametrize(("family", "method"), [("v3", "lora"), ("v1 late", "ptuning"), ("hf glm", "lora")])
def test_between_two_steps_the_model_answers_as_generate_does(family: str, method: str) -> None:
    """The samples of a run are made there, while layers are set to be recomputed in training."""
    model = recomputing(tuned(family, method, torch.float32))
    processes, rows = Processes(), rows_for(family)
    optimizer = build_optimizer(model, Train(lr=1e-3))
    objective, steps = SftObjective(model), [(n, [collate(rows, 0)]) for n in (1, 2, 3)]
    schedule = build_schedule(optimizer, Train(lr=1e-3, schedule="constant"), 3)
    prompt = rows[0].input_ids.tolist()
    for _ in fit(objective, objective, steps, processes.prepare(optimizer), schedule, processes):
        twin = deepcopy(causal_of(model)).eval()
        expected = twin.generate(
            torch.tensor([prompt]), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
        )
        (answer,) = complete(model, [prompt], Sampling(temperature=0, max_new_tokens=5), stop_ids=[])
        assert answer == expected[0, len(prompt) :].tolist()
