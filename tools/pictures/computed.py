"""Computes the numbers behind the pictures of "How GLM works", by the package's own functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor

from glmtune import encode_messages, load_model, load_tokenizer
from glmtune.generate.decoding import complete
from glmtune.generate.sampling import Sampling, score_tokens
from glmtune.models import (
    ChatGLM6BConfig,
    ChatGLM6BForConditionalGeneration,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
)
from glmtune.models.chatglm_layout import count_positions
from glmtune.models.quant import dequantise, quantise, unpack
from glmtune.templates import messages_from_dicts

V1 = ChatGLM6BConfig()
"""ChatGLM-6B's config, with the official sizes."""
V2 = ChatGLMConfig(
    num_layers=28, padded_vocab_size=65024, hidden_size=4096, ffn_hidden_size=13696, kv_channels=128,
    num_attention_heads=32, multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True,
    seq_length=32768,
)  # fmt: skip
"""ChatGLM2-6B's config."""
MASK, GMASK = V1.mask_ids
SOP, PLAIN = V1.bos_token_id, 100
"""The id that begins a blank's words; an id that stands for any word."""
BLANKS = ((4, 6), (2, 3))
"""The blanks of the example of six words, in the order in which they are filled."""
WEIGHTS = (0.62, -1.27, 0.034, 0.316, -0.8, 1.0, -0.447, 0.004)
"""A row of eight weights, to be quantised."""
SCORES, VALUES, TILE = (2.0, 1.0, 4.0, 0.0, 3.0, 2.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 2
"""Scores of a query with six keys, the keys' values, and how many of them a block has."""
QUESTION = "一加一等于几？"


@dataclass(frozen=True)
class Blanks:
    """A text with blanks as GLM is trained on it: what each column of the input holds."""

    ids: list[int]
    words: list[int | None]
    """The number of the text's word in each column; None for [MASK] and <sop>."""
    targets: list[int | None]
    """The number of the word to be predicted; -1 for <eop>, None for none."""
    blanks: list[int | None]
    """The number of the blank that a column belongs to, [MASK] included; None for the text around."""
    positions: list[tuple[int, int]]
    """A column's place in the text, and its place in its blank."""
    num_context: int
    """Columns of Part A."""


def blank_out(num_words: int = 6, blanks: Sequence[tuple[int, int]] = BLANKS) -> Blanks:
    """Blank out words [start, end) of a text; Part B holds the blanks in the order given."""
    words: list[int | None] = list(range(num_words))
    owners: list[int | None] = [None] * num_words
    for start, end in sorted(blanks, reverse=True):
        words[start:end] = [None]
        owners[start:end] = [blanks.index((start, end))]
    num_context = len(words)
    ids = [PLAIN if owner is None else MASK for owner in owners]
    targets: list[int | None] = [None] * num_context
    positions: list[tuple[int, int]] = []
    for number, (start, end) in enumerate(blanks):
        inside = list(range(start, end))
        # each blank by itself: to the position code the other [MASK]s are words like any other
        alone = [MASK if owner == number else PLAIN for owner in owners[:num_context]]
        counted = place(alone, [SOP] + [PLAIN] * len(inside))
        positions += counted[num_context:] if positions else counted
        ids += [SOP] + [PLAIN] * len(inside)
        words += [None, *inside]
        targets += [*inside, -1]
        owners += [number] * (len(inside) + 1)
    return Blanks(ids, words, targets, owners, positions, num_context)


def place(context: Sequence[int], answer: Sequence[int]) -> list[tuple[int, int]]:
    """Return the two positions of each id of a row, as ChatGLM-6B counts them."""
    rows, _ = count_positions(V1, torch.tensor([[*context, *answer]]))
    return [(int(index), int(block)) for index, block in rows[0].T]


def seen_by(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the mask (T, T), True = may see: where a model's attention weights are not 0."""
    with torch.no_grad():
        weights = model(input_ids=torch.tensor([list(ids)]), output_attentions=True).attentions[0]
    return weights[0, 0] > 0


def tiny_chatglm() -> ChatGLM6BForConditionalGeneration:
    """Build a ChatGLM-6B of one small layer, with random weights and the official ids."""
    sizes = {"num_layers": 1, "hidden_size": 8, "inner_hidden_size": 8, "num_attention_heads": 1}
    config = ChatGLM6BConfig(**sizes, attn_implementation="eager")
    return ChatGLM6BForConditionalGeneration(config).eval()


def tiny_chatglm2() -> ChatGLMForConditionalGeneration:
    """Build a ChatGLM2 of one small layer, with random weights."""
    config = ChatGLMConfig(
        num_layers=1, padded_vocab_size=PLAIN + 1, hidden_size=8, ffn_hidden_size=8, kv_channels=8,
        num_attention_heads=1, multi_query_attention=True, multi_query_group_num=1, seq_length=64,
        attn_implementation="eager",
    )  # fmt: skip
    return ChatGLMForConditionalGeneration(config).eval()


def cache_bytes(config: Any, num_tokens: int = 1) -> int:
    """Count the bytes of the keys and values of `num_tokens` tokens, in half precision."""
    return 2 * config.num_layers * config.num_key_value_heads * config.head_dim * 2 * num_tokens


@dataclass(frozen=True)
class Quantised:
    """A row of weights as codes: its scale, the codes, the weights that they stand for."""

    scale: float
    codes: list[int]
    back: list[float]


def quantise_row(bits: int, weights: Sequence[float] = WEIGHTS) -> Quantised:
    """Quantise one row of weights."""
    codes, scale = quantise(torch.tensor([weights]), bits)
    back = dequantise(codes, scale, bits)
    whole = codes if bits == 8 else unpack(codes)
    return Quantised(float(scale[0]), whole[0].tolist(), back[0].tolist())


@dataclass(frozen=True)
class Block:
    """What is known of a query's attention after a block of keys: no score of an earlier block."""

    scores: tuple[float, ...]
    largest: float
    total: float
    """The sum of exp(score - largest)."""
    output: float
    """The attention over all keys so far."""


def attend_in_blocks() -> list[Block]:
    """Attend to the example's keys block by block, as FlashAttention does."""
    largest, total, output, blocks = float("-inf"), 0.0, 0.0, []
    for start in range(0, len(SCORES), TILE):
        scores, values = SCORES[start : start + TILE], VALUES[start : start + TILE]
        before, largest = largest, max(largest, *scores)
        weights = [exp(score - largest) for score in scores]
        kept = total * exp(before - largest)  # what was summed so far, measured against the new largest score
        total = kept + sum(weights)
        output = (output * kept + sum(w * v for w, v in zip(weights, values, strict=True))) / total
        blocks.append(Block(scores, largest, total, output))
    return blocks


@dataclass(frozen=True)
class Trace:
    """An answer of glm-tiny, from the text to the stop token."""

    segments: list[tuple[str, bool]]
    """The rendered pieces, and whether each is a control token."""
    ids: list[int]
    answer: list[str]
    stop: str
    unsure: int
    """The number of the answer's token of which the model was least sure."""
    chances: list[tuple[str, float, float]]
    """The likeliest tokens in its place: text, probability by the model, probability of the draw."""


def trace_chat(sampling: Sampling) -> Trace:
    """Follow one greedy answer; `sampling` is the one by which a token would be drawn instead."""
    model, tokenizer = load_model("glm-tiny", dtype="fp32"), load_tokenizer("glm-tiny")
    messages = [{"role": "user", "content": QUESTION}]
    ids = encode_messages(tokenizer, messages)
    greedy = Sampling(do_sample=False, max_new_tokens=32)
    [answer] = complete(model, [ids], greedy, stop_ids=tokenizer.stop_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    plain, drawn = logits.softmax(-1), score_tokens(logits, sampling).softmax(-1)
    unsure = int(plain.max(-1).values.argmin())
    likeliest = plain[unsure].topk(4).indices.tolist()
    names = {tokenizer.control_id(name): name for name in tokenizer.chat_format.stop_tokens}
    return Trace(
        [(segment.text, segment.is_control) for segment in tokenizer.segments(messages_from_dicts(messages))],
        ids,
        [tokenizer.decode([i]) for i in answer[:-1]],
        names[answer[-1]],
        unsure,
        [(tokenizer.decode([i]), float(plain[unsure, i]), float(drawn[unsure, i])) for i in likeliest],
    )
