"""Going back by hand to the version in the other slot."""

from __future__ import annotations

import dataclasses

from proa.machine import lock, slot
from proa.machine.boot import Loaders
from proa.machine.boot.systemd_boot import SystemdBoot
from proa.machine.errors import Code, MachineError
from proa.machine.state import Avoided, Candidate, State, Store
from proa.machine.system import System, running


def rollback(system: System, *, force: bool = False) -> str:
    """Make the other slot the next to boot, on trial; return its version.

    The version that runs is put on hold: the updater does not take it again by itself. A slot
    that failed here is only taken with ``force``.
    """
    with lock.held(system):
        store, loaders, disk = Store(system), Loaders(system), slot.find(system)
        own, target = str(running(system).version), disk.passive.name
        state, entry = store.load(), loaders.entries().get(target)
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
        if (entry.used_up or version in state.failed) and not force:
            why = state.failed[version].reason if version in state.failed else "its tries are used"
            raise MachineError(
                Code.FAILED_BEFORE,
                f"{version} in slot {target} failed on this machine: {why}",
                "to start it all the same: `proactl rollback --force`",
            )
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
