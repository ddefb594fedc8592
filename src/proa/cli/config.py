"""``proa config``: look at a machine's cloud-config before a machine does."""

from __future__ import annotations

import argparse
import json

from proa.cli import options
from proa.wire.errors import UserError

EPILOG = """\
The same code reads the document as on a machine, so what is good here is good there. A machine
adds what only it can know: whether an owner or a group of a file exists, for example.

examples:
  proa config validate web.yaml
  proa config validate --json *.yaml
  generate | proa config validate -
  proa config schema > cloud-config.schema.json     for an editor

exit status: 0 a machine would apply it (with --strict: without a warning); 2 usage; 3 a machine
would refuse it; 1 a file cannot be read
"""

REFUSED = 3


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "config",
        help="check a cloud-config",
        description="Check a cloud-config as a machine would read it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    validate = actions.add_parser("validate", help="say what is wrong, with line and column")
    validate.add_argument("files", nargs="+", metavar="FILE", help='a document; "-" reads stdin')
    validate.add_argument("--strict", action="store_true", help="a warning counts as well")
    options.add_json(validate)
    actions.add_parser("schema", help="print the JSON Schema of all keys, for editors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    if args.action == "schema":
        from proa.machine.cloudconfig import schema

        print(schema.text(), end="")
        return 0
    from proa.machine.cloudconfig import examine

    verdicts = [examine.examine(name, _content(name)) for name in args.files]
    if args.json:
        shown = [examine.as_json(verdict) for verdict in verdicts]
        print(json.dumps(shown[0] if len(shown) == 1 else shown, indent=1))
    else:
        print("\n".join(examine.as_text(verdict) for verdict in verdicts))
    return REFUSED if examine.worst(verdicts, strict=args.strict) else 0


def _content(name: str) -> bytes:
    from proa.machine.cloudconfig import examine

    try:
        return examine.content(name)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
