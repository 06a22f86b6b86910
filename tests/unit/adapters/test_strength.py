"""The strength of an update: 0 is the base and 1 what was trained, to the bit; between lie both, mixed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from glmtune import load_model
from glmtune.adapters.merge import merged_weights
from glmtune.adapters.store import stored_tensors
from glmtune.adapters.strength import blend, require_strength
from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.fresh import logits_of
from glmtune.models.shards import read_stored, scan_tensors
from models import tiny_folder
from proofs import edit_card, make_checkpoint

IDS = list(range(5, 30))
LORA: dict[str, Any] = {"name": "lora", "r": 4, "dropout": 0}
ADALORA: dict[str, Any] = {"name": "adalora", "init_r": 6, "target_r": 4, "dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "freeze": {"name": "freeze", "num_layers": 1},
    "lora": LORA,
    "rslora": {**LORA, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
    "adalora": ADALORA,
    "pruned": ADALORA,
}
PTUNING: dict[str, Any] = {"name": "ptuning", "num_prefix_tokens": 4, "dropout": 0}


def trained(base: Path, folder: Path, method: str, dtype: str) -> Path:
    settings = METHODS.get(method, PTUNING)
    return make_checkpoint(base, folder, settings, by=0.15, dtype=dtype, is_pruned=method == "pruned")


def answer(path: Path, strength: float, dtype: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = load_model(path, dtype=dtype, device="cpu", strength=strength)(
            input_ids=torch.tensor([IDS])
        ).logits[0]
    return logits


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((each, "fp32") for each in [*METHODS, "ptuning"]), ("lora", "bf16"), ("freeze", "bf16")],
)
def test_strength_0_is_the_base_to_the_bit(method: str, dtype: str, tmp_path: Path) -> None:
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    base = tiny_folder(tmp_path / "base", dtype=kind)
    run = trained(base, tmp_path / "run", method, dtype)
    untrained = answer(base, 1, dtype)
    assert torch.equal(answer(run, 0, dtype), untrained)
    assert not torch.equal(answer(run, 1, dtype), untrained)


def weights_of(run: Path, base: Path, method: str) -> dict[str, Tensor]:
    """What was trained, by the definition of the method: whole weights by their names in the base."""
    stored = scan_tensors(base)
    if method == "full":
        return {name: read_stored(tensor) for name, tensor in scan_tensors(run).items()}
    if method == "freeze":
        return stored_tensors(run)
    return {name: make(stored[name]) for name, make in merged_weights(run).items()}


@pytest.mark.parametrize(("method", "strength"), [*((each, 0.7) for each in METHODS), ("dora", 1.5)])
def test_another_strength_answers_with_weights_on_the_line_from_the_base(
    method: str, strength: float, tmp_path: Path
) -> None:
    base = tiny_folder(tmp_path / "base")
    run = trained(base, tmp_path / "run", method, "fp32")
    model, stored = load_model(base, dtype="fp32", device="cpu"), scan_tensors(base)
    weights = dict(model.named_parameters())
    whole = weights_of(run, base, method)
    assert whole
    with torch.no_grad():
        for name, value in whole.items():
            own = read_stored(stored[name]).double()
            weights[name].copy_(own + strength * (value.double() - own))
    assert_close(answer(run, strength, "fp32"), logits_of(model, IDS), share=1e-5)


@pytest.mark.parametrize("strength", [0.25, 0.7])
def test_blending_is_exact_at_both_ends(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(1000, generator=generator).bfloat16() for _ in range(2))
    assert torch.equal(blend(one, other, 0), one.float())
    assert torch.equal(blend(one, other, 1), other.float())
    exact = one.double() + strength * (other.double() - one.double())
    assert_close(blend(one, other, strength), exact.float(), share=1e-6)


def test_what_has_no_strength_between_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    prefix = trained(base, tmp_path / "prefix", "ptuning", "fp32")
    with pytest.raises(ConfigError, match="prefix of P-Tuning, and nothing lies between"):
        load_model(prefix, strength=0.5)
    with pytest.raises(ConfigError, match="no base recorded"):
        load_model(base, strength=0.5)
    for odd in (-0.1, 2.1, float("nan")):
        with pytest.raises(ConfigError, match=r"strength: .* is not allowed"):
            require_strength(odd, None)


def test_a_whole_model_is_mixed_with_its_own_base_alone(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    run = trained(base, tmp_path / "run", "full", "fp32")
    with pytest.raises(ConfigError, match="codes of int8 cannot be mixed"):
        load_model(run, strength=0.5, quant="int8")
    other = tiny_folder(tmp_path / "other", seed=5)
    edit_card(run, lambda card: card.update(base=str(other)))
    with pytest.raises(CheckpointError, match="trained on other weights"):
        load_model(run, strength=0.5)
    edit_card_base(run, tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"strength: the base of .*no such folder"):
        load_model(run, strength=0.5)


def edit_card_base(run: Path, base: Path) -> None:
    path = run / "glmtune.json"
    path.write_text(path.read_text("utf-8").replace(str(base.parent / "other"), str(base)), "utf-8")
