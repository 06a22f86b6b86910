"""transformers' classes with our parts in training: their own numbers, and fewer kept tensors."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from closeness import ROUNDING, assert_close
from glmtune.models.upstream import load_in_transformers
from models import HF_FAMILIES, tiny_hf_folder

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture(scope="module", params=HF_FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny_hf_folder(tmp_path_factory.mktemp("model"), request.param)
    return load_in_transformers(folder, dtype="fp32", device="cpu")


def theirs(model: Any) -> Any:
    """The same model with transformers' own classes."""
    twin = deepcopy(model)
    changed = 0
    for part in twin.modules():
        if type(part).__module__ == "glmtune.models.fused_upstream":
            part.__class__ = next(
                kind for kind in type(part).__mro__ if kind.__module__.startswith("transformers.models.")
            )
            changed += 1
    assert changed >= 7  # two layers with two norms each, and the last norm
    return twin


def outputs_and_gradients(model: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    model = model.to(dtype).train().requires_grad_()
    model.zero_grad()
    logits = model(IDS, use_cache=False).logits
    logits.float().square().sum().backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_theirs_to_the_bit_and_gradients_but_for_rounding(model: Any, dtype: torch.dtype) -> None:
    logits, gradients = outputs_and_gradients(deepcopy(model), dtype)
    expected, oracle = outputs_and_gradients(theirs(model), dtype)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert_close(gradients, oracle, share=ROUNDING[dtype])


def test_without_gradients_they_compute_as_they_are(model: Any) -> None:
    with torch.no_grad():
        logits = model.eval()(IDS).logits
        torch.testing.assert_close(logits, theirs(model).eval()(IDS).logits, rtol=0, atol=0)


def test_they_keep_less_for_the_backward_pass(model: Any) -> None:
    def kept(model: nn.Module) -> int:
        """Bytes that autograd keeps, but for the weights."""
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in weights:
                found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            alive.append(x)
            return x

        alive: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(IDS, use_cache=False)
        return sum(found.values())

    ours = deepcopy(model).bfloat16().train().requires_grad_(False)
    ours.get_input_embeddings().requires_grad_()
    assert kept(ours) < 0.8 * kept(theirs(ours))


def test_an_activation_that_is_not_silu_stays(model: Any) -> None:
    changed = deepcopy(model).train().requires_grad_()
    blocks = [part for part in changed.modules() if hasattr(part, "activation_fn")]
    for block in blocks:
        block.activation_fn = nn.GELU()
    logits = changed(IDS, use_cache=False).logits
    torch.testing.assert_close(logits, theirs(changed)(IDS, use_cache=False).logits, rtol=0, atol=0)


def test_the_last_layer_computes_only_what_is_asked_for(model: Any) -> None:
    """Whole rows, and the same with the last layer's MLP at a few positions: the same numbers there."""
    base, keep = deepcopy(model).train().requires_grad_().base_model, torch.tensor([1, 4, 5])
    seen: list[Tensor] = []
    base.layers[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    whole, kept = (base(IDS, use_cache=False, **told).last_hidden_state for told in ({}, {"keep": keep}))
    assert [x.shape[1] for x in seen] == [IDS.shape[1], len(keep)]
    assert_close(kept, whole[:, keep])
    weights = [p for p in base.layers[-1].parameters() if p.requires_grad]
    [of_kept, of_whole] = (
        torch.autograd.grad(x.sigmoid().sum(), weights, allow_unused=True) for x in (kept, whole[:, keep])
    )
    assert_close([x for x in of_kept if x is not None], [x for x in of_whole if x is not None])
