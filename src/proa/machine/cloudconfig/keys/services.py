"""``coreos.locksmith``, ``coreos.fleet`` and ``coreos.flannel``: options of CoreOS's services."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.keys.options import Option, Variables, read_options
from proa.machine.cloudconfig.parse import Node
from proa.machine.cloudconfig.reader import Reader

_TEXT, _SECRET = Option(), Option(secret=True)

# locksmith's own rules for its window (reference/coreos/cloudinit.md 3.2).
WINDOW_START = r"((?i:sun|mon|tue|wed|thu|fri|sat) )?0*([0-9]|1[0-9]|2[0-3]):0*([0-9]|[1-5][0-9])"
# The same set of texts as the original's rule, written so that it never tries anything twice.
WINDOW_LENGTH = r"[-+]?([0-9]*(\.[0-9]*)?[a-z])+"
# Go's durations, without what the rule above also lets through.
DURATION = re.compile(r"([0-9]{1,9}(\.[0-9]{1,9})?(h|ms|m|s)){1,4}", re.ASCII)

LOCKSMITH: Mapping[str, Option] = {
    "endpoint": _TEXT,
    "etcd_cafile": _TEXT,
    "etcd_certfile": _TEXT,
    "etcd_keyfile": _TEXT,
    "etcd_username": _TEXT,
    "etcd_password": _SECRET,
    "group": _TEXT,
    "window_start": Option(words=(WINDOW_START, 'a time like "Thu 04:00" or "4:00"')),
    "window_length": Option(words=(DURATION.pattern, 'a length of time like "1h30m"')),
}
_WINDOW = {"window_start": "REBOOT_WINDOW_START", "window_length": "REBOOT_WINDOW_LENGTH"}

FLEET: Mapping[str, Option] = {
    "agent_ttl": _TEXT,
    "authorized_keys_file": _TEXT,
    "disable_engine": Option("flag"),
    "engine_reconcile_interval": Option("real"),
    "etcd_cafile": _TEXT,
    "etcd_certfile": _TEXT,
    "etcd_keyfile": _TEXT,
    "etcd_key_prefix": _TEXT,
    "etcd_request_timeout": Option("real"),
    "etcd_servers": _TEXT,
    "etcd_username": _TEXT,
    "etcd_password": _SECRET,
    "metadata": _TEXT,
    "public_ip": _TEXT,
    "token_limit": Option("number"),
    "verbosity": Option("number"),
    "verify_units": Option("flag"),
}

FLANNEL: Mapping[str, Option] = {
    "etcd_endpoints": _TEXT,
    "etcd_cafile": _TEXT,
    "etcd_certfile": _TEXT,
    "etcd_keyfile": _TEXT,
    "etcd_prefix": _TEXT,
    "etcd_username": _TEXT,
    "etcd_password": _SECRET,
    "ip_masq": _TEXT,
    "subnet_file": _TEXT,
    "interface": _TEXT,
    "public_ip": _TEXT,
}

_LATER_MANAGER = (
    "is written down for locksmithd, which this version does not have yet; Proa's updater restarts "
    "the machine as coreos.update.reboot_strategy says"
)
_NO_FLEET = (
    "is written down, but nothing reads it: there is no fleet (nobody looks after it since 2017); "
    "start units with coreos.units, or run Kubernetes or Nomad on top"
)
_NO_FLANNEL = "is written to /run/flannel/options.env; run flanneld in a container, it reads it"


def read_locksmith(r: Reader, node: Node | None) -> tuple[Variables, Variables]:
    """Variables for locksmithd.service, and those of them that belong into update.conf too."""
    values = read_options(r, node, "coreos.locksmith", LOCKSMITH)
    if node is not None and ("window_start" in values) != ("window_length" in values):
        message = "coreos.locksmith wants both window_start and window_length, or neither"
        r.error(node, "coreos.locksmith", message)
    _tell(r, node, "coreos.locksmith", values, _LATER_MANAGER)
    variables = tuple(
        (_WINDOW.get(name) or f"LOCKSMITHD_{name.upper()}", value) for name, value in values.items()
    )
    return variables, tuple(pair for pair in variables if pair[0] in _WINDOW.values())


def read_fleet(r: Reader, node: Node | None) -> Variables:
    values = read_options(r, node, "coreos.fleet", FLEET)
    _tell(r, node, "coreos.fleet", values, _NO_FLEET)
    return tuple((f"FLEET_{name.upper()}", value) for name, value in values.items())


def read_flannel(r: Reader, node: Node | None) -> Variables:
    values = read_options(r, node, "coreos.flannel", FLANNEL)
    _tell(r, node, "coreos.flannel", values, _NO_FLANNEL)
    named = {"interface": "IFACE"}
    return tuple(
        (f"FLANNELD_{named.get(name, name.upper())}", value) for name, value in values.items()
    )


def _tell(r: Reader, node: Node | None, key: str, values: Mapping[str, str], words: str) -> None:
    if node is not None and values:
        r.warn(node, key, f"{key} {words}")
