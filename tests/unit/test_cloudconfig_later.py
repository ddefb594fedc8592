"""Changes that wait for a later stage come back as they were."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig import changes, later
from proa.machine.cloudconfig.changes import Change
from proa.machine.cloudconfig.keys import disks, ending, system
from proa.machine.record import fields, is_dataclass

# What the changes name for a type checker alone, hypothesis must know too.
vars(changes).update(
    Disk=disks.Disk,
    FileSystem=disks.FileSystem,
    MountLine=disks.MountLine,
    SwapFile=disks.SwapFile,
    Home=ending.Home,
    Power=ending.Power,
    Trust=system.Trust,
)
KINDS = typing.get_args(Change)


def made(kind: type) -> st.SearchStrategy[Any]:
    """Records of a kind, with records in their fields."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: st.from_type(hints[f.name]) for f in fields(kind)})


for part in vars(changes).values():
    if isinstance(part, type) and is_dataclass(part):
        st.register_type_strategy(part, made)


@given(st.lists(st.one_of([st.from_type(kind) for kind in KINDS]), max_size=5))
def test_every_change_comes_back_equal(waiting: list[Change]) -> None:
    assert later.load(later.dump(waiting)) == tuple(waiting)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    try:
        found = later.load(data)
    except later.LaterError:
        return
    assert later.dump(found) is not None


def test_only_the_kinds_of_changes_are_made() -> None:
    with pytest.raises(later.LaterError):
        later.load(b'[["Popen", {"args": ["t", ["true"]]}]]')
    with pytest.raises(later.LaterError):
        later.load(b'["true"]')
