"""Boot time of Proa against a plain Debian 13 with cloud-init, as ratios from one run.

Both images have the same Debian kernel package, are made by the same tools from the same state of
the archive, boot by UEFI and systemd-boot from a disk of the same size, get the same memory, and
are told who may log in by the same kind of config drive. They are booted in turn, the first boot
of each disk counting as "first", the one after it as "second".

    PYTHONPATH=src python benchmarks/boot.py [--rounds N] [--memory MB] [--json]

Figures: ``multi-user``: from the kernel's start to multi-user.target, by the guest's own clock;
``ssh``: from power-on to the first command run by ssh, by the host's. Ratio: Proa / Debian.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from proa import paths
from proa.factory import build, image, recipe
from proa.factory.cache import scratch
from proa.lab import accelerator, machine, shell
from proa.lab.configdrive import cloud_config
from proa.lab.machine import Record
from proa.lab.qemu import Firmware
from proa.wire.version import parse

# What Debian's own cloud images have of the same kind: systemd, networkd, ssh, cloud-init.
PLAIN_PACKAGES = (
    "ca-certificates",
    "cloud-init",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "openssh-server",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "zstd",
)
PLAIN_COMMAND_LINE = (
    "root=PARTLABEL=plain-root rw audit=0 no_timer_check loglevel=4"
    " console=tty0 console=ttyS0,115200n8"
)
PLAIN_ESP = (
    "[Partition]\nType=esp\nFormat=vfat\nCopyFiles=/work/esp:/\nSizeMinBytes=1G\nSizeMaxBytes=1G\n"
)
PLAIN_ROOT = (
    "[Partition]\nType=root\nLabel=plain-root\nFormat=ext4\nCopyFiles=/work/tree:/\n"
    "SizeMinBytes=3G\nSizeMaxBytes=3G\n"
)


@dataclass(frozen=True)
class Boot:
    """One boot, in seconds."""

    multi_user: float
    ssh: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="disks of each kind to boot")
    parser.add_argument("--memory", type=int, default=512, metavar="MB")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    cache = paths.cache_dir()
    with scratch(cache) as work:
        disks = {"proa": make_proa(work, cache), "debian": make_plain(work, cache)}
        chosen = accelerator.choose(work / "proa" / "vmlinuz", cache)
        figures: dict[str, dict[str, list[Boot]]] = {
            name: {"first": [], "second": []} for name in disks
        }
        for number in range(args.rounds):
            for name, disk in disks.items():
                record = Record(
                    name=f"{name}-{number}",
                    version="1.0.0",
                    firmware=Firmware.UEFI,
                    accelerator=chosen,
                    memory_mib=args.memory,
                    ssh_port=machine.free_port(),
                    application_port=machine.free_port(),
                    server_port=1,
                )
                for kind, boot in zip(
                    ("first", "second"), boots(work, record, disk, name), strict=True
                ):
                    figures[name][kind].append(boot)
                    say(f"{record.name}, {kind} boot: {boot}")
    show(figures, str(chosen), args)
    return 0


def make_proa(work: Path, cache: Path) -> Path:
    """Build a release of this checkout as it would be shipped."""
    say("building Proa")
    root = work / "root.json"
    root.write_text("{}")
    options = build.BuildOptions(parse("1.0.0"), root, work / "proa", cache)
    return build.build(options, say) / "disk.raw"


def make_plain(work: Path, cache: Path) -> Path:
    """Install a plain Debian with cloud-init to a disk image."""
    say("building plain Debian")
    _, tools, packed = build.prepare(PLAIN_PACKAGES, cache, say)
    place = work / "plain"
    root = place / "tree"
    root.mkdir(parents=True)
    build._run("tar", "-C", root, "--numeric-owner", "--xattrs", "-xpf", packed)
    for name in ("etc/machine-id", "etc/hostname"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/fstab").write_text("")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "etc/cloud/cloud.cfg.d").mkdir(parents=True, exist_ok=True)
    # Only the datasource that it has: cloud-init is not made to search.
    (root / "etc/cloud/cloud.cfg.d/90-bench.cfg").write_text(
        "datasource_list: [ConfigDrive]\nsystem_info: {network: {renderers: [networkd]}}\n"
    )
    tools.run(["systemctl", "--root=/work/tree", "enable", "systemd-networkd.service"], work=place)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    for name in ("EFI/BOOT", "EFI/Linux", "loader"):
        (place / "esp" / name).mkdir(parents=True)
    (place / "esp/loader/loader.conf").write_text("timeout 0\n")
    manager = tools.path / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    (place / "esp/EFI/BOOT/BOOTX64.EFI").write_bytes(manager.read_bytes())
    command = ["ukify", "build", f"--linux=/work/tree/boot/{kernel.name}"]
    command += [f"--initrd=/work/tree/boot/{initrd.name}", f"--cmdline={PLAIN_COMMAND_LINE}"]
    command += ["--os-release=@/work/tree/usr/lib/os-release", f"--stub={image._STUB}"]
    tools.run([*command, "--output=/work/esp/EFI/Linux/debian.efi"], work=place)
    (place / "repart").mkdir()
    (place / "repart/00-esp.conf").write_text(PLAIN_ESP)
    (place / "repart/10-root.conf").write_text(PLAIN_ROOT)
    making = ["systemd-repart", "--offline=yes", "--empty=create", "--size=auto", "--dry-run=no"]
    tools.run([*making, "--definitions=/work/repart", "/work/disk.raw"], work=place)
    return place / "disk.raw"


def boots(work: Path, record: Record, disk: Path, kind: str) -> tuple[Boot, Boot]:
    """Boot a fresh disk twice."""
    key_file = work / "key" / "id"
    key = shell.make_key(key_file)
    told = cloud_config(hostname=record.name, ssh_keys=[key], update_conf="SERVER=disabled\n")
    if kind == "debian":
        user = {"name": "core", "sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": [key]}
        told = "#cloud-config\n" + yaml.safe_dump({"hostname": record.name, "users": [user]})
    made = machine.create(
        work / "machines" / record.name, record, disk=disk, ssh_keys=[key], user_data=told
    )
    results = []
    try:
        for _ in range(2):
            with made.shell(key_file) as remote:
                started = time.monotonic()
                made.start(dies_with_us=True)
                made.wait_until(
                    remote, machine.boot_id, what="answer by ssh", timeout=900, pause=0.5
                )
                answered = time.monotonic() - started
                remote.run("sudo systemctl is-system-running --wait || true", timeout=900)
                reached = remote.run(
                    "systemctl show -P ActiveEnterTimestampMonotonic multi-user.target"
                )
                results.append(Boot(int(reached) / 1e6, answered))
                remote.run("sudo sync")
            made.cut_power()
    finally:
        made.remove()
    return results[0], results[1]


def show(figures: dict[str, dict[str, list[Boot]]], chosen: str, args: argparse.Namespace) -> None:
    """Print medians and ratios."""
    rows = []
    for kind in ("first", "second"):
        for figure in ("multi_user", "ssh"):
            proa, debian = (
                statistics.median(getattr(boot, figure) for boot in figures[name][kind])
                for name in ("proa", "debian")
            )
            rows.append({"boot": kind, "figure": figure, "proa": proa, "debian": debian})
            rows[-1]["ratio"] = proa / debian
    packages = len(recipe.load(recipe.DEFAULT).packages)
    if args.json:
        print(json.dumps({"accelerator": chosen, "memory_mib": args.memory, "rows": rows}))
        return
    print(f"{chosen}, {args.memory} MB, 2 CPUs, median of {args.rounds}; {packages} named packages")
    print(f"{'boot':8}{'figure':14}{'Proa':>8}{'Debian':>9}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['boot']:8}{row['figure']:14}{row['proa']:8.1f}{row['debian']:9.1f}"
            f"{row['ratio']:8.2f}"
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
