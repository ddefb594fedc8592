"""``proa payload``: make, look into, apply and check the files that updates are made of."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proa import paths
from proa.cli import options

if TYPE_CHECKING:
    from proa.factory.payload_file import PayloadFile
    from proa.factory.payload_report import Report

EPILOG = """\
A payload leads from one release (a delta), or from nothing (a full one), to another release, bit
for bit. `proa publish` makes them by itself; this is for looking closer, and for making more.

examples:
  proa payload make release-1.0.0 release-1.1.0 --out 1.1.0.payload
  proa payload make --full release-1.1.0 --out full.payload
  proa payload show 1.1.0.payload --old release-1.0.0 --new release-1.1.0 --picture why.svg
  proa payload apply 1.1.0.payload --source release-1.0.0 --out /tmp/made
  proa payload apply 1.1.0.payload --source old/usr.erofs --uki old/proa.efi --out /tmp/made
  proa payload verify 1.1.0.payload --old release-1.0.0 --new release-1.1.0

exit status: 0 done; 1 it could not be made; 2 usage; 4 a release is incomplete or altered; 9 the
payload is damaged, cut off, of another format, or leads to another release; 10 the source is
missing, altered, or not what the payload starts from; 11 the output cannot be written
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "payload",
        help="make, look into, apply and check update payloads",
        description="Make, look into, apply and check the files that updates are made of.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    _add_make(actions)
    show = actions.add_parser("show", help="where the bytes of a payload are")
    apply = actions.add_parser("apply", help="make a release's images out of a payload")
    verify = actions.add_parser("verify", help="check that a payload leads from OLD to NEW")
    for action in (show, apply, verify):
        action.add_argument("payload", type=Path, metavar="FILE")
    for action in (show, verify):
        action.add_argument("--old", type=Path, metavar="DIR", help="the release it starts from")
        action.add_argument(
            "--new",
            type=Path,
            metavar="DIR",
            required=action is verify,
            help="the release that it leads to",
        )
    show.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="write it as a tree map as well"
    )
    show.add_argument(
        "--top",
        type=options.count,
        default=20,
        metavar="N",
        help="so many lines of each table (default: 20)",
    )
    apply.add_argument(
        "--source",
        type=Path,
        metavar="DIR|IMAGE",
        help="the release that it starts from, or that release's usr.erofs alone",
    )
    apply.add_argument("--uki", type=Path, metavar="FILE", help="that release's proa.efi")
    apply.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the images are put"
    )
    for action in (show, apply, verify):
        options.add_json(action)
    parser.set_defaults(run=run)


def _add_make(actions: Any) -> None:
    make = actions.add_parser("make", help="make a payload between two release directories")
    make.add_argument("releases", type=Path, nargs="+", metavar="OLD NEW", help="or --full NEW")
    make.add_argument("--full", action="store_true", help="one that needs no older release")
    make.add_argument("--out", type=Path, required=True, metavar="FILE")
    make.add_argument(
        "--store",
        type=Path,
        default=paths.cache_dir() / "patches",
        metavar="DIR",
        help="where patches are kept for the next time (default: $PROA_CACHE/patches)",
    )
    options.add_json(make)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.factory import payload_file
    from proa.wire.errors import UserError

    action = {"make": _make, "show": _show, "apply": _apply, "verify": _verify}[args.action]
    try:
        return action(args)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or 'the output'}: {error.strerror or error}",
            hint="Mend that and do it again.",
            code=payload_file.WRITE_EXIT,
        ) from None


def _make(args: argparse.Namespace) -> int:
    from proa.cli import progress
    from proa.factory import payload, payload_file, payload_set, repository
    from proa.wire.errors import UserError

    wanted = 1 if args.full else 2
    if len(args.releases) != wanted:
        names = "one release, NEW" if args.full else "two releases, OLD and NEW"
        raise UserError(f"`proa payload make` wants {names}; see --help", code=2)
    with progress.step("Checking the releases") as step:
        for release in args.releases:
            step.report(str(release))
            repository.verify_release(release)
    *olds, new = [payload.open_release(release) for release in args.releases]
    old = olds[0] if olds else None
    with progress.step(f"Making {args.out}") as step:
        tools = payload_set.tools(old or new, args.store, paths.cache_dir())
        payload.make(old, new, args.out.absolute(), tools, step.report)
        opened = payload_file.open_payload(args.out)
        step.text = f"Made {args.out}: {options.size(opened.size)}"
    if args.json:
        print(json.dumps(_summary(opened), indent=1))
    return 0


def _summary(opened: PayloadFile) -> dict[str, Any]:
    from proa.factory import payload_file

    return {
        "size": opened.size,
        "head": {"length": opened.head_length, "sha256": opened.head_sha256},
        "encoder": opened.head.encoder,
        "source": opened.source,
        "scratch": opened.head.scratch,
        "outputs": {
            name: {"size": size, "sha256": sha256}
            for name, size, sha256 in payload_file.described(opened.head)
        },
    }


def _show(args: argparse.Namespace) -> int:
    from proa.cli import progress
    from proa.factory import compressor, inventory, payload, payload_file, payload_report
    from proa.factory.compare import Usr

    opened = payload_file.open_payload(args.payload)
    with progress.announced(f"Looking into {args.payload}"):
        releases = [payload.open_release(d) for d in (args.new, args.old) if d]
        found = compressor.for_head(opened.head, [r.usr for r in releases], paths.cache_dir())
        new = None
        if args.new:
            payload_file.compare(opened, releases[0].manifest)
            new = Usr(releases[0].usr, found.codec())
        owner = payload_report.owners(args.new)
        report = payload_report.explain(opened, found.codec(), new, owner)
    if args.picture:
        args.picture.write_text(payload_report.picture(opened, report, _title(opened, args)))
    if args.json:
        print(json.dumps(_summary(opened) | _shares(report), indent=1))
        return 0
    print(f"{_title(opened, args)}: {report.size:,} bytes")
    print(f"  {options.size(report.copied)} of {options.size(opened.head.usr.size)} are copied")
    if new is None:
        print("  (with --new DIR, files and packages have names)")
    elif not (args.new / inventory.FILES).is_file():
        print(f"  (directories in place of packages: {args.new} has no {inventory.FILES})")
    _print_table("PACKAGE", report.by(lambda share: share.package), report.size, args.top)
    _print_table("HOW", report.by(lambda share: share.kind), report.size, args.top)
    rows = [
        (f"{round(s.packed):,}", f"{s.made:,}", s.kind, s.file) for s in report.shares[: args.top]
    ]
    print("\n" + options.table(("BYTES", "MAKE", "HOW", "FILE"), rows))
    if (rest := report.shares[args.top :]) and (bytes_left := sum(s.packed for s in rest)):
        print(f"and {len(rest)} more with {round(bytes_left):,} bytes (--top N shows more)")
    if args.picture:
        print(f"\nThe picture is in {args.picture}.")
    return 0


def _title(opened: PayloadFile, args: argparse.Namespace) -> str:
    """Return what the payload is, by the releases that were given, or by hashes."""
    from proa.factory import payload

    old, new = (
        str(payload.open_release(d).manifest.version) if d else "" for d in (args.old, args.new)
    )
    kind = f"Delta from {old or opened.source[:16]}" if opened.source else "Full payload"
    return f"{kind} to {new}" if new else kind


def _shares(report: Report) -> dict[str, Any]:
    return {
        "copied": report.copied,
        "packages": dict(report.by(lambda share: share.package)),
        "kinds": dict(report.by(lambda share: share.kind)),
        "files": [
            {
                "file": s.file,
                "package": s.package,
                "kind": s.kind,
                "made": s.made,
                "bytes": round(s.packed, 1),
            }
            for s in report.shares
        ],
    }


def _print_table(heading: str, found: Sequence[tuple[str, int]], size: int, top: int) -> None:
    rows = [(f"{packed:,}", f"{100 * packed / size:.1f} %", name) for name, packed in found[:top]]
    print("\n" + options.table(("BYTES", "PART", heading), rows))


def _apply(args: argparse.Namespace) -> int:
    from proa.cli import progress
    from proa.factory import payload_file
    from proa.wire import manifest

    opened = payload_file.open_payload(args.payload)
    with progress.step(f"Applying {args.payload}") as step:
        step.report("reading the source")
        _make_images(opened, args.source, args.uki, args.source, args.out, step.report)
        step.text = f"Made {', '.join(manifest.PAYLOAD_FILES)} in {args.out}"
    if args.json:
        print(json.dumps(_summary(opened)["outputs"], indent=1))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from proa.cli import progress
    from proa.factory import cache, payload_file, repository
    from proa.wire.errors import UserError

    opened = payload_file.open_payload(args.payload)
    with progress.step(f"Verifying {args.payload}") as step:
        step.report("reading the releases")
        new, _ = repository.verify_release(args.new)
        if args.old:
            repository.verify_release(args.old)
        payload_file.compare(opened, new)
        if opened.source and not args.old:
            raise UserError(
                f"{args.payload} starts from the release with root hash {opened.source[:16]}…",
                hint="name its directory with --old",
                code=payload_file.SOURCE_EXIT,
            )
        with cache.scratch(paths.cache_dir()) as out:
            _make_images(opened, args.old, None, args.old or args.new, out, step.report)
        step.text = f"{args.payload} gives {new.version}, byte for byte"
    if args.json:
        print(json.dumps(_summary(opened) | {"version": str(new.version)}, indent=1))
    return 0


def _make_images(
    opened: PayloadFile,
    source: Path | None,
    uki: Path | None,
    compressor_of: Path | None,
    out: Path,
    report: Callable[[str], None],
) -> None:
    """Apply a payload, with the compressor of the release or image ``compressor_of``, if any."""
    from proa.factory import compressor, payload_file
    from proa.wire import manifest

    origin = payload_file.find_origin(opened, source, uki)
    images = []
    if compressor_of is not None:
        whole = compressor_of.is_dir()
        images = [compressor_of / manifest.USR if whole else compressor_of]
    found = compressor.for_head(opened.head, images, paths.cache_dir())
    payload_file.apply(opened, origin, out, found.codec(), report)
