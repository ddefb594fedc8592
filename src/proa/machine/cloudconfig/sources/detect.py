"""From what a machine shows of itself to an ordered list of places to look. Pure.

Most machines have exactly one such place, many have none, and then nobody waits for a network.
The order decides where several are good; docs/datasources.md has it as a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proa.machine.cloudconfig.parse import Problem, printable
from proa.machine.cloudconfig.sources import facts as known
from proa.machine.cloudconfig.sources.facts import Facts, value_of
from proa.machine.record import dataclass, field, replace

LOCAL = (
    "nocloud",
    "credentials",
    "fw-cfg",
    "config-drive",
    "ovf",
    "vmware",
    "xen",
    "vagrant",
    "file",
    "oem",
)
"""Kinds of source that need no network, the first to be asked first (``nocloud`` comes again
after ``config-drive`` where it is a disk)."""

SERVICES: Mapping[str, str] = {
    "ec2": "http://169.254.169.254",
    "gce": "http://169.254.169.254",
    "azure": "http://169.254.169.254",
    "openstack": "http://169.254.169.254",
    "digitalocean": "http://169.254.169.254",
    "packet": "https://metadata.packet.net",
    "hetzner": "http://169.254.169.254",
    "oracle": "http://169.254.169.254",
    "aliyun": "http://100.100.100.200",
}
"""Metadata services and where they are; the order decides between two that are good."""

EC2_IPV6 = "http://[fd00:ec2::254]"

KINDS = (*LOCAL, "url", *SERVICES)

MAX_DEADLINE = 600
"""Longest time in seconds that a boot may wait for a service; its unit ends it after 15 minutes."""

AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"

_SERIAL = "SMBIOS serial number"
_CMDLINE = "kernel command line"

_OPENSTACK_PRODUCTS = ("OpenStack Nova", "OpenStack Compute")
_OPENSTACK_CHASSIS = (*_OPENSTACK_PRODUCTS, "OpenTelekomCloud", "SAP CCloud VM", "HUAWEICLOUD")

# Names of platforms that images of CoreOS and its children have on their kernel command line.
_PLATFORM_WORDS = ("proa.platform", "coreos.oem.id", "flatcar.oem.id", "ignition.platform.id")
_PLATFORMS = {
    "aws": "ec2",
    "ec2": "ec2",
    "ec2-compat": "ec2",
    "gce": "gce",
    "gcp": "gce",
    "azure": "azure",
    "openstack": "openstack",
    "digitalocean": "digitalocean",
    "packet": "packet",
    "equinixmetal": "packet",
    "hetzner": "hetzner",
    "oraclecloud": "oracle",
    "aliyun": "aliyun",
    "vmware": "vmware",
}


@dataclass(frozen=True)
class Candidate:
    """A place to look. ``at`` is a label, a path or an address, as its kind wants it.

    ``seed`` is what ``ds=nocloud;…`` says itself: ``instance-id``, ``local-hostname``. An
    ``explicit`` one was named by the owner: no other of the network is taken before it has failed.
    """

    kind: str
    at: str = field(default="", repr=False)
    why: str = ""
    explicit: bool = False
    seed: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Candidates:
    local: tuple[Candidate, ...] = ()
    network: tuple[Candidate, ...] = ()
    problems: tuple[Problem, ...] = ()


def detect(facts: Facts) -> Candidates:
    wanted, where = _wanted(facts)
    local = tuple(_local(facts))
    network = tuple(_network(facts))
    problems: list[Problem] = []
    if facts.share == "no driver":
        message = "a 9p share is attached and this kernel has no driver for 9p; not looked at"
        problems.append(Problem("warning", message))
    problems += _doubts(facts)
    if wanted is None:
        return Candidates(local, network, tuple(problems))
    named: dict[str, str] = {}
    for word in wanted.replace(",", " ").split():
        name, _, address = word.partition("@")
        name = name.lower()
        if name in KINDS:
            named[name] = address
        elif name != "none":
            problems.append(_unknown(name, where))
    return Candidates(
        tuple(c for c in local if c.kind in named),
        tuple(_forced(named, network, where)),
        tuple(problems),
    )


def _wanted(facts: Facts) -> tuple[str | None, str]:
    if (given := value_of(facts.cmdline, "proa.datasource")) is not None:
        return given, f"{_CMDLINE}, proa.datasource"
    return facts.settings.get("DATASOURCE"), f"{known.SETTINGS[0]}, DATASOURCE"


def deadline(facts: Facts) -> int | None:
    """The setting ``DEADLINE`` in seconds; ``None`` without a usable one."""
    given = facts.settings.get("DEADLINE", "")
    usable = given.isascii() and given.isdigit() and len(given) < 6
    return int(given) if usable and 0 < int(given) <= MAX_DEADLINE else None


def _doubts(facts: Facts) -> Iterator[Problem]:
    """Settings that are not known, or not usable."""
    for key in facts.settings:
        if key not in ("DATASOURCE", "DEADLINE"):
            shown = printable(key)
            message = f"{known.SETTINGS[0]}: {shown} is no setting (DATASOURCE, DEADLINE); ignored"
            yield Problem("warning", message)
    if "DEADLINE" in facts.settings and deadline(facts) is None:
        message = f"{known.SETTINGS[0]}: DEADLINE is a number of seconds up to {MAX_DEADLINE}"
        yield Problem("warning", f"{message}; ignored")


def _unknown(name: str, where: str) -> Problem:
    import difflib  # a mistake is rare

    near = difflib.get_close_matches(name, KINDS, 1)
    hint = f'; did you mean "{near[0]}"?' if near else f": one of {', '.join((*KINDS, 'none'))}"
    return Problem("warning", f"{where}: {printable(name)} is no kind of source; ignored{hint}")


def _forced(
    named: Mapping[str, str], network: tuple[Candidate, ...], where: str
) -> Iterator[Candidate]:
    """Those that were found of the named kinds, and the named services that were not found."""
    found = [candidate for candidate in network if candidate.kind in named]
    for candidate in found:
        if address := named[candidate.kind]:
            if not candidate.explicit and candidate.at != EC2_IPV6:
                yield replace(candidate, at=address, why=where)
        else:
            yield candidate
    for kind, base in SERVICES.items():
        if kind in named and not any(candidate.kind == kind for candidate in found):
            yield Candidate(kind, named[kind] or base, where)


# Without a network.


def _local(facts: Facts) -> Iterator[Candidate]:
    seed = nocloud_seed(facts)
    if seed is not None:
        fields, where = seed
        address = fields.get("seedfrom", "")
        if address.startswith(("file://", "/")):
            path = address.removeprefix("file://")
            yield Candidate("nocloud", path, where, explicit=True, seed=fields)
    if facts.credentials:
        yield Candidate("credentials", facts.credentials, "systemd credential")
    if facts.fw_cfg:
        yield Candidate("fw-cfg", facts.fw_cfg, "QEMU fw_cfg")
    if facts.share == "9p":
        yield Candidate("config-drive", "9p", "9p share")
    yield from _disks(facts, "config-drive")
    disks = list(_disks(facts, "nocloud"))
    if seed is not None and "seedfrom" not in seed[0]:
        # What the command line says itself goes before what the disk says, if there is one.
        fields, where = seed
        disks = [replace(disk, seed=fields) for disk in disks]
        disks = disks or [Candidate("nocloud", "", where, explicit=True, seed=fields)]
    yield from disks
    yield from _files(facts, "nocloud")
    if not is_azure(facts):  # there it is read together with the metadata service
        yield from _disks(facts, "ovf")
    if _is_vmware(facts):
        yield Candidate("vmware", "", "SMBIOS")
    if facts.xenbus or facts.hypervisor == "xen":
        yield Candidate("xen", facts.xenbus, "Xen")
    for kind in ("vagrant", "file"):
        yield from _files(facts, kind)
    yield from _files(facts, "oem")
    if "OEM" in facts.labels:
        yield Candidate("oem", f"/dev/disk/by-label/{facts.labels['OEM']}", "disk label")


def _disks(facts: Facts, kind: str) -> Iterator[Candidate]:
    for label, its_kind in known.LABELS.items():
        if its_kind == kind and label in facts.labels:
            yield Candidate(kind, f"/dev/disk/by-label/{facts.labels[label]}", "disk label")


def _files(facts: Facts, kind: str) -> Iterator[Candidate]:
    for path in facts.files:
        if known.FILES[path] == kind:
            yield Candidate(kind, path, "file")


def _is_vmware(facts: Facts) -> bool:
    vendor, product = facts.dmi.get("sys_vendor", ""), facts.dmi.get("product_name", "")
    return vendor.startswith("VMware") or product.startswith("VMware")


def is_azure(facts: Facts) -> bool:
    return facts.dmi.get("chassis_asset_tag") == AZURE_CHASSIS


# With a network.


def _network(facts: Facts) -> Iterator[Candidate]:
    if address := value_of(facts.cmdline, "cloud-config-url", "cloud_config_url"):
        yield Candidate("url", address, _CMDLINE, explicit=True)
    if (seed := nocloud_seed(facts)) is not None:
        fields, where = seed
        if (address := fields.get("seedfrom", "")) and not address.startswith(("file://", "/")):
            yield Candidate("nocloud", address, where, explicit=True, seed=fields)
    kinds = dict.fromkeys(_services(facts), "SMBIOS")
    platform = value_of(facts.cmdline, *_PLATFORM_WORDS) or ""
    if (kind := _PLATFORMS.get(platform.lower(), "")) and kind in SERVICES:
        kinds.setdefault(kind, _CMDLINE)
    for kind, base in SERVICES.items():
        if kind in kinds:
            yield Candidate(kind, base, kinds[kind])
            if kind == "ec2":
                yield Candidate(kind, EC2_IPV6, kinds[kind])


def _services(facts: Facts) -> Iterator[str]:
    """The clouds whose marks are in the SMBIOS tables (as cloud-init's ds-identify knows them)."""
    dmi = facts.dmi
    vendor, product = dmi.get("sys_vendor", ""), dmi.get("product_name", "")
    serial, chassis = dmi.get("product_serial", ""), dmi.get("chassis_asset_tag", "")
    if _is_ec2(facts):
        yield "ec2"
    if product in ("Google Compute Engine", "Google") or serial.startswith("GoogleCloud-"):
        yield "gce"
    if is_azure(facts):
        yield "azure"
    if product in _OPENSTACK_PRODUCTS or chassis in _OPENSTACK_CHASSIS:
        yield "openstack"
    if vendor == "DigitalOcean":
        yield "digitalocean"
    if vendor == "Hetzner":
        yield "hetzner"
    if chassis == "OracleCloud.com":
        yield "oracle"
    if product == "Alibaba Cloud ECS":
        yield "aliyun"


def _is_ec2(facts: Facts) -> bool:
    dmi = facts.dmi
    vendor, serial = dmi.get("sys_vendor", ""), dmi.get("product_serial", "").lower()
    if facts.hypervisor_uuid.lower().startswith("ec2"):
        return True
    # Xen: both begin with "ec2" and are equal. Nitro: the vendor says so.
    if serial.startswith("ec2") and serial == dmi.get("product_uuid", "").lower():
        return True
    if "Amazon EC2" in (vendor, dmi.get("bios_vendor")):
        return True
    # Others with the same interface.
    return (
        serial.endswith(".brightbox.com")
        or dmi.get("chassis_asset_tag", "").endswith(".zstack.io")
        or vendor in ("e24cloud", "3DS Outscale")
    )


# NoCloud's own way to say it.

_SEED_NAMES = {"s": "seedfrom", "h": "local-hostname", "i": "instance-id"}

_DMI_WORDS = {
    "system-manufacturer": "sys_vendor",
    "system-product-name": "product_name",
    "system-serial-number": "product_serial",
    "system-uuid": "product_uuid",
    "system-version": "product_version",
    "chassis-asset-tag": "chassis_asset_tag",
    "chassis-manufacturer": "chassis_vendor",
    "chassis-serial-number": "chassis_serial",
    "baseboard-product-name": "board_name",
    "baseboard-manufacturer": "board_vendor",
    "baseboard-serial-number": "board_serial",
    "baseboard-asset-tag": "board_asset_tag",
}


def nocloud_seed(facts: Facts) -> tuple[dict[str, str], str] | None:
    """The fields of ``ds=nocloud[;name=value…]`` and where it stands; ``None`` without one.

    The kernel command line goes before the SMBIOS serial number. In an address,
    ``__dmi.system-uuid__`` and its kin stand for this machine's own (cloudinit.readthedocs.io,
    "NoCloud").
    """
    serial = tuple(facts.dmi.get("product_serial", "").split())
    for line, where in ((facts.cmdline, _CMDLINE), (serial, _SERIAL)):
        given = value_of(line, "ds")
        name, _, rest = (given or "").partition(";")
        if name.lower() not in ("nocloud", "nocloud-net"):
            continue
        fields = {}
        for item in rest.split(";"):
            key, equals, value = item.partition("=")
            if equals and value:
                fields[_SEED_NAMES.get(key, key)] = value
        if "seedfrom" in fields:
            fields["seedfrom"] = _with_dmi(fields["seedfrom"], facts.dmi)
        return fields, where
    return None


def _with_dmi(address: str, dmi: Mapping[str, str]) -> str:
    import re
    from urllib.parse import quote  # both: only for an address on the command line

    def fill(match: re.Match[str]) -> str:
        name = _DMI_WORDS.get(match[1])
        # A value is one part of a path and nothing more, whatever it holds.
        return quote(dmi.get(name, ""), safe="") if name else match[0]

    return re.sub(r"__dmi\.([a-z-]+)__", fill, address)
