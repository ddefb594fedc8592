"""The QEMU command line that a machine's description becomes."""

from __future__ import annotations

import itertools

from proa.lab import qemu
from proa.lab.qemu import Accelerator, Firmware, Hardware

UEFI = Hardware(Firmware.UEFI, Accelerator.TCG, {2201: 22, 2202: 8080}, memory_mib=512)


def _after(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_ports_are_forwarded_from_the_loopback_interface_only() -> None:
    (netdev,) = _after(qemu.command(UEFI), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:2201-:22" in netdev
    assert "hostfwd=tcp:127.0.0.1:2202-:8080" in netdev


def test_uefi_brings_its_own_variables_and_bios_brings_none() -> None:
    assert any(qemu.VARS in drive for drive in _after(qemu.command(UEFI), "-drive"))
    bios = Hardware(Firmware.BIOS, Accelerator.TCG, {})
    assert not any("pflash" in drive for drive in _after(qemu.command(bios), "-drive"))


def test_every_writable_drive_can_hold_a_snapshot() -> None:
    for drive in _after(qemu.command(UEFI), "-drive"):
        assert "format=qcow2" in drive or "readonly=on" in drive


def test_emulation_uses_all_processors() -> None:
    assert "tcg,thread=multi" in _after(qemu.command(UEFI), "-accel")


def test_a_credential_with_a_comma_reaches_the_guest_whole() -> None:
    hardware = Hardware(Firmware.UEFI, Accelerator.KVM, {}, credentials={"motd": "a,b"})
    (smbios,) = _after(qemu.command(hardware), "-smbios")
    assert smbios == "type=11,value=io.systemd.credential:motd=a,,b"


def test_a_snapshot_is_loaded_only_on_request() -> None:
    assert "-loadvm" not in qemu.command(UEFI)
    assert _after(qemu.command(UEFI, snapshot="booted"), "-loadvm") == ["booted"]
