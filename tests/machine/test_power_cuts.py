"""The power goes during a real update: the machine comes up by itself and the update ends well.

Each cut is a SIGKILL of QEMU while a booted machine updates from 1.0.0 to 1.1.0, or restarts into
it. Before each one the machine is taken back to a snapshot, so the cuts are independent of one
another. What this models, and what it does not, is in docs/power-cuts.md.

``PROA_KILLS`` is the number of cuts. ``PROA_KILLS_SITE`` names a directory for the keys and the
releases, which is kept and used again; without it the tour's are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proa import paths
from proa.lab import accelerator, machine, process, qemu, shell, site, tour, up
from proa.lab.configdrive import cloud_config
from proa.lab.machine import Machine, Record
from proa.lab.qemu import Firmware
from proa.lab.shell import Shell, ShellError
from proa.lab.tour import Tour

pytestmark = pytest.mark.machine

OLD, NEW = "1.0.0", "1.1.0"
NAME = "cuts"

# Snapshots: at rest before the update; 1.1.0 written and armed.
READY, STAGED = "ready", "staged"

CONF = "/etc/proa/update.conf"
STATE = "/var/lib/proa/update/state.json"
PROGRESS = "/run/proa/progress.json"


@dataclass(frozen=True)
class Moment:
    """When the power goes, in a run whose ``way`` is a value of PAYLOAD, or ``restart``.

    That is one of: ``part`` of the time that an undisturbed run takes; ``sign``, a bash command
    that ends on the machine as soon as something has come about; ``serial``, a pattern of what has
    just come on the serial port. ``boots`` are the versions that may run afterwards.
    """

    way: str
    words: str
    part: float | None = None
    sign: str = ""
    serial: str = ""
    boots: Sequence[str] = (OLD, NEW)

    def __str__(self) -> str:
        return f"{self.way}: {self.words}"


def _said(words: str) -> str:
    # journalctl goes on alone when grep has ended; 1.1.0 was never spoken of before this run.
    return f"grep -q -m 1 '{words}' < <(journalctl -b -f -n 100 -o cat -t proactl)"


def _becomes(condition: str) -> str:
    return f"until {condition}; do sleep 0.05; done 2>/dev/null"


# "done": D, "size": S of progress.json, with S known and D beyond the half.
_HALF = _becomes(
    f"sed 's/[^0-9 ]//g' {PROGRESS} | awk '$NF > 0 && 2 * $(NF - 1) > $NF {{ ok = 1 }}"
    " END { exit !ok }'"
)
_ARMED = _becomes("ls /boot/EFI/Linux/proa-b*.efi")
_VERIFIES = _becomes(f"grep -q verifying {PROGRESS}")

# The first ones are those that CI does.
SIGNS = (
    Moment(
        "image",
        "half written",
        sign=_HALF,
        boots=(OLD,),
    ),
    Moment("restart", "1.1.0 starts", serial=r"Proa 1\.1\.0 \(", boots=(NEW,)),
    Moment("auto", "writing begins", sign=_said(f"writing {NEW} to slot"), boots=(OLD,)),
    Moment("auto", "verification begins", sign=_VERIFIES),
    Moment("restart", "the kernel restarts", serial="reboot: Restarting system", boots=(NEW,)),
    Moment("image", "verification begins", sign=_VERIFIES),
    Moment("auto", "the boot entry appears", sign=_ARMED),
    Moment("restart", "the boot loader starts", serial="BdsDxe: starting", boots=(NEW,)),
    Moment("image", "the boot entry appears", sign=_ARMED),
    Moment("auto", "the candidate is noted", sign=_becomes(f"grep -q '\"armed\"' {STATE}")),
    Moment("restart", "the initrd hands over", serial=r"initrd-switch-root\.target", boots=(NEW,)),
    Moment(
        "restart",
        "its health is judged",
        serial=r"(?s)Proa 1\.1\.0 \(.*proa-health\.service",
        boots=(NEW,),
    ),
    Moment("auto", "half written", sign=_HALF, boots=(OLD,)),
    Moment("auto", "the repository is checked", sign=_said("is on offer"), boots=(OLD,)),
)


def moments(number: int) -> list[Moment]:
    """Return ``number`` moments: signs and parts of the time by turns, two image runs to a delta's.

    The parts are van der Corput's sequence, which fills the time evenly however many there are;
    it goes a little beyond the end, when all is armed.
    """
    signs, found, parts = iter(SIGNS), list(SIGNS[:2]), 0
    next(signs), next(signs)
    while len(found) < number:
        if len(found) % 2 and (sign := next(signs, None)) is not None:
            found.append(sign)
            continue
        part = round(1.1 * _van_der_corput(parts + 1), 3)
        way = "auto" if parts % 3 == 2 else "image"
        found.append(Moment(way, f"{part:.1%} of the time", part=part))
        parts += 1
    return found[:number]


def _van_der_corput(number: int) -> float:
    value, share = 0.0, 0.5
    while number:
        value += share * (number & 1)
        number, share = number >> 1, share / 2
    return value


@dataclass
class Bench:
    """The machine that is cut, and what is known about its undisturbed updates."""

    machine: Machine
    shell: Shell
    seconds: dict[str, float] = field(default_factory=dict)
    staged: bool = False

    def back_to(self, snapshot: str) -> None:
        """Go back to where ``snapshot`` was taken. The first command waits for the network."""
        self.cut()
        self.machine.start(dies_with_us=True, snapshot=snapshot)
        up.wait_for_boot(self.machine, self.shell, lambda _words: None)

    def cut(self) -> None:
        """Pull the plug; the disk image must be whole as far as QEMU is concerned."""
        self.machine.cut_power()
        self.shell.close()
        for name in (qemu.DISK, qemu.VARS):
            command = ["qemu-img", "check", "-q", str(self.machine.directory / name)]
            checked = subprocess.run(command, capture_output=True, text=True, check=False)
            # 3: clusters that belong to nothing, as a SIGKILL of QEMU leaves them.
            assert checked.returncode in (0, 3), checked.stdout + checked.stderr

    def choose(self, way: str) -> None:
        """Set how the new version shall come."""
        self.shell.run(
            f"sudo sed -i '/^PAYLOAD=/d' {CONF} && echo PAYLOAD={way} | sudo tee -a {CONF}"
        )

    def update(self) -> int:
        """Run the update to its end; return its exit status."""
        self.shell.run("sudo systemctl start proa-update.service", timeout=1800, check=False)
        return int(self.shell.run("systemctl show -P ExecMainStatus proa-update.service"))

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.shell.run("sudo proactl status --json"))
        return document

    def duration(self, way: str) -> float:
        """Seconds that an undisturbed update takes; measured when first asked for."""
        if way not in self.seconds:
            self.back_to(READY)
            self.choose(way)
            started = time.monotonic()
            assert self.update() == 0
            self.seconds[way] = time.monotonic() - started
            print(f"\n   an undisturbed update, PAYLOAD={way}: {self.seconds[way]:.1f} s")
        return self.seconds[way]

    def go_to_staged(self) -> None:
        """Be where 1.1.0 is staged; the first time, by a delta."""
        if self.staged:
            return self.back_to(STAGED)
        self.back_to(READY)
        self.choose("auto")
        assert self.update() == 0
        self.machine.save_snapshot(STAGED)
        self.staged = True
        return None


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest) -> Iterator[Tour]:
    """1.0.0, and 1.1.0 with a delta from it, in a repository that is served.

    After a tour they are there already.
    """
    if "PROA_KILLS_SITE" in os.environ:
        home = Path(os.environ["PROA_KILLS_SITE"]).absolute()
        home.mkdir(parents=True, exist_ok=True)
        told = Tour(site.Site(home, paths.cache_dir()), site.Site(home, paths.cache_dir()))
    else:
        told = request.getfixturevalue("stage")
        if told.machine is not None:
            told.machine.cut_power()
    if not told.site.root.exists():
        told.site.proa("keys", "init")
    if not told.site.release(OLD).exists():
        up.build(told.site, OLD, told.report)
        up.publish(told.site, OLD)
    if not told.site.release(NEW).exists():
        tour.build_second(told)
    if not told.server_port:
        # A machine that was kept knows its server's port.
        kept = machine.load(told.site.machines / NAME)
        told.server_port = site.server_port(kept.record.server_port if kept else None)
        log = told.site.home / "server.log"
        told.server = told.site.serve(port=told.server_port, log=log, dies_with_us=True)
    yield told
    if "PROA_KILLS_SITE" in os.environ and told.server is not None:
        process.stop(told.server)


@pytest.fixture(scope="module")
def bench(published: Tour) -> Iterator[Bench]:
    """A machine that runs 1.0.0, committed and at rest, and a snapshot of that.

    One that an interrupted run has left in a kept site is taken up again.
    """
    own, release = published.site, published.site.release(OLD)
    key = shell.make_key(own.ssh_key)
    record = Record(
        name=NAME,
        version=OLD,
        firmware=Firmware.UEFI,
        accelerator=accelerator.choose(release / "vmlinuz", own.cache),
        memory_mib=tour.MEMORY_MIB,
        ssh_port=machine.free_port(),
        application_port=machine.free_port(),
        server_port=published.server_port,
    )
    known = machine.load(own.machines / NAME)
    if known is not None and READY not in _snapshots(known):
        known.remove()
    elif known is not None:
        own.proa("channel", "set", up.CHANNEL, NEW)
        known.remember(qemu=None, server_port=published.server_port)
        with known.shell(own.ssh_key) as remote, contextlib.ExitStack() as undo:
            undo.callback(known.remove)
            yield Bench(known, remote, staged=STAGED in _snapshots(known))
        return
    # It restarts when the test says so.
    settings = up.update_conf(published.server_port, MACHINE_ALIAS=NAME, REBOOT_STRATEGY="off")
    made = machine.create(
        own.machines / NAME,
        record,
        disk=release / "disk.raw",
        ssh_keys=[key],
        user_data=cloud_config(hostname=NAME, ssh_keys=[key], update_conf=settings),
    )
    with made.shell(own.ssh_key) as remote, contextlib.ExitStack() as undo:
        undo.callback(made.remove)
        # Nothing may be staged before the test says so: neither now nor by the machine's timer.
        own.proa("channel", "set", up.CHANNEL, OLD)
        made.start(dies_with_us=True)
        made.wait_until(
            remote,
            lambda asked: asked.run("sudo systemctl stop proa-update.timer; echo stopped"),
            what="answer by ssh",
            timeout=up.BOOT_TIMEOUT,
        )
        found = Bench(made, remote)
        _wait_committed(found)
        remote.run("systemctl is-system-running --wait", timeout=600, check=False)
        made.save_snapshot(READY)
        own.proa("channel", "set", up.CHANNEL, NEW)
        yield found


def _snapshots(known: Machine) -> list[str]:
    command = ["qemu-img", "snapshot", "-l", str(known.directory / qemu.DISK)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[1] for line in shown.splitlines()[2:]]


def test_the_moments_are_spread() -> None:
    many = moments(30)
    assert len(many) == len({str(moment) for moment in many}) == 30
    assert set(SIGNS) < set(many)
    for way in ("image", "auto"):
        parts = [moment.part for moment in many if moment.way == way and moment.part is not None]
        assert min(parts) < 0.3
        assert max(parts) > 0.8
    assert {moment.way for moment in moments(2)} == {"image", "restart"}


@pytest.mark.parametrize("moment", moments(int(os.environ.get("PROA_KILLS", "2"))), ids=str)
def test_the_machine_comes_up_and_the_update_ends(bench: Bench, moment: Moment) -> None:
    after, cut_at = _cut(bench, moment)
    known, remote = bench.machine, bench.shell
    cycles = known.power_cycles
    known.start(dies_with_us=True)
    started = time.monotonic()
    _wait_committed(bench)
    seconds = time.monotonic() - started
    state = json.loads(remote.run(f"sudo cat {STATE} 2>/dev/null || echo '{{}}'"))
    first = bench.status()
    failed = remote.run("systemctl --failed --no-legend --plain")
    bench.choose("auto" if moment.way == "restart" else moment.way)
    code = bench.update()
    last = bench.status()
    staged = last["staged"] or {}
    ends = f"{last['version']} runs" + (f", {staged['version']} staged" if staged else "")
    transfer = last["transfer"] or {}
    print(
        f"\n{time.strftime('%H:%M:%S', time.gmtime())} {moment}, {after:.1f} s after {cut_at}"
        f" | the disk had: {_words(state, first)}"
        f" | {first['version']} committed {seconds:.0f} s after power-on"
        f" | next update: exit status {code}, {ends}"
        f" ({transfer.get('way')}: {transfer.get('fetched', 0):,} bytes fetched)"
        + ("; the firmware hung and was helped" if known.power_cycles > cycles else ""),
        flush=True,
    )
    assert not failed, failed
    assert first["version"] in moment.boots
    assert first["failed"] == {}
    assert code == 0
    assert NEW in (last["version"], staged.get("version"))


def _cut(bench: Bench, moment: Moment) -> tuple[float, str]:
    """Bring the machine to ``moment`` and cut its power; return the seconds since what."""
    if moment.way == "restart":
        bench.go_to_staged()
        mark = bench.machine.serial_size()
        with contextlib.suppress(ShellError):
            bench.shell.run("sudo systemctl reboot", timeout=30)
        started = time.monotonic()
        end = started + 900
        while not re.search(moment.serial, bench.machine.serial_since(mark)):
            assert time.monotonic() < end, f"no {moment.serial!r} on the serial port"
            bench.machine.free_from_firmware()
            time.sleep(0.1)
        after = time.monotonic() - started
        bench.cut()
        return after, "asking for the restart"
    start = "sudo systemctl start --no-block proa-update.service"
    if moment.part is not None:
        due = moment.part * bench.duration(moment.way)
        bench.back_to(READY)
        bench.choose(moment.way)
        bench.shell.run(start)
        started = time.monotonic()
        time.sleep(due)
    else:
        bench.back_to(READY)
        bench.choose(moment.way)
        watch = f"sudo bash -c {shlex.quote(moment.sign)} & {start}; wait $!"
        started = time.monotonic()
        bench.shell.run(watch, timeout=1800)
    after = time.monotonic() - started
    bench.cut()
    return after, "its start"


def _wait_committed(bench: Bench) -> None:
    """Wait until what runs has been judged good; nobody helps it."""
    up.wait_until_judged(bench.machine, bench.shell)
    condition = bench.status()["condition"]
    assert condition == "committed", condition


def _words(state: dict[str, Any], status: dict[str, Any]) -> str:
    """What lay on the disk, as far as the update's own state tells it after the boot."""
    download = state.get("download")
    other = next(view for view in status["slots"] if not view["running"])
    words = [f"slot {other['name']} {other['condition']}"]
    if download:
        words.append(f"{sum(download['durable'].values()):,} bytes noted as flushed")
    if state.get("candidate"):
        words.append(f"candidate {'armed' if state['candidate']['armed'] else 'not armed'}")
    return ", ".join(words)
