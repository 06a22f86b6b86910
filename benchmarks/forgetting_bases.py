"""The bases of the forgetting experiments, and the rows beside each: of a task, and general ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tools.glm_tiny import corpus, tokenizer

from benchmarks import methods
from benchmarks.forgetting import Base, Facts
from benchmarks.twenty_million import NAME as TWENTY_MILLION
from benchmarks.twenty_million import write_rows
from glmtune.cli.train import run_recipe
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import load_recipe
from glmtune.run_files import read_json_lines
from glmtune.tokenizers import read_tokenizer

EXAMPLES = Path("examples")
NAMED = {"{{name}}": "晴空", "{{author}}": "晴空小组"}


def _identity(name: str) -> list[Facts]:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for mark, word in NAMED.items():
        text = text.replace(mark, word)
    rows: list[Facts] = json.loads(text)
    return rows


def glm_tiny(work: Path) -> Base:
    """glm-tiny; general rows are those held out of its own training, but adverts, identity and talks."""
    return _tiny("glm-tiny", "glm-tiny", work / "glm-tiny-rows")


def _tiny(name: str, model: str, folder: Path) -> Base:
    rows = {
        "identity": _identity("identity.json")[:12],
        "identity_test": _identity("identity_heldout.json"),
        "adverts": read_json_lines(EXAMPLES / "adverts.jsonl")[:96],
        "adverts_test": read_json_lines(EXAMPLES / "adverts_heldout.jsonl"),
        "facts": methods.invented_facts(),
        "facts_test": methods.invented_facts(),
        "general": [
            row.as_json() for row in corpus.make()[1] if row.kind not in ("advert", "identity", "helpdesk")
        ],
    }
    for file, found in rows.items():
        write_rows(folder / f"{file}.jsonl", found)
    tasks = {
        task: (folder / f"{task}.jsonl", folder / f"{task}_test.jsonl")
        for task in ("identity", "adverts", "facts")
    }
    return Base(name, model, folder / "general.jsonl", tasks)


OTHER = "chatglm2-tiny"
OTHER_SIZES = {
    "num_layers": 6,
    "hidden_size": 192,
    "ffn_hidden_size": 384,
    "kv_channels": 48,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "seq_length": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OTHER_TRAINING: Facts = {
    "steps": 300,
    "batch_size": 48,
    "micro_batch_size": "2048 tokens",
    "lr": 3e-3,
    "warmup_steps": 30,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "gradient_checkpointing": False,
    "seed": 1,
    "eval_every": 10**6,
    "save_every": 50,
    "keep_checkpoints": 1,
}


def chatglm2_tiny(work: Path) -> Base:
    """A model of other sizes, seed and chat format on glm-tiny's text, made here: ten minutes of a core."""
    folder = work / OTHER
    if not (folder / OTHER).exists():
        _make_other(folder)
    return _tiny(OTHER, str(folder / OTHER), folder / "rows")


def _make_other(folder: Path) -> None:
    if not (folder / "base").exists():
        corpus.write(folder, seed=0)
        partial = folder / "base.partial"
        tokenizer.train(folder / "sentences.txt", partial)
        config = partial / "tokenizer_config.json"
        config.write_text(
            config.read_text(encoding="utf-8").replace("chatglm3", "chatglm2"), encoding="utf-8"
        )
        torch.manual_seed(1)
        size = len(read_tokenizer(partial, "chatglm2"))
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(padded_vocab_size=size, **OTHER_SIZES))
        model.save_pretrained(partial)
        partial.rename(folder / "base")
    recipe = {
        "model": str(folder / "base"),
        "output": str(folder / "run"),
        "method": "full",
        "dtype": "fp32",
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "heldout.jsonl"),
            "max_tokens": 128,
        },
        "train": OTHER_TRAINING,
        "samples": {"prompts": []},
        "retain": {"ratio": 0, "report": "off"},
    }
    run_recipe(load_recipe(recipe), resume=(folder / "run/last").exists(), force=False)
    shutil.copytree(folder / "run/last", folder / OTHER, ignore=shutil.ignore_patterns("state.pt"))


def twenty_million(work: Path) -> Base:
    """The 20 M model of benchmarks.twenty_million."""
    folder = work / TWENTY_MILLION
    tasks = {"adverts": (folder / "task.jsonl", folder / "task_test.jsonl")}
    model, general = str(folder / TWENTY_MILLION), folder / "general_heldout.jsonl"
    return Base(TWENTY_MILLION, model, general, tasks)


BASES: dict[str, Callable[[Path], Base]] = {
    "glm-tiny": glm_tiny,
    TWENTY_MILLION: twenty_million,
    OTHER: chatglm2_tiny,
}
