"""The changes that a document can ask for. Nothing here touches a machine."""

from __future__ import annotations

import os

from proa.machine.cloudconfig.keys.passwords import Password
from proa.machine.cloudconfig.keys.ssh import HostKey
from proa.machine.cloudconfig.keys.storage import Directory, Link
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.parse import printable
from proa.machine.cloudconfig.resource import Resource
from proa.machine.cloudconfig.values import digest, shown_url
from proa.machine.hints import TYPE_CHECKING, Any, Literal
from proa.machine.record import dataclass, field, fields, is_dataclass

if TYPE_CHECKING:  # what most documents do not need is not loaded for them
    from proa.machine.cloudconfig.keys.disks import Disk, FileSystem, MountLine, SwapFile
    from proa.machine.cloudconfig.keys.ending import Home, Power
    from proa.machine.cloudconfig.keys.system import Trust

UPDATE_CONF = "/etc/coreos/update.conf"
ENVIRONMENT = "/etc/environment"
WORKSPACE = "/var/lib/coreos-cloudinit"


@dataclass(frozen=True)
class SetHostname:
    name: str


@dataclass(frozen=True)
class SetHosts:
    """The whole of ``/etc/hosts``; an empty name is the one that the machine has."""

    form: Literal["localhost", "template"]
    name: str
    fqdn: str


@dataclass(frozen=True)
class EnsureGroup:
    """Make the group if there is none; one that exists is left as it is."""

    name: str
    gid: int | None = None
    system: bool = False


@dataclass(frozen=True)
class EnsureUser:
    """Make the user if there is none; of one that exists set only the password and groups."""

    user: User


@dataclass(frozen=True)
class JoinGroup:
    """Members that a group has at least; those whom it has already stay."""

    group: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class SetPassword:
    password: Password


@dataclass(frozen=True)
class SudoRules:
    """All rules of the document, as (user, rule); none removes those of an earlier one."""

    rules: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AuthorizeKeys:
    """The keys of our own part of ``~/.ssh/authorized_keys``.

    With ``keep`` the keys that stand there already stay: the document that may have brought them
    could not be read, and a typo must not lock its author out. ``part`` names another part of the
    file than the boot's, for `coreos-cloudinit -ssh-key-name`.
    """

    user: str
    keys: tuple[str, ...] = field(repr=False)
    keep: bool = False
    part: str = ""


@dataclass(frozen=True)
class ImportKeys:
    """Keys that others publish (``gh:``, ``lp:`` or an address), in a part of their own.

    No source takes away what earlier ones brought. With ``keep``, nor do all of them together.
    """

    user: str
    sources: tuple[str, ...] = field(repr=False)
    keep: bool = False


@dataclass(frozen=True)
class SshdSettings:
    """All that the document says to sshd, as lines; none removes those of an earlier one."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class DeleteHostKeys:
    """Once: the keys of the disk that this machine was copied from are not its own."""


@dataclass(frozen=True)
class PlaceHostKey:
    key: HostKey


@dataclass(frozen=True)
class MakeHostKey:
    """Make a host key of this kind if there is none."""

    kind: str


@dataclass(frozen=True)
class TellHostKeys:
    """The public host keys on the console, where the cloud's owner can read them."""


@dataclass(frozen=True)
class WriteFile:
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root:root"
    defer: bool = False


@dataclass(frozen=True)
class AppendFile:
    """Add to the end of a file, which keeps its mode and owner where none are given."""

    path: str
    content: bytes = field(repr=False)
    mode: int | None = None
    owner: str | None = None
    defer: bool = False


@dataclass(frozen=True)
class FetchFile:
    """A file whose content lies on the network; ``content`` is placed where that fails."""

    path: str
    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    content: bytes | None = field(default=None, repr=False)
    mode: int | None = None
    owner: str | None = None
    append: bool = False
    defer: bool = False


@dataclass(frozen=True)
class CreateFile:
    """Like :class:`WriteFile`, but a file of other content that others made is not replaced."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root:root"


@dataclass(frozen=True)
class DownloadFile:
    """A file whose content is to be fetched, unpacked and verified first."""

    path: str
    source: Resource
    mode: int = 0o644
    owner: str = "root:root"
    overwrite: bool = False


@dataclass(frozen=True)
class MakeDirectory:
    directory: Directory


@dataclass(frozen=True)
class MakeLink:
    link: Link


@dataclass(frozen=True)
class SetUpdateSettings:
    """Set ``KEY=value`` lines of update.conf and leave its other lines as they are."""

    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SetEnvironment:
    """Set ``KEY=value`` lines of /etc/environment and leave its other lines as they are."""

    variables: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MaskUnit:
    path: str


@dataclass(frozen=True)
class UnmaskUnit:
    """Remove a mask (a link to /dev/null or an empty file), and nothing else."""

    path: str


@dataclass(frozen=True)
class EnableUnit:
    """In the network stage, where the unit's file is downloaded."""

    name: str
    runtime: bool = False
    stage: Stage = "local"


@dataclass(frozen=True)
class DisableUnit:
    name: str


Stage = Literal["local", "network", "final"]


@dataclass(frozen=True)
class ReloadUnits:
    """systemd reads its unit files again, if a change of this stage before it touched them."""

    stage: Stage = "local"


@dataclass(frozen=True)
class ReloadSshd:
    """sshd reads its files and host keys again, if one was written and it runs already."""


@dataclass(frozen=True)
class RestartNetwork:
    """networkd reads its files again, if one was written and it runs already."""


@dataclass(frozen=True)
class CommandUnit:
    """With ``if_there``, a unit that this version of the system does not have is passed over."""

    name: str
    command: str
    if_there: bool = False


@dataclass(frozen=True)
class StartUnit:
    """Start the unit; if it runs and one of its ``files`` was written just now, start it anew."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class StartScript:
    """Keep the script below ``workspace`` and start it as a unit of its own, once the network is
    up; nobody waits for it. With ``once`` it runs on the first boot of an instance only."""

    content: bytes = field(repr=False)
    workspace: str = WORKSPACE
    once: bool = False

    @property
    def name(self) -> str:
        """Like the original's random part of the names, but the same for the same script."""
        return digest(self.content)[:12]

    @property
    def path(self) -> str:
        return f"{self.workspace}/scripts/{self.name}"

    @property
    def unit(self) -> str:
        return f"coreos-cloudinit-{self.name}.service"


@dataclass(frozen=True)
class CommandUnitOnce:
    """At the boot that enables or disables a unit: systemd planned that boot before it knew."""

    name: str
    command: str
    stage: Stage = "local"


Frequency = Literal["boot", "instance", "once"]
"""How often: at each boot, once for each instance id, once in the life of the disk."""


@dataclass(frozen=True)
class RunScript:
    """Run a program of the owner: a script with ``#!``, or an executable.

    ``name`` is that of the unit that runs it, ``proa-script@NAME.service``.
    """

    name: str
    content: bytes = field(repr=False)
    frequency: Frequency
    stage: Stage = "final"
    instance_id: str = ""


@dataclass(frozen=True)
class SeedRandom:
    """Stir these bytes into the kernel's random numbers."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class SetTimezone:
    zone: str


@dataclass(frozen=True)
class TrustCertificates:
    trust: Trust


@dataclass(frozen=True)
class PartitionDisk:
    disk: Disk


@dataclass(frozen=True)
class MakeFileSystem:
    file_system: FileSystem


@dataclass(frozen=True)
class MakeSwapFile:
    swap: SwapFile


@dataclass(frozen=True)
class SetMounts:
    """Our own part of /etc/fstab."""

    lines: tuple[MountLine, ...]


@dataclass(frozen=True)
class Mount:
    """Mount a line of /etc/fstab now, or begin to swap to it."""

    line: MountLine


@dataclass(frozen=True)
class RestartService:
    """Restart a service that runs, if a change before this one wrote into its directory."""

    unit: str
    folder: str
    """Below /etc/systemd."""


@dataclass(frozen=True)
class PhoneHome:
    home: Home
    instance_id: str = ""


@dataclass(frozen=True)
class SayFinal:
    """Print the owner's last word, with cloud-init's variables filled in."""

    text: str


@dataclass(frozen=True)
class ChangePower:
    power: Power
    instance_id: str = ""


Change = (
    SetHostname
    | SetHosts
    | EnsureGroup
    | EnsureUser
    | JoinGroup
    | SetPassword
    | SudoRules
    | AuthorizeKeys
    | ImportKeys
    | SshdSettings
    | DeleteHostKeys
    | PlaceHostKey
    | MakeHostKey
    | TellHostKeys
    | WriteFile
    | AppendFile
    | FetchFile
    | CreateFile
    | DownloadFile
    | MakeDirectory
    | MakeLink
    | SetUpdateSettings
    | SetEnvironment
    | MaskUnit
    | UnmaskUnit
    | EnableUnit
    | DisableUnit
    | ReloadUnits
    | ReloadSshd
    | RestartNetwork
    | CommandUnit
    | CommandUnitOnce
    | RunScript
    | SeedRandom
    | SetTimezone
    | TrustCertificates
    | PartitionDisk
    | MakeFileSystem
    | MakeSwapFile
    | SetMounts
    | Mount
    | RestartService
    | PhoneHome
    | SayFinal
    | ChangePower
    | StartUnit
    | StartScript
)


def describe(change: Change) -> str:
    """One line for people. Never holds a password, a key or the content of a file."""
    match change:
        case SetHostname(name):
            return f"host name {name}"
        case SetHosts():
            return "file /etc/hosts"
        case EnsureGroup(name):
            return f"group {name}"
        case EnsureUser(user):
            return f"user {user.name}"
        case JoinGroup(group, members):
            return f"members of the group {group} ({len(members)})"
        case SetPassword(password):
            return f"password of {password.user}"
        case SudoRules(rules):
            return f"sudo rules ({len(rules)})"
        case AuthorizeKeys(user, keys):
            return f"ssh keys of {user} ({len(keys)})"
        case ImportKeys(user, sources):
            return f"ssh keys of {user} from {', '.join(map(shown_url, sources)) or 'nowhere'}"
        case SshdSettings(lines):
            return f"sshd settings ({len(lines)})"
        case DeleteHostKeys():
            return "host keys of an earlier machine"
        case PlaceHostKey(key):
            return f"host key {key.kind}"
        case MakeHostKey(kind):
            return f"new host key {kind}"
        case TellHostKeys():
            return "host keys on the console"
        case WriteFile(path) | CreateFile(path) | AppendFile(path, b""):
            return f"file {printable(path, 200)}"
        case AppendFile(path):
            return f"end of the file {printable(path, 200)}"
        case DownloadFile(path, source):
            return f"file {printable(path, 200)} from {shown_url(source.url)}"
        case MakeDirectory(directory):
            return f"directory {printable(directory.path, 200)}"
        case MakeLink(link):
            return f"link {printable(link.path, 200)}"
        case FetchFile(path, url):
            return f"file {printable(path, 200)} from {shown_url(url)}"
        case SetUpdateSettings(settings):
            return f"update settings {', '.join(key for key, _ in settings)}"
        case SetEnvironment(variables):
            return f"environment {', '.join(name for name, _ in variables)}"
        case MaskUnit(path):
            return f"mask of {path.rpartition('/')[2]}"
        case UnmaskUnit(path):
            return f"no mask of {path.rpartition('/')[2]}"
        case EnableUnit(name):
            return f"enabled {name}"
        case DisableUnit(name):
            return f"disabled {name}"
        case ReloadUnits():
            return "systemd's units read again"
        case ReloadSshd():
            return "sshd's files read again"
        case RestartNetwork():
            return "network files read again"
        case CommandUnit(name, command) | CommandUnitOnce(name, command):
            return f"{command} {name}"
        case RunScript(name):
            return f"script {printable(name)}"
        case SeedRandom():
            return "random seed"
        case SetTimezone(zone):
            return f"time zone {zone}"
        case TrustCertificates(trust):
            alone = ", and no others" if trust.remove_defaults else ""
            return f"trusted certificates ({len(trust.trusted)}{alone})"
        case PartitionDisk(disk):
            return f"partition table on {disk.device}"
        case MakeFileSystem(made):
            label = f" {printable(made.label)}" if made.label else ""
            return f"file system {made.kind}{label} on {made.device}"
        case MakeSwapFile(swap):
            return f"swap file {printable(swap.path, 200)}"
        case SetMounts(lines):
            return f"mounts in /etc/fstab ({len(lines)})"
        case Mount(line):
            at = "" if line.swap else f" at {printable(line.where, 200)}"
            return f"{'swap to' if line.swap else 'mount of'} {printable(line.device, 200)}{at}"
        case RestartService(unit):
            return f"{unit} reads its files again"
        case PhoneHome():
            return "phone home"
        case SayFinal():
            return "final message"
        case ChangePower(power):
            return f"{power.mode} ({power.delay})"
        case StartUnit(name):
            return f"start {name}"
        case StartScript():
            return f"script {change.unit}"


def stage(change: Change) -> Stage:
    """When the change is made.

    ``local`` is before the network is up, ``network`` once it is online, and ``final`` after
    multi-user.target was reached.
    """
    match change:
        case WriteFile(defer=True) | AppendFile(defer=True) | FetchFile(defer=True):
            return "final"
        case TellHostKeys():  # sshd's own are made by then
            return "final"
        case PhoneHome() | SayFinal() | ChangePower():
            return "final"
        case RunScript(stage=stage) | EnableUnit(stage=stage):
            return stage
        case FetchFile() | DownloadFile():
            return "network"
        case ReloadUnits(stage) | CommandUnitOnce(stage=stage):
            return stage
        case ImportKeys(sources=sources) if sources:
            return "network"
        case _:
            return "local"


def identity(change: Change) -> str | None:
    """What the change is about, stable from boot to boot; ``None`` if it is done on every boot."""
    match change:
        case SetHostname():
            return "hostname"
        case SetHosts():
            return "hosts"
        case EnsureGroup(name):
            return f"group:{name}"
        case EnsureUser(user):
            return f"user:{user.name}"
        case JoinGroup(group):
            return f"members:{group}"
        case SetPassword(password):
            return f"password:{password.user}"
        case SudoRules():
            return "sudo"
        case AuthorizeKeys(user, part=part):
            return f"part:{part}:{user}" if part else f"keys:{user}"
        case ImportKeys(user):
            return f"import:{user}"
        case SshdSettings():
            return "sshd"
        case DeleteHostKeys():
            return "host-keys:deleted"
        case PlaceHostKey(key):
            return f"host-key:{key.kind}"
        case TellHostKeys():
            return "host-keys:told"
        case WriteFile(path, defer=defer):  # one file may be written early and again late
            return f"{'deferred' if defer else 'file'}:{path}"
        case CreateFile(path):
            return f"file:{path}"
        case FetchFile(path, append=False) | DownloadFile(path):
            return f"fetch:{path}"
        case MakeDirectory(directory):
            return f"directory:{directory.path}"
        case MakeLink(link):
            return f"link:{link.path}"
        case AppendFile(path, content):  # one file may be added to more than once
            return f"append:{path}:{digest(content)[:16]}"
        case FetchFile(path, url):
            return f"append:{path}:{digest(url.encode())[:16]}"
        case SetUpdateSettings():
            return "update"
        case SetEnvironment():
            return "environment"
        case MaskUnit(path):
            return f"mask:{path}"
        case EnableUnit(name, runtime):
            return None if runtime else f"enable:{name}"
        case DisableUnit(name):
            return f"enable:{name}"
        case CommandUnitOnce(name):
            return f"command:{name}"
        case RunScript(name, frequency=frequency):
            return {"boot": None, "instance": f"script:{name}", "once": f"{ONCE}script:{name}"}[
                frequency
            ]
        case SeedRandom():
            return "random_seed"
        case SetTimezone():
            return "timezone"
        case TrustCertificates():
            return "ca_certs"
        case PartitionDisk(disk):
            return f"disk:{disk.device}"
        case MakeFileSystem(made):
            return f"fs:{made.device}:{made.partition}:{made.label}"
        case MakeSwapFile(swap):
            return f"swap:{swap.path}"
        case SetMounts():
            return "mounts"
        case PhoneHome():
            return "phone_home"
        case ChangePower():
            return "power_state"
        case StartScript(once=once):
            return f"script:{change.name}" if once else None
        case _:
            return None


def is_right(name: str) -> bool:
    """Whether what has this identity lets someone in or lets them do more.

    It is taken away when the document gives it no more, and on a copy of the disk as well.
    """
    return name in ("sudo", "sshd") or name.startswith(("keys:", "import:"))


def wish(change: Change, like: str = "") -> str:
    """A digest of all that the change wants, to see on a later boot whether it wants the same.

    Two wishes are the same if their texts are, where the later was made ``like`` the earlier: with
    its salt. The digest of what a person made up is slow and salted, for it is remembered on disk,
    and would else give a password away that the password file itself hides well.
    """
    content = repr(_values(change)).encode()
    if not _holds_a_password(change):
        return digest(content)
    salt = like.partition(":")[0] if ":" in like else os.urandom(8).hex()
    import hashlib  # few documents hold a password

    # RFC 7914; 8 MiB and some 20 ms.
    return f"{salt}:{hashlib.scrypt(content, salt=salt.encode(), n=8192, r=8, p=1).hex()}"


def _holds_a_password(change: Change) -> bool:
    match change:
        case EnsureUser(user):
            return user.plain_text_passwd is not None
        case SetPassword(password):
            return password.kind == "text"
        case DownloadFile(source=source):
            return bool(source.headers) or "@" in source.url
        case FetchFile(url=url, headers=headers):
            return bool(headers) or "@" in url
        case ImportKeys(sources=sources):
            return any("@" in source for source in sources)
        case _:
            return False


ONCE = "once:"
"""How the identity of what is done once in the life of the disk begins: it outlives an instance."""


def happens_once(change: Change) -> bool:
    """Done once for its identity, whatever the document says later (cloud-init's semaphores)."""
    match change:
        case RunScript(frequency=frequency):
            return frequency != "boot"
        case SeedRandom() | PhoneHome() | ChangePower():
            return True
        case _:
            return False


def _values(thing: Any) -> Any:
    """The values of a dataclass with their names, all the way down.

    What is as it is by default is left out. So a field that a later version of Proa brings changes
    no wish that says nothing of it, and an update does not undo what an owner edited.
    """
    if is_dataclass(thing):
        values = ((f.name, getattr(thing, f.name), f.default) for f in fields(thing))
        said = ((name, _values(value)) for name, value, default in values if value != default)
        return (type(thing).__name__, *said)
    return tuple(_values(item) for item in thing) if isinstance(thing, tuple) else thing
