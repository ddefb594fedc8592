"""What "well" means: no failed unit, a network where one is configured, the enabled engines, and
the owner's own checks.

Each check gives reasons in words: none if all is well. Some things need time after boot; they are
asked again until they are there or the time is up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from proa.machine.assignments import assignments
from proa.machine.system import System

ENGINES = ("docker.service", "docker.socket", "etcd.service")
DIRECTORIES = ("/usr/lib/proa/health.d", "/etc/proa/health.d")
CHECK_TIMEOUT = 60.0  # seconds that one of the owner's checks may take
_POLL = 2.0
# Our own units run while this is asked, or are judged by it.
_OWN_UNITS = frozenset({"proa-health.service", "proa-trial.service", "proa-trial-deadline.service"})
# A command of the owner's cloud-config that fails is not the release's fault.
_OWNERS_SCRIPT = "proa-script@"

Report = Callable[[str], None]


def settle(system: System, limit: float, report: Report) -> tuple[str, ...]:
    """Check until all is well, something is wrong for good, or ``limit`` seconds are over."""
    deadline = system.uptime + limit
    said: tuple[str, ...] = ()
    while True:
        reasons = failed_units(system)
        if reasons:
            return reasons
        found = _engines(system)
        if wrong := tuple(reason for reason, starting in found if not starting):
            return wrong
        waiting = network(system) + tuple(reason for reason, _ in found)
        if not waiting:
            return scripts(system)
        if system.uptime >= deadline:
            return waiting
        if waiting != said:
            report(f"waiting: {'; '.join(waiting)}")
            said = waiting
        system.sleep(_POLL)


def once(system: System) -> tuple[str, ...]:
    """Check everything as it is now."""
    return failed_units(system) + network(system) + engines(system) + scripts(system)


def failed_units(system: System) -> tuple[str, ...]:
    """Return a reason for each unit that systemd counts as failed."""
    done = system.run(["systemctl", "--failed", "--plain", "--no-legend", "--no-pager"], 60)
    if done.code != 0:
        return (f"systemctl --failed: {done.output.strip() or f'exit status {done.code}'}",)
    units = [line.split()[0] for line in done.output.splitlines() if line.strip()]
    counted = (u for u in units if u not in _OWN_UNITS and not u.startswith(_OWNERS_SCRIPT))
    return tuple(f"unit {unit} failed" for unit in counted)


def network(system: System) -> tuple[str, ...]:
    """Say what is missing where networkd manages a link: one of them must be routable.

    The state is read from networkd's own files (``/run/systemd/netif``), as sd-network(3) does.
    """
    directory = system.path("/run/systemd/netif/links")
    links = [assignments(_read(path)) for path in _listed(directory)]
    managed = [
        link
        for link in links
        if link.get("ADMIN_STATE") in ("configured", "configuring", "failed")
        and link.get("REQUIRED_FOR_ONLINE", "yes") != "no"
    ]
    if not managed or any(link.get("OPER_STATE") == "routable" for link in managed):
        return ()
    states = ", ".join(sorted({link.get("OPER_STATE", "unknown") for link in managed}))
    return (f"no network: no configured link is routable ({states})",)


def engines(system: System) -> tuple[str, ...]:
    """Return a reason for each engine that should have been started and is not active."""
    return tuple(reason for reason, _ in _engines(system))


def _engines(system: System) -> list[tuple[str, bool]]:
    """Return reasons, each with whether waiting may help."""
    properties = (
        "Id,ActiveState,UnitFileState,WantedBy,RequiredBy,ConditionResult,"
        "ConditionTimestampMonotonic"
    )
    done = system.run(["systemctl", "show", f"--property={properties}", *ENGINES], 60)
    if done.code != 0:
        return [(f"systemctl show: {done.output.strip() or f'exit status {done.code}'}", False)]
    found = []
    for block in done.output.split("\n\n"):
        unit = assignments(block)
        state = unit.get("ActiveState", "unknown")
        if _expected(unit) and state != "active":
            starting = state in ("activating", "reloading", "refreshing")
            found.append((f"{unit.get('Id', 'unit')} is enabled, but {state}", starting))
    return found


def _expected(unit: Mapping[str, str]) -> bool:
    """Whether something starts this unit at boot. "enabled" alone may be only an alias of it."""
    wanted = unit.get("WantedBy") or unit.get("RequiredBy")
    skipped = (
        unit.get("ConditionResult") == "no" and unit.get("ConditionTimestampMonotonic", "0") != "0"
    )
    return unit.get("UnitFileState") == "enabled" and bool(wanted) and not skipped


def scripts(system: System) -> tuple[str, ...]:
    """Run the owner's checks in the order of their names; each that fails is a reason.

    A check in ``/etc`` replaces the one of the same name in ``/usr``; an empty or not executable
    one switches it off.
    """
    found: dict[str, Path] = {}
    for directory in DIRECTORIES:
        found |= {path.name: path for path in _listed(system.path(directory))}
    reasons = []
    for _, path in sorted(found.items()):
        if not os.access(path, os.X_OK) or path.stat().st_size == 0:
            continue
        done = system.run([str(path)], CHECK_TIMEOUT)
        if done.code != 0:
            shown = f"/{path.relative_to(system.root)}"
            last = _last_line(done.output) or f"exit status {done.code}"
            reasons.append(f"{shown}: {last}"[:300])
    return tuple(reasons)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
