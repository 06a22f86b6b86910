"""Builds `glm-tiny`: text, tokenizer, random weights, training, and the folder that the package bundles.

    python -m tools.glm_tiny.build FOLDER

An interrupted build goes on when the same command is given again. The training is an ordinary run of this
project's own `glmtune train` with `recipe.yaml` beside this file.
"""

import argparse
import shutil
from pathlib import Path

import torch
from tools.glm_tiny import corpus, tokenizer

from glmtune.cli.train import run_recipe
from glmtune.load import load_model
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import load_recipe
from glmtune.tokenizers import read_tokenizer

RECIPE = Path(__file__).parent / "recipe.yaml"
SIZES = {
    "num_layers": 4,
    "hidden_size": 256,
    "ffn_hidden_size": 448,
    "kv_channels": 64,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "seq_length": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL_FILES = ("tokenizer.model", "tokenizer_config.json")


def main(work: Path) -> Path:
    """Build in a folder, resuming what is there; return the finished model's folder."""
    if not (work / "base" / "config.json").exists():
        make_base(work)
    run = work / "run"
    words = [
        f"model={work / 'base'}",
        f"output={run}",
        f"data.train={work / 'train.jsonl'}",
        f"data.validation={work / 'heldout.jsonl'}",
    ]
    run_recipe(load_recipe(RECIPE, words), resume=(run / "last").exists(), force=False)
    return pack(run, work / "glm-tiny")


def make_base(work: Path) -> None:
    """Text, tokenizer and random weights, the same for everyone."""
    corpus.write(work, seed=0)
    tokenizer.train(work / "sentences.txt", work / "base")
    size = len(read_tokenizer(work / "base", "chatglm3"))
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(padded_vocab_size=size, **SIZES))
    model.save_pretrained(work / "base")


def pack(run: Path, folder: Path) -> Path:
    """The best checkpoint in bf16, with its tokenizer, in the official layout."""
    model = load_model(run, dtype="bf16")
    model.save_pretrained(folder)
    for name in SMALL_FILES:
        shutil.copyfile(run.parent / "base" / name, folder / name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(main(parser.parse_args().folder))
