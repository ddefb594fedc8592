"""From a tree of texts to what the document says: typed, checked, each problem with its line.

The keys and their meaning are those of coreos-cloudinit (reference: docs/cloud-config.md); what
only cloud-init has is named as such. How each is read stands in ``keys/``.
"""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.keys import names, ssh
from proa.machine.cloudconfig.keys.elsewhere import ELSEWHERE
from proa.machine.cloudconfig.keys.etcd import Etcd, read_etcd
from proa.machine.cloudconfig.keys.groups import Group, read_groups
from proa.machine.cloudconfig.keys.names import Names, read_names
from proa.machine.cloudconfig.keys.oem import Oem, read_oem
from proa.machine.cloudconfig.keys.options import Variables
from proa.machine.cloudconfig.keys.passwords import Password, read_passwords
from proa.machine.cloudconfig.keys.proa import Proa, read_proa
from proa.machine.cloudconfig.keys.services import read_flannel, read_fleet, read_locksmith
from proa.machine.cloudconfig.keys.ssh import Ssh, read_ssh
from proa.machine.cloudconfig.keys.storage import NO_STORAGE, Storage
from proa.machine.cloudconfig.keys.units import Unit, read_unit
from proa.machine.cloudconfig.keys.update import read_update
from proa.machine.cloudconfig.keys.users import (
    CORE,
    User,
    merged,
    read_default_user,
    read_import_ids,
    read_users,
)
from proa.machine.cloudconfig.keys.write_files import File, read_file
from proa.machine.cloudconfig.parse import Node, Problem
from proa.machine.cloudconfig.reader import Reader
from proa.machine.hints import TYPE_CHECKING
from proa.machine.record import dataclass, field

if TYPE_CHECKING:
    from proa.machine.cloudconfig.keys.system import System


@dataclass(frozen=True)
class Config:
    """What a document says: a cloud-config, or an Ignition or Butane config."""

    names: Names = field(default_factory=Names)
    default_user: str = CORE
    """Whom the top-level keys and the cloud's keys are for; ``users`` has it too if not core."""
    ssh_authorized_keys: tuple[str, ...] = field(default=(), repr=False)
    ssh_import: tuple[str, ...] = field(default=(), repr=False)
    ssh: Ssh = field(default_factory=Ssh)
    groups: tuple[Group, ...] = ()
    users: tuple[User, ...] = ()
    passwords: tuple[Password, ...] = ()
    write_files: tuple[File, ...] = ()
    update: Variables = ()
    units: tuple[Unit, ...] = ()
    oem: Oem = field(default_factory=Oem)
    etcd: Etcd = field(default_factory=Etcd)
    locksmith: Variables = field(default=(), repr=False)
    fleet: Variables = field(default=(), repr=False)
    flannel: Variables = field(default=(), repr=False)
    reboot_window: Variables = ()
    proa: Proa = field(default_factory=Proa)
    storage: Storage = NO_STORAGE
    system: System | None = None


def read(root: Node | None, reader: Reader | None = None) -> tuple[Config, tuple[Problem, ...]]:
    """What the document says, and what is wrong with it. With an error, the config is void.

    ``reader`` collects the problems; another one than usual is for who wants to watch.
    """
    reader = reader or Reader()
    config = Config() if root is None else _config(reader, root)
    return config, reader.told()


# The keys. What is not taken is told by name, with what to do instead where there is something.

_ELSEWHERE: Mapping[str, str] = {
    **ELSEWHERE,
    "network": "is not taken in user-data, as in cloud-init; a network-config beside it is",
    **ssh.ELSEWHERE,
}
# Those that cloud-init brought, about the system.
_SYSTEM = (
    *("bootcmd", "runcmd", "random_seed", "timezone", "locale", "ntp", "ca_certs"),
    *("resolv_conf", "manage_resolv_conf", "growpart", "resize_rootfs"),
    *("device_aliases", "disk_setup", "fs_setup", "mounts", "mount_default_fields", "swap"),
    *("power_state", "phone_home", "final_message"),
)
_ELSEWHERE_COREOS = {"write_files": "belongs beside coreos, not below it; ignored"}
_KNOWN = (
    *("ssh_authorized_keys", "ssh_import_id", "user", "users", "groups", "chpasswd", "password"),
    *("write_files", "coreos", "proa"),
    *names.KEYS,
    *ssh.KEYS,
)
_KNOWN_COREOS = ("update", "units", "oem", "etcd", "etcd2", "fleet", "locksmith", "flannel")


def _config(r: Reader, root: Node) -> Config:
    top = r.table(root, "", (*_KNOWN, *_SYSTEM), _ELSEWHERE)
    coreos = r.table(top.get("coreos"), "coreos", _KNOWN_COREOS, _ELSEWHERE_COREOS)
    locksmith, window = read_locksmith(r, coreos.get("locksmith"))
    default = read_default_user(r, top.get("user"))
    default_user = default.name if default else CORE
    return Config(
        names=read_names(r, top),
        default_user=default_user,
        ssh_authorized_keys=r.ssh_keys(top.get("ssh_authorized_keys"), "ssh_authorized_keys"),
        ssh_import=read_import_ids(r, top.get("ssh_import_id"), "ssh_import_id"),
        ssh=read_ssh(r, top),
        groups=read_groups(r, top.get("groups"), "groups"),
        users=merged((*((default,) if default else ()), *read_users(r, top.get("users"), "users"))),
        passwords=read_passwords(r, top.get("chpasswd"), top.get("password"), default_user),
        write_files=r.each(top.get("write_files"), "write_files", read_file),
        update=read_update(r, coreos.get("update")),
        units=r.each(coreos.get("units"), "coreos.units", read_unit),
        system=_system(r, top),
        oem=read_oem(r, coreos.get("oem")),
        etcd=read_etcd(r, coreos.get("etcd"), coreos.get("etcd2")),
        locksmith=locksmith,
        fleet=read_fleet(r, coreos.get("fleet")),
        flannel=read_flannel(r, coreos.get("flannel")),
        reboot_window=window,
        proa=read_proa(r, top.get("proa")),
    )


def _system(r: Reader, top: Mapping[str, Node]) -> System | None:
    if not any(key in top for key in _SYSTEM):
        return None
    from proa.machine.cloudconfig.keys.system import read_system  # most documents need none of it

    return read_system(r, top)
