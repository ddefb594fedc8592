"""From a document and a cloud's metadata to a list of changes. Nothing here touches a machine.

First come the owner's early commands, disks and mounts, so that homes and files lie on them. Then
the order is that of coreos-cloudinit, with what it did not have in between: host name, groups,
users, passwords, sudo, ssh keys, sshd, files, update.conf, settings, the network, units, one
reload, and the commands on units. What only Ignition has is behind the files: directories, files
and links in this order. Last comes what wants a machine that is up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from proa.machine.cloudconfig import coreos, own
from proa.machine.cloudconfig.assemble import Script, assemble
from proa.machine.cloudconfig.changes import (
    AppendFile,
    AuthorizeKeys,
    Change,
    ChangePower,
    CommandUnit,
    CommandUnitOnce,
    CreateFile,
    DeleteHostKeys,
    DisableUnit,
    DownloadFile,
    EnableUnit,
    EnsureGroup,
    EnsureUser,
    FetchFile,
    Frequency,
    ImportKeys,
    JoinGroup,
    MakeDirectory,
    MakeFileSystem,
    MakeHostKey,
    MakeLink,
    MakeSwapFile,
    MaskUnit,
    Mount,
    PartitionDisk,
    PhoneHome,
    PlaceHostKey,
    ReloadSshd,
    ReloadUnits,
    RestartNetwork,
    RestartService,
    RunScript,
    SayFinal,
    SeedRandom,
    SetHostname,
    SetHosts,
    SetMounts,
    SetPassword,
    SetTimezone,
    SetUpdateSettings,
    SshdSettings,
    SudoRules,
    TellHostKeys,
    TrustCertificates,
    UnmaskUnit,
    WriteFile,
    stage,
)
from proa.machine.cloudconfig.document import Config, read
from proa.machine.cloudconfig.keys.names import short_and_full
from proa.machine.cloudconfig.keys.ssh import IMAGE_KINDS, Ssh
from proa.machine.cloudconfig.keys.storage import Storage
from proa.machine.cloudconfig.keys.units import NOT_HERE, OTHER_NAMES, Unit
from proa.machine.cloudconfig.keys.write_files import File
from proa.machine.cloudconfig.metadata import NO_METADATA, Metadata
from proa.machine.cloudconfig.parse import Problem, printable
from proa.machine.cloudconfig.parts import Fetch
from proa.machine.cloudconfig.values import is_hostname, keys_in, redirecting
from proa.machine.hints import TYPE_CHECKING, cast
from proa.machine.record import dataclass, field, replace

if TYPE_CHECKING:
    from proa.machine.cloudconfig.keys.disks import Disks
    from proa.machine.cloudconfig.keys.system import System


@dataclass(frozen=True)
class Given:
    """All that the plan rests on. ``fetch`` gets what is included; ``None`` without a network.

    ``environment`` has ``COREOS_PRIVATE_IPV4`` and its kin for addresses that the metadata do not
    say, ``kept`` what an earlier boot of this instance included once, ``version`` the release that
    runs. ``remembered`` are the identities of what earlier boots made: rights that the document
    gives no more are taken away (ssh keys, sudo rules, what sshd was told). ``unread``: a part of
    the source could not be read; the plan is as for a refused document. ``copied``: the disk was
    another instance's, whose host keys and rights it must not have. ``waiting``: the document
    itself comes over the network.
    """

    user_data: bytes | None = field(default=None, repr=False)
    vendor_data: bytes | None = field(default=None, repr=False)
    metadata: Metadata = NO_METADATA
    remembered: tuple[str, ...] = ()
    unread: bool = False
    waiting: bool = False
    copied: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    version: str = ""
    fetch: Fetch | None = None


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
    refused: bool
    """The document is not applied at all; the changes are those of the metadata alone."""
    needs_network: bool = False
    """The document includes others and there is no network yet: plan again when there is."""
    once: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What was included once, to be kept for this instance."""


@dataclass(frozen=True)
class Understood:
    """What the documents say, and what is wrong with them."""

    config: Config
    problems: tuple[Problem, ...]
    scripts: tuple[Script, ...] = ()
    boothooks: tuple[Script, ...] = ()
    needs_network: bool = False
    once: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def plan(
    user_data: bytes | None,
    metadata: Metadata = NO_METADATA,
    remembered: Collection[str] = (),
    *,
    unread: bool = False,
) -> Plan:
    """What to do for this document and this metadata; :func:`plan_for` with little given."""
    made = tuple(remembered)
    return plan_for(Given(user_data, metadata=metadata, remembered=made, unread=unread))


def plan_for(given: Given) -> Plan:
    """What to do. Never raises, whatever the bytes are."""
    understood = understand_all(given)
    refused = given.unread or any(problem.level == "error" for problem in understood.problems)
    waiting = given.waiting or understood.needs_network
    void = refused or waiting
    config = Config() if void else understood.config
    hostname, keys, doubts = _from_cloud(given.metadata)
    if not config.ssh.cloud_keys:
        keys = ()
    redirected = [user.name for user in config.users if user.ssh_redirect_user]
    if redirected and not keys:
        message = f"ssh_redirect_user of {redirected[0]} means nothing: the cloud has no ssh keys"
        doubts.append(Problem("warning", message))
    network, complaints = _network(given.metadata)
    # A typo must not lock its author out; but on a copy, the keys are those of another machine.
    stay = void and not given.copied
    made = () if stay else given.remembered
    system, instance_id = config.system, given.metadata.instance_id
    hooks = () if void else understood.boothooks
    changes = (
        *(RunScript(hook.name, hook.content, "boot", "local", instance_id) for hook in hooks),
        *(_early_changes(system, instance_id) if system else ()),
        *_names(config, hostname),
        *_accounts(config, made),
        *_keys(config, keys, made, keep=stay),
        *_sshd(config.ssh, set(made), given.copied),
        *_files(config.write_files),
        *_storage(config.storage),
        *_service_files(config, given.metadata),
        *(_setting_changes(system) if system else ()),
        *network,
        *_unit_changes(config, network=bool(network)),
        *(() if void else _scripts(understood, instance_id)),
        *(_final_changes(system, instance_id) if system else ()),
    )
    problems = (*understood.problems, *doubts, *complaints)
    return Plan(changes, problems, refused, waiting, understood.once)


def understand(user_data: bytes) -> tuple[Config, tuple[Problem, ...]]:
    """What one document says and what is wrong with it, for a validator."""
    understood = understand_all(Given(user_data))
    return understood.config, understood.problems


def understand_all(given: Given) -> Understood:
    """What all documents say together."""
    assembled = assemble(
        given.user_data,
        given.vendor_data,
        given.metadata,
        given.environment,
        given.fetch,
        kept=given.kept,
        version=given.version,
    )
    config, problems = read(assembled.root)
    theirs = [p for p in problems if p.level == "error" and assembled.of_vendor(p)]
    if theirs:
        # The owner did not write it and cannot mend it: all of it is left out.
        without = understand_all(replace(given, vendor_data=None))
        left_out = (_left_out(assembled.told(problem)) for problem in theirs)
        return replace(without, problems=(*without.problems, *left_out))
    told = (*assembled.problems, *(assembled.told(problem) for problem in problems))
    needs_network = assembled.needs_network
    if other := assembled.ignition or assembled.butane:
        # Not at the top: most boots have a cloud-config.
        from proa.machine.cloudconfig.languages import read_other

        said = read_other(other.text, butane=other is assembled.butane, fetch=given.fetch)
        config = _together(config, said.config)
        told = (*told, *(other.place.tell(problem) for problem in said.problems))
        needs_network = needs_network or said.needs_network
    return Understood(
        config, told, assembled.scripts, assembled.boothooks, needs_network, assembled.once
    )


def _left_out(problem: Problem) -> Problem:
    message = f"{problem.message}; the vendor-data is left out"
    return replace(problem, level="warning", message=message)


def _together(config: Config, other: Config) -> Config:
    """A cloud-config with what an Ignition or Butane config beside it says."""
    names = config.names
    return replace(
        config,
        names=replace(names, hostname=names.hostname or other.names.hostname),
        groups=(*config.groups, *other.groups),
        users=(*config.users, *other.users),
        units=(*config.units, *other.units),
        storage=other.storage,
        system=_system_together(config.system, other.system),
    )


def _system_together(system: System | None, other: System | None) -> System | None:
    """What an Ignition config says of the system are file systems and their mounts."""
    if system is None or other is None:
        return system or other
    one, two = system.disks, other.disks
    disks = replace(
        one,
        file_systems=(*one.file_systems, *two.file_systems),
        mounts=one.mounts if two.mounts is None else (*(one.mounts or ()), *two.mounts),
    )
    return replace(system, disks=disks)


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


def _network(metadata: Metadata) -> tuple[tuple[WriteFile, ...], tuple[Problem, ...]]:
    """The files of the network that the cloud describes. With an error, it is left as it is.

    They lie in /run, so that nothing of an older description stays behind.
    """
    if metadata.network is None:
        return (), ()
    from proa.machine.cloudconfig.network import forms, render  # most machines use DHCP

    kind, data = metadata.network
    described, problems = forms.read(cast(forms.Form, kind), data)
    problems = tuple(replace(p, message=f"the cloud's network: {p.message}") for p in problems)
    if any(problem.level == "error" for problem in problems):
        return (), problems
    files = render.render(described)
    return tuple(WriteFile(f"/run/{f.path}", f.content.encode()) for f in files), problems


def _names(config: Config, cloud_hostname: str) -> Iterator[Change]:
    name, fqdn = short_and_full(config.names, cloud_hostname)
    if name and not config.names.preserve:
        yield SetHostname(name)
    if config.names.hosts:
        yield SetHosts(config.names.hosts, name, fqdn)


def _accounts(config: Config, made: Collection[str]) -> Iterator[Change]:
    for group in config.groups:
        yield EnsureGroup(group.name, group.gid, group.system)
    for user in config.users:
        yield EnsureUser(user.account)
    for group in config.groups:  # its members may have been made just now
        if group.members:
            yield JoinGroup(group.name, group.members)
    for password in {one.user: one for one in config.passwords}.values():  # the last one counts
        yield SetPassword(password)
    rules = tuple((user.name, rule) for user in config.users for rule in user.sudo)
    if rules or "sudo" in made:
        yield SudoRules(rules)


def _keys(
    config: Config, cloud_keys: tuple[str, ...], made: Iterable[str], keep: bool
) -> Iterator[Change]:
    """The ssh keys of each user; one who had some and is named no more loses them."""
    by_user = dict.fromkeys(_of_kind("keys:", made), ()) | _keys_by_user(config, cloud_keys)
    for name, keys in by_user.items():
        yield AuthorizeKeys(name, keys, keep=keep)
    imports = {user.name: user.ssh_import for user in config.users if user.ssh_import}
    if config.ssh_import:
        names = (*imports.get(config.default_user, ()), *config.ssh_import)
        imports[config.default_user] = tuple(dict.fromkeys(names))
    for name, sources in (dict.fromkeys(_of_kind("import:", made), ()) | imports).items():
        yield ImportKeys(name, sources)


def _of_kind(kind: str, made: Iterable[str]) -> list[str]:
    return sorted(name.removeprefix(kind) for name in made if name.startswith(kind))


def _keys_by_user(config: Config, cloud_keys: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    default = config.default_user
    sources = [(user.name, user.ssh_authorized_keys) for user in config.users]
    sources += [(default, config.ssh_authorized_keys), (default, cloud_keys)]
    if config.ssh.root_login:
        sources += [("root", config.ssh_authorized_keys), ("root", cloud_keys)]
    for user in config.users:
        if user.ssh_redirect_user:
            there = tuple(redirecting(key, user.name, default) for key in cloud_keys)
            sources.append((user.name, there))
    by_user: dict[str, tuple[str, ...]] = {}
    for name, keys in sources:
        if keys:
            by_user[name] = tuple(dict.fromkeys((*by_user.get(name, ()), *keys)))
    return by_user


def _sshd(ssh: Ssh, made: Collection[str], copied: bool) -> Iterator[Change]:
    given = {key.kind for key in ssh.host_keys if key.private}
    delete = copied if ssh.delete_keys is None else ssh.delete_keys
    if delete:
        yield DeleteHostKeys()
    for key in ssh.host_keys:
        yield PlaceHostKey(key)
    # sshd's own unit makes keys at the first boot only: what is deleted later is made anew here.
    wanted = ssh.make_keys or (IMAGE_KINDS if delete else ())
    for kind in wanted:
        if kind not in given:
            yield MakeHostKey(kind)
    lines: list[str] = []
    if ssh.password_login is not None:
        lines.append(f"PasswordAuthentication {'yes' if ssh.password_login else 'no'}")
    for kind in sorted({*given, *wanted} - {*IMAGE_KINDS}):
        lines.append(f"HostKey /etc/ssh/ssh_host_{kind}_key")
    for key in ssh.host_keys:
        if key.certificate:
            lines.append(f"HostCertificate /etc/ssh/ssh_host_{key.kind}_key-cert.pub")
    if lines or "sshd" in made:
        yield SshdSettings(tuple(lines))
    if lines or "sshd" in made or ssh.host_keys or wanted:
        yield ReloadSshd()
    if ssh.tell_keys:
        yield TellHostKeys()


def _files(files: Iterable[File]) -> Iterator[WriteFile | AppendFile | FetchFile]:
    """The files in their order; what is added to one that is written whole is written with it.

    Else a file that is written and then added to would look edited at the next boot.
    """
    whole: dict[tuple[str, bool], list[File]] = {}
    added: dict[tuple[str, bool], list[File]] = {}
    fetched: list[FetchFile] = []
    for file in files:
        place = (file.path, file.defer)
        if file.source is not None:
            fetched.append(_fetch(file, file.source.url, file.source.headers))
        elif not file.append:
            whole[place] = [file]
            added.pop(place, None)  # it would be lost at once
        elif place in whole:
            whole[place].append(file)
        else:
            added.setdefault(place, []).append(file)
    for (path, defer), parts in whole.items():
        mode = next((part.mode for part in reversed(parts) if part.mode is not None), 0o644)
        owner = next((part.owner for part in reversed(parts) if part.owner), "root:root")
        yield WriteFile(path, b"".join(part.content for part in parts), mode, owner, defer)
    for parts in added.values():
        for part in parts:
            yield AppendFile(part.path, part.content, part.mode, part.owner, part.defer)
    yield from fetched


def _fetch(file: File, url: str, headers: tuple[tuple[str, str], ...]) -> FetchFile:
    content = file.content if file.has_content else None
    return FetchFile(
        file.path, url, headers, content, file.mode, file.owner, file.append, file.defer
    )


def _storage(storage: Storage) -> Iterator[Change]:
    for directory in storage.directories:
        yield MakeDirectory(directory)
    for file in storage.files:
        mode, owner = 0o644 if file.mode is None else file.mode, file.owner or "root:root"
        if file.source is not None:
            yield DownloadFile(file.path, file.source, mode, owner, file.overwrite)
        elif file.content is None:
            yield AppendFile(file.path, file.appended, file.mode, file.owner)
        else:
            place = WriteFile if file.overwrite else CreateFile
            yield place(file.path, file.content, mode, owner)
    for link in storage.links:
        yield MakeLink(link)


def _service_files(config: Config, metadata: Metadata) -> Iterator[Change]:
    yield from coreos.oem_file(config)
    window = config.proa.reboot_window or config.reboot_window
    if settings := dict((*config.update, *window, *config.proa.update)):
        yield SetUpdateSettings(tuple(sorted(settings.items())))
    yield from coreos.flannel_file(config)
    yield from coreos.environment(config, metadata.addresses)
    yield from own.health_files(config.proa)
    yield from own.container_files(config.proa)


def _scripts(understood: Understood, instance_id: str) -> Iterator[Change]:
    """The owner's scripts: they run when the machine is up, as cloud-init's do."""
    for script in understood.scripts:
        yield RunScript(script.name, script.content, _OFTEN[script.frequency], "final", instance_id)


_OFTEN: Mapping[str, Frequency] = {
    "per-boot": "boot",
    "per-instance": "instance",
    "per-once": "once",
}


def _unit_changes(config: Config, *, network: bool) -> Iterator[Change]:
    storage = config.storage
    units = tuple(_by_our_names(unit) for unit in config.units)
    placed = (*(file.path for file in storage.files), *(link.path for link in storage.links))
    downloads = tuple(file.path for file in storage.files if file.source)
    written = {stage(file) for file in _files(config.write_files) if _is_unit(file.path)}
    for unit in units:
        for_networkd = unit.name.endswith((".network", ".netdev", ".link"))
        base = "/run" if unit.runtime else "/etc"
        folder = f"{base}/systemd/{'network' if for_networkd else 'system'}"
        path = f"{folder}/{unit.name}"
        if unit.mask and not for_networkd:
            yield MaskUnit(path)
        elif unit.content is not None:
            yield WriteFile(path, unit.content.encode())
        elif (unit.runtime or unit.unmask) and not for_networkd:
            yield UnmaskUnit(path)
        for drop_in in unit.drop_ins:
            yield WriteFile(f"{path}.d/{drop_in.name}", drop_in.content.encode())
        missing = unit.name in NOT_HERE and unit.content is None
        if unit.enable and not (unit.mask or for_networkd or missing):
            yield EnableUnit(unit.name, unit.runtime, "network" if path in downloads else "local")
        if unit.disable and not missing:
            yield DisableUnit(unit.name)
    services = (*coreos.service_changes(config), *own.container_units(config.proa))
    yield from services
    if units or services or _of_systemd(placed) or "local" in written:
        yield ReloadUnits()
    if units or services or network or _of_systemd(placed):
        yield RestartNetwork()
    for unit in units:
        if unit.command and not unit.name.endswith((".network", ".netdev", ".link")):
            yield CommandUnit(unit.name, unit.command, if_there=unit.name in NOT_HERE)
    yield from coreos.service_commands(config)
    yield from own.container_starts(config.proa)
    if _of_systemd(downloads) or "network" in written:
        yield ReloadUnits("network")
    if "final" in written:  # before the scripts, which may start it
        yield ReloadUnits("final")
    for unit in units:
        if unit.at_boot and not unit.mask and unit.disable:
            yield CommandUnitOnce(unit.name, "stop")
        if unit.at_boot and not unit.mask and unit.enable:  # it may need what is downloaded
            yield CommandUnitOnce(unit.name, "start", "network" if downloads else "local")


def _is_unit(path: str) -> bool:
    return path.startswith(("/etc/systemd/system/", "/run/systemd/system/"))


def _of_systemd(paths: Iterable[str]) -> bool:
    return any(path.startswith("/etc/systemd/") for path in paths)


# The system.

_TIMESYNCD = "systemd-timesyncd.service"
_RESOLVED = "systemd-resolved.service"


def _early_changes(system: System, instance_id: str) -> Iterator[Change]:
    if system.bootcmd:
        yield RunScript("bootcmd", system.bootcmd, "boot", "local", instance_id)
    if system.seed:
        yield SeedRandom(system.seed)
    yield from _disk_changes(system.disks)
    if system.timezone:
        yield SetTimezone(system.timezone)


def _disk_changes(disks: Disks) -> Iterator[Change]:
    from proa.machine.cloudconfig.keys.disks import MountLine

    for table in disks.tables:
        yield PartitionDisk(table)
    for file_system in disks.file_systems:
        yield MakeFileSystem(file_system)
    lines = disks.mounts or ()
    if disks.swap:
        yield MakeSwapFile(disks.swap)
        lines = (*lines, MountLine(disks.swap.path, "none", "swap", "sw,nofail", "0", "0"))
    if disks.mounts is not None or disks.swap:
        yield SetMounts(lines)
    for line in lines:
        yield Mount(line)


def _setting_changes(system: System) -> Iterator[Change]:
    """Files of settings, and the services that read them."""
    if system.locale:
        yield WriteFile("/etc/locale.conf", f"LANG={system.locale}\n".encode())
    if system.trust:
        yield TrustCertificates(system.trust)
    if clock := system.clock:
        if clock.servers:
            text = f"[Time]\nNTP={' '.join(clock.servers)}\n"
            yield WriteFile("/etc/systemd/timesyncd.conf.d/50-cloud-config.conf", text.encode())
        yield EnableUnit(_TIMESYNCD)
        yield RestartService(_TIMESYNCD, "timesyncd.conf.d")
    if resolver := system.resolver:
        text = "[Resolve]\n"
        text += f"DNS={' '.join(resolver.servers)}\n" if resolver.servers else ""
        text += f"Domains={' '.join(resolver.domains)}\n" if resolver.domains else ""
        yield WriteFile("/etc/systemd/resolved.conf.d/50-cloud-config.conf", text.encode())
        yield RestartService(_RESOLVED, "resolved.conf.d")


def _final_changes(system: System, instance_id: str) -> Iterator[Change]:
    if system.runcmd:
        yield RunScript("runcmd", system.runcmd, "instance", "final", instance_id)
    ending = system.ending
    if ending.home:
        yield PhoneHome(ending.home, instance_id)
    if ending.message:
        yield SayFinal(ending.message)
    if ending.power:
        yield ChangePower(ending.power, instance_id)


def _by_our_names(unit: Unit) -> Unit:
    """A unit of CoreOS as the one that does its work here, unless the document brings its own."""
    name = OTHER_NAMES.get(unit.name, unit.name)
    return unit if unit.content is not None else replace(unit, name=name)
