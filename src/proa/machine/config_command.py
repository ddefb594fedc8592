"""``proactl config``: look at a cloud-config, apply it, try it, and see what the boot did."""

from __future__ import annotations

import argparse
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from proa.machine.errors import Code, MachineError
from proa.machine.record import asdict, replace
from proa.machine.system import System

if TYPE_CHECKING:  # looking needs none of these: they are imported where something is changed
    from proa.machine.cloudconfig.machine import Machine
    from proa.machine.cloudconfig.plan import Plan

EPILOG = """\
examples:
  proactl config status                    what the boot did: source, changes, problems
  proactl config validate web.yaml         line, column, key and what is wrong
  generate | proactl config validate --json -
  sudo proactl config diff web.yaml        what would change here, as a unified diff
  sudo proactl config apply web.yaml --try 10
                                           goes back in 10 minutes by itself, unless:
  sudo proactl config confirm              keeps it
  sudo proactl config revert               goes back now

The next boot applies the machine's own document again: what shall last belongs there too.

exit status: 0 done; 1 it did not work, or nothing is open; 2 usage; 3 the document is refused and
nothing was touched; 4 some change could not be made
"""

OK, REFUSED, FAILED = 0, 3, 4


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` to the command line of ``proactl``."""
    parser = commands.add_parser(
        "config",
        help="check, try and apply a cloud-config",
        description="Look after this machine's configuration.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    validate = actions.add_parser("validate", help="say what is wrong, with line and column")
    validate.add_argument("--strict", action="store_true", help="a warning counts as well")
    diff = actions.add_parser("diff", help="say what would change here")
    apply = actions.add_parser("apply", help="apply a document now")
    apply.add_argument(
        "--try",
        dest="minutes",
        type=_minutes,
        metavar="MINUTES",
        help="go back after this time unless confirmed, even if the machine restarts meanwhile",
    )
    for action in (validate, diff, apply):
        action.add_argument("file", metavar="FILE", help='a document; "-" reads standard input')
    actions.add_parser("confirm", help="keep what is being tried")
    actions.add_parser("revert", help="go back from what is being tried, now")
    actions.add_parser("resume", help="for the boot: go on with an open trial")
    actions.add_parser("status", help="what the boot did")
    for action in actions.choices.values():
        # SUPPRESS: `proactl config --json status` means the same.
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
        )


def _minutes(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 24 * 60:
        return int(text)
    raise argparse.ArgumentTypeError("a number of minutes from 1 to 1440")


def run(system: System, options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if options.action == "status":
        return _status(system, options)
    if options.action == "validate":
        return _validate(options)
    # Not at the top, and not for the two above: all of cloud-config with it.
    from proa.machine.cloudconfig.machine import Machine, run_program

    machine = Machine(system.root, run_program, socket.sethostname)
    return act(machine, options)


def act(machine: Machine, options: argparse.Namespace) -> int:
    """The actions that look at the machine or change it."""
    from proa.machine import config_trial as trial

    try:
        if options.action == "diff":
            return _diff(machine, options)
        with trial.exclusive(machine):
            if options.action == "apply":
                return _apply(machine, options)
            if options.action == "confirm":
                if not trial.confirm(machine):
                    raise MachineError(Code.UNEXPECTED, "no trial is open")
                _print(options, {"confirmed": True}, "kept")
            elif options.action == "revert":
                failed = trial.revert(machine)
                words = "gone back" + "".join(f"\n  not put back: {words}" for words in failed)
                _print(options, {"reverted": True, "failed": list(failed)}, words)
                return FAILED if failed else OK
            else:
                resumed = trial.resume(machine) or "no trial is open"
                _print(options, {"trial": resumed}, f"configuration on trial: {resumed}")
    except _machine_faults() as error:
        raise MachineError(Code.UNEXPECTED, str(error)) from None
    return OK


def _machine_faults() -> tuple[type[Exception], ...]:
    from proa.machine.cloudconfig.files import FileProblem
    from proa.machine.cloudconfig.machine import CommandFailed

    return (FileProblem, CommandFailed)


def content(name: str) -> bytes:
    from proa.machine.cloudconfig import examine

    try:
        return examine.content(name)
    except OSError as error:
        raise MachineError(Code.UNEXPECTED, f"{name}: {error.strerror}") from None


# --- Looking ------------------------------------------------------------------------------------


def _validate(options: argparse.Namespace) -> int:
    from proa.machine.cloudconfig import examine

    verdict = examine.examine(options.file, content(options.file))
    _print(options, examine.as_json(verdict), examine.as_text(verdict))
    return REFUSED if examine.worst((verdict,), strict=options.strict) else OK


def _diff(machine: Machine, options: argparse.Namespace) -> int:
    from proa.machine import cloudinit, config_diff
    from proa.machine.cloudconfig import examine

    plan = _planned(machine, content(options.file))
    verdict = examine.judged(options.file, plan)
    if verdict.refused:
        _print(options, examine.as_json(verdict), examine.as_text(verdict))
        return REFUSED
    memory = cloudinit.remembered(machine, "")
    found = config_diff.rehearse(plan.changes, machine, memory.wishes)
    document = {
        "format": 1,
        "problems": [asdict(problem) for problem in verdict.problems],
        "changes": [asdict(result) for result in found.results],
        "files": [asdict(difference) for difference in found.differences],
        "programs": list(found.programs),
    }
    lines = [str(problem) for problem in verdict.problems]
    for result in found.results:
        if result.status in ("done", "kept", "failed"):
            verb = {"done": "would do", "kept": "would keep", "failed": "would fail"}
            note = f": {result.note}" if result.note else ""
            lines.append(f"{verb[result.status]}: {result.what}{note}")
    for difference in found.differences:
        why_not = f"{difference.path}: changes; not shown: {difference.why_not}"
        lines += difference.lines or (why_not,)
    done = any(result.status == "done" for result in found.results)
    _print(options, document, "\n".join(lines if done or lines else ["nothing would change"]))
    return OK


def _planned(machine: Machine, data: bytes) -> Plan:
    """The plan for a document that is applied by hand. It adds ssh keys and takes none away:
    those that the boot or the cloud brought are not in this document."""
    from proa.machine import cloudinit
    from proa.machine.cloudconfig.changes import AuthorizeKeys, ImportKeys

    plan = cloudinit.plan_by_hand(machine, data)
    changes = tuple(
        replace(change, keep=True) if isinstance(change, AuthorizeKeys | ImportKeys) else change
        for change in plan.changes
    )
    return replace(plan, changes=changes)


def _status(system: System, options: argparse.Namespace) -> int:
    from proa.machine import cloudinit

    text = system.text(cloudinit.STATUS)
    try:
        report = json.loads(text) if text else None
    except ValueError:
        report = None
    trial = system.text("/var/lib/proa/config-try/manifest.json")
    if not isinstance(report, dict):
        raise MachineError(
            Code.UNEXPECTED,
            "this boot has not written what it did",
            "look at: journalctl -b -u proa-cloudinit",
        )
    try:
        until = json.loads(trial)["until"] if trial else None
    except (ValueError, KeyError, TypeError):
        until = None
    report["trial_until"] = until
    _print(options, report, status_text(report))
    return OK


def status_text(report: dict[str, Any]) -> str:
    """The screen of ``proactl config status``."""
    counts: dict[str, int] = {}
    for change in report.get("changes", ()):
        counts[change["status"]] = counts.get(change["status"], 0) + 1
    seconds = f" ({report['seconds']} s)" if "seconds" in report else ""
    lines = [
        ("Source", str(report.get("source") or "none was found")),
        ("State", f"{report.get('state')}{seconds}"),
        ("Changes", ", ".join(f"{n} {word}" for word, n in counts.items()) or "none"),
    ]
    if report.get("instance_id"):
        lines.insert(1, ("Instance", report["instance_id"]))
    if until := report.get("trial_until"):
        clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until))
        lines.append(("Trial", f"goes back at {clock} unless: proactl config confirm"))
    for tried in report.get("tried", ()):
        lines.append(("Tried", f"{tried['name']}: {tried['outcome']} ({tried['seconds']} s)"))
    for problem in report.get("problems", ()):
        place = f"line {problem['line']}: " if problem.get("line") else ""
        lines.append((problem["level"].capitalize(), f"{place}{problem['message']}"))
    for change in report.get("changes", ()):
        if change["status"] in ("kept", "failed") or (
            change["note"] and change["status"] != "skipped"
        ):
            note = f": {change['note']}" if change["note"] else ""
            lines.append((change["status"].capitalize(), f"{change['what']}{note}"))
    return "\n".join(f"{label:<9} {words}" for label, words in lines)


# --- Changing -----------------------------------------------------------------------------------


def _apply(machine: Machine, options: argparse.Namespace) -> int:
    from proa.machine import cloudinit
    from proa.machine import config_trial as trial
    from proa.machine.cloudconfig import examine
    from proa.machine.cloudconfig.changes import ChangePower

    plan = _planned(machine, content(options.file))
    verdict = examine.judged(options.file, plan)
    if verdict.refused:
        _print(options, examine.as_json(verdict), examine.as_text(verdict))
        return REFUSED
    changes = tuple(change for change in plan.changes if not isinstance(change, ChangePower))
    words = [str(problem) for problem in verdict.problems]
    if len(changes) < len(plan.changes):
        words.append("power_state is for boots; now it is left out: `reboot` when it suits")
    if options.minutes:
        trial.begin(machine, changes, options.minutes, (cloudinit.STATE,))
        words += [f"stays if it goes back: {what}" for what in trial.cannot_undo(machine, changes)]
    memory = cloudinit.remembered(machine, "")
    outcome = cloudinit.apply_and_remember(machine, changes, memory)
    if options.minutes:
        trial.applied(machine)
    for result in outcome.results:
        if result.status in ("done", "kept", "failed"):
            note = f": {result.note}" if result.note else ""
            words.append(f"{result.status}: {result.what}{note}")
    if options.minutes:
        words.append(
            f"on trial: goes back in {options.minutes} minutes unless: sudo proactl config confirm"
        )
    document = {
        "format": 1,
        "problems": [asdict(problem) for problem in verdict.problems],
        "changes": [asdict(result) for result in outcome.results],
        "trial_minutes": options.minutes,
    }
    _print(options, document, "\n".join(words) or "nothing to change")
    return FAILED if outcome.failed else OK


def _print(options: argparse.Namespace, document: object, text: str) -> None:
    print(json.dumps(document, indent=1) if options.json else text, flush=True)
