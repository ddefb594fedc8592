"""Records behave as the standard library's data classes do, and cost less to make."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import record


@record.dataclass(frozen=True)
class Ours:
    kind: ClassVar[str] = "a class's own"
    name: str
    size: int = 0
    secret: str = record.field(default="", repr=False)
    parts: tuple[str, ...] = record.field(default_factory=tuple)
    place: int = record.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True)
class Theirs:
    kind: ClassVar[str] = "a class's own"
    name: str
    size: int = 0
    secret: str = dataclasses.field(default="", repr=False)
    parts: tuple[str, ...] = dataclasses.field(default_factory=tuple)
    place: int = dataclasses.field(default=0, compare=False)


@record.dataclass(frozen=True, slots=True)
class Small:
    name: str
    size: int = 1


@record.dataclass
class Open:
    items: list[int] = record.field(default_factory=list)


VALUES = st.fixed_dictionaries(
    {"name": st.text()},
    optional={
        "size": st.integers(),
        "secret": st.text(),
        "parts": st.tuples(st.text()),
        "place": st.integers(),
    },
)


@given(VALUES, VALUES)
def test_they_compare_hash_show_and_copy_as_data_classes_do(
    one: dict[str, object], two: dict[str, object]
) -> None:
    ours, theirs = Ours(**one), Theirs(**one)  # type: ignore[arg-type]
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert (ours == Ours(**two)) == (theirs == Theirs(**two))  # type: ignore[arg-type]
    assert record.asdict(ours) == dataclasses.asdict(theirs)
    assert record.asdict(record.replace(ours, **two)) == dataclasses.asdict(
        dataclasses.replace(theirs, **two)  # type: ignore[arg-type]
    )
    if ours == Ours(**two):  # type: ignore[arg-type]
        assert hash(ours) == hash(Ours(**two))  # type: ignore[arg-type]


def test_a_frozen_one_cannot_be_changed_and_an_open_one_can() -> None:
    for frozen in (Ours("a"), Small("a")):
        with pytest.raises(AttributeError):
            frozen.name = "b"  # type: ignore[misc]
        with pytest.raises(AttributeError):
            del frozen.name
    one, two = Open(), Open()
    one.items.append(1)
    assert two.items == []
    one.items = [2]
    assert one == Open([2])
    with pytest.raises(TypeError):
        hash(one)


def test_a_slotted_one_has_no_dictionary() -> None:
    assert not hasattr(Small("a"), "__dict__")
    assert Small("a") == Small("a", 1)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), (("a",), {"name": "b"}), (("a",), {"other": 1}), (range(9), {})],
)
def test_wrong_arguments_are_an_error(values: tuple[object, ...], named: dict[str, object]) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            kind(*values, **named)  # type: ignore[arg-type]


def test_they_match_patterns_by_place_and_by_name() -> None:
    match Ours("a", 3):
        case Ours(name, size=3):
            assert name == "a"
        case _:
            raise AssertionError
    assert [one.name for one in record.fields(Ours)] == [f.name for f in dataclasses.fields(Theirs)]


def test_a_default_that_all_would_share_is_refused() -> None:
    with pytest.raises(TypeError, match="default_factory"):

        @record.dataclass
        class Shared:
            items: list[int] = []  # noqa: RUF012 (what the test is about)


def loaded(program: str) -> set[str]:
    """The modules that a program loads, beside those that Python itself begins with."""
    code = f"import sys; before = set(sys.modules); {program}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


# Each is 1 to 20 ms, and 0.1 to 1.5 MB, of every boot.
DEAR = {"dataclasses", "inspect", "pkgutil", "socket", "subprocess", "threading", "typing"}


def test_a_boot_loads_nothing_dear() -> None:
    modules = loaded(
        "import proa.machine.cloudinit, proa.machine.cloudconfig.sources,"
        " proa.machine.cloudconfig.plan"
    )
    assert "proa.machine.record" in modules
    assert not DEAR & modules


def test_the_last_stage_makes_no_plan_and_loads_only_what_waits_for_it() -> None:
    modules = loaded(
        "from proa.machine import cloudinit; from proa.machine.cloudconfig import changes, later;"
        "later.load(later.dump([changes.SayFinal('the end')]))"
    )
    assert not DEAR & modules
    ours = {name.removeprefix("proa.machine.cloudconfig.") for name in modules}
    assert {"apply", "later"} <= ours
    assert not {"plan", "sources", "document", "keys.disks", "keys.system"} & ours
