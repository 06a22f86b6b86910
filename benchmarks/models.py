"""Models of the benchmarks' shapes, their prompts, and who answers: our engine or transformers' classes."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import seconds_of
from glmtune.exports.hf import hf_config, rename
from glmtune.generate import Engine, Request, Sampling
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLMTUNE_SHARED", ROOT.parent / "shared"))
VOCABULARY = 65024
SHAPES: dict[str, dict[str, int]] = {
    "170m": {
        "num_layers": 12, "hidden_size": 768, "ffn_hidden_size": 2048, "num_attention_heads": 12,
        "kv_channels": 64,
    },
    "1b": {
        "num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 6848, "num_attention_heads": 16,
        "kv_channels": 128,
    },
    "6b": {
        "num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32,
        "kv_channels": 128,
    },
    "test": {
        "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4,
        "kv_channels": 16,
    },
}  # fmt: skip
"""`test` shows in seconds that a benchmark runs; its figures mean nothing."""
_QKV = ".self_attention.query_key_value."


@dataclass(frozen=True)
class Asked:
    """Prompts, and how many tokens answer each."""

    prompts: Sequence[list[int]]
    lengths: Sequence[int]

    def first(self, rows: int, longest: int | None = None) -> "Asked":
        """The first prompts; their answers no longer than `longest`."""
        lengths = [min(length, longest or length) for length in self.lengths[:rows]]
        return Asked(self.prompts[:rows], lengths)


Answers = list[list[int]]
Answer = Callable[[Asked], Answers]


class Answering:
    """A side whose figure is new tokens a second; keeps its last answers."""

    def __init__(self, answer: Answer, asked: Asked, warm: Asked | None = None) -> None:
        """`warm`: what is answered first and not counted, else the beginning of what is asked."""
        self.answer = answer
        self.asked = asked
        self.first = warm or asked.first(16, longest=2)
        self.answers: Answers = []

    def warm(self) -> None:
        """Answer a little."""
        self.answer(self.first)

    def run(self) -> float:
        """New tokens a second."""
        took = seconds_of(self._run)
        return sum(map(len, self.answers)) / took

    def _run(self) -> None:
        self.answers = self.answer(self.asked)


class Reading(Answering):
    """A side whose figure is prompt tokens a second: only the first token of each answer is wanted."""

    def __init__(self, answer: Answer, prompts: Sequence[list[int]]) -> None:
        asked = Asked(prompts, [1] * len(prompts))
        super().__init__(answer, asked, warm=asked)

    def run(self) -> float:
        """Prompt tokens a second, padding not among them."""
        return sum(map(len, self.asked.prompts)) / seconds_of(self._run)


def build_model(shape: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """ChatGLM3's architecture in a shape, random weights N(0, 0.02)."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        **SHAPES[shape], padded_vocab_size=VOCABULARY, seq_length=8192, add_qkv_bias=True,
        multi_query_attention=True, multi_query_group_num=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = ChatGLMForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0)
    model.generation_config.eos_token_id = None
    return model


def as_glm(model: Any) -> Any:
    """The same weights, in the same memory, in transformers' own class for this architecture."""
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig.from_dict(hf_config(model.config, stop_ids=[2], pad_id=0, dtype=model.dtype))
    with torch.device("meta"):
        peer: Any = GlmForCausalLM(config)
    peer.load_state_dict(_renamed(model), assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config)
    peer.generation_config.eos_token_id = None
    return peer.eval()


def _renamed(model: Any) -> dict[str, Tensor]:
    """Weights by transformers' names; queries, keys and values are views of ours."""
    config = model.config
    group = 2 * config.kv_channels
    sizes = [config.num_attention_heads * config.kv_channels, group, group]
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        before, is_qkv, leaf = rename(name).partition(_QKV)
        if is_qkv:
            parts = zip("qkv", torch.split(weight.detach(), sizes), strict=True)
            found |= {f"{before}.self_attn.{letter}_proj.{leaf}": part for letter, part in parts}
        else:
            found[before] = weight.detach()
    return found


def ours(model: Any, rows: int = 64, *, is_compiled: bool = False) -> Answer:
    """The engine, so many rows at once."""
    engine = Engine(model, max_rows=rows, compile_step=is_compiled)

    def answer(asked: Asked) -> Answers:
        answers: dict[int, list[int]] = {}
        for prompt, length in zip(asked.prompts, asked.lengths, strict=True):
            answers[engine.submit(Request(prompt, Sampling(do_sample=False, max_new_tokens=length)))] = []
        while not engine.is_idle:
            for token in engine.step():
                answers[token.request].append(token.id)
        return list(answers.values())

    return answer


def pad_left(prompts: Sequence[list[int]]) -> dict[str, Tensor]:
    """Ids and mask of a batch, as `generate` wants them."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def generate(model: Any, rows: int = 1) -> Answer:
    """`generate`, in batches padded on the left; each runs until its longest answer is done."""

    def answer(asked: Asked) -> Answers:
        answers: Answers = []
        for start in range(0, len(asked.prompts), rows):
            batch = pad_left(asked.prompts[start : start + rows])
            wanted = asked.lengths[start : start + rows]
            width = batch["input_ids"].shape[1]
            out = model.generate(
                **batch, do_sample=False, max_new_tokens=max(wanted), eos_token_id=None, pad_token_id=0
            )
            answers += [row[width : width + n].tolist() for row, n in zip(out, wanted, strict=True)]
        return answers

    return answer


def forward(model: Any) -> Answer:
    """One forward pass over a batch padded on the left, and the likeliest next token of each row."""

    @torch.inference_mode()
    def answer(asked: Asked) -> Answers:
        batch = pad_left(asked.prompts)
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1).logits
        return [[int(row)] for row in logits[:, -1].argmax(-1)]

    return answer


def decoded_bytes(model: Any) -> int:
    """What a decode step reads: every weight but the embedding, of which it wants one row."""
    held = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    return int(held - model.get_input_embeddings().weight.nbytes)


def numbered_prompt(length: int) -> list[int]:
    """Ids that mean nothing."""
    return [(7 * i) % 60000 + 100 for i in range(length)]


@dataclass(frozen=True)
class Adgen:
    """Rows of ADGEN's dev.json."""

    asked: Asked
    """Prompts in ChatGLM3's format; each answer is as long as its reference."""
    references: Sequence[str]
    tokenizer: Any


def read_adgen(rows: int, work: Path, *, longest: int | None = None) -> Adgen:
    """The first rows; they and the tokenizer are third-party and lie in ../shared or $GLMTUNE_SHARED."""
    import glmtune
    from glmtune.tokenizers import read_tokenizer

    source = SHARED / "tokenizers"
    if not source.is_dir():
        raise SystemExit(f"{SHARED}: no ADGEN rows and tokenizer there; say where with GLMTUNE_SHARED=...")
    folder = work / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes((source / "chatglm2_3.tokenizer.model").read_bytes())
    config = source / "configs/chatglm3-6b_20231207/tokenizer_config.json"
    (folder / config.name).write_bytes(config.read_bytes())
    tokenizer = read_tokenizer(folder, "chatglm3")
    lines = (SHARED / "data/AdvertiseGen/dev.json").read_text(encoding="utf-8").splitlines()[:rows]
    read = [json.loads(line) for line in lines]
    prompts = [glmtune.encode_messages(tokenizer, [{"role": "user", "content": r["content"]}]) for r in read]
    lengths = [len(tokenizer.encode(r["summary"], add_special_tokens=False)) for r in read]
    asked = Asked(prompts, lengths).first(rows, longest)
    return Adgen(asked, [r["summary"] for r in read], tokenizer)


@torch.inference_mode()
def measure_perplexity(model: Any, tokenizer: Any, held: Path, rows: int) -> float:
    """Of the answers in the first rows of a file."""
    from glmtune.data.encode import encode_examples
    from glmtune.data.reader import read_examples
    from glmtune.recipe import Data

    total, learned = 0.0, 0
    for row in encode_examples(tokenizer, read_examples(held, Data())[:rows], Data()).rows:
        labels = torch.from_numpy(row.labels).long()[None]
        ids = torch.from_numpy(row.input_ids).long()[None]
        count = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss) * count
        learned += count
    return round(math.exp(total / learned), 4)
