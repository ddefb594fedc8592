"""One tour for the whole session: its steps build on one another, as in ``proa tour``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa import paths
from proa.lab import tour, up
from proa.lab.tour import Tour


@pytest.fixture(scope="session")
def stage() -> Iterator[Tour]:
    with tour.stage(paths.cache_dir(), keep=False) as told:
        yield told


@pytest.fixture(scope="session")
def release(stage: Tour) -> Path:
    """A release of this code: the tour's first, or PROA_GUEST_RELEASE, or one made now."""
    if given := os.environ.get("PROA_GUEST_RELEASE"):
        return Path(given)
    made = stage.site.release("1.0.0")
    if not (made / "manifest.json").exists():
        stage.site.proa("keys", "init")
        up.build(stage.site, "1.0.0", stage.report)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Booting comes after what takes seconds, which then has the processors for itself.

    Of the tests that boot, the tour is first, for others use its releases, and power cuts are last.
    """
    order = {"test_tour.py": 1, "test_power_cuts.py": 3}
    here = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.name, 2) if here in item.path.parents else 0)
