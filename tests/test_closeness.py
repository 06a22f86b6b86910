"""Floats are compared by shares of the largest expected magnitude, and by the one helper that does so."""

import re
from pathlib import Path

import pytest
import torch

from closeness import ROUNDING, assert_close, distance

TESTS = Path(__file__).parent


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_what_is_allowed_scales_with_what_is_expected(scale: float, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and scale != 1:
        return
    expected = torch.tensor([1.0, -4.0, 1e-3], dtype=dtype) * scale
    allowed = 4 * ROUNDING[dtype] * scale
    assert_close(expected + torch.tensor([0.0, 0.0, 0.4 * allowed]).to(dtype), expected)
    with pytest.raises(AssertionError, match="of the largest magnitude"):
        assert_close(expected + torch.tensor([0.0, 0.0, 3 * allowed]).to(dtype), expected)


def test_the_type_allows_more_than_a_rounding_and_less_than_a_digit() -> None:
    for dtype, share in ROUNDING.items():
        assert 3 * torch.finfo(dtype).eps < share < 0.1


def test_several_are_measured_by_the_largest_of_all() -> None:
    expected = [torch.tensor([8.0]), torch.zeros(2)]
    assert distance([torch.tensor([8.0]), torch.tensor([0.0, 4.0])], expected) == 0.5
    assert distance([1.0, 2.0], [1.0, 4.0]) == 0.5


def test_nothing_is_close_to_zeros_but_zeros_and_nan_to_nothing() -> None:
    assert_close(torch.zeros(3), torch.zeros(3))
    for odd in (1e-30, float("nan")):
        with pytest.raises(AssertionError):
            assert_close(torch.tensor([odd]), torch.zeros(1))


@pytest.mark.parametrize("other", [torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64)])
def test_other_shapes_and_types_are_not_close(other: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        assert_close(other, torch.zeros(2))


def test_no_test_compares_floats_in_another_way() -> None:
    """But for equality to the bit, `rtol=0, atol=0`."""
    other = re.compile(r"torch\.all" r"close\(|testing\.assert_" r"close\((?!.*rtol=0, atol=0)")
    tests = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    assert [path for path, text in tests.items() if other.search(text)] == []
