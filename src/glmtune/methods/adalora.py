"""AdaLoRA through PEFT, with its pruning schedule: PEFT leaves running it to the training loop.

A target's update is B diag(E) A, and a *triplet* is one column of B, one entry of E and one row of A. After
each step every weight gets a score, (sensitivity x uncertainty) of |weight x gradient|, both smoothed. Each
pruning sets E to 0 outside the best triplets of the whole model. Until the ranks settle, gradients can bring
a pruned triplet back; after that, E is set to 0 after every step.

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
    """Freeze the model and add an adapter of rank `init_r` to each target; `Pruning` then adapts the ranks.

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
        total_step=1,  # PEFT requires a number; `Pruning` sets the real one
    )
    tuned = get_peft_model(model, config)
    widen_adapter(tuned)  # PEFT would round the scale on a half-precision base, and train it
    return tuned


class Pruning:
    """AdaLoRA's part of each training step: a penalty on vectors that are not orthogonal, and pruning.

    An adapter that was pruned before keeps its ranks: its files lack the pruned triplets, so none can return.
    """

    def __init__(self, tuned: PeftModel, settings: AdaLora, num_steps: int) -> None:
        """Take a model from `apply_adalora`, or one loaded to be trained further.

        Raises `ConfigError` if the schedule does not fit `num_steps`.
        """
        self._tuned: Any = tuned
        self._config: Any = tuned.peft_config[ADAPTER]
        self._end = 0
        if not self._config.rank_pattern:  # PEFT writes a rank pattern once an adapter is pruned
            warmup, self._end, every = plan_pruning(settings, num_steps)
            self._config.tinit, self._config.tfinal = warmup, num_steps - self._end
            self._config.deltaT, self._config.total_step = every, num_steps
        self._allocator = _Allocator(self._tuned.base_model.model, self._config, ADAPTER)
        self._tuned.base_model.rankallocator = self._allocator
        self._start_rank, self._aim, self._step = settings.init_r, settings.target_r, 0
        weights = self._trainable_weights()
        self.ranks = {_layer(name): len(p) for name, p in weights.items() if ".lora_E." in name}
        """The rank of each target by the layer's name, in the model's order."""
        self.has_changed = False
        """True if the last step changed a rank."""

    @property
    def has_settled(self) -> bool:
        """True if the ranks have reached their target and no longer change."""
        return self._step >= self._end

    def penalty(self) -> Tensor:
        """Return `orthogonality` x the mean over all A and B of |A A^T - I| or |B^T B - I| (Frobenius).

        Orthogonal vectors make the entries of E comparable, as singular values are.
        """
        terms = []
        for name, p in self._trainable_weights().items():
            if ".lora_E." not in name:
                gram = p @ p.T if ".lora_A." in name else p.T @ p
                terms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=p.device)))
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(terms).mean()

    def after_step(self, step: int) -> None:
        """Score the weights by the step's gradients, and prune if the schedule says so."""
        self._step, before = step, self.ranks
        if not self._end:
            return
        self._tuned.base_model.update_and_allocate(step)  # reads the gradients, before they are zeroed
        pattern = self._config.rank_pattern
        if pattern:
            counts = {_layer(name): sum(is_kept) for name, is_kept in pattern.items()}
            self.ranks = {layer: counts[layer] for layer in before}
        if not self.has_settled:
            # with a pattern, PEFT would leave triplets out of a checkpoint that may yet come back
            self._config.rank_pattern = None
        self.has_changed = self.ranks != before

    def line(self) -> str:
        """Return a line for the log, `ranks: 12 -> 8 on average (min 3, max 12)`."""
        ranks = list(self.ranks.values())
        mean = f"{sum(ranks) / len(ranks):.1f}".removesuffix(".0")
        aim = "" if self.has_settled else f"; {self._aim} at step {self._end}"
        return f"ranks: {self._start_rank} -> {mean} on average (min {min(ranks)}, max {max(ranks)}){aim}"

    def state_dict(self) -> dict[str, Any]:
        """Return scores, ranks and all weights, also of pruned triplets, for `load_state_dict`."""
        weights = {name: p.detach().clone() for name, p in self._trainable_weights().items()}
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
        """Restore the result of `state_dict`, including the adapter's weights."""
        weights = self._trainable_weights()
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(state["weights"][name])
        device = next(iter(weights.values())).device
        for name, scores in zip(_SCORES, state["scores"], strict=True):
            setattr(self._allocator, name, {weight: score.to(device) for weight, score in scores.items()})
        self._step, self.ranks = state["step"], dict(state["ranks"])
        self._config.rank_pattern = state["pattern"]

    def _trainable_weights(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._tuned.named_parameters() if p.requires_grad}


_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # attributes of PEFT's RankAllocator


class _Allocator(RankAllocator):  # type: ignore[misc]
    """PEFT's RankAllocator, keeping exactly the budgeted number of triplets, and robust to fp16 overflows."""

    def update_ipt(self, model: nn.Module) -> None:
        """Update the scores, unless a gradient is not finite: loss scaling skips such a step too."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            super().update_ipt(model)

    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Set E to 0 outside the `budget` best triplets; return for each E which triplets are kept.

        PEFT would drop every triplet that ties with the best one outside the budget: all if all scores are 0.
        """
        if not self.exp_avg_ipt:  # a run so short that it prunes in its first step
            self.update_ipt(model)
        parameters = dict(model.named_parameters())
        scores = []
        for target in self.name_set:
            # a triplet's score: its entry of E, plus the means over its row of A and its column of B
            a, b, e = (
                self._element_score(name) if name in self.exp_avg_ipt else torch.zeros_like(parameters[name])
                for name in (target % factor for factor in ("lora_A", "lora_B", "lora_E"))
            )
            scores.append(e[:, 0] + a.mean(dim=1) + b.mean(dim=0))
        # stable, so that equal scores prune the same triplets on every process and when resumed
        best = torch.cat(scores).sort(descending=True, stable=True).indices[:budget]
        is_kept = torch.zeros(self.init_bgt, dtype=torch.bool, device=best.device).index_fill_(0, best, True)
        pattern = {}
        for name, mask in zip(self.name_set, torch.split(is_kept, [len(x) for x in scores]), strict=True):
            parameters[name % "lora_E"].masked_fill_(~mask[:, None], 0.0)
            pattern[name % "lora_E"] = mask.tolist()
        return pattern


def _layer(name: str) -> str:
    """Return the layer's name, `layers.0.dense` of `base_model.model.layers.0.dense.lora_E.default`."""
    return name.removeprefix("base_model.model.").removesuffix(f".{ADAPTER}").rpartition(".")[0]
