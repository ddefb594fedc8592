"""systemd-boot: one unified kernel image per slot, tries counted in its file name.

``proa-b+3.efi`` is on trial with three tries; the loader renames it to ``proa-b+2-1.efi`` before
it starts it, and so on. Source: UAPI.1 (boot counting) and systemd-boot(7); the order of the menu
is that of systemd 257's ``boot_entry_compare``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proa.machine import pe
from proa.machine.assignments import assignments
from proa.machine.boot import Entry
from proa.machine.system import System

_NAME = re.compile(r"proa-(?P<slot>[ab])(?:\+(?P<left>[0-9]{1,3})(?:-(?P<done>[0-9]{1,3}))?)?\.efi")


@dataclass(frozen=True)
class Found:
    """An image in the directory that the loader reads."""

    slot: str
    path: Path
    left: int | None
    done: int


def file_name(slot: str, left: int | None = None, done: int = 0) -> str:
    """Return the name by which the loader knows how many tries a slot has left."""
    if left is None:
        return f"proa-{slot}.efi"
    return f"proa-{slot}+{left}-{done}.efi" if done else f"proa-{slot}+{left}.efi"


class SystemdBoot:
    """The entries in ``EFI/Linux`` of the ESP."""

    def __init__(self, system: System) -> None:
        self._files = system.files
        self._directory = system.esp / "EFI/Linux"

    def entries(self) -> Mapping[str, Entry]:
        # Sorted so that, where a cut rename left a slot under two names, the committed one counts.
        found = sorted(self._find(), key=lambda f: (f.left is None, f.left or 0))
        return {f.slot: Entry(f.left, f.done, _version(f.path)) for f in found}

    def image(self, slot: str) -> Path | None:
        """Return where a slot's boot image lies."""
        return next((found.path for found in self._find(slot)), None)

    def remove(self, slot: str) -> None:
        for found in self._find(slot):
            self._files.remove(found.path)

    def arm(self, slot: str, uki: Path, running: str, tries: int) -> None:
        self.remove(slot)
        target = self._directory / file_name(slot, tries)
        self._files.move(uki, target)
        self._prefer(slot, running)

    def rearm(self, slot: str, running: str, tries: int) -> None:
        self._rename(slot, tries, 0)
        self._prefer(slot, running)

    def set_left(self, slot: str, left: int, done: int) -> None:
        self._rename(slot, left, done)

    def commit(self, slot: str) -> None:
        self._rename(slot, None, 0)

    def _prefer(self, slot: str, running: str) -> None:
        """Make the loader choose ``slot``: where it would not by itself, demote the running one.

        A demoted entry has no tries left, so it comes last; when the slot on trial has used up
        its tries too, the order of versions decides between the two, and by it the demoted entry
        is first: that it was is why it had to be demoted.
        """
        entries = self.entries()
        # One of them may be missing where a BIOS machine lost power between its loader's record
        # and this one.
        if running not in entries or slot not in entries:
            return
        if comes_first((entries[running].version, running), (entries[slot].version, slot)):
            self._rename(running, 0, 0)

    def _rename(self, slot: str, left: int | None, done: int) -> None:
        target = self._directory / file_name(slot, left, done)
        images = [found.path for found in self._find(slot)]
        if not images:
            return
        if target not in images:
            self._files.move(images[0], target)
        for image in images[1:] if target not in images else images:
            if image != target:
                self._files.remove(image)

    def _find(self, slot: str | None = None) -> list[Found]:
        if not self._directory.is_dir():
            return []
        found = []
        for path in sorted(self._directory.iterdir()):
            if match := _NAME.fullmatch(path.name):
                left, done = match["left"], match["done"]
                found.append(
                    Found(match["slot"], path, None if left is None else int(left), int(done or 0))
                )
        return [f for f in found if slot is None or f.slot == slot]


def _version(image: Path) -> str:
    """Return the version by which the loader sorts an image (``.osrel``)."""
    try:
        release = assignments(pe.read_text(image, ".osrel"))
    except (OSError, pe.PeError):
        return ""
    return release.get("IMAGE_VERSION") or release.get("VERSION_ID") or ""


# --- The order of the loader's menu -------------------------------------------------------------


def comes_first(one: tuple[str, str], two: tuple[str, str]) -> bool:
    """Whether the loader prefers entry ``one`` (version, slot) to ``two`` by version and name.

    Newest version first, by the loader's own rule; then the greatest name first.
    """
    order = compare_versions(one[0], two[0]) or compare_versions(one[1], two[1])
    return order > 0


def compare_versions(one: str, two: str) -> int:
    """Compare as the loader does (UAPI.10, ``strverscmp_improved``): negative, 0 or positive.

    This is not the order of Semantic Versioning: ``1.0.0-rc.1`` is newer than ``1.0.0`` here.
    """
    a, b = one, two
    while True:
        a, b = _skip_invalid(a), _skip_invalid(b)
        if a.startswith("~") or b.startswith("~"):
            if (order := b.startswith("~") - a.startswith("~")) != 0:
                return order
            a, b = a[1:], b[1:]
            continue
        if not a or not b:
            return bool(a) - bool(b)
        for separator in "-^.":
            if a.startswith(separator) or b.startswith(separator):
                if (order := b.startswith(separator) - a.startswith(separator)) != 0:
                    return order
                a, b = a[1:], b[1:]
                break
        else:
            digits = a[0] in _DIGITS or b[0] in _DIGITS
            if digits:
                x, a = _split(a, _DIGITS)
                y, b = _split(b, _DIGITS)
                if (order := _sign(int(x or -1), int(y or -1))) != 0:
                    return order
            else:
                x, a = _split(a, _LETTERS)
                y, b = _split(b, _LETTERS)
                if x != y:
                    return -1 if x < y else 1


_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _skip_invalid(text: str) -> str:
    return text.lstrip("".join(c for c in text if c not in _DIGITS + _LETTERS + "~-^."))


def _split(text: str, alphabet: str) -> tuple[str, str]:
    rest = text.lstrip(alphabet)
    return text[: len(text) - len(rest)], rest


def _sign(x: int, y: int) -> int:
    return (x > y) - (x < y)
