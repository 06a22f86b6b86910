"""The type that a loaded model computes in, apart from the types that its frozen weights are held in.

Every layer computes in the type of its input, and the embedding decides what that is. So a folder in half
precision stays in its mapped file on a processor without half-precision instructions, and its products run in
fp32: with the same numbers as if all weights had been widened, and none of their memory.

Shapes: N tokens, C hidden size, E experts, k of them for a token, I inputs and O outputs of a product.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.models.frozen_linear import HeldLinear
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import QuantizedLinear
from glmtune.models.wrapped import causal_of


class HeldEmbedding(nn.Embedding):
    """An embedding that gives its rows in the type that the model computes in.

    A table in another type than it was held in when arranged, cast by its user or trained in fp32, gives its
    rows as they are.
    """

    def __init__(self, table: nn.Embedding, computing: torch.dtype) -> None:
        """Take over the weight of an embedding."""
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight = table.weight
        self.held, self.computing = table.weight.dtype, computing
        # read by transformers, which draws new values for a layer without this mark
        self._is_hf_initialized = not table.weight.is_meta

    @property
    def gives(self) -> torch.dtype:
        """The type of the rows that come out."""
        return self.computing if self.weight.dtype == self.held else self.weight.dtype

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return the rows of ids, (..., C)."""
        return super().forward(input).to(self.gives)


class HeldExperts(nn.Module):
    """GLM-4.5's routed experts, which compute in the type of their input; cast expert by expert, as used."""

    def __init__(self, experts: nn.Module) -> None:
        """`experts`: transformers' `Glm4MoeExperts`, with weights (E, 2 I, C) and (E, C, I)."""
        super().__init__()
        untyped: Any = experts
        self.num_experts: int = untyped.num_experts
        self.act_fn = untyped.act_fn
        self.gate_up_proj, self.down_proj = untyped.gate_up_proj, untyped.down_proj

    def forward(self, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run tokens (N, C) through their `chosen` experts (N, k); sum the results by `weights` (N, k)."""
        return sum_experts(self._run, hidden_states, chosen, weights)

    def _run(self, expert: int, rows: Tensor) -> Tensor:
        gate, up = _multiply_expert(self.gate_up_proj[expert], rows).chunk(2, dim=-1)
        return _multiply_expert(self.down_proj[expert], self.act_fn(gate) * up)


def sum_experts(
    run: Callable[[int, Tensor], Tensor], hidden_states: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """Run tokens (N, C) through their `chosen` experts (N, k); sum the results by `weights` (N, k).

    run: returns an expert's results of some rows, by the expert's number.
    """
    total = torch.zeros_like(hidden_states)
    for expert in sorted(set(chosen.flatten().tolist())):
        tokens, ranks = torch.where(chosen == expert)
        outputs = run(expert, hidden_states[tokens]) * weights[tokens, ranks, None]
        total.index_add_(0, tokens, outputs.to(total.dtype))
    return total


def _multiply_expert(weight: Tensor, rows: Tensor) -> Tensor:
    """Multiply rows (N, I) by an expert's weight (O, I), in the rows' dtype."""
    if weight.requires_grad and torch.is_grad_enabled():
        return functional.linear(rows, weight.to(rows.dtype))
    product: Tensor = _Expert(weight)(rows)
    return product


class _Expert(HeldLinear):
    """An expert's part of the stacked weight (E, O, I) as a layer, made anew for each product.

    So it follows every move and change of the whole; nothing is allocated, nor drawn, to make it.
    """

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_parameter("bias", None)


def compute_in(model: CausalLM, dtype: torch.dtype) -> None:
    """Make a loaded model compute in `dtype`, in place; its large weights keep the types they are held in.

    Linear layers, experts and the embedding are replaced by layers of the same names and weights. Quantised
    layers and norms follow their input as they are, a router computes in fp32 whatever it is held in, and a
    prefix is fp32. A model that computes in `dtype` already stays as it is.
    """
    prefixes = [part for part in model.modules() if isinstance(part, PrefixEncoder)]
    untouched = {id(inner) for prefix in prefixes for inner in prefix.modules()}
    for path, part in list(model.named_modules()):
        if id(part) in untouched or isinstance(part, QuantizedLinear | HeldLinear | HeldExperts):
            continue
        if isinstance(part, HeldEmbedding):
            part.computing = dtype
        elif isinstance(part, nn.Embedding):
            if part.weight.dtype != dtype:
                model.set_submodule(path, HeldEmbedding(part, dtype))
        elif type(part) is nn.Linear:
            if part.weight.dtype != dtype:
                model.set_submodule(path, HeldLinear(part))
        elif holds_experts(part):
            if cast("Tensor", part.gate_up_proj).dtype != dtype:
                model.set_submodule(path, HeldExperts(part))
        elif (
            dtype != torch.float32
            and any(p.dtype != dtype for p in part.parameters(recurse=False))
            and not is_router(part)
        ):
            part.register_forward_hook(_as_given)


def _as_given(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Give a norm's output in its input's type: fp16 weights would promote bf16 to fp32."""
    given: Tensor = inputs[0]
    return output.to(given.dtype)


def computes_in(model: CausalLM) -> torch.dtype:
    """Return the type that a model computes in outside of autocast: that of its hidden states."""
    table = causal_of(model).get_input_embeddings()
    return table.gives if isinstance(table, HeldEmbedding) else table.weight.dtype


def holds_experts(part: nn.Module) -> bool:
    """Return True for the module of GLM-4.5's routed experts, whose weights are fused."""
    return hasattr(part, "gate_up_proj") and hasattr(part, "num_experts")


def is_router(part: nn.Module) -> bool:
    """Return True for GLM-4.5's choice of experts, which is computed in fp32 whatever its weights are."""
    return "Router" in type(part).__name__
