"""One cloud-config applied by Proa, by Debian's cloud-init and by a shell script, in one guest.

    PYTHONPATH=src python -m benchmarks.cloudconfig
    PYTHONPATH=src python -m benchmarks.cloudconfig --rounds 5 --peers proa,cloud-init --json

The document is cloudconfig.yaml, the script cloudconfig.sh. After each boot the guest's files,
users and mounts are looked at, key by key (cloudconfig_effects.py): what a peer did not do is
said, and its figures are then for less work. Figures are medians over the rounds:

    ssh     seconds until sshd may start: the script; Proa's local stage; of cloud-init the
            generator, the start and the stages "local" and "network"
    all     seconds until everything is applied
    CPU     seconds of user and system, all processes
    MB      peak memory of the largest process

update-ca-certificates does most of the work of ca_certs for the script and for cloud-init; Proa has
its own way. --without ca_certs shows the rest. "cloud-init" is as Debian ships it, less what Proa
does not do in its run (CLOUD_INIT in cloudconfig_guest.py); "cloud-init-lean" has only the modules
that the document needs. A boot is "first" on a fresh machine, "second" on the same one when nothing
changed.

Without KVM the guest's clock counts instructions, a nanosecond each: what else the host does then
changes nothing but waiting for the disk. Needs root; nothing is installed on the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from benchmarks import cloudconfig_effects as effects
from benchmarks import cloudconfig_guest as guest
from benchmarks.cloudconfig_guest import Boot

from proa import paths
from proa.factory import cache, sdk
from proa.lab import accelerator
from proa.lab.qemu import Accelerator
from proa.wire.errors import UserError

HERE = Path(__file__).parent
PEERS = ("script", "proa", "cloud-init", "cloud-init-lean")
# How the metadata service behaves, and who waits for it.
SERVICES = ("at-once", "slow=1", "silent")
WAITING = ("proa", "cloud-init")
# The state of a machine to which nobody did anything: what the checks must find undone there.
NOTHING = "nothing"
KINDS = ("first", "second")
# What sshd does not wait for. cloud-init-network.service is Before=sshd.service; Proa's network
# stage is not, and is only started for what comes over the network.
_LATE = {"proa": ("network", "final"), "script": ()}
_LATE_OF_CLOUD_INIT = ("config", "final")
# The main process's own time, which its stages are parts of.
_WHOLE = "all"


@dataclass(frozen=True)
class Row:
    """Medians of one peer at one kind of boot: seconds, and bytes. ``undone`` are keys."""

    peer: str
    boot: str
    ssh: float
    all: float
    cpu: float
    memory: int
    stages: Mapping[str, float]
    undone: tuple[str, ...]
    failed: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        sdk.require_root()
        document = yaml.safe_load((HERE / "cloudconfig.yaml").read_bytes())
        document = {key: value for key, value in document.items() if key not in args.without}
        keys = effects.leaf_keys(document)
        versions, boots = measure(args, document)
        rows = summary((boot for boot in boots if "+" not in boot.peer), document)
        waits = waiting(boots)
    except UserError as error:
        say(f"cloudconfig: {error}")
        return 1
    if args.json:
        result: dict[str, object] = {"versions": versions, "keys": keys, "rounds": args.rounds}
        result["rows"] = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({**result, "services": waits}, indent=1))
    else:
        show(rows, versions, len(keys), args.rounds)
        show_waits(waits)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cloudconfig",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="machines of each (%(default)s)")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="with commas between them (default: %(default)s)"
    )
    parser.add_argument(
        "--without",
        action="append",
        choices=guest.OPTIONAL,
        default=[],
        help="leave a key out of the document, and of the script",
    )
    parser.add_argument(
        "--services",
        default=",".join(SERVICES),
        help="how a metadata service behaves that is waited for (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600,
        metavar="S",
        help="for the guest (%(default)s)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what the guest has left")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    args = parser.parse_args(arguments)
    args.peers = [name for name in args.peers.split(",") if name]
    args.services = [name for name in args.services.split(",") if name]
    if unknown := {*args.peers} - {*PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    if args.rounds < 1:
        parser.error("--rounds wants at least 1")
    return args


def measure(
    args: argparse.Namespace, document: effects.Document
) -> tuple[dict[str, str], list[Boot]]:
    """Make the guest, boot it, and return the versions and the boots."""
    caches = paths.cache_dir()
    with cache.scratch(caches) as work:
        made = guest.make(work, caches, HERE, say)
        chosen = accelerator.choose(made.kernel, caches)
        clock = "the host's" if chosen is Accelerator.KVM else "1 ns an instruction"
        # In turn, so that a change of the host's load meets all of them.
        runs = [(NOTHING, 0), *((p, n) for n in range(args.rounds) for p in args.peers)]
        # Once each: what one waits is a matter of the service, not of chance.
        runs += [(f"{p}+{s}", 0) for p in WAITING for s in args.services if p in args.peers]
        say(f"booting the guest for {len(runs)} runs ({chosen})")
        try:
            kernel, boots = guest.run(made, work, document, runs, chosen, args.timeout)
        finally:
            if args.keep and (work / "results").exists():
                args.keep.mkdir(parents=True, exist_ok=True)
                for name in ("results", "serial.log"):
                    (args.keep / name).write_bytes((work / name).read_bytes())
        return {**made.versions, "kernel": kernel, "clock": f"{chosen}, {clock}"}, boots


def summary(boots: Iterable[Boot], document: effects.Document) -> list[Row]:
    """Medians by peer and kind of boot.

    Raises :class:`UserError` if a check takes a machine to which nothing was done for done.
    """
    groups: dict[tuple[str, str], list[Boot]] = {}
    for boot in boots:
        groups.setdefault((boot.peer, boot.kind), []).append(boot)
    for boot in groups.pop((NOTHING, "first"), []):
        undone = effects.missing(document, boot.state)
        if vacuous := sorted({*effects.leaf_keys(document)} - {*undone}):
            raise UserError(f"the checks of {', '.join(vacuous)} find them done by nobody")
    groups.pop((NOTHING, "second"), None)
    return [row(found, document) for found in groups.values()]


def row(boots: Sequence[Boot], document: effects.Document) -> Row:
    """One peer at one kind of boot."""
    undone = {key for boot in boots for key in effects.missing(document, boot.state)}
    failed = {f"{s.name} ({s.status})" for boot in boots for s in boot.stages if s.status}
    by_stage: dict[str, list[float]] = {}
    for boot in boots:
        for stage in boot.stages:
            by_stage.setdefault(stage.name, []).append(stage.elapsed)
    return Row(
        peer=boots[0].peer,
        boot=boots[0].kind,
        ssh=round(statistics.median(until_ssh(boot) for boot in boots), 2),
        all=round(statistics.median(until_all(boot) for boot in boots), 2),
        cpu=round(statistics.median(sum(s.cpu for s in boot.stages) for boot in boots), 2),
        memory=round(statistics.median(max(s.memory for s in b.stages) for b in boots)),
        stages={name: round(statistics.median(times), 2) for name, times in by_stage.items()},
        undone=tuple(key for key in effects.leaf_keys(document) if key in undone),
        failed=tuple(sorted(failed)),
    )


def steps(boot: Boot) -> dict[str, float]:
    """Seconds of what a boot waits for, one after another."""
    return {stage.name: stage.elapsed for stage in boot.stages if stage.name != _WHOLE}


def until_ssh(boot: Boot) -> float:
    late = _LATE.get(boot.peer, _LATE_OF_CLOUD_INIT)
    return sum(seconds for name, seconds in steps(boot).items() if name not in late)


def until_all(boot: Boot) -> float:
    return sum(steps(boot).values())


def waiting(boots: Iterable[Boot]) -> dict[str, dict[str, float]]:
    """Seconds until everything is applied, by how the metadata service behaves and by peer."""
    found: dict[str, dict[str, float]] = {}
    for boot in boots:
        peer, _, service = boot.peer.partition("+")
        if service:
            found.setdefault(service, {})[peer] = round(until_all(boot), 2)
    return found


def show_waits(waits: Mapping[str, Mapping[str, float]]) -> None:
    """Print what a metadata service adds to a boot, beside one that answers at once."""
    for service, times in waits.items():
        words = []
        for peer, seconds in times.items():
            base = waits.get(SERVICES[0], {}).get(peer)
            more = "" if base is None or service == SERVICES[0] else f" (+{seconds - base:.2f})"
            words.append(f"{peer} {seconds:.2f} s{more}")
        print(f"metadata service, {service}: {', '.join(words)}")


def show(rows: Sequence[Row], versions: Mapping[str, str], keys: int, rounds: int) -> None:
    """Print the table, the ratios, and what was not done."""
    print(f"{keys} keys, median of {rounds} rounds")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"\n{'peer':17}{'boot':8}{'ssh s':>8}{'all s':>8}{'CPU s':>8}{'MB':>7}  keys done")
    for r in rows:
        figures = f"{r.ssh:8.2f}{r.all:8.2f}{r.cpu:8.2f}{r.memory / 1e6:7.1f}"
        print(f"{r.peer:17}{r.boot:8}{figures}  {keys - len(r.undone)} of {keys}")
    print()
    for text in ratios(rows):
        print(text)
    for r in rows:
        if len(r.stages) > 1:
            parts = ", ".join(f"{name} {t:.2f}" for name, t in r.stages.items() if name != _WHOLE)
            print(f"{r.peer}, {r.boot} boot: {parts}")
        if r.undone:
            print(f"{r.peer}, {r.boot} boot, NOT DONE: {', '.join(r.undone)}")
        if r.failed:
            print(f"{r.peer}, {r.boot} boot, failed: {', '.join(r.failed)}")


def ratios(rows: Sequence[Row]) -> list[str]:
    """Proa's figures by those of each other, a line for each."""
    found = []
    by_name = {(row.peer, row.boot): row for row in rows}
    for (peer, kind), other in by_name.items():
        ours = by_name.get(("proa", kind))
        if ours is None or peer == "proa":
            continue
        figures = ("ssh", "all", "cpu", "memory")
        parts = [
            f"{name} {getattr(ours, name) / getattr(other, name):.2f}"
            for name in figures
            if getattr(other, name)
        ]
        found.append(f"proa / {peer}, {kind} boot: {', '.join(parts)}")
    return found


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
