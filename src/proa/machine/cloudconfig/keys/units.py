"""``coreos.units``: unit files, drop-ins, and what to do with them."""

from __future__ import annotations

import re

from proa.machine.cloudconfig.parse import Node, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass, field


@dataclass(frozen=True)
class DropIn:
    name: str
    content: str = field(repr=False)


@dataclass(frozen=True)
class Unit:
    name: str
    content: str | None = field(default=None, repr=False)
    drop_ins: tuple[DropIn, ...] = ()
    enable: bool = False
    runtime: bool = False
    mask: bool = False
    command: str | None = None
    # What only Ignition says.
    disable: bool = False
    unmask: bool = False
    at_boot: bool = False
    """Enabled, it runs from this boot on; disabled, it does not run even in this boot."""


_UNIT_STEM = r"[A-Za-z0-9:_.\\@-]{1,200}"
UNIT_NAME = re.compile(
    _UNIT_STEM + r"\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope"
    r"|network|netdev|link)"
)
DROP_IN_NAME = re.compile(r"[A-Za-z0-9:_.@-]{1,200}\.conf")

COMMANDS = (
    "start",
    "stop",
    "restart",
    "reload",
    "try-restart",
    "reload-or-restart",
    "reload-or-try-restart",
)

# Units of CoreOS that a document may command, and what stands for them here.
OTHER_NAMES = {
    "etcd2.service": "etcd.service",
    "update-engine.service": "proa-update.timer",
    "update-engine-stub.service": "proa-update.timer",
    "update-engine-stub.timer": "proa-update.timer",
}
LOCKSMITHD = "locksmithd.service"
"""Who masks it wants no restarts, and must hear that it has them."""
NOT_HERE = {
    "fleet.service": "there is no fleet; start units with coreos.units",
    "fleet.socket": "there is no fleet; start units with coreos.units",
    "flanneld.service": "there is no flanneld; run it in a container",
    "early-docker.service": "there is one docker, docker.service",
    "etcd-member.service": "there is one etcd, etcd.service; coreos.etcd2 sets it up",
    "coreos-metadata.service": "what the cloud says is in /etc/environment",
    "sshd.socket": "sshd listens by itself here, as ssh.service",
    "ntpd.service": "there is no ntpd; systemd-timesyncd keeps the time, so do not mask it",
    "iscsid.service": "there is no iSCSI",
    LOCKSMITHD: (
        "this version has no reboot manager of its own;"
        " whether the updater restarts the machine is said by coreos.update.reboot_strategy"
    ),
}

# CoreOS moved sshd's port by another sshd.socket, or gave sshd a service of its own.
_PORT = {
    "sshd.socket": "port 22 stays open all the same, by ssh.service",
    "sshd.service": "ssh.service has port 22, and the second of the two cannot listen on it",
}
_MOVE_PORT = "to move the port, write a Port line to /etc/ssh/sshd_config.d/port.conf instead"

# As CoreOS's own example of TLS had it: without a word, etcd would ask no client for a certificate.
_ETCD_CA = r"\bETCD_(?:PEER_)?CA_FILE\b"
_TRUSTED_CA = "say trusted_ca_file and client_cert_auth under coreos.etcd2 (peer_… likewise)"


def read_unit(r: Reader, node: Node, key: str) -> Unit | None:
    known = ("name", "content", "drop_ins", "enable", "runtime", "mask", "command")
    entries = r.table(node, key, known)
    name = r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.warn(node, key, f"{key} has no name; ignored")
        return None
    content = r.text(entries.get("content"), f"{key}.content")
    drop_ins = r.each(entries.get("drop_ins"), f"{key}.drop_ins", _drop_in)
    # The syntax of early 2014: "name: foo.service.d/10-x.conf" with content.
    stem, slash, conf = name.partition(".d/")
    if slash and UNIT_NAME.fullmatch(stem) and DROP_IN_NAME.fullmatch(conf) and content:
        name, drop_ins, content = stem, (*drop_ins, DropIn(conf, content)), None
    if not UNIT_NAME.fullmatch(name):
        message = f'{key}.name "{printable(name)}" is not the name of a unit like "web.service"'
        r.error(entries["name"], f"{key}.name", message)
    command = r.text(entries.get("command"), f"{key}.command")
    if command and command not in COMMANDS:
        message = f'{key}.command "{printable(command)}" is not one of {", ".join(COMMANDS)}'
        r.error(entries["command"], f"{key}.command", message)
    enable = r.flag(entries.get("enable"), f"{key}.enable")
    mask = r.flag(entries.get("mask"), f"{key}.mask")
    told = command or enable or (mask and name == LOCKSMITHD)
    if name in NOT_HERE and not content and told:
        r.warn(entries["name"], f"{key}.name", f"{name} is passed over: {NOT_HERE[name]}")
    if name in ("etcd.service", "etcd2.service"):
        for number, drop_in in enumerate(drop_ins):
            if lost := re.findall(_ETCD_CA, drop_in.content):
                here = f"{key}.drop_ins[{number}].content"
                message = f"{here} sets {lost[0]}, which etcd 3.5 does not read: {_TRUSTED_CA}"
                r.warn(entries["name"], here, message)
    if name in _PORT and content:
        r.warn(entries["name"], f"{key}.name", f"{name}: {_PORT[name]}; {_MOVE_PORT}")
    return Unit(
        name=name,
        content=content or None,
        drop_ins=drop_ins,
        enable=enable,
        runtime=r.flag(entries.get("runtime"), f"{key}.runtime"),
        mask=mask,
        command=command or None,
    )


def _drop_in(r: Reader, node: Node, key: str) -> DropIn | None:
    entries = r.table(node, key, ("name", "content"))
    name = r.text(entries.get("name"), f"{key}.name")
    content = r.text(entries.get("content"), f"{key}.content")
    if not name or not content:
        r.warn(node, key, f"{key} wants a name and content; ignored")
        return None
    if not DROP_IN_NAME.fullmatch(name):
        message = f'{key}.name "{printable(name)}" is not a file name like "10-web.conf"'
        r.error(entries["name"], f"{key}.name", message)
    return DropIn(name, content)
