"""``proactl``, the owner's command on a Proa machine: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from proa.machine import config_command
from proa.machine.errors import Code, MachineError
from proa.machine.system import System, system_from_environment

_EPILOG = """\
examples:
  proactl status                  one screen: version, last check, what is staged, why it waits
  proactl update --check          ask the server, change nothing
  proactl update                  get the next version into the other slot
  proactl update --force          take a version that failed here, or was gone back from
  proactl rollback --reboot       go back to the version in the other slot, now
  proactl health                  run the health checks as a trial would
  proactl config status           what the boot made of the cloud-config; more: proactl config -h

exit status: 0 done or nothing to do, 2 usage; the others are listed in docs/updating.md
(10 server unreachable, 12 metadata expired, 14 payload differs, 17 no room, 18 another updater ...)
"""


def main(arguments: Sequence[str] | None = None, system: System | None = None) -> int:
    """Run a command on this machine, or on ``system``; returns the exit status."""
    options = _parser().parse_args(arguments)
    # `systemctl stop` ends an update like Ctrl-C does: what came is kept.
    signal.signal(signal.SIGTERM, _interrupt)
    system = system or system_from_environment()
    command = {
        "status": _status,
        "update": _update,
        "rollback": _rollback,
        "slots": _slots,
        "health": _health,
        "config": config_command.run,
    }[options.command]
    try:
        return command(system, options)
    except MachineError as error:
        return _fail(options, error.message, error.hint, error.code)
    except PermissionError as error:
        if (shown := _as_root(system, options)) is not None:
            print(shown, flush=True)
            return 0
        return _fail(options, f"{error.filename}: not allowed", "run it with sudo", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(options, f"{where}{error.strerror or error}", None, 1)
    except KeyboardInterrupt:
        return _fail(options, "interrupted", "`proactl update` goes on where it stopped", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proactl",
        description="Look after the system's versions on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("status", help="what runs, what is staged, what happened last")
    update = commands.add_parser("update", help="look for a new version and stage it")
    update.add_argument("--check", action="store_true", help="ask the server, change nothing")
    update.add_argument(
        "--force", action="store_true", help="take a version that failed here or is on hold"
    )
    update.add_argument(
        "--allow-downgrade", action="store_true", help="take a version older than the running one"
    )
    update.add_argument(
        "--scheduled", action="store_true", help="called by the timer (the server is told so)"
    )
    rollback = commands.add_parser("rollback", help="go back to the version in the other slot")
    rollback.add_argument("--reboot", action="store_true", help="restart into it at once")
    rollback.add_argument("--force", action="store_true", help="even to a version that failed here")
    commands.add_parser("slots", help="both slots, their versions and tries")
    health = commands.add_parser("health", help="run the health checks")
    when = health.add_mutually_exclusive_group()
    when.add_argument("--boot", action="store_true", help="judge this boot: commit it or end it")
    when.add_argument("--deadline", action="store_true", help="end a trial whose time is up")
    when.add_argument("--shutdown", action="store_true", help="give back an unjudged trial's try")
    config_command.add(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


# --- Commands -----------------------------------------------------------------------------------


def _status(system: System, options: argparse.Namespace) -> int:
    from proa.machine import status

    found = status.gather(system)
    _print(options, status.as_json(found), status.as_text(found))
    return 0


def _slots(system: System, options: argparse.Namespace) -> int:
    from proa.machine import status

    views = status.gather(system).slots
    lines = [
        f"{view.name} {'*' if view.running else ' '} {view.version or '-':<16} {view.condition}"
        + (f", {view.tries_left} tries left" if view.tries_left else "")
        for view in views
    ]
    _print(options, {"slots": [dataclasses.asdict(v) for v in views]}, "\n".join(lines))
    return 0


def _update(system: System, options: argparse.Namespace) -> int:
    from proa.machine import update

    chosen = update.Options(
        check_only=options.check,
        force=options.force,
        allow_downgrade=options.allow_downgrade,
        scheduled=options.scheduled,
    )
    outcome = update.update(system, chosen, _say, _ProgressLine())
    words = outcome.words + (f"; {outcome.reboot}" if outcome.reboot else "")
    _print(options, {"code": 0, **dataclasses.asdict(outcome)}, words)
    return 0


def _rollback(system: System, options: argparse.Namespace) -> int:
    from proa.machine import reboot
    from proa.machine.rollback import rollback

    version = rollback(system, force=options.force)
    words = f"{version} is the next to start"
    if options.reboot:
        words += "; restarting"
    else:
        words += "; restart the machine when it suits (`reboot`)"
    _print(options, {"code": 0, "version": version, "restarting": options.reboot}, words)
    if options.reboot and not reboot.now(system):
        raise MachineError(Code.UNEXPECTED, "systemd did not take the restart", "run `reboot`")
    return 0


def _health(system: System, options: argparse.Namespace) -> int:
    from proa.machine import checks, health

    if options.deadline or options.shutdown:
        judge = health.at_deadline if options.deadline else health.at_shutdown
        verdict = judge(system, _say)
    elif options.boot:
        verdict = health.at_boot(system, _say)
    else:
        reasons = checks.once(system)
        words = "\n".join(reasons) or "all is well"
        _print(options, {"good": not reasons, "reasons": list(reasons)}, words)
        return 1 if reasons else 0
    document = {
        "version": verdict.version,
        "situation": verdict.situation.value,
        "good": verdict.good,
        "reasons": list(verdict.reasons),
        "action": verdict.action,
    }
    words = f"{verdict.version} ({verdict.situation.value}): {'; '.join(verdict.reasons) or 'well'}"
    _print(options, document, words)
    # A committed system that is not well says so, but there is nothing to end: the unit is good.
    return 1 if options.boot and verdict.action == "restarting" else 0


def _as_root(system: System, options: argparse.Namespace) -> str | None:
    """Ask again through sudo, which members of the group sudo may do without a password.

    Only for what looks and changes nothing. None if it is not for this user or not this machine.
    """
    if options.command not in ("status", "slots") or os.geteuid() == 0 or system.root != Path("/"):
        return None
    arguments = [options.command, *(["--json"] if options.json else [])]
    done = system.run(["sudo", "--non-interactive", "/usr/bin/proactl", *arguments], 60)
    return done.output.rstrip("\n") if done.code == 0 else None


# --- Printing -----------------------------------------------------------------------------------


class _ProgressLine:
    """Progress on standard error: one line that moves on a terminal, a few lines in a journal."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._started = time.monotonic()
        self._first: int | None = None
        self._shown = 0.0
        self._quarter = 0

    def __call__(self, done: int, size: int) -> None:
        if self._first is None:
            self._first = done
        now, mib = time.monotonic(), 1 << 20
        words = f"{done // mib} of {size // mib} MiB ({100 * done // max(size, 1)} %)"
        if self._moving and (now - self._shown > 0.2 or done >= size):
            self._shown = now
            rate = (done - self._first) / mib / max(now - self._started, 0.001)
            end = "\n" if done >= size else ""
            print(f"\r  {words}, {rate:.1f} MiB/s ", end=end, file=sys.stderr, flush=True)
        elif not self._moving and 4 * done // max(size, 1) > self._quarter:
            self._quarter = 4 * done // max(size, 1)
            _say(f"written {words}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(options: argparse.Namespace, document: object, text: str) -> None:
    print(json.dumps(document, indent=1) if options.json else text, flush=True)


def _fail(options: argparse.Namespace, message: str, hint: str | None, code: int) -> int:
    if options.json:
        print(json.dumps({"code": code, "error": message, "hint": hint}, indent=1), flush=True)
    _say(f"proactl: {message}")
    if hint:
        _say(f"  {hint}")
    return code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Without this, a reader that closes early (`proactl status | head -1`) gives a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    sys.exit(main())
