"""What `benchmarks.train` trains: the same random weights for us and for the peer, rows, first weights.

The rows and the tokenizer of ADGEN and ChatGLM3 are third-party and lie in ../shared or $GLMTUNE_SHARED;
without them the bundled adverts and glm-tiny's tokenizer take their place. Glm4's tokenizer is trained on the
rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.models import ROOT, SHAPES, SHARED, VOCABULARY, as_glm, build_model
from glmtune.data.row import TrainingRow
from glmtune.locations import BUNDLED
from glmtune.methods import apply_method
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import load_recipe
from glmtune.templates import TEMPLATES
from glmtune.workflows.events import drain
from glmtune.workflows.plan import planning

PIECES = 30_000
"""Of the tokenizer that is trained for Glm4; ADGEN's rows have no more."""
UNUSED = "unused "
"""Begin of the tokens that no text has."""
SEED = 42
"""Of the recipe: first weights and the order of the rows."""
IGNORED = -100


@dataclass(frozen=True)
class Pair:
    """A folder for us and one for the peer, with the same weights in bf16."""

    ours: Path
    peer: Path
    peer_class: str
    template: str
    """The chat format in which our recipe writes the rows."""


@dataclass(frozen=True)
class Rows:
    """Where the rows are, and what they are called in a record."""

    train: Path
    validation: Path
    name: str


def find_rows() -> Rows:
    """ADGEN's, else the bundled adverts."""
    folder = SHARED / "data/AdvertiseGen"
    if folder.is_dir():
        return Rows(folder / "train_first5000.json", folder / "dev.json", "ADGEN")
    adverts = ROOT / "examples/adverts.jsonl"
    return Rows(adverts, adverts, "examples/adverts.jsonl")


def make_chatglm3(work: Path, shape: str) -> Pair:
    """ChatGLM3's layout, and the same in transformers' GlmForCausalLM."""
    pair = Pair(work / f"chatglm3-{shape}", work / f"glm-{shape}", "GlmForCausalLM", "chatglm3")
    if not pair.peer.exists():
        model = build_model(shape, torch.bfloat16)
        model.save_pretrained(pair.ours)
        write_sentencepiece(pair.ours)
        as_glm(model).save_pretrained(pair.peer)
    return pair


def write_sentencepiece(folder: Path) -> None:
    """ChatGLM3's tokenizer, else glm-tiny's, which speaks the same format."""
    source = SHARED / "tokenizers"
    config = source / "configs/chatglm3-6b_20231207/tokenizer_config.json"
    vocabulary = source / "chatglm2_3.tokenizer.model"
    if not source.is_dir():
        vocabulary, config = (BUNDLED["glm-tiny"] / name for name in ("tokenizer.model", config.name))
    (folder / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    (folder / config.name).write_bytes(config.read_bytes())


def make_glm4(work: Path, shape: str) -> Pair:
    """GLM-4-0414's class, which is transformers' own on both sides: one folder."""
    from transformers import Glm4Config, Glm4ForCausalLM

    folder = work / f"glm4-{shape}"
    pair = Pair(folder, folder, "Glm4ForCausalLM", "glm4_0414")
    if not folder.exists():
        ids = train_tokenizer(folder, find_rows().train)
        stops = [ids[name] for name in TEMPLATES[pair.template].stop_tokens]
        config = Glm4Config(**glm4_sizes(shape), eos_token_id=stops, pad_token_id=ids["<|endoftext|>"])
        torch.manual_seed(0)
        model = Glm4ForCausalLM(config)
        # what it says, another prompt repeats: a token that no text has would be spelled letter by letter
        unused = [index for name, index in ids.items() if name.startswith(UNUSED)]
        model.lm_head.weight.data[unused] = 0
        model.to(torch.bfloat16).save_pretrained(folder)
    return pair


def glm4_sizes(shape: str) -> dict[str, Any]:
    """A shape in the words of transformers' config."""
    told = SHAPES[shape]
    return {
        "num_hidden_layers": told["num_layers"], "hidden_size": told["hidden_size"],
        "intermediate_size": told["ffn_hidden_size"], "num_attention_heads": told["num_attention_heads"],
        "num_key_value_heads": 2, "head_dim": told["kv_channels"], "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
    }  # fmt: skip


def train_tokenizer(folder: Path, rows: Path) -> dict[str, int]:
    """Byte pairs of the rows' own text, with GLM-4's control tokens; all ids by their tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    text = rows.read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    control_tokens = TEMPLATES["glm4_0414"].control_tokens
    # the model's rows that the text has no pieces for: a tokenizer must have as many ids as the model
    content = json.loads(tokenizer.to_str())
    pieces = content["model"]["vocab"]
    pieces |= {f"{UNUSED}{i}": i for i in range(len(pieces), VOCABULARY - len(control_tokens))}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    for name in control_tokens:
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "padding_side": "left",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return dict(tokenizer.get_vocab())


def rows_of_steps(recipe: Mapping[str, Any], steps: int) -> list[list[TrainingRow]]:
    """The rows of each step of a run, by the run's own plan; no weight is read."""
    plan = drain(planning(load_recipe(recipe)))
    return [plan.steps.rows_of(step) for step in range(1, steps + 1)]


def write_rows(path: Path, rows: Iterable[TrainingRow]) -> None:
    """The same ids and labels for the peer."""
    found = [{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in rows]
    path.write_text(json.dumps(found), encoding="utf-8")


def num_tokens(rows: Iterable[TrainingRow]) -> int:
    """Real tokens: no padding."""
    return sum(len(row.input_ids) for row in rows)


def num_learned(rows: Iterable[TrainingRow]) -> int:
    """Tokens with a label; a row's first has none before it that could predict it."""
    return sum(int((row.labels[1:] != IGNORED).sum()) for row in rows)


def write_first_weights(
    path: Path, pair: Pair, shape: str, method: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16
) -> None:
    """What a run's method begins with: factors A as `LAYER.TARGET`, or a prefix of P rows.

    They depend on seed, layers and widths, not on vocabulary or weights, so a model with a small vocabulary
    draws the same. `dtype`: of the base, to which PEFT rounds what it draws.
    """
    tuned = apply_method_anew(pair, shape, method, dtype)
    names = {name: weight.detach().float() for name, weight in tuned.named_parameters()}
    factors = {}
    for name, weight in names.items():
        place, is_factor, _ = name.partition(".lora_A")
        if is_factor:
            layer, *_, target = place.partition("layers.")[2].split(".")
            factors[f"{layer}.{target}"] = weight
    prefixes = [weight for name, weight in names.items() if "prefix_encoder" in name]
    torch.save(factors or prefixes[0], path)


def apply_method_anew(pair: Pair, shape: str, method: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A model of this shape with a vocabulary of nothing, with the method's first weights."""
    from transformers import Glm4Config, Glm4ForCausalLM

    small = {"pad_token_id": 0, "eos_token_id": 0}
    model: Any
    if pair.template == "chatglm3":
        config = ChatGLMConfig(
            **{**SHAPES[shape], "ffn_hidden_size": 8}, padded_vocab_size=8, add_qkv_bias=True,
            multi_query_attention=True, multi_query_group_num=2, **small,
        )  # fmt: skip
        model = ChatGLMForConditionalGeneration(config)
    else:
        sizes = {**glm4_sizes(shape), "intermediate_size": 8, "vocab_size": 8}
        model = Glm4ForCausalLM(Glm4Config(**{**sizes, **small}))
    settings = load_recipe({"model": "m", "data": {"train": "d"}, "method": dict(method)}).method
    torch.manual_seed(SEED)
    return apply_method(model.to(dtype), settings)


def lengths_of(rows: Sequence[TrainingRow]) -> list[int]:
    """Tokens of each row."""
    return [len(row.input_ids) for row in rows]
