"""What the sections of ``coreos`` ask for beside units: files, drop-ins and commands.

The files are those that coreos-cloudinit wrote, in its places and its order
(``reference/coreos/cloudinit.md`` 3.2 and 3.3). Where Proa does a thing in another way, it says so:

* etcd and etcd2 are one etcd 3.5, ``etcd.service``; ``etcd2.service`` is another name of it.
* No update engine stays in memory that a changed group or server would have to be told.
* locksmithd.service is commanded if this version has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proa.machine.cloudconfig.changes import (
    ENVIRONMENT,
    Change,
    CommandUnit,
    MaskUnit,
    SetEnvironment,
    UnmaskUnit,
    WriteFile,
)
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.keys.options import Variables, command_word, environment_drop_in

_LOCKSMITH = "locksmithd.service"
_ADDRESSES = ("private_ipv4", "private_ipv6", "public_ipv4", "public_ipv6")


def oem_file(config: Config) -> Iterator[Change]:
    if config.oem.id:
        yield WriteFile("/etc/oem-release", config.oem.release.encode())


def flannel_file(config: Config) -> Iterator[Change]:
    if config.flannel:
        content = "\n".join(f"{name}={value}" for name, value in config.flannel)
        yield WriteFile("/run/flannel/options.env", content.encode(), _mode(config.flannel))


def environment(config: Config, addresses: Mapping[str, str]) -> Iterator[Change]:
    """The addresses that the cloud gave, unless the document writes the file itself."""
    if any(file.path == ENVIRONMENT for file in config.write_files):
        return
    known = {name: addresses.get(name, "") for name in _ADDRESSES}
    variables = {f"COREOS_{n.upper()}": text for n, text in known.items() if _is_address(text)}
    if variables:
        yield SetEnvironment(tuple(variables.items()))


def service_changes(config: Config) -> Iterator[Change]:
    """What comes after the document's own units and before systemd reads all of them."""
    directories = tuple(
        # As root ("+"): the user etcd may make nothing outside of its home.
        "ExecStartPre=+/usr/bin/install -d -o etcd -g etcd -m 0700 -- " + command_word(path)
        for path in config.etcd.directories
    )
    variables = config.etcd.variables
    if variables and "ETCD_NAME" not in dict(variables):
        # The machine id, as CoreOS did: host names may be alike, and members may not.
        named = b'Environment="ETCD_NAME=%m"\n'
    else:
        named = b""
    if variables:
        content = environment_drop_in(variables, directories)
        yield from _drop_in("etcd.service", content + named, 0o644)
    for unit, pairs in (("fleet.service", config.fleet), (_LOCKSMITH, config.locksmith)):
        if pairs:
            yield from _drop_in(unit, environment_drop_in(pairs), _mode(pairs))
    strategy = dict(config.update).get("REBOOT_STRATEGY")
    if strategy == "off":
        yield MaskUnit(f"/run/systemd/system/{_LOCKSMITH}")
    elif strategy:
        yield UnmaskUnit(f"/run/systemd/system/{_LOCKSMITH}")


def service_commands(config: Config) -> Iterator[Change]:
    """What comes after the commands of the document's own units."""
    if strategy := dict(config.update).get("REBOOT_STRATEGY"):
        command = "stop" if strategy == "off" else "restart"
        yield CommandUnit(_LOCKSMITH, command, if_there=True)


def _drop_in(unit: str, content: bytes, mode: int) -> Iterator[Change]:
    path = f"/run/systemd/system/{unit}"
    yield UnmaskUnit(path)
    yield WriteFile(f"{path}.d/20-cloudinit.conf", content, mode)


def _mode(variables: Variables) -> int:
    return 0o600 if any(name.endswith("_PASSWORD") for name, _ in variables) else 0o644


def _is_address(text: str) -> bool:
    if not text or "%" in text:
        return False
    from ipaddress import ip_address  # a boot without a cloud need not pay for it

    try:
        ip_address(text)
    except ValueError:
        return False
    return True
