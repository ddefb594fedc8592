"""One tour for the whole session: its steps build on one another, as in ``proa tour``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proa import paths
from proa.lab import tour
from proa.lab.tour import Tour


@pytest.fixture(scope="session")
def stage() -> Iterator[Tour]:
    with tour.stage(paths.cache_dir(), keep=False) as told:
        yield told


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The power cuts come last: they use the releases of the tour and the disk space of nobody."""
    items.sort(key=lambda item: item.path.name == "test_power_cuts.py")
