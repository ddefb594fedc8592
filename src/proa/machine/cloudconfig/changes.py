"""From a document and a cloud's metadata to a list of changes. Nothing here touches a machine.

The order of the changes is that of coreos-cloudinit: host name, users, ssh keys, files,
update.conf, units, one reload, and last the commands on units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field

from proa.machine.cloudconfig.document import Config, User, is_hostname, keys_in, read
from proa.machine.cloudconfig.parse import Problem, Refused, load, printable, recognise

CORE = "core"
"""The user that the image brings; the top-level keys and the cloud's keys are for it."""

UPDATE_CONF = "/etc/coreos/update.conf"


@dataclass(frozen=True)
class Metadata:
    """What the cloud says of this machine, apart from the document that the owner gave it."""

    instance_id: str = ""
    hostname: str = ""
    ssh_keys: tuple[str, ...] = field(default=(), repr=False)


# The changes.


@dataclass(frozen=True)
class SetHostname:
    name: str


@dataclass(frozen=True)
class EnsureUser:
    """Make the user if there is none; of one that exists set only the password and groups."""

    user: User


@dataclass(frozen=True)
class AuthorizeKeys:
    """The keys of our own part of ``~/.ssh/authorized_keys``.

    With ``keep`` the keys that stand there already stay: the document that may have brought them
    could not be read, and a typo must not lock its author out.
    """

    user: str
    keys: tuple[str, ...] = field(repr=False)
    keep: bool = False


@dataclass(frozen=True)
class WriteFile:
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root:root"


@dataclass(frozen=True)
class SetUpdateSettings:
    """Set ``KEY=value`` lines of update.conf and leave its other lines as they are."""

    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MaskUnit:
    path: str


@dataclass(frozen=True)
class UnmaskUnit:
    """Remove a mask (a link to /dev/null or an empty file), and nothing else."""

    path: str


@dataclass(frozen=True)
class EnableUnit:
    name: str
    runtime: bool = False


@dataclass(frozen=True)
class ReloadUnits:
    """systemd reads its unit files again, if a change before this one touched them."""


@dataclass(frozen=True)
class RestartNetwork:
    """networkd reads its files again, if one was written and it runs already."""


@dataclass(frozen=True)
class CommandUnit:
    name: str
    command: str


Change = (
    SetHostname
    | EnsureUser
    | AuthorizeKeys
    | WriteFile
    | SetUpdateSettings
    | MaskUnit
    | UnmaskUnit
    | EnableUnit
    | ReloadUnits
    | RestartNetwork
    | CommandUnit
)


def describe(change: Change) -> str:
    """One line for people. Never holds a password, a key or the content of a file."""
    match change:
        case SetHostname(name):
            return f"host name {name}"
        case EnsureUser(user):
            return f"user {user.name}"
        case AuthorizeKeys(user, keys):
            return f"ssh keys of {user} ({len(keys)})"
        case WriteFile(path):
            return f"file {printable(path, 200)}"
        case SetUpdateSettings(settings):
            return f"update settings {', '.join(key for key, _ in settings)}"
        case MaskUnit(path):
            return f"mask of {path.rpartition('/')[2]}"
        case UnmaskUnit(path):
            return f"no mask of {path.rpartition('/')[2]}"
        case EnableUnit(name):
            return f"enabled {name}"
        case ReloadUnits():
            return "systemd's units read again"
        case RestartNetwork():
            return "network files read again"
        case CommandUnit(name, command):
            return f"{command} {name}"


def identity(change: Change) -> str | None:
    """What the change is about, stable from boot to boot; ``None`` if it is done on every boot."""
    match change:
        case SetHostname():
            return "hostname"
        case EnsureUser(user):
            return f"user:{user.name}"
        case AuthorizeKeys(user):
            return f"keys:{user}"
        case WriteFile(path):
            return f"file:{path}"
        case SetUpdateSettings():
            return "update"
        case MaskUnit(path):
            return f"mask:{path}"
        case EnableUnit(name, runtime):
            return None if runtime else f"enable:{name}"
        case _:
            return None


def wish(change: Change) -> str:
    """A digest of all that the change wants, to see on a later boot whether it wants the same."""
    return hashlib.sha256(repr((type(change).__name__, astuple(change))).encode()).hexdigest()


# The plan.


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
    refused: bool
    """The document is not applied at all; the changes are those of the metadata alone."""


NO_METADATA = Metadata()


def plan(
    user_data: bytes | None,
    metadata: Metadata = NO_METADATA,
    keyed_users: Iterable[str] = (),
    *,
    unread: bool = False,
) -> Plan:
    """What to do for this document and this metadata. Never raises, whatever the bytes are.

    ``keyed_users`` got ssh keys from an earlier document: one that is named no more loses them.
    ``unread``: a part of the source could not be read; the plan is as for a refused document.
    """
    config, problems = understand(user_data or b"")
    refused = unread or any(problem.level == "error" for problem in problems)
    hostname, keys, doubts = _from_cloud(metadata)
    if refused:
        config = Config()
    by_user = _keys_by_user(config, keys)
    if not refused:
        by_user |= {user: () for user in keyed_users if user not in by_user}
    changes = tuple(_changes(config, hostname, by_user, keep_keys=refused))
    return Plan(changes, (*problems, *doubts), refused)


def understand(user_data: bytes) -> tuple[Config, tuple[Problem, ...]]:
    """What the document says and what is wrong with it; the same for a validator."""
    try:
        _, text = recognise(user_data)
        config, problems = read(load(text))
    except Refused as refused:
        return Config(), (refused.problem,)
    return config, (*problems, *_unfilled(text))


def _unfilled(text: str) -> Iterator[Problem]:
    """CoreOS put addresses in place of these words; here they stay, and that must be said."""
    words = ("$private_ipv4", "$public_ipv4", "$private_ipv6", "$public_ipv6")
    for word in words:
        if (at := text.find(word)) >= 0:
            line = text.count("\n", 0, at) + 1
            yield Problem("warning", f"{word} is not filled in yet and stays as it is", line)


def _from_cloud(metadata: Metadata) -> tuple[str, tuple[str, ...], list[Problem]]:
    doubts: list[Problem] = []
    hostname = metadata.hostname.strip()
    if hostname and not is_hostname(hostname):
        shown = printable(hostname)
        doubts.append(Problem("warning", f'metadata: "{shown}" is not a host name; ignored'))
        hostname = ""
    keys: list[str] = []
    for text in metadata.ssh_keys:
        good, bad = keys_in(text)
        keys += good
        if bad:
            doubts.append(Problem("warning", "metadata: a public ssh key is none; left out"))
    return hostname, tuple(keys), doubts


def _changes(
    config: Config, cloud_hostname: str, keys: Mapping[str, tuple[str, ...]], keep_keys: bool
) -> Iterator[Change]:
    if hostname := config.hostname or cloud_hostname:
        yield SetHostname(hostname)
    for user in config.users:
        yield EnsureUser(user)
    for name, their_keys in keys.items():
        yield AuthorizeKeys(name, their_keys, keep=keep_keys)
    for file in config.write_files:
        yield WriteFile(file.path, file.content, file.mode, file.owner)
    if config.update:
        yield SetUpdateSettings(config.update)
    yield from _unit_changes(config)


def _keys_by_user(config: Config, cloud_keys: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    by_user: dict[str, tuple[str, ...]] = {}
    sources = [(user.name, user.ssh_authorized_keys) for user in config.users]
    for name, keys in (*sources, (CORE, config.ssh_authorized_keys), (CORE, cloud_keys)):
        if keys:
            by_user[name] = tuple(dict.fromkeys((*by_user.get(name, ()), *keys)))
    return by_user


def _unit_changes(config: Config) -> Iterator[Change]:
    for unit in config.units:
        network = unit.name.endswith((".network", ".netdev", ".link"))
        base = "/run" if unit.runtime else "/etc"
        folder = f"{base}/systemd/{'network' if network else 'system'}"
        path = f"{folder}/{unit.name}"
        if unit.mask and not network:
            yield MaskUnit(path)
        elif unit.content is not None:
            yield WriteFile(path, unit.content.encode())
        elif unit.runtime and not network:
            yield UnmaskUnit(path)
        for drop_in in unit.drop_ins:
            yield WriteFile(f"{path}.d/{drop_in.name}", drop_in.content.encode())
        if unit.enable and not unit.mask and not network:
            yield EnableUnit(unit.name, unit.runtime)
    if config.units:
        yield ReloadUnits()
        yield RestartNetwork()
    for unit in config.units:
        if unit.command and not unit.name.endswith((".network", ".netdev", ".link")):
            yield CommandUnit(unit.name, unit.command)
