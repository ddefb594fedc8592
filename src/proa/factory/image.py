"""The images of a release: /usr, its verity tree, the initrd, the UKI, and a bootable disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.factory import frames, kernel
from proa.factory.kernel import KernelError
from proa.factory.sdk import Sdk
from proa.wire import bzimage
from proa.wire.errors import UserError
from proa.wire.version import Version

# Namespace of every UUID that a build gives: the same input gets the same UUID.
_NAMESPACE = uuid.UUID("9f0a6c1e-52f4-4a35-9a0c-7d3f4a3f8e11")

# What mkfs.erofs is asked for. 64 KiB clusters: shared/reference/image-build.md, section 2.
_EROFS = {"zstd": "zstd,level=3", "lz4": "lz4"}
_CLUSTER = 64 * 1024

_SECTOR = 512
_INITRD_TIME = 1  # seconds since 1970
_STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
_BOOT_MANAGER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
_GRUB_MODULES = (
    "biosdisk",
    "part_gpt",
    "fat",
    "search",
    "search_label",
    "normal",
    "configfile",
    "linux",
    "loadenv",
    "test",
    "echo",
    "serial",
    "terminal",
    "sleep",
    "reboot",
    "minicmd",
    "true",
)


@dataclass(frozen=True)
class Usr:
    """The /usr image and its verity tree in ``directory``, with the root hash that seals both."""

    image: Path
    verity: Path
    root_hash: str

    @property
    def uuids(self) -> tuple[uuid.UUID, uuid.UUID]:
        """Partition UUIDs of usr and usr-verity: the halves of the root hash."""
        return uuid.UUID(self.root_hash[:32]), uuid.UUID(self.root_hash[32:])


def stable_uuid(name: str) -> uuid.UUID:
    """Return the UUID that builds give to the thing called ``name``."""
    return uuid.uuid5(_NAMESPACE, name)


def erofs_options(compression: str) -> tuple[str, ...]:
    """Return how mkfs.erofs is to compress; the time stamp, the UUID and the paths come behind."""
    return (
        *("--quiet", f"-z{_EROFS[compression]}", f"-C{_CLUSTER}", "-Eztailpacking"),
        "--all-time",
    )


def make_usr(
    work: Path, out: Path, tools: Sdk, version: Version, epoch: int, compression: str
) -> Usr:
    """Pack ``work/tree/usr`` into ``out/usr.erofs`` and ``out/usr.verity``."""
    name = f"usr {version}"
    tools.run(
        [
            "mkfs.erofs",
            *erofs_options(compression),
            f"-T{epoch}",
            f"-U{stable_uuid(name)}",
            "-Lusr",
            "/out/usr.erofs",
            "/work/tree/usr",
        ],
        work=work,
        epoch=epoch,
        binds={"/out": out},
    )
    image, verity = out / "usr.erofs", out / "usr.verity"
    # dm-verity hashes whole blocks.
    os.truncate(image, -(-image.stat().st_size // 4096) * 4096)
    verity.unlink(missing_ok=True)
    printed = tools.run(
        [
            "veritysetup",
            "format",
            f"--salt={hashlib.sha256(name.encode()).hexdigest()}",
            f"--uuid={stable_uuid(f'verity {version}')}",
            "/out/usr.erofs",
            "/out/usr.verity",
        ],
        work=work,
        epoch=epoch,
        binds={"/out": out},
    )
    found = re.search(r"Root hash:\s+([0-9a-f]{64})", printed)
    if found is None:
        raise UserError(f"veritysetup told no root hash:\n{printed}")
    return Usr(image, verity, found.group(1))


def make_kernel(work: Path, vmlinuz: Path, tools: Sdk) -> None:
    """Compress the kernel in ``vmlinuz`` anew, in place, so that a machine can do it too.

    Raises :class:`KernelError` or :class:`BzImageError`, with the file as it was, where the kernel
    is not as expected.
    """
    image = vmlinuz.read_bytes()
    payload = bzimage.locate(image)
    (work / "kernel.old").write_bytes(image[payload.offset : payload.frame_end])
    script = "zstd -q -d -f --long=31 -o /work/kernel /work/kernel.old"
    tools.run(["bash", "-c", script], work=work)
    if (work / "kernel").stat().st_size != payload.unpacked_size:
        raise KernelError("the payload's size is not that of the kernel in it")
    frames.encode(work / "kernel", work / "kernel.new", tools.library("libzstd.so.1"))
    # Unpacked again and compared: nothing in this file is as dear as a kernel that is the same.
    script = "zstd -q -d -c --long=31 /work/kernel.new | cmp - /work/kernel"
    tools.run(["bash", "-o", "pipefail", "-c", script], work=work)
    vmlinuz.write_bytes(kernel.with_frame(image, (work / "kernel.new").read_bytes()))


def make_initrd(work: Path, target: Path, tools: Sdk, release: str, epoch: int) -> None:
    """Pack the tree ``work/initrd`` into the compressed cpio ``target``."""
    tree = work / "initrd"
    tools.run(["depmod", "-b", "/work/initrd", release], work=work)
    tools.run(["ldconfig", "-r", "/work/initrd"], work=work)
    shutil.rmtree(tree / "var/cache", ignore_errors=True)
    # The same time in all releases: nothing in an initrd looks at it, and what is the same from one
    # release to the next need not be fetched.
    for directory, names, files in os.walk(tree):
        for name in [*names, *files]:
            os.utime(Path(directory, name), (_INITRD_TIME, _INITRD_TIME), follow_symlinks=False)
    os.utime(tree, (_INITRD_TIME, _INITRD_TIME))
    script = (
        "set -o pipefail; cd /work/initrd; find . -print0 | LC_ALL=C sort -z |"
        " cpio --quiet -0 -o -H newc --reproducible -R 0:0 > /work/initrd.cpio"
    )
    tools.run(["bash", "-c", script], work=work, epoch=epoch)
    frames.encode(work / "initrd.cpio", target, tools.library("libzstd.so.1"))


def make_uki(
    work: Path, out: Path, tools: Sdk, release: str, command_line: str, epoch: int
) -> Path:
    """Join kernel, initrd and command line to the unified kernel image ``out/proa.efi``."""
    (work / "cmdline").write_text(command_line)
    tools.run(
        [
            "ukify",
            "build",
            "--linux=/out/vmlinuz",
            "--initrd=/out/initrd",
            "--cmdline=@/work/cmdline",
            "--os-release=@/work/tree/usr/lib/os-release",
            f"--uname={release}",
            f"--stub={_STUB}",
            "--output=/out/proa.efi",
        ],
        work=work,
        epoch=epoch,
        binds={"/out": out},
    )
    return out / "proa.efi"


def make_disk(
    work: Path, out: Path, tools: Sdk, usr: Usr, command_line: str, boot: Path, epoch: int
) -> None:
    """Make ``out/disk.raw``: a whole disk that boots by UEFI and BIOS, with slot a filled.

    ``boot`` holds loader.conf and GRUB's files. The root partition is left to the first boot.
    """
    _esp_tree(work / "esp", out, tools, command_line, boot, epoch)
    definitions = work / "repart"
    definitions.mkdir()
    source = work / "tree/usr/lib/repart.d"
    for file in sorted(source.glob("*.conf")):
        if (extra := _filling(file.stem, usr)) is not None:
            (definitions / file.name).write_text(file.read_text() + extra)
    disk = out / "disk.raw"
    disk.unlink(missing_ok=True)
    tools.run(
        [
            "systemd-repart",
            "--offline=yes",
            "--empty=create",
            "--size=auto",
            "--dry-run=no",
            f"--seed={stable_uuid('disk')}",
            "--definitions=/work/repart",
            "/out/disk.raw",
        ],
        work=work,
        epoch=epoch,
        binds={"/out": out},
    )
    _install_grub(work, disk, tools, boot)


def _filling(name: str, usr: Usr) -> str | None:
    """Return what a partition definition gets besides what the machine's own copy of it says."""
    data, tree = usr.uuids
    match name[3:]:
        case "esp":
            return f"Format=vfat\nCopyFiles=/work/esp:/\nUUID={stable_uuid('ESP')}\n"
        case "usr-a":
            return f"UUID={data}\nCopyBlocks=/out/usr.erofs\n"
        case "usr-a-verity":
            return f"UUID={tree}\nCopyBlocks=/out/usr.verity\n"
        case "root":
            return None
        case other:
            return f"UUID={stable_uuid(other)}\n"


def _esp_tree(esp: Path, out: Path, tools: Sdk, command_line: str, boot: Path, epoch: int) -> None:
    for name in ("EFI/BOOT", "EFI/systemd", "EFI/Linux", "loader", "proa/a", "grub"):
        (esp / name).mkdir(parents=True)
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        shutil.copyfile(tools.path / _BOOT_MANAGER, esp / name)
    shutil.copyfile(boot / "loader.conf", esp / "loader/loader.conf")
    (esp / "loader/entries.srel").write_text("type1\n")
    shutil.copyfile(out / "proa.efi", esp / "EFI/Linux/proa-a.efi")
    # The same system for GRUB.
    shutil.copyfile(out / "vmlinuz", esp / "proa/a/vmlinuz")
    shutil.copyfile(out / "initrd", esp / "proa/a/initrd")
    (esp / "proa/a/cmdline.cfg").write_text(grub_command_line(command_line))
    shutil.copyfile(boot / "grub.cfg", esp / "grub/grub.cfg")
    (esp / "grub/grubenv").write_bytes(grub_environment({"good": "a", "next": "a", "tries": "0"}))
    for directory, names, files in os.walk(esp):
        for name in [*names, *files]:
            os.utime(Path(directory, name), (epoch, epoch))


def grub_command_line(command_line: str) -> str:
    """Return the file that tells GRUB the kernel's command line."""
    return f'set proa_cmdline="{command_line}"\n'


def grub_environment(values: dict[str, str]) -> bytes:
    """Return an environment block as grub-editenv makes it: exactly 1024 bytes."""
    text = "# GRUB Environment Block\n" + "".join(f"{k}={v}\n" for k, v in values.items())
    return text.encode().ljust(1024, b"#")


def _install_grub(work: Path, disk: Path, tools: Sdk, boot: Path) -> None:
    """Put GRUB's two first stages on the disk image; no loop device and no grub-install.

    The offsets are those that grub-bios-setup patches (GRUB 2.12: include/grub/i386/pc/boot.h and
    include/grub/offsets.h).
    """
    shutil.copyfile(boot / "grub-early.cfg", work / "grub-early.cfg")
    tools.run(
        [
            "grub-mkimage",
            "--format=i386-pc",
            "--output=/work/core.img",
            "--config=/work/grub-early.cfg",
            "--prefix=(hd0,gpt1)/grub",
            *_GRUB_MODULES,
        ],
        work=work,
    )
    start, sectors = _partition(disk, tools, "BIOS")
    core = bytearray((work / "core.img").read_bytes())
    core += bytes(-len(core) % _SECTOR)
    if len(core) > sectors * _SECTOR:
        raise UserError(f"GRUB's core is {len(core)} bytes and does not fit the BIOS partition")
    # The block list at the end of the first sector: where the rest lies, and how long it is.
    struct.pack_into("<QH", core, 0x1F4, start + 1, len(core) // _SECTOR - 1)
    first = bytearray((tools.path / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", first, 0x5C, start)
    first[0x64] = 0xFF  # boot from the drive that the BIOS names
    first[0x66:0x68] = b"\x90\x90"  # no jump round a floppy check
    with disk.open("r+b") as file:
        # Up to 440 bytes: behind them come the disk's signature and the protective partition table.
        file.write(first[:440])
        file.seek(start * _SECTOR)
        file.write(core)


def _partition(disk: Path, tools: Sdk, label: str) -> tuple[int, int]:
    """Return (first sector, number of sectors) of a partition of the disk image."""
    text = tools.run(
        ["sfdisk", "--json", f"/out/{disk.name}"], work=disk.parent, binds={"/out": disk.parent}
    )
    for partition in json.loads(text)["partitiontable"]["partitions"]:
        if partition.get("name") == label:
            return int(partition["start"]), int(partition["size"])
    raise UserError(f"{disk} has no partition {label}")


def command_line(options: Sequence[str], root_hash: str) -> str:
    """Return the kernel's command line; the root hash in it chooses and seals /usr."""
    return " ".join([f"usrhash={root_hash}", *options])
