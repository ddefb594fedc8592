"""Going back by hand to the version in the other slot."""

from __future__ import annotations

import dataclasses

from proa.machine import health, lock, slot
from proa.machine.boot import Loaders
from proa.machine.boot.systemd_boot import SystemdBoot
from proa.machine.errors import Code, MachineError
from proa.machine.state import Avoided, Candidate, State, Store
from proa.machine.system import System, running


def rollback(system: System, *, force: bool = False) -> str:
    """Make the other slot the next to boot; return its version.

    It is on trial, unless the running version is: then the other one is what is known to be good.
    The version that runs is put on hold: the updater does not take it again by itself. A slot
    that failed here is only taken with ``force``.
    """
    with lock.held(system):
        store, loaders, disk = Store(system), Loaders(system), slot.find(system)
        own, target = str(running(system).version), disk.passive.name
        state, entries = store.load(), loaders.entries()
        entry = entries.get(target)
        if disk.passive.empty or entry is None:
            raise MachineError(
                Code.NOTHING_TO_GO_BACK_TO,
                f"the slot {target} holds no version to go back to",
                "there is one after the first update",
            )
        version = SystemdBoot(system).entries().get(target, entry).version or "unknown"
        candidate = state.candidate
        if candidate is not None and candidate.slot == target and candidate.kind == "update":
            raise MachineError(
                Code.NOTHING_TO_GO_BACK_TO,
                f"the slot {target} holds {version}, which is staged and newer; the version "
                "before the running one is gone",
                f"to start {version}: `reboot`",
            )
        used_up = entry.used_up and version not in state.held
        if (used_up or version in state.failed) and not force:
            why = state.failed[version].reason if version in state.failed else "its tries are used"
            raise MachineError(
                Code.FAILED_BEFORE,
                f"{version} in slot {target} failed on this machine: {why}",
                "to start it all the same: `proactl rollback --force`",
            )
        found = health.situation(candidate, disk.running, entries, system.boot_id)
        if found.unsettled and not entry.used_up:
            _leave_trial(system, store, loaders, disk.running, own)
            return version
        prepared = Candidate(
            version=version,
            slot=target,
            previous_version=own,
            time=system.now(),
            kind="rollback",
        )
        held = Avoided(system.now(), f"its owner went back from it to {version}")

        def change(state: State) -> State:
            return dataclasses.replace(
                state,
                candidate=prepared,
                held={**{v: a for v, a in state.held.items() if v != version}, own: held},
            )

        store.change(change)
        loaders.rearm(target, disk.running)
        store.update(candidate=dataclasses.replace(prepared, armed=True))
        return version


def _leave_trial(
    system: System, store: Store, loaders: Loaders, running_slot: str, version: str
) -> None:
    """End the trial of the running version, as if its tries were used up.

    The other slot is not put on trial: it is what the loaders go back to by themselves. The
    record of the trial stays until that has happened, so that a power cut at any moment of this
    leaves either a trial that goes on or one that is over, and never a version that nobody judged.
    """

    def change(state: State) -> State:
        trial = state.candidate or Candidate(version, running_slot, "", system.now(), armed=True)
        return dataclasses.replace(
            state, candidate=dataclasses.replace(trial, left_in=system.boot_id)
        )

    store.change(change)
    loaders.give_up(running_slot)
