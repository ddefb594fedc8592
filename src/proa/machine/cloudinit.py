"""The program that runs at each boot: find the machine's cloud-config and apply it.

    /usr/lib/proa/cloudinit                       at boot: from a config drive or NoCloud disk
    /usr/lib/proa/cloudinit --file FILE           by hand: this document
    /usr/lib/proa/cloudinit --file FILE --dry-run only say what would be done

What it did is printed (to the journal and the console) and written to /run/proa/cloudinit.json.
Neither ever holds a password, a key or the content of a file.

Exit status: 0 applied, or nothing to apply; 1 unexpected; 2 usage; 3 the document was refused (the
cloud's own ssh keys and host name are applied all the same); 4 some change could not be made.
proa-cloudinit.service takes 3 and 4 as success: an owner's typo must not look like a bad release.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.apply import Machine, Outcome, Result, apply, run_program
from proa.machine.cloudconfig.changes import Metadata, describe, plan
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem
from proa.machine.cloudconfig.source import Source, find

STATUS = "/run/proa/cloudinit.json"
STATE = "/var/lib/proa/cloudinit.json"

NO_SOURCE = "no config drive and no NoCloud disk: nothing to apply"

OK, UNEXPECTED, USAGE, REFUSED, FAILED = 0, 1, 2, 3, 4


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    machine = Machine(Path("/"), run_program, socket.sethostname)
    file = Path(options.file) if options.file else None
    return _dry_run(fetch(machine, file)) if options.dry_run else boot(machine, file)


def boot(machine: Machine, file: Path | None = None) -> int:
    """Find, apply, say so, and leave the status behind. Whatever happens, it returns."""
    started = time.monotonic()
    try:
        code, report = _apply(machine, fetch(machine, file))
    except Exception as error:  # the boot goes on, and says what was wrong
        problem = Problem("error", f"unexpected: {type(error).__name__}: {error}")
        code, report = UNEXPECTED, _report(None, "failed", (problem,), ())
    report["seconds"] = round(time.monotonic() - started, 3)
    _say(report)
    try:
        content = (json.dumps(report, indent=1) + "\n").encode()
        files.write(machine.root, STATUS, content, 0o644, os.geteuid(), os.getegid())
    except (files.FileProblem, OSError) as error:
        _print(3, f"the status could not be written: {error}")
    return code


def fetch(machine: Machine, file: Path | None) -> Source | None:
    return find(machine.root, machine.run) if file is None else _from_file(file)


def _apply(machine: Machine, source: Source | None) -> tuple[int, dict[str, Any]]:
    if source is None:
        return OK, _report(None, "nothing", (), ())
    remembered = _remembered(machine, source.metadata.instance_id)
    keyed = [name.removeprefix("keys:") for name in remembered if name.startswith("keys:")]
    planned = plan(source.user_data, source.metadata, keyed, unread=source.unread)
    outcome = apply(planned.changes, machine, remembered)
    _remember(machine, source.metadata.instance_id, outcome, remembered)
    problems = (*source.problems, *planned.problems)
    if planned.refused:
        return REFUSED, _report(source, "refused", problems, outcome.results)
    if outcome.failed:
        return FAILED, _report(source, "failed", problems, outcome.results)
    return OK, _report(source, "applied", problems, outcome.results)


def _report(
    source: Source | None,
    state: str,
    problems: Sequence[Problem],
    results: Sequence[Result],
) -> dict[str, Any]:
    return {
        "format": 1,
        "state": state,
        "source": source.name if source else None,
        "instance_id": source.metadata.instance_id if source else None,
        "problems": [asdict(problem) for problem in problems],
        "changes": [asdict(result) for result in results],
    }


# What earlier boots wanted.


def _remembered(machine: Machine, instance_id: str) -> dict[str, str]:
    """identity → wish of earlier boots. A copy of the disk on another instance begins anew."""
    try:
        found = files.read(machine.root, STATE, MAX_BYTES * 4)
        content = json.loads(found.content) if found else {}
        wishes = content.get("wishes", {})
        before = content.get("instance_id", "")
        if instance_id and before and before != instance_id:
            return {}
        return {str(name): str(wanted) for name, wanted in wishes.items()}
    except (files.FileProblem, OSError, ValueError, AttributeError, RecursionError):
        return {}  # then everything is compared with what is on disk, which is right too


def _remember(machine: Machine, instance_id: str, outcome: Outcome, before: dict[str, str]) -> None:
    if outcome.remembered == before:
        return
    content = json.dumps({"format": 1, "instance_id": instance_id, "wishes": outcome.remembered})
    try:
        files.write(machine.root, STATE, content.encode(), 0o600, os.geteuid(), os.getegid())
    except (files.FileProblem, OSError) as error:
        outcome.results.append(Result("memory of what was applied", "failed", str(error)))


# By hand.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudinit",
        description="Apply the cloud-config of this machine.",
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", metavar="FILE", help="apply this document")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser


def _from_file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return Source(f"file {path}", Metadata(), file.read(MAX_BYTES + 1))
    except OSError as error:
        problem = Problem("error", f"{path}: {error.strerror}")
        return Source(f"file {path}", Metadata(), None, (problem,))


def _dry_run(source: Source | None) -> int:
    if source is None:
        _print(6, NO_SOURCE)
        return OK
    planned = plan(source.user_data, source.metadata, unread=source.unread)
    for problem in (*source.problems, *planned.problems):
        print(problem)
    for change in planned.changes:
        print(f"would do: {describe(change)}")
    return REFUSED if planned.refused else OK


# Saying it.


def _say(report: dict[str, Any]) -> None:
    if report["source"] is None and report["state"] == "nothing":
        _print(6, NO_SOURCE)
        return
    for problem in report["problems"]:
        place = f"line {problem['line']}: " if problem["line"] else ""
        level = 3 if problem["level"] == "error" else 4
        _print(level, f"{place}{problem['level']}: {problem['message']}")
    if report["state"] == "refused":
        _print(3, "REFUSED: the document is not applied; the cloud's ssh keys and host name are")
    counts = dict.fromkeys(("done", "unchanged", "kept", "failed"), 0)
    for change in report["changes"]:
        counts[change["status"]] = counts.get(change["status"], 0) + 1
        if change["status"] in ("done", "kept", "failed"):
            note = f": {change['note']}" if change["note"] else ""
            level = 3 if change["status"] == "failed" else 6
            _print(level, f"{change['status']}: {change['what']}{note}")
        elif change["note"] and change["status"] == "unchanged":
            _print(4, f"{change['what']}: {change['note']}")
    _print(
        6,
        f"{report['source']}: {counts['done']} changes made, {counts['unchanged']} already so, "
        f"{counts['kept']} edits kept, {counts['failed']} failed ({report['seconds']} s)",
    )


def _print(level: int, text: str) -> None:
    """One line; with the level of syslog(3) in front where the journal reads it (sd-daemon(3))."""
    mark = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{mark}cloud-config: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
