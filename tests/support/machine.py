"""A machine made of plain files: a disk with a real GPT, an ESP, /sys, /proc, and its boot loaders.

The loaders here are models, written from systemd-boot's and grub.cfg's rules and not from the code
under test. Booting through them asserts what the updater promises: whatever is started is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid5

from proa.machine import gpt
from proa.machine.files import Files
from proa.machine.system import Completed, System
from proa.wire import manifest, version
from proa.wire.manifest import File, Manifest

MIB = 1 << 20
USR_SIZE, VERITY_SIZE = 512 << 10, 64 << 10
FIRST_LBA = 2048
LABELS = ("ESP", "BIOS", "usr-a", "usr-a-verity", "usr-b", "usr-b-verity", "OEM", "ROOT")
SOME_ID = UUID("0d4f0f1e-7a51-4c0f-9d7c-000000000000")

Firmware = Literal["uefi", "bios"]
Nature = Literal["good", "unhealthy", "dies"]


# --- Releases -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """A release's bytes, and what happens when it is booted."""

    version: str
    content: dict[str, bytes]
    root_hash: str
    nature: Nature = "good"
    architecture: str = "amd64"

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            version=version.parse(self.version),
            architecture=self.architecture,
            source_date_epoch=1_700_000_000,
            root_hash=self.root_hash,
            kernel="6.12.0-1-amd64",
            files={
                name: File(len(data), hashlib.sha256(data).hexdigest())
                for name, data in self.content.items()
            },
        )

    def write(self, directory: Path) -> Path:
        """Write the release directory as `proa build` does."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in self.content.items():
            (directory / name).write_bytes(data)
        (directory / manifest.MANIFEST).write_bytes(manifest.dump(self.manifest))
        return directory


def make_release(
    name: str, nature: Nature = "good", *, size: int = 250_000, architecture: str = "amd64"
) -> Release:
    """Make a release whose verity is a stand-in: the root hash is one of all its bytes."""
    usr, verity = _bytes(f"{name} usr", size), _bytes(f"{name} verity", 8192)
    root_hash = hashlib.sha256(usr + verity).hexdigest()
    return Release(name, _content(name, usr, verity, root_hash), root_hash, nature, architecture)


def make_verified_release(name: str, scratch: Path, *, size: int = 400 << 10) -> Release:
    """Make a release whose verity is real (``veritysetup format``)."""
    scratch.mkdir(parents=True, exist_ok=True)
    usr, verity = scratch / "usr", scratch / "verity"
    usr.write_bytes(_bytes(f"{name} usr", size))
    done = subprocess.run(
        ["veritysetup", "format", "--salt", "00", str(usr), str(verity)],
        check=True,
        capture_output=True,
        text=True,
    )
    match = re.search(r"Root hash:\s+([0-9a-f]{64})", done.stdout)
    assert match
    content = _content(name, usr.read_bytes(), verity.read_bytes(), match[1])
    return Release(name, content, match[1])


def _content(name: str, usr: bytes, verity: bytes, root_hash: str) -> dict[str, bytes]:
    uki = make_uki(name, root_hash)
    return {manifest.USR: usr, manifest.USR_VERITY: verity, manifest.UKI: uki}


def make_uki(name: str, root_hash: str, *, size: int = 40_000) -> bytes:
    """Make a PE file with the sections of a unified kernel image."""
    return make_pe(
        {
            ".osrel": f"ID=proa\nIMAGE_ID=proa\nIMAGE_VERSION={name}\n".encode(),
            ".cmdline": f'usrhash={root_hash} x="$y" \\n'.encode() + b"\n\0",
            ".linux": _bytes(f"{name} linux", size),
            ".initrd": _bytes(f"{name} initrd", size),
        }
    )


def make_pe(sections: dict[str, bytes]) -> bytes:
    """Make the smallest PE file with these sections."""
    header = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64)
    header += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 0, 0)
    offset = (len(header) + 40 * len(sections) + 511) // 512 * 512
    table, body = b"", b""
    for name, data in sections.items():
        raw = (len(data) + 511) // 512 * 512
        table += name.encode().ljust(8, b"\0")
        table += struct.pack("<IIII", len(data), 0, raw, offset + len(body)) + bytes(16)
        body += data.ljust(raw, b"\0")
    return (header + table).ljust(offset, b"\0") + body


def _bytes(seed: str, size: int) -> bytes:
    block = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(64))
    return (block * (size // len(block) + 1))[:size]


# --- The power cut ------------------------------------------------------------------------------


# What a disk writes whole or not at all, in bytes.
BLOCK = 512

Keep = Callable[[], bool]


class PowerCut(BaseException):
    """The power goes. Not an Exception, so that no code under test handles it."""


class FragileFiles(Files):
    """Does every step for real, remembers how to take it back until it is flushed, and cuts the
    power before step number ``cut_at``. ``written`` are the files that were written in place."""

    def __init__(self) -> None:
        self.cut_at = 0
        self.steps = 0
        self.written: set[Path] = set()
        self._undo: list[tuple[tuple[str, object], Callable[[Keep | None], None]]] = []
        self._open: list[int] = []

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.cut_at:
            raise PowerCut

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self._step()
        held, before, size = os.dup(fd), os.pread(fd, len(data), offset), os.fstat(fd).st_size
        self._open.append(held)
        self.written.add(Path(f"/proc/self/fd/{fd}").readlink())

        def undo(keep: Keep | None) -> None:
            end = size
            for start in range(offset - offset % BLOCK, offset + len(data), BLOCK):
                stop = min(start + BLOCK, offset + len(data))
                if keep is not None and keep():
                    end = max(end, stop)
                    continue
                first = max(start, offset)
                old = before[first - offset : stop - offset].ljust(stop - first, b"\0")
                os.pwrite(held, old, first)
            if os.fstat(held).st_size > end:
                os.ftruncate(held, end)

        self._undo.append((("file", os.fstat(fd).st_ino), undo))
        super().pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._step()
        super().truncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._step()
        self._flushed("file", os.fstat(fd).st_ino)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        old = target.read_bytes() if target.exists() else None

        def undo(_: Keep | None) -> None:
            target.rename(source)
            if old is not None:
                target.write_bytes(old)

        self._undo.append((("directory", target.parent), undo))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        old = path.read_bytes()
        super().unlink(path)
        self._undo.append((("directory", path.parent), lambda _: void(path.write_bytes(old))))

    def fsync_dir(self, path: Path) -> None:
        self._step()
        self._flushed("directory", path)

    def _flushed(self, kind: str, what: object) -> None:
        self._undo = [(key, undo) for key, undo in self._undo if key != (kind, what)]

    def lose(self, keep: Keep, keep_block: Keep | None = None) -> None:
        """Take back what was not flushed; ``keep`` says of each step if it reached the disk.

        With ``keep_block`` a write that did not reach it as a whole may have done so in part: it
        is asked for each block of :data:`BLOCK` bytes.
        """
        for _, undo in reversed(self._undo):
            if not keep():
                undo(keep_block)
        self.settle()

    def settle(self) -> None:
        """Everything reaches the disk (an orderly shutdown)."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()
        self._undo.clear()
        self.cut_at = self.steps = 0


def void(_: object) -> None:
    """Make a statement of an expression."""


# --- The machine --------------------------------------------------------------------------------


class Machine:
    """The machine; ``root`` is its file tree, ``commands`` what was run on it."""

    def __init__(self, root: Path, firmware: Firmware, installed: Release) -> None:
        self.root = root
        self.firmware = firmware
        self.files = FragileFiles()
        self.releases = {installed.root_hash: installed}
        self.commands: list[tuple[str, ...]] = []
        self.now = 1_800_000_000.0
        self.free = 1 << 40
        self.boots = 0
        self.up = 0.0
        self.restarting = False
        self.verity: Callable[[Sequence[str]], Completed] = self._fake_verity
        self.failed_units = ""
        self.running = installed
        self.slot = "a"
        self._install(installed)
        self.boot()

    # --- its disk -------------------------------------------------------------------------------

    def _install(self, release: Release) -> None:
        self.dev = self.root / "dev"
        self.dev.mkdir(parents=True)
        write_gpt(self.dev / "vda")
        for number in range(1, len(LABELS) + 1):
            size = partition_size(LABELS[number - 1])
            (self.dev / f"vda{number}").write_bytes(b"")
            os.truncate(self.dev / f"vda{number}", size)
        self._put("vda3", release.content[manifest.USR])
        self._put("vda4", release.content[manifest.USR_VERITY])
        self.set_ids({3: release.manifest.usr_uuid, 4: release.manifest.verity_uuid})
        boot = self.root / "boot"
        (boot / "EFI/Linux").mkdir(parents=True)
        (boot / "EFI/Linux/proa-a.efi").write_bytes(release.content[manifest.UKI])
        (boot / "grub").mkdir()
        (boot / "proa/a").mkdir(parents=True)
        for name in ("vmlinuz", "initrd"):
            (boot / "proa/a" / name).write_bytes(release.root_hash.encode())
        (boot / "proa/a/cmdline.cfg").write_text(f'set proa_cmdline="usrhash={release.root_hash}"')
        (boot / "grub/grubenv").write_bytes(b"# GRUB Environment Block\ngood=a\n".ljust(1024, b"#"))
        (self.root / "usr/lib").mkdir(parents=True)
        (self.root / "etc").mkdir()
        (self.root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        if self.firmware == "uefi":
            (self.root / "sys/firmware/efi").mkdir(parents=True)

    def _put(self, node: str, data: bytes) -> None:
        with (self.dev / node).open("r+b") as file:
            file.write(data)

    def set_ids(self, ids: dict[int, UUID]) -> None:
        table = self.table().table.with_uuids(ids)
        with (self.dev / "vda").open("r+b") as disk:
            for offset, data in table.backup_writes() + table.primary_writes():
                disk.seek(offset)
                disk.write(data)

    def table(self) -> gpt.Found:
        return load_gpt(self.dev / "vda")

    def entry(self, label: str) -> gpt.Entry:
        return next(e for e in self.table().table.entries() if e.name == label)

    # --- its life -------------------------------------------------------------------------------

    def system(self) -> System:
        return System(
            root=self.root,
            files=self.files,
            run=self.run,
            now=lambda: self.now,
            sleep=self._sleep,
            free=lambda _: self.free,
            # In this process, so that a power cut in it cuts the test too.
            apart=lambda work: work(),
            hardware="x86_64",
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.up += seconds
        (self.root / "proc/uptime").write_text(f"{self.up} 0\n")

    def run(self, command: Sequence[str], _timeout: float) -> Completed:
        """Answer as the machine's programs would."""
        self.commands.append(tuple(command))
        if command[0] == "veritysetup":
            return self.verity(command)
        if command[0] == "shutdown":
            scheduled = self.root / "run/systemd/shutdown/scheduled"
            scheduled.parent.mkdir(parents=True, exist_ok=True)
            scheduled.write_text("USEC=1\n")
            return Completed(0, "")
        if list(command[:2]) == ["systemctl", "--failed"]:
            bad = self.running.nature == "unhealthy"
            failed = "web.service loaded failed failed Web\n" if bad else self.failed_units
            return Completed(0, failed)
        if list(command[:2]) == ["systemctl", "show"]:
            return Completed(0, "Id=docker.socket\nActiveState=active\nUnitFileState=enabled\n")
        if "reboot" in command:
            self.restarting = True
            return Completed(0, "")
        return Completed(127, f"{command[0]}: not found")

    def _fake_verity(self, command: Sequence[str]) -> Completed:
        usr, verity, root_hash = command[2:]
        release = self.releases[root_hash]
        whole = Path(usr).read_bytes().startswith(release.content[manifest.USR]) and Path(
            verity
        ).read_bytes().startswith(release.content[manifest.USR_VERITY])
        return Completed(0 if whole else 1, "" if whole else "Verification failed at position 0.\n")

    def power_cut(self, keep: Keep = lambda: False, keep_block: Keep | None = None) -> None:
        self.files.lose(keep, keep_block)

    def boot(self) -> Release:
        """Start the machine; those that die are started again. Returns what runs in the end."""
        self.files.settle()
        for _ in range(12):
            slot = self._systemd_boot() if self.firmware == "uefi" else self._grub()
            release = self._whole(slot)
            self.boots += 1
            if release.nature != "dies":
                self._running(slot, release)
                return release
        raise AssertionError("the machine does not come up any more")

    def _systemd_boot(self) -> str:
        """Model: systemd-boot 257 with the default configuration."""
        directory = self.root / "boot/EFI/Linux"
        found = []
        for path in directory.glob("*.efi"):
            match = re.fullmatch(r"(proa-([ab]))(?:\+(\d+)(?:-(\d+))?)?\.efi", path.name)
            assert match, f"a stray entry in the boot menu: {path.name}"
            name = re.search(rb"IMAGE_VERSION=(\d+)\.(\d+)\.(\d+)\n", path.read_bytes())
            assert name, f"{path.name} is not a whole image"
            newest = tuple(-int(part) for part in name.groups())
            left = None if match[3] is None else int(match[3])
            found.append((left == 0, newest, -ord(match[2]), left, int(match[4] or 0), path, match))
        assert found, "nothing in the boot menu"
        _, _, _, left, done, path, match = min(found, key=lambda f: f[:3])
        if left is not None:
            path.rename(directory / f"{match[1]}+{max(left - 1, 0)}-{done + 1}.efi")
        return match[2]

    def _grub(self) -> str:
        """Model: os/boot/grub.cfg."""
        path = self.root / "boot/grub/grubenv"
        data = path.read_bytes()
        assert len(data) == 1024
        env = dict(re.findall(r"^([a-z]+)=(.*)$", data.decode(), re.MULTILINE))
        slot, tries = env["good"], env.get("tries", "")
        if tries in ("3", "2", "1"):
            slot = env["next"]
            left = b"tries=%d" % (int(tries) - 1)
            path.write_bytes(data.replace(f"tries={tries}".encode(), left))
        there = (self.root / "boot/proa" / slot / "vmlinuz").exists()
        return str(slot if there else env["good"])

    def _whole(self, slot: str) -> Release:
        """Start the slot as kernel and initrd do: find what the command line names, check it."""
        boot = self.root / "boot"
        if self.firmware == "uefi":
            (image,) = boot.glob(f"EFI/Linux/proa-{slot}*.efi")
            text = image.read_bytes()
        else:
            text = (boot / f"proa/{slot}/cmdline.cfg").read_bytes()
        match = re.search(rb"usrhash=([0-9a-f]{64})", text)
        assert match, f"slot {slot} has no whole command line"
        release = self.releases[match[1].decode()]
        if self.firmware == "uefi":
            assert text == release.content[manifest.UKI], f"the image of slot {slot} is not whole"
        elif release.nature != "dies":
            for name in ("vmlinuz", "initrd"):
                data = (boot / f"proa/{slot}" / name).read_bytes()
                assert data in (release.root_hash.encode(), _section(release, name)), name
        ids = {entry.uuid: entry for entry in self.table().table.entries()}
        for uuid, content in (
            (release.manifest.usr_uuid, release.content[manifest.USR]),
            (release.manifest.verity_uuid, release.content[manifest.USR_VERITY]),
        ):
            assert uuid in ids, f"slot {slot}: no partition has the id of {release.version}"
            data = (self.dev / f"vda{ids[uuid].index}").read_bytes()
            assert data.startswith(content), f"slot {slot}: {release.version} is not whole"
        assert ids[release.manifest.usr_uuid].name == f"usr-{slot}"
        return release

    def _running(self, slot: str, release: Release) -> None:
        self.running, self.slot, self.restarting, self.up = release, slot, False, 60.0
        for directory in ("run", "proc", "sys/class", "sys/devices", "dev/disk"):
            shutil.rmtree(self.root / directory, ignore_errors=True)
        (self.root / "run").mkdir()
        proc = self.root / "proc"
        (proc / "sys/kernel/random").mkdir(parents=True)
        (proc / "sys/kernel/random/boot_id").write_text(f"{uuid5(SOME_ID, str(self.boots))}\n")
        (proc / "uptime").write_text(f"{self.up} 100.0\n")
        (proc / "cmdline").write_text(f"root=PARTLABEL=ROOT usrhash={release.root_hash} rw\n")
        (self.root / "usr/lib/os-release").write_text(
            f'NAME="Proa"\nIMAGE_VERSION={release.version}\nBUILD_ID=1700000000\n'
        )
        links = self.dev / "disk/by-partuuid"
        links.mkdir(parents=True)
        classes, device = self.root / "sys/class/block", self.root / "sys/devices/pci/block/vda"
        classes.mkdir(parents=True)
        for entry in self.table().table.entries():
            node = f"vda{entry.index}"
            (links / str(entry.uuid)).symlink_to(f"../../{node}")
            (device / node / "holders").mkdir(parents=True)
            (device / node / "partition").write_text(f"{entry.index}\n")
            size = (self.dev / node).stat().st_size
            (device / node / "size").write_text(f"{size // 512}\n")
            (device / node / "uevent").write_text(
                f"DEVNAME={node}\nDEVTYPE=partition\nPARTN={entry.index}\nPARTNAME={entry.name}\n"
            )
            (classes / node).symlink_to(f"../../devices/pci/block/vda/{node}")

    def save(self, copy: Path) -> Callable[[], None]:
        """Keep a copy of the machine; returns how to put it back to this moment."""
        self.files.settle()
        shutil.copytree(self.root, copy, symlinks=True)
        kept = {**vars(self), "releases": dict(self.releases), "commands": list(self.commands)}

        def restore() -> None:
            self.files.settle()
            vars(self).update(
                {**kept, "releases": dict(kept["releases"]), "commands": list(kept["commands"])}
            )
            shutil.rmtree(self.root)
            shutil.copytree(copy, self.root, symlinks=True)

        return restore

    # --- what a test asks -----------------------------------------------------------------------

    def esp(self) -> dict[str, bytes]:
        """Return all files of the ESP."""
        boot = self.root / "boot"
        return {
            str(path.relative_to(boot)): path.read_bytes()
            for path in sorted(boot.rglob("*"))
            if path.is_file()
        }

    def slot_bytes(self, slot: str) -> tuple[bytes, bytes]:
        first = 3 if slot == "a" else 5
        return (self.dev / f"vda{first}").read_bytes(), (self.dev / f"vda{first + 1}").read_bytes()


def _section(release: Release, name: str) -> bytes:
    image = release.content[manifest.UKI]
    (start,) = struct.unpack_from("<I", image, 0x3C)
    count, optional = struct.unpack_from("<6xH12xH", image, start)
    wanted = b".linux" if name == "vmlinuz" else b".initrd"
    for position in range(start + 24 + optional, start + 24 + optional + 40 * count, 40):
        if image[position : position + 8].rstrip(b"\0") == wanted:
            size, _, _, offset = struct.unpack_from("<IIII", image, position + 8)
            return image[offset : offset + size]
    raise AssertionError(f"the image of {release.version} has no {wanted.decode()}")


# --- A partition table, made from the specification ---------------------------------------------


def partition_size(label: str) -> int:
    """Return the bytes of a test partition."""
    if label.endswith("-verity"):
        return VERITY_SIZE
    return USR_SIZE if label.startswith("usr-") else 64 << 10


def write_gpt(disk: Path) -> None:
    """Write a disk with the partitions of a Proa disk; both copies of the table are whole."""
    array, lba = b"", FIRST_LBA
    for number, label in enumerate(LABELS, start=1):
        sectors = partition_size(label) // 512
        array += uuid5(SOME_ID, "type").bytes_le + uuid5(SOME_ID, f"id {number}").bytes_le
        array += struct.pack("<QQQ", lba, lba + sectors - 1, 0)
        array += label.encode("utf-16-le").ljust(72, b"\0")
        lba += sectors
    array = array.ljust(128 * 128, b"\0")
    last = lba + 33
    with disk.open("wb") as file:
        file.truncate((last + 1) * 512)
        for own, other, array_lba in ((1, last, 2), (last, 1, last - 32)):
            fields = (1 << 16, 92, 0, 0, own, other, 34, last - 33, SOME_ID.bytes_le)
            tail = (array_lba, 128, 128, zlib.crc32(array))
            header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", *fields, *tail)
            header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
            file.seek(own * 512)
            file.write(header)
            file.seek(array_lba * 512)
            file.write(array)


def load_gpt(disk: Path) -> gpt.Found:
    with disk.open("rb", buffering=0) as file:
        size = disk.stat().st_size
        return gpt.load(lambda offset, count: os.pread(file.fileno(), count, offset), size)
