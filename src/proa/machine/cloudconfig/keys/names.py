"""``hostname`` and its kin: what the machine is called, and whether ``/etc/hosts`` says so."""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.parse import Node, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import HOSTNAME_MAX, is_hostname
from proa.machine.hints import Literal
from proa.machine.record import dataclass

KEYS = (
    *("hostname", "fqdn", "prefer_fqdn_over_hostname", "preserve_hostname"),
    *("manage_etc_hosts", "create_hostname_file"),
)
"""The keys of the document that :func:`read_names` reads."""

Hosts = Literal["localhost", "template"]


@dataclass(frozen=True)
class Names:
    hostname: str = ""
    fqdn: str = ""
    prefer_fqdn: bool | None = None
    preserve: bool = False
    """The machine keeps the name that it has, whatever the document and the cloud say."""
    hosts: Hosts | None = None


def read_names(r: Reader, top: Mapping[str, Node]) -> Names:
    node = top.get("create_hostname_file")
    if node and not r.flag(node, "create_hostname_file", absent=True):
        message = "create_hostname_file: the name is kept in /etc/hostname in any case"
        r.warn(node, "create_hostname_file", message)
    return Names(
        hostname=_name(r, top.get("hostname"), "hostname"),
        fqdn=_name(r, top.get("fqdn"), "fqdn"),
        prefer_fqdn=r.maybe(top.get("prefer_fqdn_over_hostname"), "prefer_fqdn_over_hostname"),
        preserve=r.flag(top.get("preserve_hostname"), "preserve_hostname"),
        hosts=_hosts(r, top.get("manage_etc_hosts")),
    )


def short_and_full(names: Names, cloud: str) -> tuple[str, str]:
    """The name for the machine and its full name, both empty if nobody says one.

    CoreOS took ``hostname`` as it was written, dots and all, and so it is here; cloud-init's first
    label of it is to be had with ``prefer_fqdn_over_hostname: false``.
    """
    written = names.hostname or ("" if names.fqdn else cloud)
    full = names.fqdn or written
    short = full.partition(".")[0]
    if names.prefer_fqdn:
        return full, full
    if names.prefer_fqdn is False or not written:
        return written.partition(".")[0] or short, full
    return written, full


def _name(r: Reader, node: Node | None, key: str) -> str:
    name = r.text(node, key)
    if node is None or not name:
        return ""  # an empty name must not wipe the machine's
    if not is_hostname(name):
        message = (
            f'{key} "{printable(name)}" is not a host name: letters, digits and "-" (not first or '
            f"last), in parts with dots between; at most {HOSTNAME_MAX} characters"
        )
        r.error(node, key, message)
    return name


def _hosts(r: Reader, node: Node | None) -> Hosts | None:
    text = (r.text(node, "manage_etc_hosts") or "").lower()
    if text == "localhost":
        return "localhost"
    if text in ("template", "true", "yes", "on"):
        return "template"
    if node is not None and text not in ("", "false", "no", "off"):
        message = f'manage_etc_hosts "{printable(text)}" is not one of localhost, true, false'
        r.error(node, "manage_etc_hosts", message)
    return None


def hosts_file(form: Hosts, name: str, fqdn: str) -> str:
    """``/etc/hosts``: the one line of CoreOS, or what cloud-init's template makes on Debian."""
    if form == "localhost":
        return f"127.0.0.1 {name}\n"
    short = name.partition(".")[0]
    names = " ".join(dict.fromkeys((fqdn or name, short)))
    return (
        f"127.0.1.1 {names}\n127.0.0.1 localhost\n\n::1 localhost ip6-localhost ip6-loopback\n"
        "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )
