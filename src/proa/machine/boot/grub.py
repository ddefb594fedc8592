"""GRUB on BIOS machines: kernel, initrd and command line per slot, tries counted in grubenv.

``os/`` has the grub.cfg. It boots ``next`` while ``tries`` is above zero, counting down before
the kernel starts, and ``good`` otherwise. grubenv is 1024 bytes, ``key=value`` lines, filled up
with ``#`` (GRUB manual, 15.2 "The GRUB environment block").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from proa.machine import pe
from proa.machine.boot import TRIES, Entry
from proa.machine.files import CHUNK
from proa.machine.system import System

_HEADER = "# GRUB Environment Block\n"
_SIZE = 1024


class Grub:
    """The files under ``proa/`` and ``grub/`` of the ESP. Without a grubenv every call is idle:
    the disk then boots under UEFI only."""

    def __init__(self, system: System) -> None:
        self._files = system.files
        self._env_path = system.esp / "grub/grubenv"
        self._directory = system.esp / "proa"

    def entries(self) -> Mapping[str, Entry]:
        env = self._env()
        found = {}
        for slot in ("a", "b"):
            if (self._directory / slot / "vmlinuz").exists():
                on_trial = env.get("next") == slot and env.get("good") != slot
                left = _tries(env) if on_trial else None
                found[slot] = Entry(left, 0 if left is None else max(TRIES - left, 0))
        return found

    def remove(self, slot: str) -> None:
        if not self._present():
            return
        env = self._env()
        if env.get("next") == slot and env.get("good") != slot:
            self._set(next=env.get("good", ""), tries="0")
        # The kernel goes first: grub.cfg takes a slot only where there is one.
        for name in ("vmlinuz", "initrd", "cmdline.cfg"):
            self._files.remove(self._directory / slot / name)

    def arm(self, slot: str, uki: Path, running: str, tries: int) -> None:
        if not self._present():
            return
        directory = self._directory / slot
        directory.mkdir(parents=True, exist_ok=True)
        sections = pe.sections(uki)
        self._files.replace(
            directory / "cmdline.cfg", command_line(pe.read_text(uki, ".cmdline")).encode()
        )
        self._extract(uki, sections[".initrd"], directory / "initrd")
        self._extract(uki, sections[".linux"], directory / "vmlinuz")
        self._set(good=running, next=slot, tries=str(tries))

    def rearm(self, slot: str, running: str, tries: int) -> None:
        if self._present():
            self._set(good=running, next=slot, tries=str(tries))

    def set_left(self, slot: str, left: int, done: int) -> None:
        env = self._env()
        if self._present() and env.get("next") == slot and env.get("good") != slot:
            self._set(tries=str(left))

    def commit(self, slot: str) -> None:
        if self._present() and (self._directory / slot / "vmlinuz").exists():
            self._set(good=slot, next=slot, tries="0")

    def _present(self) -> bool:
        return self._env_path.exists()

    def _env(self) -> Mapping[str, str]:
        try:
            return load_env(self._env_path.read_bytes())
        except OSError:
            return {}

    def _set(self, **changes: str) -> None:
        # In place, as GRUB itself does: all of the content is in the first sector, which a disk
        # writes whole or not at all; a FAT rename promises less.
        data = dump_env({**self._env(), **changes})
        with self._files.target(self._env_path) as target:
            target.write(0, data)
            target.sync()

    def _extract(self, uki: Path, section: pe.Section, path: Path) -> None:
        with uki.open("rb") as source, self._files.replacing(path) as target:
            source.seek(section.offset)
            for offset in range(0, section.size, CHUNK):
                target.write(offset, source.read(min(CHUNK, section.size - offset)))


def load_env(data: bytes) -> Mapping[str, str]:
    """Parse an environment block; lines that are not ``key=value`` are skipped."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key] = value.replace("\\\\", "\\")
    return found


def dump_env(env: Mapping[str, str]) -> bytes:
    """Return an environment block of exactly 1024 bytes, or raise :class:`ValueError`."""
    lines = "".join(f"{k}={v}\n" for k, v in env.items()).replace("\\", "\\\\")
    data = (_HEADER + lines).encode()
    if len(data) > _SIZE:
        raise ValueError(f"a GRUB environment of {len(data)} bytes does not fit in {_SIZE}")
    return data.ljust(_SIZE, b"#")


def command_line(text: str) -> str:
    """Return the grub.cfg fragment that sets the kernel command line."""
    quoted = text.strip().replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'set proa_cmdline="{quoted}"\n'


def _tries(env: Mapping[str, str]) -> int:
    text = env.get("tries", "0")
    return int(text) if text.isascii() and text.isdigit() else 0
