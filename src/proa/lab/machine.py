"""A Proa machine under QEMU: everything about it lies in one directory.

``disk.qcow2`` its disk, ``vars.qcow2`` its UEFI variables, ``config.iso`` its config drive,
``serial.log`` all that it ever said, ``console.sock`` and ``qmp.sock`` the ways to it,
``machine.json`` what it is and which process runs it. Removing the directory of a stopped machine
removes the machine.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from proa.lab import configdrive, process, qemu, qmp
from proa.lab.process import Process
from proa.lab.qemu import Accelerator, Firmware, Hardware
from proa.lab.shell import Shell, ShellError
from proa.wire.errors import UserError

DISK_SIZE = "8G"
RECORD = "machine.json"

# Ports in the guest that the host can reach: ssh, and one for an application.
SSH, APPLICATION = 22, 8080

# What ends a boot for good or for now, in a serial log.
_PANIC = "Kernel panic"
# The last words of a kernel that restarts, or is about to after a panic; the firmware should speak
# within seconds of them.
_RESTARTED = ("reboot: Restarting system", "Rebooting in 10 seconds..")
_FIRMWARE_PATIENCE = 60.0

# Colours and cursor movements (ECMA-48 control sequences).
CONTROL = re.compile(r"\x1b\[[0-9;=?]*[A-Za-z]")

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What is remembered of a machine: ``machine.json``.

    ``qemu`` and ``server`` are the processes that serve it, None when stopped; the update server
    listens on ``server_port`` of the host.
    """

    name: str
    version: str
    firmware: Firmware
    accelerator: Accelerator
    memory_mib: int
    ssh_port: int
    application_port: int
    server_port: int
    qemu: Process | None = None
    server: Process | None = None
    started: float | None = None


def create(
    directory: Path,
    record: Record,
    *,
    disk: Path,
    ssh_keys: list[str],
    user_data: str,
) -> Machine:
    """Make the machine ``record`` in ``directory`` from the raw disk image ``disk``.

    The disk is copied, so the release may go away; the machine is there whole or not at all.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as made:
        half = Path(made, "machine")
        half.mkdir(mode=0o700)
        _convert(disk, "raw", half / qemu.DISK)
        _qemu_img("resize", "-q", str(half / qemu.DISK), DISK_SIZE)
        if record.firmware is Firmware.UEFI:
            _convert(qemu.OVMF_VARS, "raw", half / qemu.VARS)
        configdrive.write(
            half / qemu.CONFIG_DRIVE, name=record.name, ssh_keys=ssh_keys, user_data=user_data
        )
        _save(half, record)
        half.rename(directory)
    return Machine(directory, record)


def load(directory: Path) -> Machine | None:
    """Return the machine in ``directory``, or None if there is none."""
    try:
        document = json.loads((directory / RECORD).read_text())
    except FileNotFoundError:
        return None
    try:
        for member in ("qemu", "server"):
            if document[member] is not None:
                document[member] = Process(**document[member])
        document["firmware"] = Firmware(document["firmware"])
        document["accelerator"] = Accelerator(document["accelerator"])
        return Machine(directory, Record(**document))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{directory / RECORD} was written by another version of proa",
            hint=f"end its QEMU if it still runs, then remove {directory}",
        ) from None


class Machine:
    """A machine that exists, running or not."""

    def __init__(self, directory: Path, record: Record) -> None:
        self.directory = directory
        self.record = record
        self.power_cycles = 0
        self._dies_with_us = False

    # --- what it is ---

    @property
    def is_running(self) -> bool:
        return self.record.qemu is not None and process.is_running(self.record.qemu)

    @property
    def hardware(self) -> Hardware:
        return Hardware(
            firmware=self.record.firmware,
            accelerator=self.record.accelerator,
            memory_mib=self.record.memory_mib,
            forwards={
                self.record.ssh_port: SSH,
                self.record.application_port: APPLICATION,
            },
            # On the serial console core is logged in: whoever reaches that socket owns the
            # machine's disk anyway.
            credentials={"agetty.autologin": "core", "login.noauth": "yes"},
        )

    def remember(self, **changes: object) -> None:
        """Change the record, on disk as well."""
        self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]
        _save(self.directory, self.record)

    # --- power ---

    def start(self, *, dies_with_us: bool, snapshot: str | None = None) -> None:
        """Switch it on. With ``dies_with_us`` it cannot outlive this process."""
        self._dies_with_us = dies_with_us
        started = process.start(
            qemu.command(self.hardware, snapshot=snapshot),
            directory=self.directory,
            log=self.directory / "qemu.log",
            dies_with_us=dies_with_us,
        )
        with process.stopped_on_error(started):
            end = time.monotonic() + 60
            while not self._qmp_answers():
                ended = not process.is_running(started)
                if ended or time.monotonic() > end:
                    raise UserError(
                        f"QEMU {'ended at once' if ended else 'did not answer within 60 s'}:\n"
                        + _tail(self.directory / "qemu.log"),
                        hint="if it names a port, another program uses it; `proa down` makes room",
                    )
                time.sleep(0.05)
            self.remember(qemu=started, started=time.time())

    def cut_power(self) -> None:
        """End it as a pulled plug would: the guest is not asked."""
        if self.record.qemu is not None:
            process.stop(self.record.qemu, grace=0)
            self.remember(qemu=None, started=None)
        for name in (qemu.CONSOLE, qemu.QMP):
            (self.directory / name).unlink(missing_ok=True)

    def free_from_firmware(self) -> None:
        """Cut the power and give it back if the firmware has hung after the guest's restart.

        Nothing of Proa runs then, and no try is counted yet. Under emulation firmware does hang
        at times; whoever stood before such a machine would do the same. ``power_cycles`` counts.
        """
        log = self.directory / qemu.SERIAL_LOG
        if not self.is_running or not log.exists():
            return
        # A machine that was switched on just now has its time as well, whatever it said before.
        since = max(log.stat().st_mtime, self.record.started or 0)
        if time.time() - since < _FIRMWARE_PATIENCE:
            return
        last = self.serial_since(max(0, self.serial_size() - 500))
        # What it clears the screen with is no sign of life: it may stop right after.
        if CONTROL.sub("", last).rstrip().endswith(_RESTARTED):
            self.power_cycles += 1
            self.cut_power()
            self.start(dies_with_us=self._dies_with_us)

    def remove(self) -> None:
        """Stop it and remove it with all that it holds."""
        self.cut_power()
        if self.record.server is not None:
            process.stop(self.record.server)
        shutil.rmtree(self.directory)

    def _qmp_answers(self) -> bool:
        try:
            return bool(qmp.execute(self.directory / qemu.QMP, "query-status", timeout=30))
        except (OSError, qmp.QmpError, ValueError):
            return False

    # --- snapshots ---

    def save_snapshot(self, name: str) -> None:
        """Keep memory, disk and firmware variables under ``name``; the guest goes on."""
        self._snapshot_command(f"savevm {name}")

    def load_snapshot(self, name: str) -> None:
        """Go back to ``name``. The guest's clock stands where it stood."""
        self._snapshot_command(f"loadvm {name}")

    def _snapshot_command(self, command: str) -> None:
        if answer := qmp.monitor(self.directory / qemu.QMP, command):
            raise UserError(f"{command} on machine {self.record.name}: {answer}")

    # --- what it says ---

    def serial_size(self) -> int:
        """Length of the serial log so far, in bytes: a mark for :meth:`serial_since`."""
        log = self.directory / qemu.SERIAL_LOG
        return log.stat().st_size if log.exists() else 0

    def serial_since(self, mark: int = 0) -> str:
        """What the machine has said on its serial port since ``mark``."""
        log = self.directory / qemu.SERIAL_LOG
        if not log.exists():
            return ""
        with log.open("rb") as file:
            file.seek(mark)
            return file.read().decode(errors="replace").replace("\r", "")

    def shell(self, key: Path) -> Shell:
        return Shell(self.directory, key, self.record.ssh_port)

    def wait_until(
        self,
        shell: Shell,
        probe: Callable[[Shell], T | None],
        *,
        what: str,
        timeout: float,
        pause: float = 1.0,
    ) -> T:
        """Ask ``probe`` until it returns something; reboots in between are no matter.

        Raises :class:`UserError` after ``timeout`` seconds, or at once if QEMU has ended.
        """
        end = time.monotonic() + timeout
        last = "it was never reached by ssh"
        while time.monotonic() < end:
            if not self.is_running:
                raise UserError(
                    f"machine {self.record.name} ended while waiting for {what}:\n"
                    + _tail(self.directory / "qemu.log")
                )
            try:
                answer = probe(shell)
                if answer is not None:
                    return answer
                last = "ssh answers"
            except ShellError as error:
                if not error.is_connection:
                    raise
            self.free_from_firmware()
            time.sleep(pause)
        raise UserError(f"machine {self.record.name}: no {what} within {timeout:.0f} s ({last})")


def boot_id(shell: Shell) -> str:
    """The id of the machine's present boot; another after each reboot."""
    return shell.run("cat /proc/sys/kernel/random/boot_id", timeout=30)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def panics(serial: str) -> int:
    """How many kernels have ended in a panic in a serial log."""
    return serial.count(_PANIC + " - not syncing")


def _save(directory: Path, record: Record) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    new = directory / (RECORD + ".new")
    new.write_text(text)
    new.rename(directory / RECORD)


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(it said nothing)"


def _convert(source: Path, source_format: str, target: Path) -> None:
    _qemu_img("convert", "-q", "-f", source_format, "-O", "qcow2", str(source), str(target))


def _qemu_img(*arguments: str) -> None:
    result = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"qemu-img {arguments[0]} failed: {result.stderr.strip()}")
