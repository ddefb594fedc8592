"""What QEMU is told: a machine's description becomes a command line. Nothing runs here.

Paths are relative to the machine's directory, in which QEMU is started: Unix socket paths stay
short that way, and the directory can be moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PROGRAM = "qemu-system-x86_64"

# Debian's and Ubuntu's ovmf. The 4M variants are the ones that Debian 13 still ships.
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

DISK = "disk.qcow2"
VARS = "vars.qcow2"
CONFIG_DRIVE = "config.iso"
SERIAL_LOG = "serial.log"
CONSOLE = "console.sock"
QMP = "qmp.sock"

# Where QEMU's user network puts the host, seen from the guest.
HOST_SEEN_FROM_GUEST = "10.0.2.2"


class Firmware(StrEnum):
    UEFI = "uefi"
    BIOS = "bios"


class Accelerator(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Hardware:
    """A machine as QEMU shall make it. ``forwards`` maps host ports to guest ports (TCP)."""

    firmware: Firmware
    accelerator: Accelerator
    forwards: Mapping[int, int]
    memory_mib: int = 512
    cpus: int = 2
    credentials: Mapping[str, str] | None = None


def accelerator_options(accelerator: Accelerator) -> list[str]:
    if accelerator is Accelerator.KVM:
        return ["-accel", "kvm", "-cpu", "host"]
    # QEMU 7.2 may lose the flags of CMPXCHG16B when an interrupt comes next: Debian's kernel
    # 6.12.107 dies of that within minutes, a double fault in kmalloc. Without CX16 none uses it.
    return ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]


def command(hardware: Hardware, *, snapshot: str | None = None) -> list[str]:
    """Return QEMU's command line; with ``snapshot`` it goes on where that snapshot was taken."""
    forwards = "".join(
        f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in hardware.forwards.items()
    )
    arguments = [
        PROGRAM,
        *("-name", "proa"),
        # No HPET, as libvirt does by default: under TCG an interrupt was seen to storm after a
        # warm reset, and no firmware gets past that.
        *("-machine", "q35,hpet=off"),
        *accelerator_options(hardware.accelerator),
        *("-smp", str(hardware.cpus)),
        *("-m", str(hardware.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *_firmware(hardware.firmware),
        # The machine is for trying: the host's page cache may keep what the guest has flushed.
        # A power cut of the *guest* is still honest, since QEMU's writes survive QEMU.
        *("-drive", f"if=none,id=disk,file={DISK},format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
        *("-drive", f"if=none,id=config,file={CONFIG_DRIVE},format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=config"),
        *("-netdev", f"user,id=net{forwards}"),
        # No boot ROM: nothing is booted from the network, and the firmware starts sooner.
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *(
            "-chardev",
            f"socket,id=console,path={CONSOLE},server=on,wait=off"
            f",logfile={SERIAL_LOG},logappend=on",
        ),
        *("-serial", "chardev:console"),
        *("-qmp", f"unix:{QMP},server=on,wait=off"),
    ]
    for name, value in (hardware.credentials or {}).items():
        # A comma ends a value in QEMU's option syntax unless it is doubled.
        credential = f"io.systemd.credential:{name}={value}".replace(",", ",,")
        arguments += ["-smbios", f"type=11,value={credential}"]
    if snapshot is not None:
        arguments += ["-loadvm", snapshot]
    return arguments


def _firmware(firmware: Firmware) -> Sequence[str]:
    if firmware is Firmware.BIOS:
        # SeaBIOS is QEMU's default. GRUB's first stage writes through the video BIOS.
        return ("-vga", "std")
    return (
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}",
        # qcow2, since every writable drive of a machine must be able to hold its snapshots.
        "-drive", f"if=pflash,format=qcow2,unit=1,file={VARS}",
    )  # fmt: skip
