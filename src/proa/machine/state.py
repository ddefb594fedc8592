"""What the updater remembers: one JSON file, replaced whole.

The file is ``/var/lib/proa/update/state.json``. It outlives updates and downgrades of the system,
so an older program may read what a newer one wrote: unknown members are ignored, missing ones
take their defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proa.machine.system import System

# Enough for weeks without a server; then the oldest is dropped.
_MAX_EVENTS = 50
MAX_REASON = 500


@dataclass(frozen=True)
class Check:
    """The last time that the server was asked. ``code`` is proactl's exit code of that run."""

    time: float
    code: int
    result: str
    offered: str = ""


@dataclass(frozen=True)
class Attempt:
    """What became of a payload that was begun; ``way`` is what it is, in words.

    ``at_work`` says that a run has begun it and has not told how it ended. ``deaths`` are the runs
    that never told, one after the other, when no more was done than ``done``: bytes in the slot,
    and bytes that wait for it. ``refused`` is why the payload does not lead to the release.
    """

    way: str
    at_work: bool = False
    deaths: int = 0
    done: tuple[int, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Download:
    """A release that is partly in its slot. ``durable`` maps the sha256 of a file to how many of
    its first bytes are in place and flushed. ``attempts`` are the payloads that were begun, by the
    sha256 of their heads."""

    version: str
    slot: str
    durable: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer:
    """How the last release came: the way in words, its version, bytes fetched and written, and
    how many seconds that took. ``instead`` are the ways that had to be given up, and why."""

    way: str
    version: str
    fetched: int
    written: int
    seconds: float
    instead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boot:
    """A boot of a candidate. ``reason`` says why it was not good; "" means no answer (yet)."""

    boot_id: str
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """The version that is to be the next: staged in the other slot, or on trial in this one.

    It is written before the boot entry is armed, so a boot of it is always known for what it is.
    ``armed`` says that the arming was finished. ``kind`` is ``update`` or ``rollback``.
    ``left_in`` is the boot in which its owner went back from it while it was on trial.
    """

    version: str
    slot: str
    previous_version: str
    time: float
    size: int = 0
    kind: str = "update"
    armed: bool = False
    reboot_at: float = 0
    boots: tuple[Boot, ...] = ()
    given_back: int = 0
    left_in: str = ""


@dataclass(frozen=True)
class Avoided:
    """Why a version is not taken again by itself: it failed here, or its owner went back."""

    time: float
    reason: str


@dataclass(frozen=True)
class Event:
    """A message for the server that has not been delivered (Omaha type, result and error code)."""

    type: int
    result: int
    errorcode: int | None = None
    previous_version: str | None = None
    reason: str | None = None
    error_version: str | None = None


@dataclass(frozen=True)
class Health:
    """The last health check."""

    time: float
    boot_id: str
    version: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """All of it. ``aleph_version`` is the version that the machine was first installed with."""

    aleph_version: str = ""
    previous_version: str = ""
    check: Check | None = None
    download: Download | None = None
    transfer: Transfer | None = None
    candidate: Candidate | None = None
    health: Health | None = None
    failed: Mapping[str, Avoided] = field(default_factory=dict)
    held: Mapping[str, Avoided] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def with_event(self, event: Event) -> State:
        """Queue a message for the server."""
        return dataclasses.replace(self, events=(*self.events, event)[-_MAX_EVENTS:])

    def with_failure(self, version: str, time: float, reason: str) -> State:
        """Remember that a version failed here; it is not taken again without being asked."""
        failed = {**self.failed, version: Avoided(time, reason[:MAX_REASON])}
        return dataclasses.replace(self, failed=failed)


class Store:
    """The state file, which the updater and the health check may change at the same time."""

    def __init__(self, system: System) -> None:
        self._files = system.files
        self._lock = system.run_dir / "state.lock"
        self.path = system.state_dir / "state.json"

    def load(self) -> State:
        """Read the state. A file that cannot be read is put aside and counts as empty: the
        machine must still be able to update, and the slots themselves tell what is committed."""
        try:
            text = self.path.read_text()
        except OSError:
            return State()
        try:
            return decode(json.loads(text))
        except (ValueError, TypeError):
            with contextlib.suppress(OSError):
                self._files.move(self.path, self.path.with_suffix(".unreadable"))
            return State()

    def change(self, change: Callable[[State], State]) -> State:
        """Apply a change to the state on disk and return the outcome."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.load()
            after = change(before)
            if after != before:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                data = json.dumps(dataclasses.asdict(after), indent=1, sort_keys=True)
                self._files.replace(self.path, f"{data}\n".encode(), 0o600)
        return after

    def update(self, **changes: Any) -> State:
        """Replace some members of the state on disk."""
        return self.change(lambda state: dataclasses.replace(state, **changes))


def decode(document: Any) -> State:
    """Make a state from parsed JSON, or raise :class:`ValueError` or :class:`TypeError`."""
    state = _decode(document, State)
    if not isinstance(state, State):
        raise TypeError("not a state")
    return state


def _decode(value: Any, kind: Any) -> Any:
    """Check ``value`` against a type of this module's dataclasses and build it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _decode(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return tuple(_decode(item, arguments[0]) for item in _checked(value, list))
    if origin is Mapping:
        items = _checked(value, dict).items()
        return {str(key): _decode(item, arguments[1]) for key, item in items}
    if dataclasses.is_dataclass(kind):
        members, hints = _checked(value, dict), _hints(typing.cast(Any, kind))
        return typing.cast(type[Any], kind)(
            **{name: _decode(members[name], hints[name]) for name in hints if name in members}
        )
    if kind is float:
        value = float(value) if isinstance(value, int) else value
    return _checked(value, kind)


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)  # compiles each annotation anew


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
