"""Is this system well, and what follows from it for its slot. Decisions first, then the doing.

A version that boots for the first time is on trial. It is committed by the first boot in which
all checks are good. A boot that is not good is ended by a restart, with the reason kept in the
state (which both slots share); after three of them the loader starts the other slot, which finds
the reasons there and tells the server.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proa.machine import checks, reboot, slot
from proa.machine import config as configuration
from proa.machine.boot import TRIES, Entry, Loaders
from proa.machine.state import Avoided, Boot, Candidate, Event, Health, State, Store
from proa.machine.system import System, running

# Types, results and codes of Omaha; ``wire.omaha`` is not imported here for the time it takes.
_UPDATE_COMPLETE, _ERROR, _SUCCESS_REBOOT, _ROLLBACK = 3, 0, 2, 44


class Situation(enum.Enum):
    """What a boot finds."""

    SETTLED = "committed"
    ON_TRIAL = "on trial"
    LEFT = "left"
    STAGED = "staged"
    FELL_BACK = "fell back"
    CUT_OFF = "cut off"

    @property
    def unsettled(self) -> bool:
        """Whether nobody has found the running version good yet: the other slot is all there is."""
        return self in (Situation.ON_TRIAL, Situation.LEFT)


def situation(
    candidate: Candidate | None, running_slot: str, entries: Mapping[str, Entry], boot_id: str
) -> Situation:
    """Say how the running slot and the candidate stand to each other.

    LEFT: it was on trial in this boot when its owner went back from it; it is not judged any more,
    and the other slot is the next to boot.
    """
    if candidate is None:
        own = entries.get(running_slot)
        # A count without a record: the state was lost in a trial. It is one all the same.
        trial = own is not None and own.left is not None
        return Situation.ON_TRIAL if trial else Situation.SETTLED
    if candidate.slot == running_slot:
        own = entries.get(running_slot)
        # Without a count the loader has been told that it is good; only our record is behind.
        if own is not None and own.left is None:
            return Situation.SETTLED
        return Situation.LEFT if candidate.left_in == boot_id else Situation.ON_TRIAL
    entry = entries.get(candidate.slot)
    if entry is None or entry.left is None:
        return Situation.CUT_OFF
    return Situation.STAGED if entry.left > 0 else Situation.FELL_BACK


def failure_reason(candidate: Candidate) -> str:
    """Say why a candidate was given up, from what its boots or its owner left behind."""
    if candidate.left_in:
        return "its owner went back from it while it was on trial"
    told = [boot.reason for boot in candidate.boots if boot.reason]
    if not told:
        return f"it did not get as far as the health check in {TRIES} boots"
    silent = TRIES - len(told)
    distinct = list(dict.fromkeys(told))
    words = "; ".join(distinct)
    if silent > 0:
        return f"{words} (and {silent} of {TRIES} boots did not get as far as the health check)"
    return f"{words} (in {len(told)} of {max(len(told), TRIES)} boots)"


def after_fall_back(state: State, now: float) -> State:
    """Return the state of a machine whose candidate used up its tries, or lost them to its
    owner."""
    candidate = state.candidate
    if candidate is None:
        return state
    reason = failure_reason(candidate)
    event = Event(
        _UPDATE_COMPLETE,
        _ERROR,
        errorcode=_ROLLBACK,
        previous_version=candidate.previous_version,
        reason=reason,
        error_version=candidate.version,
    )
    state = dataclasses.replace(state.with_event(event), candidate=None)
    if candidate.left_in:
        held = {**state.held, candidate.version: Avoided(now, reason)}
        return dataclasses.replace(state, held=held)
    return state.with_failure(candidate.version, now, reason)


def after_cut_off(state: State, version: str) -> State:
    """Return the state of a machine where a staging or a rollback never reached its last step."""
    held = {v: why for v, why in state.held.items() if v != version}
    return dataclasses.replace(state, candidate=None, held=held)


def after_commit(state: State, version: str) -> State:
    """Return the state of a machine whose running version was found good."""
    candidate = state.candidate
    previous = candidate.previous_version if candidate is not None else ""
    event = Event(_UPDATE_COMPLETE, _SUCCESS_REBOOT, previous_version=previous)
    failed = {v: why for v, why in state.failed.items() if v != version}
    return dataclasses.replace(
        state.with_event(event), candidate=None, previous_version=previous, failed=failed
    )


def with_boot(state: State, boot_id: str, reason: str = "") -> State:
    """Note a boot of the candidate, and why it was not good; the first reason of a boot stays.

    Going back from it in an earlier boot did not happen: the power went first.
    """
    candidate = state.candidate
    if candidate is None:
        return state
    boots = {boot.boot_id: boot for boot in candidate.boots}
    if not (boot_id in boots and boots[boot_id].reason):
        boots[boot_id] = Boot(boot_id, reason[:500])
    return dataclasses.replace(
        state, candidate=dataclasses.replace(candidate, boots=tuple(boots.values()), left_in="")
    )


# --- Doing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run of the checks. ``action`` is "", "committed", "restarting" or
    "fell back"; ``reasons`` is empty where all is well."""

    version: str
    situation: Situation
    reasons: tuple[str, ...]
    action: str = ""

    @property
    def good(self) -> bool:
        return not self.reasons


Report = Callable[[str], None]


def at_boot(system: System, report: Report) -> Verdict:
    """Judge this boot: commit it, or end it; settle what an earlier candidate left."""
    store, loaders, config = Store(system), Loaders(system), configuration.read(system)
    memory = _Memory(store, report)
    own, disk = running(system), slot.find(system)
    version, boot_id = str(own.version), system.boot_id
    found = _look_back(system, memory, loaders, disk, version, report)
    if found is Situation.ON_TRIAL:
        memory.change(lambda s: with_boot(s, boot_id))
        report(f"{version} is on trial in slot {disk.running}")
    limit = max(config.health_timeout - 60 - system.uptime, 30)
    reasons = checks.settle(system, limit, report)
    checked = Health(system.now(), boot_id, version, reasons)
    memory.change(lambda s: dataclasses.replace(s, health=checked))
    if found is not Situation.ON_TRIAL:
        action = "fell back" if found is Situation.FELL_BACK else ""
        return Verdict(version, found, reasons, action)
    if not reasons:
        loaders.commit(disk.running)
        memory.change(lambda s: after_commit(s, version))
        report(f"{version} is well and committed")
        return Verdict(version, found, reasons, "committed")
    return _end_boot(system, memory, loaders, disk, version, reasons, report)


def look_back(system: System, report: Report) -> None:
    """Settle what an earlier candidate left behind, before anything new is begun.

    The updater may run before this boot was judged; without this it would take a version again
    that has just used up its tries.
    """
    own, disk = running(system), slot.find(system)
    memory = _Memory(Store(system), report)
    _look_back(system, memory, Loaders(system), disk, str(own.version), report)


def _look_back(
    system: System,
    memory: _Memory,
    loaders: Loaders,
    disk: slot.Disk,
    version: str,
    report: Report,
) -> Situation:
    candidate = memory.store.load().candidate
    found = situation(candidate, disk.running, loaders.entries(), system.boot_id)
    if found is Situation.SETTLED and candidate is not None:
        # The power went between the loaders' records and ours.
        loaders.commit(disk.running)
        memory.change(lambda s: after_commit(s, version))
    elif found is Situation.FELL_BACK and candidate is not None:
        loaders.give_up(candidate.slot)
        # It was committed before, and may have been demoted for the candidate.
        loaders.commit(disk.running)
        memory.change(lambda s: after_fall_back(s, system.now()))
        reason = failure_reason(candidate)
        report(f"{candidate.version} was given up, {version} runs again: {reason}")
    elif found is Situation.CUT_OFF:
        memory.change(lambda s: after_cut_off(s, version))
        report("making the other slot ready was cut off; it counts as not done")
    return found


def at_deadline(system: System, report: Report) -> Verdict:
    """End a boot that is still on trial when its time is up."""
    store, loaders = Store(system), Loaders(system)
    own, disk = running(system), slot.find(system)
    found = situation(store.load().candidate, disk.running, loaders.entries(), system.boot_id)
    version = str(own.version)
    if found is not Situation.ON_TRIAL:
        return Verdict(version, found, ())
    minutes = system.uptime / 60
    reason = f"no answer from the health check within {minutes:.0f} min"
    return _end_boot(system, _Memory(store, report), loaders, disk, version, (reason,), report)


def at_shutdown(system: System, report: Report) -> Verdict:
    """Give the try back when the owner restarts a machine on trial before it was judged."""
    store, loaders = Store(system), Loaders(system)
    own, disk = running(system), slot.find(system)
    state, version = store.load(), str(own.version)
    found = situation(state.candidate, disk.running, loaders.entries(), system.boot_id)
    candidate = state.candidate
    if found is not Situation.ON_TRIAL or candidate is None:
        return Verdict(version, found, ())
    judged = any(b.reason for b in candidate.boots if b.boot_id == system.boot_id)
    # Bounded: a system that restarts itself in an orderly way, before it is judged, must not go
    # on for ever.
    if not judged and candidate.given_back < TRIES:
        store.update(candidate=dataclasses.replace(candidate, given_back=candidate.given_back + 1))
        loaders.give_back(disk.running)
        report(f"{version} was on trial and not judged yet; this boot does not count")
    return Verdict(version, found, ())


@dataclass(frozen=True)
class _Memory:
    """The state, where it can be written: a full disk must neither keep a good version from being
    committed nor a bad one from being left."""

    store: Store
    report: Report

    def change(self, change: Callable[[State], State]) -> None:
        try:
            self.store.change(change)
        except OSError as error:
            self.report(f"{self.store.path} cannot be written: {error.strerror}")


def _end_boot(
    system: System,
    memory: _Memory,
    loaders: Loaders,
    disk: slot.Disk,
    version: str,
    reasons: tuple[str, ...],
    report: Report,
) -> Verdict:
    """Note why, and restart; unless there is nothing else that could run."""
    reason = "; ".join(reasons)
    memory.change(lambda s: with_boot(s, system.boot_id, reason))
    entries = loaders.entries()
    own, fallback = entries.get(disk.running), entries.get(slot.other(disk.running))
    if fallback is None:
        report(f"{version} is not well: {reason}; there is no other version to go back to")
        return Verdict(version, Situation.ON_TRIAL, reasons)
    left = own.left if own is not None and own.left is not None else 0
    then = f"{left} more tries" if left else "going back to the other slot"
    report(f"{version} is not well: {reason}; restarting ({then})")
    reboot.now(system)
    return Verdict(version, Situation.ON_TRIAL, reasons, "restarting")
