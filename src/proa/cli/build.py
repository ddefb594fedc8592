"""``proa build``: a release from Debian packages and a recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from proa.cli import options

EPILOG = """\
The first build installs the SDK and the packages (a few minutes); later ones take them from the
cache until Debian's archive changes. The same packages, recipe, version and root give the same
bytes.

examples:
  proa build --version 1.1.0 --out release-1.1.0
  proa build --recipe web.toml --out web                       the recipe says the version
  proa build --version 1.1.0 --recipe web.toml --compression lz4 --out /tmp/r
  proa build --version 1.2.0 --refresh --out release-1.2.0     take today's Debian packages

exit status: 0 built; 1 not built (the message says why, --out is not there); 2 usage
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "build",
        help="make a release from Debian packages and a recipe",
        description="Make a release: /usr and its verity tree, boot image, disk, SBOM, manifest.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", metavar="V", help="the release's version, 1.2.3 (default: the recipe's)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to make")
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="default: Proa's own os/recipe.toml"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="ROOT.json",
        help="the TUF root that machines of this release trust (default: that of `proa keys init`)",
    )
    parser.add_argument(
        "--compression",
        choices=("zstd", "lz4"),
        help="of /usr: zstd is small, lz4 builds and boots fast (default: the recipe's)",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="ask Debian's mirror now, not once in 24 hours"
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa import paths
    from proa.cli import progress
    from proa.factory import build, recipe
    from proa.wire import manifest
    from proa.wire.errors import UserError
    from proa.wire.version import VersionError, parse

    chosen = args.recipe or recipe.DEFAULT
    wanted = args.version or recipe.load(chosen).version
    if not wanted:
        raise UserError(
            f"neither --version nor {chosen} says which version this is",
            hint='give --version 1.2.3, or write  version = "1.2.3"  below [os] in your recipe',
            code=2,
        )
    try:
        version = parse(wanted)
    except VersionError as error:
        raise UserError(f"--version: {error}", code=2) from None
    plan = build.BuildOptions(
        version=version,
        root_json=args.root or paths.data_dir() / "keys" / "root.json",
        out=args.out.absolute(),
        cache=paths.cache_dir(),
        recipe=chosen,
        compression=args.compression,
        refresh=args.refresh,
    )
    with progress.step(f"Building {version}") as step:
        out = build.build(plan, step.report)
    release = manifest.load((out / manifest.MANIFEST).read_bytes())
    if args.json:
        summary = {
            "directory": str(out),
            "version": str(release.version),
            "root_hash": release.root_hash,
            "kernel": release.kernel,
            "packages": len(release.packages),
            "files": {name: file.size for name, file in release.files.items()},
        }
        print(json.dumps(summary, indent=1))
        return 0
    mib = release.files[manifest.USR].size / (1 << 20)
    print(f"{out}\n  {len(release.packages)} packages, kernel {release.kernel}, /usr {mib:.1f} MiB")
    print(f"  sizes: {out / 'sizes.txt'}\n  next: proa publish {args.out}")
    return 0
