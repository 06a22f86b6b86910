"""What the official code made of the tiny checkpoints in `goldens/`, and comparing with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from closeness import assert_close
from glmtune.adapters.store import load_adapter
from glmtune.models import load_base

GOLDENS = Path(__file__).parent / "goldens"


@dataclass
class Golden:
    """A tiny model and its oracle, in float32."""

    family: str
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    model: Any

    def inputs(self, case: str, *names: str) -> dict[str, Tensor]:
        """The named inputs that the case has."""
        return {name: self.tensors[f"{case}.{name}"] for name in names if f"{case}.{name}" in self.tensors}

    def run(self, case: str, **kwargs: Any) -> Any:
        inputs = self.inputs(case, "input_ids", "attention_mask", "position_ids", "labels")
        return self.model(**inputs, **kwargs)

    def real(self, case: str) -> Tensor:
        """Where the case has tokens, not pads: (B, T)."""
        mask = self.inputs(case, "attention_mask").get("attention_mask")
        if mask is None:
            return torch.ones_like(self.tensors[f"{case}.input_ids"]).bool()
        return mask.bool() if mask.ndim == 2 else ~mask[:, 0].all(dim=-2)  # ChatGLM-6B's: true = not seen

    def generate(self, case: str, **settings: Any) -> Tensor:
        """Greedy or beam search, without positions: `generate` derives them."""
        ids = self.tensors[f"{case}.input_ids"]
        inputs = {"attention_mask": torch.ones_like(ids)} | self.inputs(case, "input_ids", "attention_mask")
        pad = {"pad_token_id": self.model.config.pad_token_id}
        return self.model.generate(**inputs, do_sample=False, **(pad | settings))

    def assert_loss_close(self, loss: Tensor, official: float) -> None:
        assert_close(loss.item(), official)

    def assert_norms_close(self, model: torch.nn.Module, official: dict[str, float]) -> None:
        ours = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
        assert ours.keys() == official.keys()
        assert_close([ours[name] for name in official], list(official.values()))

    def assert_gradients_close(self, case: str) -> None:
        """All norms, and the gradients that the case has."""
        self.assert_norms_close(self.model, self.values[f"{case}.grad_norms"])
        kept = {
            name: p.grad for name, p in self.model.named_parameters() if f"{case}.grad.{name}" in self.tensors
        }
        assert_close(list(kept.values()), [self.tensors[f"{case}.grad.{name}"] for name in kept])

    def assert_cache_close(self, case: str, cache: Any) -> None:
        last_step = self.tensors[f"{case}.logits"].shape[1] - 1
        mask = self.inputs(f"{case}.step{last_step}", "attention_mask").get("attention_mask")
        for layer in (0, self.model.config.num_layers - 1):
            for part, ours in (("key", cache.layers[layer].keys), ("value", cache.layers[layer].values)):
                official = self.tensors[f"{case}.past.{layer}.{part}"]
                if self.family != "glm4":
                    official = official.permute(1, 2, 0, 3)  # the others keep (S, B, G, D)
                real = torch.ones(ours.shape[0], ours.shape[2]) if mask is None else mask
                real = ~real[:, 0, -1] if real.ndim == 4 else real.bool()
                assert_close(ours.transpose(1, 2)[real], official.transpose(1, 2)[real])


def read_golden(family: str) -> Golden:
    """The committed golden of a family, its model opened by `load_base`."""
    folder = GOLDENS / family
    values = json.loads((folder / "oracle.json").read_text())
    model = load_base(folder / "ckpt", dtype="fp32", device="cpu")
    return Golden(family, load_file(folder / "oracle.safetensors"), values, model)


def read_prefix_golden(family: str, kind: str) -> Golden:
    """The golden of an official P-Tuning folder, `prefix` or `prefix_proj`, its model with that prefix."""
    tensors = load_file(GOLDENS / family / "prefix.safetensors")
    values = json.loads((GOLDENS / family / "prefix.json").read_text())
    model = load_adapter(
        load_base(GOLDENS / family / "ckpt", dtype="fp32", device="cpu"),
        GOLDENS / family / f"ckpt_{kind}",
        is_trainable=True,
    )
    start = f"{kind}."
    return Golden(
        family,
        {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)},
        {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)},
        model,
    )


def assert_committed_equals_reference(family: str, shared: Path, name: str = "oracle") -> None:
    """Each committed number is the reference's."""
    whole = load_file(shared / "goldens" / family / "oracle.safetensors")
    for key, tensor in load_file(GOLDENS / family / f"{name}.safetensors").items():
        assert torch.equal(tensor, whole[key]), key
    values = json.loads((shared / "goldens" / family / "oracle.json").read_text())
    committed = json.loads((GOLDENS / family / f"{name}.json").read_text())
    assert committed == {name: values[name] for name in committed}
