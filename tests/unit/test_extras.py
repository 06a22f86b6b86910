"""Optional packages: asked for by name, and kept from libraries that would import them for nothing."""

import sys
from importlib.util import find_spec

import pytest

from glmtune.extras import is_installed, put_off, require

PACKAGE = "colorsys"  # any module of Python that nothing here imports


def test_a_package_that_is_put_off_seems_missing_to_all_but_require(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with put_off(PACKAGE):
        assert is_installed(PACKAGE)
        assert find_spec(PACKAGE) is None
        with pytest.raises(ModuleNotFoundError):
            __import__(PACKAGE)
        assert require(PACKAGE, extra=PACKAGE).rgb_to_hsv
        __import__(PACKAGE)
    assert PACKAGE in sys.modules


def test_a_package_nobody_asked_for_can_be_imported_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with put_off(PACKAGE):
        pass
    assert PACKAGE not in sys.modules
    assert __import__(PACKAGE).rgb_to_hsv


def test_a_package_that_is_in_use_stays() -> None:
    with put_off("pytest"):
        assert sys.modules["pytest"] is pytest
    assert sys.modules["pytest"] is pytest


def test_what_is_not_installed_is_put_off_as_missing() -> None:
    with put_off("no_such_package"):
        assert not is_installed("no_such_package")
