"""The machine's update settings.

The look-up is CoreOS's: key by key, the first file that has the key wins. The files are
shell-like ``KEY=value`` lines (``reference/coreos/update-engine.md`` 1.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proa.machine.system import System, assignments

FILES = ("/etc/proa/update.conf", "/etc/coreos/update.conf", "/usr/share/proa/update.conf")
DISABLED = "disabled"


@dataclass(frozen=True)
class Config:
    """``reboot_delay`` and ``health_timeout`` are in seconds.

    ``warnings`` are settings that could not be used as they stand, in words for the owner.
    """

    group: str = "stable"
    server: str = DISABLED
    reboot_strategy: str = "reboot"
    reboot_delay: int = 300
    machine_alias: str = ""
    health_timeout: int = 600
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
    return Config(
        group=values.get("GROUP", "") or default.group,
        server=values.get("SERVER", "") or default.server,
        reboot_strategy=strategy,
        reboot_delay=seconds("REBOOT_DELAY", default.reboot_delay),
        machine_alias=values.get("MACHINE_ALIAS", ""),
        health_timeout=seconds("HEALTH_TIMEOUT", default.health_timeout),
        warnings=tuple(warnings),
    )
