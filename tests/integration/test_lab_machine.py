"""A QEMU machine's life without a guest system: firmware runs, which is enough for the plumbing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.lab import machine, process, qemu, qmp
from proa.lab.machine import Machine, Record
from proa.lab.qemu import Accelerator, Firmware
from proa.wire.errors import UserError

pytestmark = pytest.mark.skipif(
    shutil.which(qemu.PROGRAM) is None or not qemu.OVMF_CODE.exists(),
    reason="needs qemu-system-x86 and ovmf",
)


def _record(firmware: Firmware) -> Record:
    return Record(
        name="web-1",
        version="1.0.0",
        firmware=firmware,
        accelerator=Accelerator.TCG,
        memory_mib=256,
        ssh_port=machine.free_port(),
        application_port=machine.free_port(),
        server_port=machine.free_port(),
    )


def _create(directory: Path, firmware: Firmware) -> Machine:
    disk = directory.parent / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    return machine.create(
        directory,
        _record(firmware),
        disk=disk,
        ssh_keys=["ssh-ed25519 AAAA me"],
        user_data="#cloud-config\n",
    )


@pytest.fixture(params=list(Firmware))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    created = _create(tmp_path / "web-1", request.param)
    yield created
    created.cut_power()


def test_a_machine_starts_is_found_again_by_its_record_and_ends(made: Machine) -> None:
    made.start(dies_with_us=True)
    found = machine.load(made.directory)
    assert found is not None
    assert found.record == made.record
    assert found.is_running
    found.cut_power()
    assert not found.is_running
    again = machine.load(made.directory)
    assert again is not None
    assert again.record.qemu is None


def test_the_disk_is_grown_and_keeps_nothing_of_the_release(made: Machine) -> None:
    shown = subprocess.run(
        ["qemu-img", "info", str(made.directory / qemu.DISK)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "8 GiB" in shown
    assert "backing file" not in shown


def test_memory_and_disk_can_be_kept_and_taken_up_again(made: Machine) -> None:
    made.start(dies_with_us=True)
    made.save_snapshot("booted")
    made.load_snapshot("booted")
    made.cut_power()
    made.start(dies_with_us=True, snapshot="booted")
    status = qmp.execute(made.directory / qemu.QMP, "query-status")
    assert status["status"] == "running"


def test_a_snapshot_that_is_not_there_is_an_error(made: Machine) -> None:
    made.start(dies_with_us=True)
    with pytest.raises(UserError, match="loadvm never"):
        made.load_snapshot("never")


def test_the_serial_port_is_logged(tmp_path: Path) -> None:
    created = _create(tmp_path / "web-1", Firmware.UEFI)
    created.start(dies_with_us=True)
    try:
        end = time.monotonic() + 60
        # OVMF says on the serial port what it tries to boot; an empty disk is nothing to boot.
        while "Boot" not in created.serial_since() and time.monotonic() < end:
            time.sleep(0.2)
        assert "Boot" in created.serial_since()
    finally:
        created.cut_power()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    first = _create(tmp_path / "one", Firmware.BIOS)
    first.start(dies_with_us=True)
    try:
        record = dataclasses.replace(_record(Firmware.BIOS), ssh_port=first.record.ssh_port)
        second = machine.create(
            tmp_path / "two",
            record,
            disk=tmp_path / "disk.raw",
            ssh_keys=[],
            user_data="",
        )
        with pytest.raises(UserError, match=str(first.record.ssh_port)):
            second.start(dies_with_us=True)
        assert second.record.qemu is None
    finally:
        first.cut_power()


def test_a_machine_that_was_switched_on_just_now_is_given_time_for_its_first_words(
    tmp_path: Path,
) -> None:
    created = _create(tmp_path / "web-1", Firmware.BIOS)
    log = created.directory / qemu.SERIAL_LOG
    log.write_text("[  308.689906] reboot: Restarting system\r\n")
    os.utime(log, (time.time() - 3600, time.time() - 3600))
    stand_in = process.start(
        ["sleep", "60"], directory=tmp_path, log=tmp_path / "log", dies_with_us=True
    )
    try:
        created.remember(qemu=stand_in, started=time.time())
        created.free_from_firmware()
        assert process.is_running(stand_in)
        assert created.power_cycles == 0
    finally:
        process.stop(stand_in)


def test_removing_a_machine_leaves_neither_process_nor_file(tmp_path: Path) -> None:
    created = _create(tmp_path / "web-1", Firmware.BIOS)
    created.start(dies_with_us=True)
    qemu_process = created.record.qemu
    assert qemu_process is not None
    created.remove()
    assert not process.is_running(qemu_process)
    assert not (tmp_path / "web-1").exists()


def test_a_machine_whose_disk_cannot_be_made_is_not_there_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qemu-img"):
        machine.create(
            tmp_path / "machines" / "web-1",
            _record(Firmware.UEFI),
            disk=tmp_path / "no-such.raw",
            ssh_keys=[],
            user_data="",
        )
    assert list((tmp_path / "machines").iterdir()) == []


def test_a_record_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / machine.RECORD).write_text('{"name": "web-1"}')
    with pytest.raises(UserError, match="another version"):
        machine.load(tmp_path)


@pytest.mark.parametrize(
    ("last_words", "seconds_ago", "expected"),
    [
        ("[  128.5] reboot: Restarting system\r\n", 120, 1),
        ("[    9.1] Rebooting in 10 seconds..\r\n", 120, 1),
        ("[  128.5] reboot: Restarting system\r\n\x1b[2J\x1b[01;01H\x1b[=3h\x1b[2J", 120, 1),
        ("[  128.5] reboot: Restarting system\r\n", 5, 0),
        ("[  128.5] reboot: Restarting system\r\n\x1b[2JBdsDxe: loading Boot0001", 120, 0),
        ("[  128.5] reboot: Power down\r\n", 120, 0),
        ("Proa 1.0.0 login: ", 120, 0),
    ],
)
def test_a_firmware_that_hangs_after_a_restart_gets_its_power_cut(
    tmp_path: Path, last_words: str, seconds_ago: int, expected: int
) -> None:
    made = _create(tmp_path / "web-1", Firmware.BIOS)
    made.start(dies_with_us=True)
    try:
        first = made.record.qemu
        log = made.directory / qemu.SERIAL_LOG
        log.write_text(last_words)
        then = time.time() - seconds_ago
        os.utime(log, (then, then))
        made.remember(started=then)
        made.free_from_firmware()
        assert made.power_cycles == expected
        assert made.is_running
        assert (made.record.qemu != first) == bool(expected)
    finally:
        made.cut_power()
