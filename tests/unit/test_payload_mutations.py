"""Spoilt payloads: a machine takes none, and no reader stumbles; see ``fuzz.mutations``.

``PROA_MUTATIONS`` says how many cases to run; without it, what a few seconds are enough for.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuzz import mutations
from support import payload_samples
from support.payload_samples import Payload

CASES = int(os.environ.get("PROA_MUTATIONS", "3000"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Payload, Payload]:
    directory = tmp_path_factory.mktemp("releases")
    return (
        payload_samples.make(directory, delta=True),
        payload_samples.make(directory, delta=False),
    )


def test_a_payload_that_is_whole_gives_the_release(
    samples: tuple[Payload, Payload], tmp_path: Path
) -> None:
    for sample in samples:
        whole = sample.head + b"".join(sample.blobs)
        assert mutations.receive(sample, whole, tmp_path, lies=False) == sample.outputs
        for entry, blob in zip(sample.parsed.usr.groups, sample.blobs, strict=False):
            again = mutations.opened(blob).packed()
            ended = mutations.run_blob(again, entry.length, mutations.workshop(sample))
            assert ended == "some output"


def test_a_delta_is_the_smaller_one(samples: tuple[Payload, Payload]) -> None:
    delta, full = (sum(map(len, sample.blobs)) for sample in samples)
    assert delta * 10 < full


def test_spoilt_payloads_are_refused(samples: tuple[Payload, Payload], tmp_path: Path) -> None:
    ended = mutations.run(*samples, tmp_path, range(CASES))
    assert sum(ended.values()) == CASES
    # The other endings are asserted where they are met: nothing else came out, nothing crashed.
    assert ended["before refused: Unusable"] > CASES // 5
    assert ended["before the same bytes"] < CASES // 20


def test_the_limit_on_memory_bites() -> None:
    with mutations.little_memory(), pytest.raises(MemoryError):
        bytearray(2 * mutations.ROOM)
