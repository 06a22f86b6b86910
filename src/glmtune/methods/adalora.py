"""AdaLoRA through PEFT, with its schedule really run: PEFT leaves that to whoever trains.

A target's update is B diag(E) A, and a *triplet* is one column of B, one entry of E, one row of A. After each
step every weight gets a score, (sensitivity x uncertainty) of |weight x gradient|, both smoothed; at every
pruning the entries of E outside the best triplets of the whole model become 0. They may come back by their
gradient until the ranks settle; then they are set to 0 after every step.

Source: arxiv.org/abs/2303.10512; github.com/huggingface/peft v0.21.0, tuners/adalora.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.log import without_false_alarms
from glmtune.methods.lora import ADAPTER, find_targets, widen_adapter
from glmtune.methods.ranks import plan_pruning
from glmtune.models.protocol import CausalLM
from glmtune.recipe.method import AdaLora

with without_false_alarms():  # bitsandbytes', which PEFT imports
    from peft import AdaLoraConfig, PeftModel, get_peft_model
    from peft.tuners.adalora import RankAllocator


def apply_adalora(model: CausalLM, settings: AdaLora) -> PeftModel:
    """Freeze the model and put an adapter of rank `init_r` beside each target; `Pruning` makes it adapt.

    Raises `ConfigError` listing the valid names if a target does not exist in this model.
    """
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=settings.init_r,
        target_r=settings.target_r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=find_targets(model, settings),
        orth_reg_weight=settings.orthogonality,
        total_step=1,  # PEFT wants a number; Pruning knows it
    )
    tuned = get_peft_model(model, config)
    widen_adapter(tuned)  # PEFT would round the scale on a half-precision base, and train it
    return tuned


class Pruning:
    """What AdaLoRA does within the steps of a run: it penalises vectors that align, and prunes.

    An adapter that was pruned before keeps its ranks: what was pruned is in no file, and nothing more is.
    """

    def __init__(self, tuned: PeftModel, settings: AdaLora, num_steps: int) -> None:
        """`tuned` is from `apply_adalora`, or opened to be trained on.

        Raises `ConfigError` if the schedule does not fit `num_steps`.
        """
        self._tuned: Any = tuned
        self._config: Any = tuned.peft_config[ADAPTER]
        self._end = 0
        if not self._config.rank_pattern:
            warmup, self._end, every = plan_pruning(settings, num_steps)
            self._config.tinit, self._config.tfinal = warmup, num_steps - self._end
            self._config.deltaT, self._config.total_step = every, num_steps
        self._allocator = _Allocator(self._tuned.base_model.model, self._config, ADAPTER)
        self._tuned.base_model.rankallocator = self._allocator
        self._start_rank, self._aim, self._step = settings.init_r, settings.target_r, 0
        self.ranks = {_layer(name): len(p) for name, p in self._trained().items() if ".lora_E." in name}
        """The rank of each target by the layer's name, in the model's order."""
        self.has_changed = False
        """Whether the last step changed a rank."""

    @property
    def has_settled(self) -> bool:
        """Whether the ranks have reached their aim, and stay."""
        return self._step >= self._end

    def penalty(self) -> Tensor:
        """`orthogonality` x the mean over all A and B of |A A^T - I| or |B^T B - I| (Frobenius)."""
        terms = []
        for name, p in self._trained().items():
            if ".lora_E." not in name:
                gram = p @ p.T if ".lora_A." in name else p.T @ p
                terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=p.device)))
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(terms).mean()

    def after_step(self, step: int) -> None:
        """Score the weights by the step's gradients and prune if the schedule says so."""
        self._step, before = step, self.ranks
        if not self._end:
            return
        self._tuned.base_model.update_and_allocate(step)
        pattern = self._config.rank_pattern
        if pattern:
            counts = {_layer(name): sum(kept) for name, kept in pattern.items()}
            self.ranks = {layer: counts[layer] for layer in before}
        if not self.has_settled:
            self._config.rank_pattern = None  # PEFT would leave out of a file what may yet come back
        self.has_changed = self.ranks != before

    def line(self) -> str:
        """`ranks: 12 -> 8 on average (min 3, max 12)`."""
        ranks = list(self.ranks.values())
        mean = f"{sum(ranks) / len(ranks):.1f}".removesuffix(".0")
        aim = "" if self.has_settled else f"; {self._aim} at step {self._end}"
        return f"ranks: {self._start_rank} -> {mean} on average (min {min(ranks)}, max {max(ranks)}){aim}"

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from: scores, ranks, all weights, those of pruned triplets too."""
        weights = {name: p.detach().clone() for name, p in self._trained().items()}
        scores = [getattr(self._allocator, name) for name in _SCORES]
        pattern = self._config.rank_pattern
        return {
            "step": self._step,
            "ranks": self.ranks,
            "pattern": pattern,
            "weights": weights,
            "scores": scores,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, the adapter's weights included."""
        trained = self._trained()
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state["weights"][name])
        for name, kept in zip(_SCORES, state["scores"], strict=True):
            device = next(iter(trained.values())).device
            setattr(self._allocator, name, {of: score.to(device) for of, score in kept.items()})
        self._step, self.ranks = state["step"], dict(state["ranks"])
        self._config.rank_pattern = state["pattern"]

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._tuned.named_parameters() if p.requires_grad}


_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class _Allocator(RankAllocator):  # type: ignore[misc]
    """PEFT's, except that it keeps exactly as many triplets as the budget has, and survives an overflow."""

    def update_ipt(self, model: nn.Module) -> None:
        """Leave out a step with a gradient that is not finite: fp16's loss scaling leaves it out too."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            super().update_ipt(model)

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Set E to 0 outside the `budget` best triplets, and say by E's name which those are.

        PEFT drops every triplet that ties with the first one below the budget: all where all scores are 0.
        """
        if not self.exp_avg_ipt:  # a run so short that it prunes in its first step
            self.update_ipt(model)
        parameters = dict(model.named_parameters())
        scores = [self._scores(parameters, name) for name in self.name_set]
        best = torch.cat(scores).sort(descending=True, stable=True).indices[:budget]
        kept = torch.zeros(self.init_bgt, dtype=torch.bool, device=best.device).index_fill_(0, best, True)
        pattern = {}
        for name, mask in zip(self.name_set, torch.split(kept, [len(x) for x in scores]), strict=True):
            parameters[name % "lora_E"].masked_fill_(~mask[:, None], 0.0)
            pattern[name % "lora_E"] = mask.tolist()
        return pattern

    def _scores(self, parameters: Mapping[str, Tensor], name: str) -> Tensor:
        """Of a target's triplets: its entry of E, plus the means over its row of A and its column of B."""
        a, b, e = (self._score(name % part, parameters) for part in ("lora_A", "lora_B", "lora_E"))
        return e[:, 0] + a.mean(dim=1) + b.mean(dim=0)

    def _score(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        if name not in self.exp_avg_ipt:
            return torch.zeros_like(parameters[name])
        score: Tensor = self._element_score(name)
        return score


def _layer(name: str) -> str:
    """`layers.0.dense` of `base_model.model.layers.0.dense.lora_E.default`."""
    return name.removeprefix("base_model.model.").removesuffix(f".{ADAPTER}").rpartition(".")[0]
