"""The keys about the system that cloud-init brought: clock, trust, names, disks and commands."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping

from proa.machine.cloudconfig.keys.commands import read_commands
from proa.machine.cloudconfig.keys.disks import Disks, read_disks
from proa.machine.cloudconfig.keys.ending import Ending, read_ending
from proa.machine.cloudconfig.parse import Node, Refused, Text, gunzip, printable, unbase64
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass, field

MAX_CERTIFICATES = 200
MAX_SERVERS = 32


@dataclass(frozen=True)
class Clock:
    """Where the time comes from: ``servers`` and ``pools``, in this order."""

    servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trust:
    """Certificates (PEM, one each) to trust beside, or instead of, those of the release."""

    trusted: tuple[str, ...] = ()
    remove_defaults: bool = False


@dataclass(frozen=True)
class Resolver:
    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    bootcmd: bytes | None = field(default=None, repr=False)
    runcmd: bytes | None = field(default=None, repr=False)
    seed: bytes = field(default=b"", repr=False)
    timezone: str | None = None
    locale: str | None = None
    clock: Clock | None = None
    trust: Trust | None = None
    resolver: Resolver | None = None
    disks: Disks = field(default_factory=Disks)
    ending: Ending = field(default_factory=Ending)


def read_system(r: Reader, top: Mapping[str, Node]) -> System:
    _check_growing(r, top)
    return System(
        bootcmd=read_commands(r, top.get("bootcmd"), "bootcmd"),
        runcmd=read_commands(r, top.get("runcmd"), "runcmd"),
        seed=_seed(r, top.get("random_seed")),
        timezone=_timezone(r, top.get("timezone")),
        locale=_locale(r, top.get("locale")),
        clock=_clock(r, top.get("ntp")),
        trust=_trust(r, top.get("ca_certs")),
        resolver=_resolver(r, top),
        disks=read_disks(r, top),
        ending=read_ending(r, top),
    )


_ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:%_-]{0,252}[A-Za-z0-9])?|::1?")
_DOMAIN = re.compile(r"~?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?|~\.")


def _addresses(r: Reader, node: Node | None, key: str, form: re.Pattern[str]) -> tuple[str, ...]:
    """A list of addresses or names, none of which can leave its place in a file of settings."""
    one = isinstance(node, Text) and r.text(node, key) is not None
    items = (node,) if one and node else r.items(node, key)
    found: list[str] = []
    for index, item in enumerate(items):
        text = r.text(item, f"{key}[{index}]") or ""
        if not form.fullmatch(text):
            message = f'{key}[{index}] "{printable(text)}" is not an address or a name'
            r.error(item, f"{key}[{index}]", message)
        found.append(text)
    if len(found) > MAX_SERVERS and node is not None:
        r.error(node, key, f"{key} has more than {MAX_SERVERS} entries")
    return tuple(dict.fromkeys(found))


# ntp (cc_ntp).

_NTP_ELSEWHERE = {
    "peers": "is ignored: systemd-timesyncd asks servers and has no peers",
    "allow": "is ignored: systemd-timesyncd gives the time to nobody; run a server in a container",
    "config": "is ignored: Proa's NTP client is systemd-timesyncd, with servers and pools",
}


def _clock(r: Reader, node: Node | None) -> Clock | None:
    known = ("servers", "pools", "enabled", "ntp_client")
    entries = r.table(node, "ntp", known, _NTP_ELSEWHERE)
    if node is None:
        return None
    client = r.text(entries.get("ntp_client"), "ntp.ntp_client") or "auto"
    if client not in ("auto", "systemd-timesyncd"):
        message = f'ntp.ntp_client "{printable(client)}" is not on Proa'
        r.warn(entries["ntp_client"], "ntp.ntp_client", f"{message}; systemd-timesyncd is used")
    servers = _addresses(r, entries.get("servers"), "ntp.servers", _ADDRESS)
    pools = _addresses(r, entries.get("pools"), "ntp.pools", _ADDRESS)
    if "enabled" in entries and not r.flag(entries["enabled"], "ntp.enabled"):
        return None  # as cloud-init: then nothing is configured
    return Clock(tuple(dict.fromkeys((*servers, *pools))))


# timezone (cc_timezone) and locale (cc_locale).

_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,32}){0,2}")


def _timezone(r: Reader, node: Node | None) -> str | None:
    text = r.text(node, "timezone")
    if node is None or not text:
        return None
    if not _ZONE.fullmatch(text):
        message = f'timezone "{printable(text)}" is not a time zone like Europe/Berlin'
        r.error(node, "timezone", message)
    return text


LOCALES = {"c.utf-8": "C.UTF-8", "c.utf8": "C.UTF-8", "c": "C", "posix": "C"}


def _locale(r: Reader, node: Node | None) -> str | None:
    text = r.text(node, "locale")
    if node is None or not text or text.lower() in ("false", "no", "off"):
        return None
    if found := LOCALES.get(text.lower()):
        return found
    message = f'locale "{printable(text)}" is not on Proa, which has only C.UTF-8; ignored'
    r.warn(node, "locale", f"{message}; a container brings its own")
    return None


# ca_certs (cc_ca_certs).

_BEGIN = ("-----BEGIN CERTIFICATE-----", "-----BEGIN X509 CERTIFICATE-----")
_END = ("-----END CERTIFICATE-----", "-----END X509 CERTIFICATE-----")
_DASHES = "-----"


def _trust(r: Reader, node: Node | None) -> Trust | None:
    entries = r.table(node, "ca_certs", ("trusted", "remove_defaults"))
    if node is None:
        return None
    value = entries.get("trusted")
    one = isinstance(value, Text) and not value.null
    items = (value,) if one and value else r.items(value, "ca_certs.trusted")
    found: list[str] = []
    for index, item in enumerate(items):
        key = f"ca_certs.trusted[{index}]"
        good, whole = certificates_in(r.text(item, key) or "")
        found += good
        if not good or not whole:  # it may be a private key: never show it
            message = f"{key} has something that is not a certificate in PEM form"
            r.error(item, key, message)
    if len(found) > MAX_CERTIFICATES:
        r.error(node, "ca_certs", f"ca_certs.trusted has more than {MAX_CERTIFICATES} certificates")
    removed = r.flag(entries.get("remove_defaults"), "ca_certs.remove_defaults")
    return Trust(tuple(dict.fromkeys(found)), removed)


def certificates_in(text: str) -> tuple[tuple[str, ...], bool]:
    """The certificates in a PEM text (RFC 7468), each made anew; whether all of it was taken.

    Lines outside of the blocks are explanations, as ``openssl x509 -text`` writes them.
    """
    good: list[str] = []
    whole = True
    block: list[str] | None = None
    for line in (line.strip() for line in text.split("\n")):
        if line in _BEGIN:
            whole = whole and block is None
            block = []
        elif line in _END and block is not None:
            certificate = _certificate("".join(block))
            whole = whole and certificate is not None
            good += [certificate] if certificate else []
            block = None
        elif line.startswith(_DASHES):
            whole = False
        elif block is not None:
            block.append(line)
    return tuple(good), whole and block is None


def _certificate(body: str) -> str | None:
    data = unbase64(body)
    # DER: a SEQUENCE of more than 127 octets; what is in it, openssl looks at on the machine.
    if data is None or data[:1] != b"\x30" or len(data) < 128:
        return None
    text = binascii.b2a_base64(data, newline=False).decode()
    wrapped = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{wrapped}\n-----END CERTIFICATE-----\n"


# resolv_conf (cc_resolv_conf).

_RESOLV_ELSEWHERE = {
    "sortlist": "is ignored: systemd-resolved has no such thing",
    "options": "is ignored: systemd-resolved has no such thing; write resolved.conf.d yourself",
}


def _resolver(r: Reader, top: Mapping[str, Node]) -> Resolver | None:
    node = top.get("resolv_conf")
    wanted = r.flag(top.get("manage_resolv_conf"), "manage_resolv_conf")
    known = ("nameservers", "searchdomains", "domain")
    entries = r.table(node, "resolv_conf", known, _RESOLV_ELSEWHERE)
    servers = _addresses(r, entries.get("nameservers"), "resolv_conf.nameservers", _ADDRESS)
    domain = _addresses(r, entries.get("domain"), "resolv_conf.domain", _DOMAIN)
    search = _addresses(r, entries.get("searchdomains"), "resolv_conf.searchdomains", _DOMAIN)
    if not wanted:
        if node is not None:
            message = 'resolv_conf is ignored without "manage_resolv_conf: true", as in cloud-init'
            r.warn(node, "resolv_conf", message)
        return None
    return Resolver(servers, tuple(dict.fromkeys((*domain, *search))))


# random_seed (cc_seed_random), growpart and resize_rootfs.

_SEED_ELSEWHERE = {
    "command": "is ignored: the kernel takes randomness from the processor and from virtio-rng",
    "command_required": "is ignored: no command is run",
}


def _seed(r: Reader, node: Node | None) -> bytes:
    known = ("file", "data", "encoding")
    entries = r.table(node, "random_seed", known, _SEED_ELSEWHERE)
    path = r.text(entries.get("file"), "random_seed.file") or "/dev/urandom"
    if path not in ("/dev/urandom", "/dev/random"):
        message = f'random_seed.file "{printable(path)}" is not /dev/urandom, which is taken'
        r.warn(entries["file"], "random_seed.file", message)
    node = entries.get("data")
    text = r.text(node, "random_seed.data") or ""
    encoding = (r.text(entries.get("encoding"), "random_seed.encoding") or "raw").lower()
    data: bytes | None = text.encode()
    if isinstance(node, Text) and node.binary is not None:
        data = node.binary
    if encoding in ("b64", "base64"):
        data = unbase64(text)
    elif encoding in ("gz", "gzip"):
        try:
            data = gunzip(data or b"", 1024 * 1024) if data else b""
        except Refused:
            data = None
    elif encoding != "raw":
        data = None
    if data is None:
        place = node or entries["encoding"]
        r.error(place, "random_seed.data", "random_seed.data is not what its encoding says")
    return data or b""


def _check_growing(r: Reader, top: Mapping[str, Node]) -> None:
    """The root grows by itself at the first boot: there is nothing to do, and no way not to."""
    always = "the root file system of Proa always grows to the end of its disk"
    known = ("mode", "devices", "ignore_growroot_disabled")
    growpart = r.table(top.get("growpart"), "growpart", known)
    mode = (r.text(growpart.get("mode"), "growpart.mode") or "auto").lower()
    if mode in ("off", "false", "no"):
        r.warn(growpart["mode"], "growpart.mode", f"growpart.mode is ignored: {always}")
    r.flag(growpart.get("ignore_growroot_disabled"), "growpart.ignore_growroot_disabled")
    devices = growpart.get("devices")
    if devices is not None and {*r.texts(devices, "growpart.devices")} - {"/"}:
        message = "growpart.devices is ignored but for /: make other partitions with disk_setup"
        r.warn(devices, "growpart.devices", message)
    resize = top.get("resize_rootfs")
    word = (r.text(resize, "resize_rootfs") or "true").lower()
    if resize is not None and word in ("off", "false", "no"):
        r.warn(resize, "resize_rootfs", f"resize_rootfs is ignored: {always}")
