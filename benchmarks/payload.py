"""Update payloads of Proa and of its peers, in one run on the same releases.

    PYTHONPATH=src python -m benchmarks.payload --pairs small
    PYTHONPATH=src python -m benchmarks.payload --pairs small,monthly --peers ostree,xdelta3,proa
    PYTHONPATH=src python -m benchmarks.payload --old DIR --new DIR --json

The pairs are made by Proa's factory from what the archive offers now (see benchmarks/pairs.py)
and kept in --work. Two parts are measured, each on its own: "usr", the file system, and "boot",
what the boot partition gets (a UKI; for peers that update files: an initrd, as the kernel is in
/usr too). Peers get the plain content: an erofs image without compression, or the files.

Every output is compared with the new release. CPU is user + system seconds of all processes,
memory the peak of the largest process; "64M": whether applying works in a cgroup of 64 MiB.
Needs root. Nothing is installed on the host: the peers get a Debian tree below --work.
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import pairs, peers
from benchmarks.peers import Bench, Failed, Host, Outcome

from proa import paths
from proa.factory import cache, image
from proa.factory.sdk import Sdk
from proa.wire import manifest
from proa.wire.errors import UserError

PARTS = ("usr", "boot")
DEFAULT_PEERS = (*peers.PEERS, "proa")
# A reference, not something that a machine could be updated with.
_NO_PEER = ("bsdiff", "proa")


@dataclass(frozen=True)
class Pair:
    """Two release directories with a name."""

    name: str
    old: Path
    new: Path


@dataclass(frozen=True)
class Row:
    """One peer on one part ("all" for Proa's, which is one file); an outcome, or why not."""

    peer: str
    part: str
    outcome: Outcome | None
    error: str = ""


@dataclass(frozen=True)
class Result:
    """A pair, its changed packages (name, old version, new version), and what was measured.

    ``writing`` are the CPU seconds that mkfs.erofs takes to write the new /usr, compressed.
    """

    pair: Pair
    changes: tuple[tuple[str, str, str], ...]
    rows: tuple[Row, ...]
    writing: float


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        maker = pairs.Maker(args.work.absolute(), say)
        tools = peers.install(maker.place, maker, say)
        versions = peers.versions(tools)
        results = []
        for pair in chosen(args, maker):
            results.append(measure(pair, args, maker, tools))
            if not args.json:
                show(results[-1], versions)
    except UserError as error:
        say(f"payload: {error}")
        return 1
    if args.json:
        document = {"peers": versions, "pairs": [dataclasses.asdict(r) for r in results]}
        print(json.dumps(document, indent=1, default=str))
    return 0


def chosen(args: argparse.Namespace, maker: pairs.Maker) -> Iterator[Pair]:
    """Yield the pairs to measure, each made when its turn comes."""
    if args.old:
        yield Pair("given", args.old.absolute(), args.new.absolute())
        return
    for name in args.pairs:
        yield Pair(name, *maker.pair(name))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    doc = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="benchmarks.payload",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        *("--pairs", "-p"),
        type=names_of(pairs.PAIRS),
        default=["small", "monthly", "major"],
        help=f"of {','.join(pairs.PAIRS)} (default: small,monthly,major)",
    )
    parser.add_argument("--old", type=Path, metavar="DIR", help="a release, instead of --pairs")
    parser.add_argument("--new", type=Path, metavar="DIR")
    parser.add_argument(
        "--peers",
        type=names_of(DEFAULT_PEERS),
        default=list(DEFAULT_PEERS),
        help=f"of {','.join(DEFAULT_PEERS)} (default: all)",
    )
    parser.add_argument("--parts", type=names_of(PARTS), default=list(PARTS))
    parser.add_argument(
        "--work",
        type=Path,
        default=paths.cache_dir() / "bench",
        help="where releases, peers and inputs are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=int, default=1200, metavar="S", help="CPU seconds for a peer (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    args = parser.parse_args(arguments)
    if bool(args.old) != bool(args.new):
        parser.error("--old and --new go together")
    return args


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: names of ``known``, with commas between them."""
    choices = tuple(known)

    def convert(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted({*names} - {*choices}):
            raise argparse.ArgumentTypeError(
                f"no such name: {', '.join(unknown)}; known are {', '.join(choices)}"
            )
        return names

    return convert


def measure(pair: Pair, args: argparse.Namespace, maker: pairs.Maker, tools: Sdk) -> Result:
    """Run the peers on one pair, each part by itself, one after another."""
    rows = []
    inputs = [prepare(release, maker) for release in (pair.old, pair.new)]
    for name in args.peers:
        parts = args.parts if name in peers.PEERS else ["all"]
        for part in parts:
            with cache.scratch(maker.cache) as work:
                if part == "all":
                    row = attempt(name, part, partial(proa, pair, work, tools, args.limit))
                else:
                    old, new = (directory / part for directory in inputs)
                    bench = Bench(tools, old, new, work, args.limit)
                    row = attempt(name, part, partial(peers.PEERS[name], bench))
            say(f"{pair.name}: {line(row)}")
            rows.append(row)
    changed = tuple(pairs.changes(pair.old, pair.new))
    return Result(pair, changed, tuple(rows), writing(inputs[1] / "usr/tree", maker))


def writing(tree: Path, maker: pairs.Maker) -> float:
    """Return the CPU seconds (user and system) of writing a compressed image as a build does."""
    with cache.scratch(maker.cache) as work:
        options = " ".join(image.erofs_options("zstd"))
        printed = maker.tools.run(
            [
                *("bash", "-c"),
                f"TIMEFORMAT='%U %S'; {{ time mkfs.erofs {options} /work/image /tree; }} 2>&1",
            ],
            work=work,
            binds={"/tree": tree},
        )
    user, system = printed.split()[-2:]
    return float(user) + float(system)


def attempt(name: str, part: str, peer: Callable[[], Outcome]) -> Row:
    try:
        return Row(name, part, peer())
    except (Failed, UserError) as error:
        return Row(name, part, None, str(error))


def prepare(release: Path, maker: pairs.Maker) -> Path:
    """Return a directory with ``usr`` and ``boot``, each holding ``image`` and ``tree``."""
    known = manifest.load((release / manifest.MANIFEST).read_bytes())
    target = maker.place / "inputs" / known.root_hash[:16]
    if target.exists():
        return target
    say(f"unpacking {release}")
    with cache.scratch(maker.cache) as work:
        made = work / "inputs"
        for part in PARTS:
            (made / part).mkdir(parents=True)
        maker.tools.run(
            ["fsck.erofs", "--extract=/work/inputs/usr/tree", "--preserve", "/release/usr.erofs"],
            work=work,
            binds={"/release": release},
        )
        # As Proa's own image, but for the compression.
        epoch = known.source_date_epoch
        maker.tools.run(
            [
                *("mkfs.erofs", "--quiet", "--all-time", f"-T{epoch}", "-Lusr"),
                f"-U{image.stable_uuid(f'usr {known.version}')}",
                *("/work/inputs/usr/image", "/work/inputs/usr/tree"),
            ],
            work=work,
            epoch=epoch,
        )
        shutil.copyfile(release / "proa.efi", made / "boot/image")
        (made / "boot/tree").mkdir()
        shutil.copyfile(release / "initrd", made / "boot/tree/initrd")
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    return target


def proa(pair: Pair, work: Path, tools: Sdk, limit: int) -> Outcome:
    """Proa's own payload, of both parts, made with no patch in store.

    Made by the host's Python, applied by Debian's own, which a machine has.
    """
    command = (sys.executable, "-m", "proa.cli", "payload")
    if subprocess.run([*command, "--help"], capture_output=True).returncode != 0:
        raise Failed("not there yet: Proa has no payload command")
    host = Host(tools, work, limit)
    made, store, out = work / "payload", work / "store", work / "out"
    make = host.run(
        *(*command, "make", str(pair.old), str(pair.new)),
        *("--out", str(made), "--store", str(store)),
    )
    sources = Path(__file__).parents[1]
    shutil.copytree(sources / "src", work / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(sources / "benchmarks/applying.py", work)
    machine = Bench(tools, pair.old, pair.new, work, limit)
    apply, fits = machine.apply(
        # The tree's /tmp is in memory, and a machine's scratch files are not.
        *("env", "TMPDIR=/work", "PYTHONPATH=/work/src", "python3", "/work/applying.py"),
        *("/work/payload", "/old", "/work/out"),
    )
    for name in ("usr.erofs", "proa.efi"):
        if not filecmp.cmp(out / name, pair.new / name, shallow=False):
            raise Failed(f"the output is not the new {name}")
    return Outcome(made.stat().st_size, make, apply, fits, "usr and boot in one")


def show(result: Result, versions: Mapping[str, str]) -> None:
    """Print the table of one pair."""
    pair = result.pair
    print(f"\n{pair.name}: {pair.old} -> {pair.new}")
    print(f"{len(result.changes)} packages differ:")
    for name, old, new in result.changes:
        print(f"  {name} {old} -> {new}")
    print("peers: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    best = {part: best_of(result.rows, part) for part in (*PARTS, "all")}
    print(
        f"{'peer':9}{'part':5}{'bytes':>13}{'ratio':>7}"
        f"{'make CPU':>10}{'MB':>6}{'apply CPU':>11}{'MB':>6}  64M"
    )
    for row in result.rows:
        print(line(row, best.get(row.part)))
    for name in dict.fromkeys(row.peer for row in result.rows):
        both = [r.outcome for r in result.rows if r.peer == name and r.part in PARTS]
        if len(both) == len(PARTS) and all(both):
            print(f"{name:9}{'both':5}{sum(o.bytes for o in both if o):13,}")
    print("ratio: bytes / those of the best peer on the same part")
    print(f"writing the new /usr compressed: {result.writing:.1f} CPU s by mkfs.erofs")
    for row in result.rows:
        if row.peer == "proa" and row.outcome and row.outcome.apply:
            print(f"Proa's applying: {row.outcome.apply.cpu / result.writing:.2f} of that")


def best_of(rows: Iterable[Row], part: str) -> int | None:
    """Return the fewest bytes that a peer needed for a part; "all" is the sum of its parts."""
    parts = set(PARTS) if part == "all" else {part}
    needed: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.outcome and row.part in parts and row.peer not in _NO_PEER:
            needed.setdefault(row.peer, {})[row.part] = row.outcome.bytes
    return min((sum(n.values()) for n in needed.values() if n.keys() == parts), default=None)


def line(row: Row, best: int | None = None) -> str:
    """Return one line of the table."""
    start = f"{row.peer:9}{row.part:5}"
    if row.outcome is None:
        return f"{start}  {row.error}"
    o = row.outcome
    ratio = f"{o.bytes / best:7.2f}" if best else " " * 7
    fits = {True: "yes", False: "no", None: "-"}[o.fits]
    used = f"{o.make.cpu:10.1f}{o.make.memory / 1e6:6.0f}"
    used += f"{o.apply.cpu:11.1f}{o.apply.memory / 1e6:6.0f}" if o.apply else f"{'-':>11}{'-':>6}"
    return f"{start}{o.bytes:13,}{ratio}{used}  {fits:4}{o.note}"


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
