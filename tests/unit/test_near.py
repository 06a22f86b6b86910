"""A name is offered where it is near enough to be a slip, and nowhere else."""

from pathlib import Path

import pytest

from glmtune.near import nearest, nearest_file

SETTINGS = ["lr", "steps", "epochs", "batch_size", "gradient_checkpointing", "save_every"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("step", "steps"),
        ("setps", "steps"),
        ("Steps", "steps"),
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("save_evrey", "save_every"),
        ("gradient_checkpoint", "gradient_checkpointing"),
        ("l", None),
        ("xy", None),
        ("rl", None),
        ("loss", None),
        ("colour", None),
        ("", None),
    ],
)
def test_a_slip_is_told_from_another_word(name, meant):
    assert nearest(name, SETTINGS, has_parts=True) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.jsonl", None),
        ("b.json", None),
        ("x1.jsonl", None),
        ("tw.jsonl", "two.jsonl"),
        ("two.json", "two.jsonl"),
        ("twos.csv", "two.jsonl"),
        ("Train.json", "train.json"),
        ("tran.json", "train.json"),
        ("train.csv", "train.json"),
        ("test.json", None),
    ],
)
def test_a_suffix_that_two_files_share_makes_them_not_near(name, meant):
    assert nearest_file(Path(name), ["two.jsonl", "train.json", "README"]) == meant


def test_a_part_counts_only_where_it_may():
    assert nearest("prompt", ["system_prompt"]) is None
    assert nearest("prompt", ["system_prompt"], has_parts=True) == "system_prompt"
