"""What an operator asks of a server: channels, groups, machines. Works while it runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from proa.server import catalogue, policy
from proa.server.errors import ServerError
from proa.server.policy import Channel
from proa.server.store import Failure, Group, Machine, Store
from proa.wire import omaha, version
from proa.wire.manifest import CHANNEL_NAME

UNKNOWN_EXIT = 7
UNMEANT_EXIT = 12


@dataclass(frozen=True)
class MachineReport:
    """A machine as an operator wants to see it. ``failure_reason`` is in words."""

    machine: Machine
    status: str
    failure: Failure | None
    failure_reason: str


def set_channel(
    database: Path,
    repository: Path,
    name: str,
    wanted: str,
    now: datetime,
    *,
    create: bool = False,
    allow_downgrade: bool = False,
    force: bool = False,
) -> Channel:
    """Make channel ``name`` lead to version ``wanted``, which must be in the repository.

    One that does not exist is refused unless ``create`` is given: mostly it is a typing error. So
    is one for which the release was not made, unless ``force`` is given.
    """
    _check_name("channel", name)
    found = catalogue.load(repository)
    if wanted not in found.releases:
        gone = " any more: it was withdrawn" if wanted in found.withdrawn else ""
        known = ", ".join(sorted(found.releases, key=version.parse))
        raise ServerError(
            f"{repository} has no version {wanted}{gone}; {name} stays as it was",
            hint=f"It has {known}." if known else "It has none; see `proa publish`.",
            code=UNKNOWN_EXIT,
        )
    meant = found.releases[wanted].channels
    if meant and name not in meant and not force:
        raise ServerError(
            f"{wanted} was made for {', '.join(meant)}; {name} stays as it was",
            hint="Its recipe says so in os.channels. To lead the channel to it all the same, add "
            "--force.",
            code=UNMEANT_EXIT,
        )
    with contextlib.closing(Store(database)) as store:
        names = [channel.name for channel in store.channels()]
        if name not in names and not create:
            raise ServerError(
                f"there is no channel {name}",
                hint=f"There are {', '.join(names)}. To make a new one, add --create.",
                code=UNKNOWN_EXIT,
            )
        channel = Channel(name, wanted, allow_downgrade)
        store.save_channel(channel, now)
        return channel


def list_channels(database: Path) -> list[Channel]:
    """Return all channels by name."""
    with contextlib.closing(Store(database)) as store:
        return store.channels()


def set_group(database: Path, name: str, channel: str, now: datetime) -> Group:
    """Make group ``name`` follow ``channel``, which must exist; make the group if need be."""
    _check_name("group", name)
    with contextlib.closing(Store(database)) as store:
        names = [known.name for known in store.channels()]
        if channel not in names:
            raise ServerError(
                f"there is no channel {channel}; group {name} stays as it was",
                hint=f"There are {', '.join(names)}.",
                code=UNKNOWN_EXIT,
            )
        group = Group(name, channel)
        store.save_group(group, now)
        return group


def list_groups(database: Path) -> list[tuple[Group, int]]:
    """Return all groups by name, each with the number of its machines."""
    with contextlib.closing(Store(database)) as store:
        tracks = [machine.group_name for machine in store.machines()]
        return [(group, tracks.count(group.name)) for group in store.groups()]


def list_machines(database: Path) -> list[MachineReport]:
    """Return all machines that ever asked, by group, alias and id."""
    with contextlib.closing(Store(database, create=False)) as store:
        return [_report(machine, store.last_failure(machine)) for machine in store.machines()]


def _report(machine: Machine, failure: Failure | None) -> MachineReport:
    reason = (failure.reason or omaha.describe(failure.errorcode)) if failure else ""
    return MachineReport(machine, policy.describe(machine.progress), failure, reason)


def _check_name(what: str, name: str) -> None:
    if not CHANNEL_NAME.fullmatch(name):
        raise ServerError(
            f"{name!r} cannot name a {what}",
            hint="Use up to 64 letters, digits, dots, dashes and underscores.",
        )
