"""Keys and values of any shapes: what is written is read back, and attended to."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM

from closeness import assert_close
from glmtune.generate import Engine, Request, Sampling
from glmtune.generate.kv_cache import KvCache, Layer
from glmtune.generate.passes import PromptPass, RowSpan, StepPass

GROUPS, KEY_SIZE, VALUE_SIZE = 2, 6, 10


def random_layer(length: int) -> Layer:
    """A row's keys, values of another size and number of heads, and a third part without heads."""
    return (
        torch.randn(GROUPS, length, KEY_SIZE),
        torch.randn(GROUPS + 1, length, VALUE_SIZE),
        torch.randn(1, length),
    )


def test_rows_hold_what_was_written_through_growing_and_leaving() -> None:
    draw, cache = random.Random(0), KvCache()
    written: list[list[Layer]] = []
    for _ in range(60):
        if written and draw.random() < 0.4:
            row = draw.randrange(len(written))
            cache.remove(row)
            last = written.pop()
            if row < len(written):
                written[row] = last
        else:
            cache.add()
            written.append([random_layer(draw.randrange(1, 200))] * 2)
            cache.write(len(written) - 1, 0, written[-1])
        for row, layers in enumerate(written):
            for found, given in zip(cache.read(row), layers, strict=True):
                assert all(map(torch.equal, found, given))


def test_values_of_another_size_than_the_keys_are_attended_to() -> None:
    """Prompts in one packed pass, then a step of both rows: as each row's attention alone."""
    heads, module, cache = 2 * GROUPS, SimpleNamespace(layer_idx=0), KvCache()
    cache.add(2)
    asked = {row: torch.randn(1, heads, length + 1, KEY_SIZE) for row, length in enumerate((5, 3))}
    key = {row: torch.randn(1, GROUPS, query.shape[2], KEY_SIZE) for row, query in asked.items()}
    value = {row: torch.randn(1, GROUPS, query.shape[2], VALUE_SIZE) for row, query in asked.items()}

    def together(parts: dict[int, torch.Tensor], dim: int, columns: slice) -> torch.Tensor:
        return torch.cat([part[:, :, columns] for part in parts.values()], dim=dim)

    prompts = PromptPass(cache, [RowSpan(row, 0, query.shape[2] - 1, None) for row, query in asked.items()])
    prompts.update(together(key, 2, slice(-1)), together(value, 2, slice(-1)), 0)
    found, _ = prompts.attend(module, together(asked, 2, slice(-1)), scaling=0.3)
    prompts.finish()
    step, last = StepPass(cache, dtype=torch.float32, device=torch.device("cpu")), slice(-1, None)
    seen = step.update(together(key, 0, last), together(value, 0, last), 0)
    after, _ = step.attend(module, together(asked, 0, last), *seen, scaling=0.3)
    start = 0
    for row, query in asked.items():
        whole = scaled_dot_product_attention(
            query, key[row], value[row], is_causal=True, scale=0.3, enable_gqa=True
        ).transpose(1, 2)
        end = start + query.shape[2] - 1
        assert_close(found[:, start:end], whole[:, :-1])
        assert_close(after[row], whole[0, -1:])
        start = end


@pytest.mark.parametrize("reused_tokens", [0, 100])
def test_a_model_of_latent_attention_answers_as_generate(reused_tokens: int) -> None:
    """GLM-4.7-Flash's keeps a latent and a rotary part, of different sizes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "kv_lora_rank": 16}
    sizes |= {"q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    counts = {"vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}
    config = Glm4MoeLiteConfig(**sizes, **counts, **experts, eos_token_id=None, pad_token_id=0)
    model = Glm4MoeLiteForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)  # so that answers do not repeat one token
    texts = [[5, 6, 7, 8, 9, 10], [40, 41, 42], [5, 6, 7, 8, 11] * 3]
    engine = Engine(model, max_rows=2, reused_tokens=reused_tokens)
    asked = [engine.submit(Request(ids, Sampling(do_sample=False, max_new_tokens=8))) for ids in texts]
    answers: dict[int, list[int]] = {number: [] for number in asked}
    while not engine.is_idle:
        for token in engine.step():
            answers[token.request].append(token.id)
    for number, ids in zip(asked, texts, strict=True):
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert answers[number] == theirs[0, len(ids) :].tolist()
