"""Update a booted machine between two releases of a pair, in the unit that does it.

The updater is then what it is on a machine: a service that may take 64 MiB in all, with a disk, a
network and a kernel of its own. Both releases are built anew, for each must trust the keys of a
repository; versions are 1.0.0 and 1.1.0, whatever the pair. What is made lies below ``--site`` and
is used again, also by the power cuts (docs/power-cuts.md):

    PYTHONPATH=$PWD/src python -m benchmarks.booted PAIR [--way auto|full|image] [--json]
    PROA_KILLS=30 PROA_KILLS_SITE=SITE ./proa test -- -k power_cuts -s

Figures are of an emulated machine: its seconds are compared with those of its own ``image`` run,
not with anybody else's. ``peak`` is what the kernel counted for the unit (``memory.peak``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import pairs

from proa import paths
from proa.lab import accelerator, machine, shell, up
from proa.lab.configdrive import cloud_config
from proa.lab.machine import Machine, Record
from proa.lab.qemu import Firmware
from proa.lab.shell import Shell
from proa.lab.site import Site, server_port
from proa.wire.errors import UserError

OLD, NEW = "1.0.0", "1.1.0"
NAME = "booted"
MEMORY_MIB = 512
UPDATE_SECONDS = 4 * 3600
UNIT = "proa-update.service"


@dataclass(frozen=True)
class Update:
    """One update, written and committed. ``peak`` and ``fetched`` in bytes, the rest in seconds."""

    pair: str
    way: str
    fetched: int
    peak: int
    processor: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    home = (args.site or paths.cache_dir() / "booted" / args.pair).absolute()
    own = Site(home, paths.cache_dir())
    try:
        prepare(own, args.pair, args.work.absolute())
        with contextlib.ExitStack() as undo:
            known, remote = boot(own, args.way, undo)
            update = measure(known, remote, args.pair)
    except UserError as error:
        say(f"booted: {error}")
        return 1
    if args.json:
        print(json.dumps(asdict(update)))
    else:
        print(
            f"{update.pair}, {update.way}: {update.fetched:,} bytes fetched, at most"
            f" {update.peak:,} bytes of memory, {update.processor:.1f} s of processor,"
            f" {update.seconds:.1f} s in all; {NEW} committed"
        )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.booted",
        description=__doc__ or "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pair", choices=list(pairs.PAIRS))
    parser.add_argument("--way", choices=("auto", "full", "image"), default="auto")
    parser.add_argument("--site", type=Path, metavar="DIR", help="keys, releases, repository")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=paths.cache_dir() / "bench",
        help="what benchmarks.payload has made: packages are not installed again",
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def prepare(own: Site, pair: str, work: Path) -> None:
    """Make sure of keys, both releases, and a repository with a delta between them."""
    own.home.mkdir(parents=True, exist_ok=True)
    if not own.root.exists():
        own.proa("keys", "init")
    if missing := [v for v in (OLD, NEW) if not own.release(v).exists()]:
        maker = pairs.Maker(work, say)
        for kind, version in zip(pairs.PAIRS[pair], (OLD, NEW), strict=True):
            if version in missing:
                maker.build(kind, version, own.root, own.release(version))
    for version in (OLD, NEW):
        say(f"publishing {version}, and a delta to it")
        up.publish(own, version, channel=None)


def boot(own: Site, way: str, undo: contextlib.ExitStack) -> tuple[Machine, Shell]:
    """Return a machine that runs the old release, committed, and is about to be offered the new."""
    port = server_port()
    key = shell.make_key(own.ssh_key)
    record = Record(
        name=NAME,
        version=OLD,
        firmware=Firmware.UEFI,
        accelerator=accelerator.choose(own.release(OLD) / "vmlinuz", own.cache),
        memory_mib=MEMORY_MIB,
        ssh_port=machine.free_port(),
        application_port=machine.free_port(),
        server_port=port,
    )
    settings = up.update_conf(port, MACHINE_ALIAS=NAME, REBOOT_STRATEGY="off", PAYLOAD=way)
    own.proa("channel", "set", up.CHANNEL, OLD)
    own.serve(port=port, log=own.home / "server.log", dies_with_us=True)
    known = machine.create(
        own.machines / NAME,
        record,
        disk=own.release(OLD) / "disk.raw",
        ssh_keys=[key],
        user_data=cloud_config(hostname=NAME, ssh_keys=[key], update_conf=settings),
    )
    undo.callback(known.remove)
    undo.callback(lambda: shutil.copy(known.directory / "serial.log", own.home / "serial.log"))
    remote = undo.enter_context(known.shell(own.ssh_key))
    say(f"booting {OLD}")
    known.start(dies_with_us=True)
    # Nothing may be staged by the machine's own timer.
    known.wait_until(
        remote,
        lambda asked: asked.run("sudo systemctl stop proa-update.timer; echo stopped"),
        what="answer by ssh",
        timeout=up.BOOT_TIMEOUT,
    )
    up.wait_until_judged(known, remote, version=OLD)
    own.proa("channel", "set", up.CHANNEL, NEW)
    return known, remote


def measure(known: Machine, remote: Shell, pair: str) -> Update:
    say(f"updating to {NEW}")
    started = time.monotonic()
    remote.run(f"sudo systemctl start --no-block {UNIT}")
    known.wait_until(remote, has_ended, what="the end of the update", timeout=UPDATE_SECONDS)
    seconds = time.monotonic() - started
    told = dict(properties(remote.run(f"systemctl show {UNIT}")))
    journal = remote.run(f"sudo journalctl -b -o cat --no-pager -u {UNIT}")
    say(journal)
    if told["ExecMainStatus"] != "0":
        raise UserError(f"the update ended with exit status {told['ExecMainStatus']}")
    status = json.loads(remote.run("sudo proactl status --json"))
    transfer = status["transfer"]
    with contextlib.suppress(shell.ShellError):
        remote.run("sudo systemctl reboot", timeout=30)
    up.wait_until_judged(known, remote, version=NEW)
    return Update(
        pair,
        transfer["way"],
        transfer["fetched"],
        int(told["MemoryPeak"]),
        int(told["CPUUsageNSec"]) / 1e9,
        seconds,
    )


def has_ended(asked: Shell) -> bool | None:
    state = asked.run(f"systemctl show -P ActiveState {UNIT}", timeout=120)
    return True if state in ("inactive", "failed") else None


def properties(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if found := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            yield found[1], found[2]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
