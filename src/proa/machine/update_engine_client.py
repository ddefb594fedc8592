"""``update_engine_client`` with the flags and the output of the original.

Source: ``reference/coreos/update-engine.md`` 1.6. There is no daemon behind it: it starts the
updater's unit and reads the updater's state.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from proa.machine import lock, stage
from proa.machine.errors import MachineError
from proa.machine.slot import find
from proa.machine.state import State, Store
from proa.machine.system import System, running, system_from_environment

_UNIT = "proa-update.service"
_OPERATIONS = {
    "checking": "UPDATE_STATUS_CHECKING_FOR_UPDATE",
    "downloading": "UPDATE_STATUS_DOWNLOADING",
    "verifying": "UPDATE_STATUS_VERIFYING",
    "finalizing": "UPDATE_STATUS_FINALIZING",
}


def main(arguments: Sequence[str] | None = None, system: System | None = None) -> int:
    """Run one action on this machine, or on ``system``; returns 0 (done) or 1 (error)."""
    parser = argparse.ArgumentParser(
        prog="update_engine_client",
        description="The updater's old command; `proactl` says and does more.",
        epilog="example: update_engine_client -status",
    )
    for name, what in (
        ("status", "print the updater's status"),
        ("check_for_update", "start a check and return"),
        ("update", "update, wait until it is done (0: staged or nothing to do, 1: error)"),
        ("watch_for_updates", "print the status whenever it changes, until interrupted"),
        ("reset_status", "give up an update that waits for the restart"),
    ):
        parser.add_argument(f"-{name}", f"--{name}", action="store_true", help=what)
    options = parser.parse_args(arguments)
    system = system or system_from_environment()
    try:
        if options.check_for_update:
            return _start(system, wait=False)
        if options.update:
            return _update(system)
        if options.reset_status:
            return _reset(system)
        if options.watch_for_updates:
            return _watch(system)
        if options.status:
            print(status(system))
            return 0
    except (MachineError, OSError) as error:
        print(f"update_engine_client: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    parser.print_usage(sys.stderr)
    return 1


def status(system: System) -> str:
    """Return the five lines of ``-status``."""
    state, progress = Store(system).load(), lock.look(system)
    operation = _OPERATIONS.get(progress.operation, "UPDATE_STATUS_IDLE")
    version, size, done = progress.version or "0.0.0", progress.size, 0.0
    if progress.size:
        done = progress.done / progress.size
    waiting = state.candidate
    if progress.operation == "idle" and waiting is not None and _staged(system, state):
        operation = "UPDATE_STATUS_UPDATED_NEED_REBOOT"
        version, size = waiting.version, waiting.size
    checked = int(state.check.time) if state.check is not None else 0
    return (
        f"LAST_CHECKED_TIME={checked}\nPROGRESS={done:f}\nCURRENT_OP={operation}\n"
        f"NEW_VERSION={version}\nNEW_SIZE={size}"
    )


def _staged(system: System, state: State) -> bool:
    candidate = state.candidate
    if candidate is None or not candidate.armed:
        return False
    return candidate.version != str(running(system).version)


def _start(system: System, *, wait: bool) -> int:
    command = ["systemctl", "start", *([] if wait else ["--no-block"]), _UNIT]
    done = system.run(command, 4 * 3600)
    if done.code != 0:
        print(f"update_engine_client: {done.output.strip()}", file=sys.stderr)
    return 1 if done.code else 0


def _update(system: System) -> int:
    print("Initiating update check and install.", file=sys.stderr)
    before = Store(system).load().check
    failed = _start(system, wait=True)
    check = Store(system).load().check
    if failed or check is None or (before is not None and check.time <= before.time):
        return 1
    if check.code:
        print(f"Update failed: {check.result}", file=sys.stderr)
        return 1
    print(f"Done: {check.result}", file=sys.stderr)
    return 0


def _watch(system: System) -> int:
    last = ""
    while True:
        if (now := status(system)) != last:
            print(now, flush=True)
            last = now
        time.sleep(1)


def _reset(system: System) -> int:
    with lock.held(system):
        store = Store(system)
        if _staged(system, store.load()):
            stage.unstage(system, store, find(system))
    return 0


if __name__ == "__main__":
    sys.exit(main())
