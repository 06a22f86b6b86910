"""One other bit, in any file of a checkpoint: no run goes on from that, no model opens without a word."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glmtune import load_model
from glmtune.adapters.card import CARD_FILE
from glmtune.adapters.origin import FOR_PEOPLE
from glmtune.errors import GlmtuneError
from glmtune.recipe import Recipe, load_recipe
from glmtune.training.state import STATE_FILE
from glmtune.workflows import train
from glmtune.workflows.events import Event, Note
from killed import hash_checkpoint
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
METHODS = {
    "lora": ["method=lora"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "adalora": ["method=adalora", "method.init_r=4", "method.target_r=2"],
    "full": ["method=full"],
}
MANY = 75
"""Flips of each method among the slow tests: 300 in all."""

Begin = Callable[[str], Recipe]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Begin:
    work = tmp_path_factory.mktemp("flips")
    model = tiny_folder(work / "model", hidden_size=16, ffn_hidden_size=32)
    known: dict[str, Recipe] = {}

    def begin(method: str) -> Recipe:
        if method not in known:
            values = {
                "model": str(model),
                "output": work / method,
                "data": {"train": ADVERTS, "max_tokens": 200, "max_rows": 10, "holdout_rows": 2},
                "train": {"steps": 4, "batch_size": 2, "lr": 3e-2, "eval_every": 2, "keep_checkpoints": 2},
                "samples": {"prompts": []},
            }
            known[method] = load_recipe(values, METHODS[method])
            train(known[method])
        return known[method]

    return begin


def flip(file: Path, draw: random.Random) -> bytes:
    """Change one bit; returns the content before."""
    content = file.read_bytes()
    place = draw.randrange(len(content))
    changed = bytes([content[place] ^ 1 << draw.randrange(8)])
    file.write_bytes(content[:place] + changed + content[place + 1 :])
    return content


def opens_as_before(checkpoint: Path, file: Path, ids: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a checkpoint with another bit in this file opens, with the answers it gave: none are others."""
    try:
        found = load_model(checkpoint, device="cpu")(input_ids=ids).logits
    except GlmtuneError:
        return False
    assert torch.equal(found, logits), file
    return True


@pytest.mark.parametrize("flips", [4, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_bit_is_never_accepted_in_silence(
    begin: Begin, method: str, flips: int, told_lines: list[str], tmp_path: Path
) -> None:
    """A run goes on from the checkpoint before, says so, and comes to the same weights."""
    recipe = begin(method)
    assert recipe.output
    whole = hash_checkpoint(recipe.output / "last")
    checkpoint = (recipe.output / "last").resolve()
    files = sorted(checkpoint.iterdir())
    draw = random.Random(flips)
    ids = torch.tensor([[5, 6, 7]])
    logits = load_model(checkpoint, device="cpu")(input_ids=ids).logits
    for number in range(flips):
        file = files[number % len(files)]
        before = flip(file, draw)
        try:
            told_lines.clear()
            run = shutil.copytree(recipe.output, tmp_path / "run", symlinks=True)
            events: list[Event] = []
            train(recipe.model_copy(update={"output": run}), resume=True, on_event=events.append)
            texts = [event.text for event in events if isinstance(event, Note)]
            damaged = [text for text in texts if "is not whole" in text]
            told = [text for text in texts if "changed since it was saved: README.md" in text]
            assert damaged if file.name != FOR_PEOPLE else told, file
            assert all(f"{checkpoint.name} is not whole, and is kept as" in text for text in damaged)
            assert all(str(run) in text for text in damaged)
            assert hash_checkpoint(run / "last") == whole
            shutil.rmtree(run)
            told_lines.clear()
            if opens_as_before(checkpoint, file, ids, logits) and file.name != STATE_FILE:
                is_weights = file.suffix == ".safetensors" and method == "full"  # bytes that no tensor is of
                is_told = any(f"changed since it was saved: {file.name}" in line for line in told_lines)
                assert is_told or is_weights
                assert file.name != CARD_FILE
        finally:
            file.write_bytes(before)
    train(recipe, resume=True)  # the run itself is as it was


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_another_checkpoint_is_refused(begin: Begin, method: str, tmp_path: Path) -> None:
    recipe = begin(method)
    assert recipe.output
    run = shutil.copytree(recipe.output, tmp_path / "run", symlinks=True)
    last, earlier = run / "checkpoints" / "step-000004", run / "checkpoints" / "step-000002"
    shutil.copy(earlier / STATE_FILE, last / STATE_FILE)
    events: list[Event] = []
    train(recipe.model_copy(update={"output": run}), resume=True, on_event=events.append)
    texts = [event.text for event in events if isinstance(event, Note)]
    [told] = [text for text in texts if "is not whole" in text]
    assert "step-000004/state.pt: is not as it was saved" in told
    assert any(text.startswith("resumed from step-000002") for text in texts)
    assert hash_checkpoint(last) == hash_checkpoint(recipe.output / "last")
