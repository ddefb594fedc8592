"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.payload_machine import Network, Pair

# A busy machine is slow, not wrong.
settings.register_profile("proa", deadline=None)
settings.load_profile("proa")


# Two releases and the network between, for the tests of payloads. What they need is loaded for
# those alone.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two small releases with their payloads, of several groups and windows each."""
    from support import payload_machine

    with pytest.MonkeyPatch.context() as patch:
        payload_machine.small(patch)
        yield payload_machine.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Mirrors in memory, in the place of the network."""
    from proa.machine import fetch
    from support.payload_machine import Network

    network = Network()
    monkeypatch.setattr(fetch, "download", network.download)
    return network
