"""The whole story on booted machines: each step of ``proa tour`` is a test."""

from __future__ import annotations

import pytest

from proa.lab import tour
from proa.lab.tour import Step, Tour

pytestmark = pytest.mark.machine

_broken: list[str] = []


@pytest.mark.parametrize("step", tour.STEPS, ids=lambda step: str(step.name))
def test_step(stage: Tour, step: Step) -> None:
    if _broken:
        pytest.skip(f"it builds on {_broken[0]}, which is broken")
    result = tour.perform(stage, step)
    print(*result.evidence, sep="\n")
    if not result.ok:
        _broken.append(step.name)
        print("serial port:", *tour.serial_tail(stage), sep="\n")
    assert result.ok, result.error
