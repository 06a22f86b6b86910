"""Old against new: what differs is refused."""

from pathlib import Path

import pytest
import torch

from closeness import assert_close, distance
from glmtune.adapters.store import load_adapter
from glmtune.errors import CheckpointError
from glmtune.load import load_model
from glmtune.migration.lora import read_lora
from glmtune.migration.proof import as_trained, probe_logits, prove_same
from golden import GOLDENS

PLAIN = torch.zeros(1, 2, 3)


def test_equal_logits_that_differ_from_the_base_are_a_proof() -> None:
    said = prove_same(PLAIN + 1, PLAIN + 1, PLAIN, dtype=torch.float32, what=Path("x"))
    assert said == "logits equal the source's to 0.0e+00; they differ from the base's by 1"


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        (PLAIN + 1, PLAIN + 1.001, "its logits differ by 0.001 after the migration"),
        (PLAIN + 1, PLAIN + torch.nan, "its logits differ by nan"),
        (PLAIN, PLAIN, "changes nothing: the base's logits"),
    ],
)
def test_logits_that_differ_or_do_nothing_are_refused(
    theirs: torch.Tensor, ours: torch.Tensor, sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        prove_same(theirs, ours, PLAIN, dtype=torch.float32, what=Path("x"))


@pytest.mark.parametrize("family", ["v1_late", "v3"])
def test_factors_are_computed_as_peft_computes_them_and_leave_no_trace(family: str) -> None:
    folder: Path = GOLDENS / family / "lora"
    model = load_model(GOLDENS / family / "ckpt", dtype="fp32")
    plain, old = probe_logits(model), read_lora(folder)
    with as_trained(model, old):
        theirs = probe_logits(model)
    assert torch.equal(probe_logits(model), plain)
    assert_close(theirs, probe_logits(load_adapter(model, folder)))
    assert distance(theirs, plain) > 1e-3


def test_another_scale_is_another_adapter() -> None:
    model = load_model(GOLDENS / "v3" / "ckpt", dtype="fp32")
    plain, old = probe_logits(model), read_lora(GOLDENS / "v3" / "lora")
    old.config["lora_alpha"] = 16
    with as_trained(model, old):
        theirs = probe_logits(model)
    ours = probe_logits(load_adapter(model, GOLDENS / "v3" / "lora"))
    with pytest.raises(CheckpointError, match="after the migration"):
        prove_same(theirs, ours, plain, dtype=torch.bfloat16, what=Path("x"))
