"""The machine's update settings.

The look-up is CoreOS's: key by key, the first file that has the key wins. The files are
shell-like ``KEY=value`` lines (``reference/coreos/update-engine.md`` 1.4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from proa.machine.assignments import assignments
from proa.machine.system import System

FILES = ("/etc/proa/update.conf", "/etc/coreos/update.conf", "/usr/share/proa/update.conf")
DISABLED = "disabled"
PAYLOADS = ("auto", "full", "image")

_RATE = re.compile(r"([0-9]{1,12})([KMG]?)", re.ASCII)


@dataclass(frozen=True)
class Config:
    """``reboot_delay`` and ``health_timeout`` are in seconds.

    ``payload`` is which way an update comes: ``auto`` for the smallest, ``full`` for no delta,
    ``image`` for the images as they are. ``download_rate`` is in bytes per second, 0 for no limit.
    ``warnings`` are settings that could not be used as they stand, in words for the owner.
    """

    group: str = "stable"
    server: str = DISABLED
    reboot_strategy: str = "reboot"
    reboot_delay: int = 300
    machine_alias: str = ""
    health_timeout: int = 600
    payload: str = "auto"
    download_rate: int = 0
    warnings: Sequence[str] = ()

    @property
    def reboots(self) -> bool:
        """Whether the machine restarts by itself into a staged version."""
        return self.reboot_strategy == "reboot"


def read(system: System) -> Config:
    """Merge the configuration files. A value that makes no sense gives a warning, not an error:
    a machine with a typo in a setting must still be able to update."""
    values: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in FILES:
        for key, value in assignments(system.text(name)).items():
            values.setdefault(key, value)
            origin.setdefault(key, name)
    warnings: list[str] = []

    def seconds(key: str, default: int) -> int:
        text = values.get(key, "")
        if text.isascii() and text.isdigit() and int(text) <= 86400:
            return int(text)
        if text:
            warnings.append(
                f"{origin[key]}: {key}={text} is not a number of seconds up to 86400; "
                f"using {default}"
            )
        return default

    default = Config()
    strategy = values.get("REBOOT_STRATEGY", "") or default.reboot_strategy
    if strategy not in ("reboot", "off"):
        warnings.append(
            f"{origin['REBOOT_STRATEGY']}: REBOOT_STRATEGY={strategy} is not known to this "
            "version (reboot, off); treated as off"
        )
    warnings += [
        f"{origin[key]}: {key} is not known to this version, which does not wait for a window"
        for key in ("REBOOT_WINDOW_START", "REBOOT_WINDOW_LENGTH")
        if values.get(key)
    ]
    payload = values.get("PAYLOAD", "") or default.payload
    if payload not in PAYLOADS:
        warnings.append(
            f"{origin['PAYLOAD']}: PAYLOAD={payload} is not known to this version "
            f"({', '.join(PAYLOADS)}); using {default.payload}"
        )
        payload = default.payload
    rate = _rate(values.get("DOWNLOAD_RATE", ""))
    if rate is None:
        warnings.append(
            f"{origin['DOWNLOAD_RATE']}: DOWNLOAD_RATE={values['DOWNLOAD_RATE']} is not a number "
            "of bytes per second from 1024, such as 500K or 2M; downloading at full speed"
        )
    return Config(
        group=values.get("GROUP", "") or default.group,
        server=values.get("SERVER", "") or default.server,
        reboot_strategy=strategy,
        reboot_delay=seconds("REBOOT_DELAY", default.reboot_delay),
        machine_alias=values.get("MACHINE_ALIAS", ""),
        health_timeout=seconds("HEALTH_TIMEOUT", default.health_timeout),
        payload=payload,
        download_rate=rate or 0,
        warnings=tuple(warnings),
    )


def _rate(text: str) -> int | None:
    """Return bytes per second, with K, M and G as powers of 1024; 0 for "", None for nonsense."""
    match = _RATE.fullmatch(text)
    if not text or text == "0":
        return 0
    if match is None:
        return None
    rate = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return rate if rate >= 1024 else None
