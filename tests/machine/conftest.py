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
