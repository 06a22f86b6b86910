"""One server with a base and two adapters for all tests that leave it as it is."""

from collections.abc import Iterator

import pytest

from serving import Served, base_with_adapters, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    base, adapters = base_with_adapters(folder)
    with serving(base, adapters) as running:
        yield running
