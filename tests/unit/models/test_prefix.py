"""The prefix of P-Tuning v2: dropout, the projection kept in evaluation, types, caches, copies."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from closeness import assert_close, distance
from glmtune.errors import ConfigError
from glmtune.models import ChatGLMForConditionalGeneration, load_base
from glmtune.models.prefix import PrefixEncoder
from glmtune.tokenizers import read_tokenizer
from golden import read_prefix_golden
from models import tiny_folder, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def prefixed(*, projection: bool = False, dropout: float = 0.0, **settings: Any) -> Any:
    model = tiny_model(**settings)
    model.attach_prefix(4, projection=projection, dropout=dropout)
    return model.eval()


def count_projections(encoder: PrefixEncoder) -> list[int]:
    """A list that grows by one with each run of the projection."""
    runs: list[int] = []
    encoder.trans.register_forward_hook(lambda *_: runs.append(1))
    return runs


# Dropout and the first weights


def test_dropout_is_drawn_for_each_row_and_not_in_evaluation() -> None:
    """As upstream: the prefix is expanded to the batch first."""
    encoder = prefixed(dropout=0.5).transformer.prefix_encoder
    whole = torch.stack(encoder(3, torch.float32))  # (L, 2, B, G, P, D)
    assert torch.equal(whole[:, :, 0], whole[:, :, 1])
    torch.manual_seed(0)
    rows = torch.stack(encoder.train()(2000, torch.float32))
    assert not torch.equal(rows[:, :, 0], rows[:, :, 1])
    kept = rows != 0
    assert abs(kept.float().mean().item() - 0.5) < 0.01
    assert_close(rows[kept], (2 * whole[:, :, :1]).expand_as(rows)[kept])
    assert distance(rows.mean(dim=2), whole[:, :, 0]) < 0.3


def test_a_models_training_mode_reaches_its_dropout() -> None:
    model = prefixed(dropout=0.5)
    first, second = (model(IDS).logits for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_new_prefix_is_drawn_as_torch_draws_embeddings_and_linear_layers(tmp_path: Path) -> None:
    """Officially nothing draws them anew; transformers would, with a deviation of 0.02."""
    tiny_model().save_pretrained(tmp_path)
    opened = ChatGLMForConditionalGeneration.from_pretrained(
        tmp_path, pre_seq_len=64, prefix_projection=True, dtype=torch.bfloat16
    )
    for model in (opened, tiny_model(pre_seq_len=64, prefix_projection=True)):
        encoder = model.transformer.prefix_encoder
        assert abs(encoder.embedding.weight.std().item() - 1) < 0.05
        bound = encoder.trans[0].in_features ** -0.5
        assert bound * 0.9 < encoder.trans[0].weight.abs().max().item() <= bound
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}


# The projection is computed once


def test_in_evaluation_the_projection_runs_once() -> None:
    model = prefixed(projection=True)
    runs = count_projections(model.transformer.prefix_encoder)
    with torch.inference_mode():
        first = model(IDS).logits
    with torch.no_grad():
        second = model(IDS).logits
        model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert len(runs) == 1
    assert torch.equal(first, second)


def test_in_training_the_projection_runs_once_for_a_micro_batch() -> None:
    model = prefixed(projection=True).train()
    runs = count_projections(model.transformer.prefix_encoder)
    model(IDS.repeat(3, 1), labels=IDS.repeat(3, 1)).loss.backward()
    model(IDS, labels=IDS).loss.backward()
    assert len(runs) == 2


def load_others(encoder: PrefixEncoder) -> None:
    encoder.load_state_dict({name: x + 1 for name, x in encoder.state_dict().items()})


def replace(encoder: PrefixEncoder) -> None:
    encoder.trans[0].weight = nn.Parameter(encoder.trans[0].weight.detach() + 1)


def change_in_place(encoder: PrefixEncoder) -> None:
    encoder.embedding.weight.mul_(2)


def replace_values(encoder: PrefixEncoder) -> None:
    encoder.embedding.weight.data = encoder.embedding.weight.data * 2


def cast(encoder: PrefixEncoder) -> None:
    encoder.bfloat16()


def train_hidden_from_torch(encoder: PrefixEncoder) -> None:
    encoder.train()
    encoder.embedding.weight.data.mul_(2)
    encoder.eval()


CHANGES = [load_others, replace, change_in_place, replace_values, cast, train_hidden_from_torch]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_is_kept_is_forgotten_when_the_weights_change(change: Callable[[PrefixEncoder], None]) -> None:
    encoder = prefixed(projection=True).transformer.prefix_encoder
    before = encoder.project()
    assert encoder.project() is before
    change(encoder)
    after = encoder.project()
    assert not torch.equal(after, before)
    assert torch.equal(after, encoder.trans(encoder.embedding.weight))


def test_with_a_gradient_wanted_nothing_kept_is_used() -> None:
    encoder = prefixed(projection=True).transformer.prefix_encoder
    with torch.no_grad():
        encoder.project()
    encoder.project().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_copies_and_pickles_keep_nothing_of_the_original() -> None:
    model = prefixed(projection=True)
    with torch.no_grad():
        wanted = model(IDS).logits
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(twin(IDS).logits, wanted)
            twin.transformer.prefix_encoder.embedding.weight.zero_()
            assert not torch.equal(twin(IDS).logits, wanted)
        assert torch.equal(model(IDS).logits, wanted)


def test_a_pickle_from_before_the_projection_had_its_name_still_works() -> None:
    encoder = prefixed(projection=True).transformer.prefix_encoder
    state = encoder.__getstate__()
    state["_kept"] = state.pop("_projected")
    older = PrefixEncoder.__new__(PrefixEncoder)
    older.__setstate__(state)
    with torch.no_grad():
        assert torch.equal(older.project(), encoder.project())


# Types, masks, caches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_half_base_the_prefix_stays_in_fp32_and_the_logits_in_half(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    model.attach_prefix(4, projection=True)
    assert model.transformer.prefix_encoder.embedding.weight.dtype == torch.float32
    assert model(IDS).logits.dtype == dtype


@pytest.mark.parametrize("bits", [8, 4])
def test_on_a_quantised_base_the_prefix_alone_gets_gradients_and_they_are_the_dense_models(bits: int) -> None:
    model = prefixed()
    model.requires_grad_(False)
    model.quantize(bits)
    weight = model.transformer.prefix_encoder.embedding.weight.requires_grad_()
    model(IDS, labels=IDS).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "transformer.prefix_encoder.embedding.weight"
    }
    dense = prefixed()
    for name, part in model.named_modules():
        if hasattr(part, "dequantise"):
            dense.get_submodule(name).weight.data = part.dequantise().data
    dense.transformer.prefix_encoder.load_state_dict(model.transformer.prefix_encoder.state_dict())
    dense(IDS, labels=IDS).loss.backward()
    expected = dense.transformer.prefix_encoder.embedding.weight.grad
    assert_close(weight.grad, expected)


def test_packed_rows_stay_apart_and_each_sees_the_prefix() -> None:
    model = prefixed()
    packed = torch.cat((IDS, IDS + 20), dim=-1)
    positions = torch.arange(6).repeat(2)[None]
    logits = model(packed, position_ids=positions, use_cache=False).logits
    alone = torch.cat((model(IDS).logits, model(IDS + 20).logits), dim=1)
    assert_close(logits, alone)


def test_embeddings_give_what_their_ids_give() -> None:
    model = prefixed()
    embeddings = model.get_input_embeddings()(IDS)
    assert_close(model(inputs_embeds=embeddings).logits, model(IDS).logits)


@torch.no_grad()
def test_a_full_mask_of_ones_own_gets_the_prefix_in_front() -> None:
    model = prefixed()
    causal = torch.ones(6, 6).tril()[None, None]
    for mask in (causal.bool(), (causal - 1) * 1e9):
        assert_close(model(IDS, attention_mask=mask).logits, model(IDS).logits)


@torch.no_grad()
def test_positions_that_nobody_passes_count_the_tokens_in_the_cache_alone() -> None:
    model = prefixed()
    cache = model(IDS[:, :2], use_cache=True).past_key_values
    rest = model(IDS[:, 2:], past_key_values=cache).logits
    assert_close(rest, model(IDS).logits[:, 2:])


@torch.no_grad()
def test_a_full_official_mask_covers_the_cached_tokens_and_never_the_prefix() -> None:
    """ChatGLM-6B's, true = not seen."""
    golden = read_prefix_golden("v1_late", "prefix")
    prompt = golden.tensors["greedy_single.input_ids"]
    first = golden.model(prompt, use_cache=True)
    twin = copy.deepcopy(first.past_key_values)
    _, following = golden.model.count_positions(prompt)
    mask = torch.zeros(1, 1, 1, prompt.shape[1] + 1, dtype=torch.bool)
    step = {"input_ids": IDS[:, :1], "position_ids": following}
    masked = golden.model(**step, attention_mask=mask, past_key_values=twin).logits
    assert_close(masked, golden.model(**step, past_key_values=first.past_key_values).logits)


def test_beam_search_gives_the_same_with_a_cache_and_without() -> None:
    model = prefixed()
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(model.generate(IDS, **settings), model.generate(IDS, use_cache=False, **settings))


def test_an_attention_function_without_such_masks_is_refused() -> None:
    model = prefixed()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigError, match="flex_attention cannot be used with a prefix") as caught:
        model(IDS)
    assert "sdpa" in caught.value.hint


@pytest.mark.parametrize("prefill", [2, 4])
def test_a_prompt_read_in_chunks_gives_the_same_answer(prefill: int) -> None:
    model = prefixed()
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    wanted = model.generate(IDS, **settings)
    assert torch.equal(model.generate(IDS, prefill_chunk_size=prefill, **settings), wanted)


def test_generate_goes_on_from_a_cache_with_the_prefix_in_it() -> None:
    model = prefixed()
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    first = model.generate(IDS, return_dict_in_generate=True, **settings)
    asked = torch.cat((first.sequences, IDS), dim=-1)
    going_on = model.generate(asked, past_key_values=first.past_key_values, **settings)
    assert torch.equal(going_on, model.generate(asked, **settings))


def test_a_conversation_goes_on_at_the_position_after_its_tokens(tmp_path: Path) -> None:
    model = load_base(tiny_folder(tmp_path, "chatglm2"), device="cpu")
    model.attach_prefix(4)
    tokenizer = read_tokenizer(tmp_path)
    settings = {"do_sample": False, "max_new_tokens": 6, "return_past_key_values": True}
    *_, (_, history, cache) = model.stream_chat(tokenizer, "你好", **settings)
    num_tokens = cache.get_seq_length() - 4
    assert model.count_cached(cache) == num_tokens
    seen: list[int] = []
    model.transformer.register_forward_pre_hook(
        lambda _module, _inputs, kwargs: seen.append(int(kwargs["position_ids"][0, 0])), with_kwargs=True
    )
    list(model.stream_chat(tokenizer, "再见", history, past_key_values=cache, **settings))
    assert seen[0] == num_tokens
