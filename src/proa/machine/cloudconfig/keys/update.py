"""``coreos.update``: settings of update.conf."""

from __future__ import annotations

import re

from proa.machine.cloudconfig.parse import Node, printable
from proa.machine.cloudconfig.reader import Reader

_SERVER = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@%=&+,-]{1,1000}|disabled")
_GROUP = re.compile(r"[A-Za-z0-9_.{}-]{1,64}")

STRATEGIES = ("reboot", "off", "etcd-lock", "best-effort")
_LATER_MANAGER = (
    "counts as off: this version has no reboot manager yet that would ask for the lock, and the "
    "machine does not restart by itself"
)


def read_update(r: Reader, node: Node | None) -> tuple[tuple[str, str], ...]:
    """Settings of update.conf, sorted by key."""
    entries = r.table(node, "coreos.update", ("group", "server", "reboot_strategy"))
    settings: dict[str, str] = {}
    for name, value in entries.items():
        key = f"coreos.update.{name}"
        text = r.text(value, key)
        if not text:
            continue
        if name == "reboot_strategy" and text.lower() in ("off", "no", "false"):
            text = "off"  # YAML 1.1 readers made a boolean of the bare word
        good = (
            text in STRATEGIES
            if name == "reboot_strategy"
            else (_SERVER if name == "server" else _GROUP).fullmatch(text) is not None
        )
        if not good:
            wanted = {
                "reboot_strategy": f"one of {', '.join(STRATEGIES)}",
                "server": 'an http or https address or "disabled"',
                "group": "a group name",
            }[name]
            # A server address may carry a password; the others cannot be secrets.
            shown = "" if name == "server" else f' "{printable(text)}"'
            r.error(value, key, f"{key}{shown} is not {wanted}")
        elif name == "reboot_strategy" and text not in ("reboot", "off"):
            r.warn(value, key, f"{key} {text} {_LATER_MANAGER}")
        settings[name.upper()] = text
    return tuple(sorted(settings.items()))
