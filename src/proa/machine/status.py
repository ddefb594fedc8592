"""What `proactl status` says: gathered into one value, then put into words."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass

from proa.machine import attempts, health, lock, reboot, slot
from proa.machine import config as configuration
from proa.machine.boot import Entry, Loaders
from proa.machine.boot.systemd_boot import SystemdBoot
from proa.machine.state import State, Store, Transfer
from proa.machine.system import System, running, size_words


@dataclass(frozen=True)
class SlotView:
    """A slot as its owner sees it. ``version`` is "" where it is not known or there is none."""

    name: str
    running: bool
    version: str
    condition: str
    tries_left: int | None


@dataclass(frozen=True)
class Status:
    """Everything there is to know. Times are seconds since 1970; ``trial_until`` is 0 where the
    running version is not on trial."""

    version: str
    slot: str
    condition: str
    trial_until: float
    tries_left: int | None
    config: configuration.Config
    slots: tuple[SlotView, ...]
    state: State
    updater: lock.Progress
    restart: str
    boot: str
    now: float


def gather(system: System) -> Status:
    """Look at the machine; needs to read the ESP and the disk, and so root."""
    own, disk, config = running(system), slot.find(system), configuration.read(system)
    state, entries = Store(system).load(), Loaders(system).entries()
    found = health.situation(state.candidate, disk.running, entries, system.boot_id)
    on_trial = found is health.Situation.ON_TRIAL
    staged = state.candidate if found is health.Situation.STAGED else None
    own_entry = entries.get(disk.running)
    booted = system.now() - system.uptime
    return Status(
        version=str(own.version),
        slot=disk.running,
        condition=found.value if found.unsettled else "committed",
        trial_until=booted + config.health_timeout if on_trial else 0,
        tries_left=own_entry.left if on_trial and own_entry is not None else None,
        config=config,
        slots=slot_views(system, disk, str(own.version), state, entries),
        state=dataclasses.replace(state, candidate=state.candidate if on_trial else staged),
        updater=lock.look(system),
        restart=reboot.why_not_yet(system, config, staged) if staged else "",
        boot="uefi" if system.uefi else "bios",
        now=system.now(),
    )


def slot_views(
    system: System,
    disk: slot.Disk,
    version: str,
    state: State,
    entries: Mapping[str, Entry],
) -> tuple[SlotView, ...]:
    """Describe both slots."""
    images = SystemdBoot(system).entries()
    views = []
    for name in slot.SLOTS:
        is_running, entry = name == disk.running, entries.get(name)
        known = version if is_running else (images[name].version if name in images else "")
        found = health.situation(state.candidate, disk.running, entries, system.boot_id)
        if is_running:
            condition = found.value if found.unsettled else "committed"
        elif disk.slots[name].empty or entry is None:
            download = state.download
            being_written = download is not None and download.slot == name
            condition, known = ("being written" if being_written else "empty"), ""
        elif found is health.Situation.STAGED:
            condition = "staged"
        elif known in state.failed or (entry.used_up and known not in state.held):
            condition = "failed"
        elif entry.used_up:
            condition = "on hold"
        else:
            condition = "committed"
        views.append(SlotView(name, is_running, known, condition, entry.left if entry else None))
    return tuple(views)


def as_json(status: Status) -> dict[str, object]:
    """Return the documented JSON form (``docs/updating.md``)."""
    state, candidate = status.state, status.state.candidate
    staged = candidate if candidate is not None and candidate.slot != status.slot else None
    return {
        "version": status.version,
        "slot": status.slot,
        "condition": status.condition,
        "trial_until": status.trial_until or None,
        "tries_left": status.tries_left,
        "boot": status.boot,
        "group": status.config.group,
        "server": status.config.server,
        "reboot_strategy": status.config.reboot_strategy,
        "last_check": dataclasses.asdict(state.check) if state.check else None,
        "staged": dataclasses.asdict(staged) if staged else None,
        "restart": status.restart or None,
        "slots": [dataclasses.asdict(view) for view in status.slots],
        "updater": dataclasses.asdict(status.updater),
        "health": dataclasses.asdict(state.health) if state.health else None,
        "failed": {v: dataclasses.asdict(why) for v, why in state.failed.items()},
        "given_up": list(attempts.given_up(state.download.attempts)) if state.download else [],
        "transfer": dataclasses.asdict(state.transfer) if state.transfer else None,
        "held": {v: dataclasses.asdict(why) for v, why in state.held.items()},
        "messages_waiting": len(state.events),
        "warnings": list(status.config.warnings),
    }


def as_text(status: Status) -> str:
    """Return the screen of ``proactl status``."""
    state, now = status.state, status.now
    lines: list[tuple[str, str]] = []
    running_words = f"{status.version} in slot {status.slot}, {status.condition}"
    if status.trial_until:
        running_words += f" until {_clock(status.trial_until)}"
        if status.tries_left is not None:
            running_words += f" ({status.tries_left} more tries)"
    lines.append(("Running", running_words))
    if status.condition == health.Situation.LEFT.value:
        running_words += "; the other slot is the next to start: run `reboot`"
    for view in status.slots:
        if not view.running:
            what = f"{view.version}, {view.condition}" if view.version else view.condition
            lines.append((f"Slot {view.name}", what))
    lines.append(("Group", status.config.group))
    lines.append(("Server", status.config.server))
    lines.append(("Checked", _check(state, now)))
    if status.updater.operation != "idle":
        lines.append(("Updater", _at_work(status.updater)))
    if state.download is not None:
        lines += [("Given up", words) for words in attempts.given_up(state.download.attempts)]
    if status.restart and state.candidate is not None:
        lines.append(("Staged", f"{state.candidate.version}; {status.restart}"))
    if state.transfer is not None:
        lines.append(("Came by", _transfer(state.transfer)))
    if state.health is not None:
        well = "; ".join(state.health.reasons) or "well"
        lines.append(("Health", f"{well} ({_ago(now - state.health.time)})"))
    for version, why in state.failed.items():
        lines.append(("Failed", f"{version} on {_clock(why.time)}: {why.reason}"))
    for version, why in state.held.items():
        lines.append(("On hold", f"{version} since {_clock(why.time)}: {why.reason}"))
    if state.events:
        lines.append(("Waiting", f"{len(state.events)} messages to the server, not delivered yet"))
    lines += [("Warning", warning) for warning in status.config.warnings]
    return "\n".join(f"{label:<9} {words}" for label, words in lines)


def _check(state: State, now: float) -> str:
    check = state.check
    if check is None:
        return "never yet"
    trouble = f" (code {check.code})" if check.code else ""
    return f"{_ago(now - check.time)}: {check.result}{trouble}"


def _transfer(last: Transfer) -> str:
    fetched, written = size_words(last.fetched), size_words(last.written)
    words = f"{last.version} by {last.way}: {fetched} fetched, {written} written"
    return "; ".join([f"{words} in {last.seconds:.0f} s", *(f"not {why}" for why in last.instead)])


def _at_work(progress: lock.Progress) -> str:
    if not progress.size:
        return progress.operation
    mib = 1 << 20
    return (
        f"{progress.operation} {progress.version}: "
        f"{progress.done // mib} of {progress.size // mib} MiB"
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now" if seconds < 10 else f"{seconds:.0f} s ago"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
