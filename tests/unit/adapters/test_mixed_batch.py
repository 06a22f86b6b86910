"""A pass over several requests: each token gets what its request's adapter gives alone."""

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear

from closeness import assert_close, distance
from glmtune import Adapters
from models import tiny_folder
from tuned import tune

NAMES = ("lora", "rslora", "dora", "adalora")
COUNTS = (4, 1, 3, 2, 5)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def adapters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    folder = tmp_path_factory.mktemp("mixed")
    base = tiny_folder(folder / "base", dtype=request.param)
    adapters = Adapters(base, dtype=request.param)
    for name in NAMES:
        adapters.add(name, tune(base, folder / name, name), verify=False)
    return adapters


def a_layer(adapters: Adapters) -> Any:
    return next(part for part in adapters.model.modules() if isinstance(part, Linear))


def inputs_of(layer: Any, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = layer.get_base_layer().weight.dtype
    return torch.randn(*shape, layer.in_features, generator=generator).to(dtype)


def alone(adapters: Adapters, name: str | None, x: torch.Tensor) -> torch.Tensor:
    with adapters.using(name):
        answer: torch.Tensor = a_layer(adapters)(x)
    return answer


@torch.inference_mode()
def test_the_tokens_of_a_packed_row_each_get_their_own(adapters: Adapters) -> None:
    owners = [*NAMES[:2], None, *NAMES[2:]]
    x = inputs_of(a_layer(adapters), 1, sum(COUNTS))
    with adapters.mixing(owners, COUNTS):
        mixed = a_layer(adapters)(x)
    assert mixed.dtype == x.dtype
    start = 0
    for name, count in zip(owners, COUNTS, strict=True):
        here = slice(start, start + count)
        assert_close(mixed[:, here], alone(adapters, name, x)[:, here])
        others = {other for other in owners if other != name}
        assert all(distance(mixed[:, here], alone(adapters, o, x)[:, here]) > 1e-3 for o in others)
        start += count


@torch.inference_mode()
def test_a_layer_that_reads_one_row_of_each_request_gives_each_its_own(adapters: Adapters) -> None:
    """As the output layer after a prompt, of which the last token alone is read."""
    owners = [*NAMES, None]
    x = inputs_of(a_layer(adapters), len(owners))
    with adapters.mixing(owners, COUNTS):
        mixed = a_layer(adapters)(x)
    for row, name in enumerate(owners):
        assert_close(mixed[row], alone(adapters, name, x)[row])


@torch.inference_mode()
def test_without_low_rank_adapters_a_pass_is_the_bases_own(adapters: Adapters) -> None:
    x = inputs_of(a_layer(adapters), 2, 3)
    with adapters.mixing([None, None], [3, 3]):
        assert torch.equal(a_layer(adapters)(x), a_layer(adapters).get_base_layer()(x))
        assert not any(part._forward_hooks for part in adapters.model.modules())
