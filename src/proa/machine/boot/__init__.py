"""Which slot boots next: one interface over two boot loaders.

One disk boots under UEFI (systemd-boot) and under BIOS (GRUB), so both loaders' records are kept
in step; how many tries are left is asked of the one that booted the machine.

An entry of a slot is in one of three conditions:

``left is None``  committed: boots whenever it is chosen
``left > 0``      on trial: chosen first, that many times more
``left == 0``     given up or demoted: chosen only where nothing else is there
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from proa.machine.system import System

TRIES = 3


@dataclass(frozen=True)
class Entry:
    """What a loader knows of a slot. ``done`` counts the boots of the trial so far."""

    left: int | None
    done: int
    version: str = ""

    @property
    def used_up(self) -> bool:
        """Whether a trial has failed, rather than the slot been demoted for another."""
        return self.left == 0 and self.done >= TRIES


class Loader(Protocol):
    """What the updater asks of a boot loader.

    Each call leaves the disk, at every moment of it, with a slot that boots.
    """

    def entries(self) -> Mapping[str, Entry]:
        """Return the entries by slot; a slot that cannot boot has none."""
        ...

    def remove(self, slot: str) -> None:
        """Make sure that the slot is not booted; it is about to be overwritten."""
        ...

    def arm(self, slot: str, uki: Path, running: str, tries: int) -> None:
        """Put the slot on trial, to be booted next. ``uki`` lies on the ESP and may be moved."""
        ...

    def rearm(self, slot: str, running: str, tries: int) -> None:
        """Put a slot on trial (again) that has an entry already."""
        ...

    def set_left(self, slot: str, left: int, done: int) -> None:
        """Change the count of a slot on trial: give back a try, or give the slot up (0 left)."""
        ...

    def commit(self, slot: str) -> None:
        """End the trial of the running slot: it is good."""
        ...


class Loaders:
    """Both loaders, kept in step; answers come from the one that booted."""

    def __init__(self, system: System) -> None:
        from proa.machine.boot.grub import Grub
        from proa.machine.boot.systemd_boot import SystemdBoot

        grub, systemd_boot = Grub(system), SystemdBoot(system)
        self._booted: Loader = systemd_boot if system.uefi else grub
        # GRUB copies from the UKI, systemd-boot moves it away: this order.
        self._all: list[Loader] = [grub, systemd_boot]
        self._images = systemd_boot

    def entries(self) -> Mapping[str, Entry]:
        return self._booted.entries()

    def image(self, slot: str) -> Path | None:
        """Return where a slot's boot image lies; it is there for both loaders."""
        return self._images.image(slot)

    def remove(self, slot: str) -> None:
        for loader in self._all:
            loader.remove(slot)

    def arm(self, slot: str, uki: Path, running: str, tries: int = TRIES) -> None:
        for loader in self._all:
            loader.arm(slot, uki, running, tries)

    def rearm(self, slot: str, running: str, tries: int = TRIES) -> None:
        for loader in self._all:
            loader.rearm(slot, running, tries)

    def give_back(self, slot: str) -> None:
        """Return the try that this boot took."""
        entry = self.entries().get(slot)
        if entry is not None and entry.left is not None:
            for loader in self._all:
                loader.set_left(slot, min(entry.left + 1, TRIES), max(entry.done - 1, 0))

    def give_up(self, slot: str) -> None:
        for loader in self._all:
            loader.set_left(slot, 0, TRIES)

    def commit(self, slot: str) -> None:
        for loader in self._all:
            loader.commit(slot)
