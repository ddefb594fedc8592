"""The program that runs at each boot: find the machine's cloud-config and apply it, in stages.

    /usr/lib/proa/cloudinit                       local: before the network, what needs none
    /usr/lib/proa/cloudinit --stage network       what comes over the network, once it is online
    /usr/lib/proa/cloudinit --stage final         the owner's own commands, after all has started
    /usr/lib/proa/cloudinit --file FILE           by hand: this document
    /usr/lib/proa/cloudinit --file FILE --dry-run only say what would be done

A later stage is started by an earlier one that has something for it, so a boot that needs no
network waits for none. What it did is printed (to the journal and the console) and written to
/run/proa/cloudinit.json. Neither ever holds a password, a key or the content of a file.

Exit status: 0 applied, or nothing to apply; 1 unexpected; 2 usage; 3 the document was refused (the
cloud's own ssh keys and host name are applied all the same); 4 some change could not be made, or
the network that the cloud describes was not understood.
The units take 3 and 4 as success: an owner's typo must not look like a bad release.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proa.machine.assignments import assignments
from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.apply import Outcome, Result, apply
from proa.machine.cloudconfig.changes import ONCE, Change, Stage, describe, is_right, stage
from proa.machine.cloudconfig.machine import (
    CommandFailed,
    FetchFailed,
    Machine,
    root_ids,
    run_program,
)
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem
from proa.machine.hints import TYPE_CHECKING, Any
from proa.machine.record import asdict, dataclass, field, replace

if TYPE_CHECKING:  # the final stage makes no plan, and most boots find nothing to plan for
    import argparse

    from proa.machine.cloudconfig.plan import Given, Plan
    from proa.machine.cloudconfig.sources import Source

STATUS = "/run/proa/cloudinit.json"
STATE = "/var/lib/proa/cloudinit.json"
LATER = "/run/proa/cloudinit"
"""The changes of later stages: ``network.json`` and ``final.json``. Only root may enter."""

STAGES: tuple[Stage, ...] = ("local", "network", "final")
NO_SOURCE = "nothing that this machine shows names a source: nothing to apply"

OK, UNEXPECTED, USAGE, REFUSED, FAILED = 0, 1, 2, 3, 4
_CODES = {"refused": REFUSED, "failed": FAILED, "unexpected": UNEXPECTED}
_MAX_KEPT = 4 * MAX_BYTES


@dataclass(frozen=True)
class Did:
    """What a stage did. ``state`` is "applied", "nothing", "waiting", "refused", "failed" or
    "unexpected"; ``then`` are the stages that it has left something for."""

    state: str
    source: Source | None = None
    problems: tuple[Problem, ...] = ()
    results: tuple[Result, ...] = ()
    then: tuple[Stage, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    machine = Machine(Path("/"), run_program, _set_hostname)
    if at := _stage_alone(words):
        return boot(machine, None, at)
    options = _parser().parse_args(words)
    file = Path(options.file) if options.file else None
    if options.dry_run:
        from proa.machine.cloudconfig.sources import find

        return _dry_run(_from_file(file) if file else find(machine.root, machine.run))
    return boot(machine, file, options.stage)


def _stage_alone(words: Sequence[str]) -> Stage | None:
    """The stage, where that is all that is said, as by the units: no boot pays for argparse."""
    if not words:
        return "local"
    return next((s for s in STAGES if list(words) == ["--stage", s]), None)


def _set_hostname(name: str) -> None:
    from _socket import sethostname  # once in most lives; socket would bring selectors

    sethostname(name)


def boot(machine: Machine, file: Path | None = None, at: Stage = "local") -> int:
    """Do a stage, say so, start the next one, leave the status behind. It always returns."""
    started = time.monotonic()
    try:
        if file is not None:
            did = _planned(machine, _from_file(file), STAGES, online=True)
        elif at == "local":
            did = _local(machine)
        else:
            did = _network(machine) if at == "network" else _waiting(machine, "final")
    except Exception as error:  # the boot goes on, and says what was wrong
        problem = Problem("error", f"unexpected: {type(error).__name__}: {error}")
        did = Did("unexpected", problems=(problem,))
    if at == "local":
        did = replace(did, results=(*did.results, *_refreshed(machine)))
    return _told(machine, _with_units(machine, did), at, started)


# The stages.


def _local(machine: Machine) -> Did:
    from proa.machine.cloudconfig.sources import find, wants_network

    for name in STAGES[1:]:
        files.remove(machine.root, f"{LATER}/{name}.json")
    source = find(machine.root, machine.run)
    if source is None:
        wanted = wants_network(machine.root)
        return Did("waiting" if wanted else "nothing", then=("network",) if wanted else ())
    return _planned(machine, source, ("local",), online=False)


def _network(machine: Machine) -> Did:
    """What the local stage left for this one; or else all that the network says."""
    if files.exists(machine.root, f"{LATER}/network.json"):
        return _waiting(machine, "network")
    from proa.machine.cloudconfig.sources import find, find_online

    found = find(machine.root, machine.run)
    source = find_online(machine.root, machine.run, found=found) or found
    if source is None:
        return Did("nothing")
    did = _planned(machine, source, ("local", "network"), online=True)
    problem = _check_in(machine, source)
    return replace(did, problems=(*did.problems, problem)) if problem else did


def _check_in(machine: Machine, source: Source) -> Problem | None:
    """Tell a cloud that wants to know it that this machine is ready: once for an instance."""
    from proa.machine.cloudconfig.sources import check_in, wants_check_in

    if not wants_check_in(source):
        return None
    memory = remembered(machine, source.metadata.instance_id)
    if "check_in" in memory.wishes:
        return None
    if problem := check_in(source):
        return problem
    remember(machine, memory, Outcome(remembered={**memory.wishes, "check_in": ""}))
    return None


def apply_by_hand(machine: Machine, source: Source, adjust: Callable[[Plan], Plan]) -> int:
    """Apply a source now, all stages at once, with a plan that is ``adjust``-ed; say so, and leave
    the status behind. Rights that earlier documents gave stay. Returns the exit status."""
    started = time.monotonic()
    did = _planned(machine, source, STAGES, online=True, adjust=adjust)
    return _told(machine, did, "local", started)


def plan_by_hand(machine: Machine, data: bytes) -> Plan:
    """The plan for a document that is applied by hand, without a cloud."""
    from proa.machine.cloudconfig.plan import Given, plan_for

    return plan_for(
        Given(
            data,
            environment=_environment(machine),
            version=_version(machine),
            fetch=_included(machine),
        )
    )


def _planned(
    machine: Machine,
    source: Source,
    now: Sequence[Stage],
    *,
    online: bool,
    adjust: Callable[[Plan], Plan] | None = None,
) -> Did:
    """Plan for what the source says, do what is for ``now``, and leave the rest for later."""
    from proa.machine.cloudconfig.plan import plan_for

    memory = remembered(machine, source.metadata.instance_id)
    given = _given(machine, source, memory, online=online)
    plan = adjust(plan_for(replace(given, remembered=()))) if adjust else plan_for(given)
    later = _sorted(plan.changes, now)
    if plan.once:
        memory = replace(memory, once={**memory.once, **plan.once})
    outcome = apply_and_remember(machine, [c for c in plan.changes if stage(c) in now], memory)
    for name, changes in later.items():
        _leave(machine, name, changes)
    then: tuple[Stage, ...] = tuple(later)
    if plan.needs_network and not online:
        then = ("network",)
    problems = (*source.problems, *plan.problems)
    wrong = outcome.failed or any(problem.level == "error" for problem in problems)
    state = "refused" if plan.refused else "failed" if wrong else "applied"
    return Did(state, source, problems, tuple(outcome.results), then)


def _given(machine: Machine, source: Source, memory: Memory, *, online: bool) -> Given:
    from proa.machine.cloudconfig.plan import Given

    return Given(
        source.user_data,
        source.vendor_data,
        source.metadata,
        remembered=tuple(memory.wishes),
        unread=source.unread,
        waiting=bool(source.follow),
        copied=memory.copied,
        environment=_environment(machine),
        kept=memory.once,
        version=_version(machine),
        fetch=_included(machine) if online else None,
    )


def _sorted(changes: Sequence[Change], now: Sequence[Stage]) -> dict[Stage, list[Change]]:
    """The changes for later stages, by stage in the order of the stages."""
    later: dict[Stage, list[Change]] = {}
    for name in STAGES:
        waiting = [change for change in changes if stage(change) == name]
        if name not in now and waiting:
            later[name] = waiting
    return later


def _leave(machine: Machine, name: Stage, changes: Sequence[Change]) -> None:
    from proa.machine.cloudconfig import later  # most boots leave nothing

    files.make_directory(machine.root, LATER, 0o700, *root_ids())
    data = later.dump(changes)
    files.write(machine.root, f"{LATER}/{name}.json", data, 0o600, *root_ids())


def _waiting(machine: Machine, name: Stage) -> Did:
    """Do what earlier stages left for this one."""
    from proa.machine.cloudconfig import later

    path = f"{LATER}/{name}.json"
    found = files.read(machine.root, path, 16 * _MAX_KEPT)
    if found is None:
        return Did("nothing")
    memory = remembered(machine, "")
    outcome = apply_and_remember(machine, later.load(found.content), memory)
    files.remove(machine.root, path)
    following = STAGES[STAGES.index(name) + 1 :]
    then = tuple(n for n in following if files.exists(machine.root, f"{LATER}/{n}.json"))
    state = "failed" if outcome.failed else "applied"
    return Did(state, results=tuple(outcome.results), then=then)


def apply_and_remember(machine: Machine, changes: Sequence[Change], memory: Memory) -> Outcome:
    """Make the changes, and note on the way what must not be done twice."""
    outcome = apply(
        changes, machine, memory.wishes, lambda so_far: remember(machine, memory, so_far)
    )
    remember(machine, memory, outcome)
    return outcome


def _refreshed(machine: Machine) -> tuple[Result, ...]:
    """An update may have brought other certificates; the owner's are to stay beside them."""
    if not files.exists(machine.root, "/etc/ca-certificates/cloud-config.pem"):
        return ()
    from proa.machine.cloudconfig import certificates  # only where there are such

    what = "trusted certificates of the release"
    try:
        return (Result(what, "done"),) if certificates.refresh(machine) else ()
    except (files.FileProblem, CommandFailed, OSError) as error:
        return (Result(what, "failed", str(error)),)


def _with_units(machine: Machine, did: Did) -> Did:
    """Start the next stage; those behind it are started by it."""
    if not did.then:
        return did
    unit = f"proa-cloudinit-{did.then[0]}.service"
    try:
        # Not waited for: it is ordered behind what has not started yet.
        machine.run(("systemctl", "--no-block", "start", unit), b"")
    except CommandFailed as error:
        problems = (*did.problems, Problem("error", f"{unit}: {error}"))
        return replace(did, state=did.state if did.state in _CODES else "failed", problems=problems)
    return did


# What it rests on.


def _included(machine: Machine) -> Callable[[str], bytes]:
    """What gets the documents that a document includes."""

    def get(url: str) -> bytes:
        try:
            return machine.fetch(url, {})
        except FetchFailed as failed:
            raise OSError(str(failed)) from None

    return get


def _environment(machine: Machine) -> dict[str, str]:
    """``COREOS_…`` of /etc/environment, and of our own environment before it."""
    written = _assignments(machine, "/etc/environment")
    return {k: v for k, v in {**written, **os.environ}.items() if k.startswith("COREOS_")}


def _version(machine: Machine) -> str:
    return _assignments(machine, "/usr/lib/os-release").get("IMAGE_VERSION", "")


def _assignments(machine: Machine, path: str) -> dict[str, str]:
    found = files.read(machine.root, path, MAX_BYTES)
    return assignments(found.content.decode("utf-8", "replace")) if found else {}


# What earlier boots wanted.


@dataclass(frozen=True)
class Memory:
    """``wishes`` maps an identity to the wish of an earlier boot, ``once`` an address to what was
    included from it."""

    instance_id: str
    wishes: Mapping[str, str]
    once: Mapping[str, bytes] = field(default_factory=dict)
    copied: bool = False
    """The disk was another instance's until now."""


def remembered(machine: Machine, instance_id: str) -> Memory:
    """What this instance's earlier boots did. A copy of the disk on another one begins anew.

    Of what was done for the first, it has to know what is done once in the life of the disk, and
    who was given rights, to take them away.
    """
    try:
        found = files.read(machine.root, STATE, _MAX_KEPT * 8)
        content = json.loads(found.content) if found else {}
        before = str(content.get("instance_id", ""))
        wishes = {str(name): str(wanted) for name, wanted in content.get("wishes", {}).items()}
        if instance_id and before and before != instance_id:
            kept = {name: wanted for name, wanted in wishes.items() if name.startswith(ONCE)}
            rights = {name: "" for name in wishes if is_right(name)}
            return Memory(instance_id, {**kept, **rights}, copied=True)
        once = {str(url): base64.b64decode(d) for url, d in content.get("once", {}).items()}
        return Memory(instance_id or before, wishes, once)
    except (files.FileProblem, OSError, ValueError, TypeError, AttributeError, RecursionError):
        # Then everything is compared with what is on disk, which is right too.
        return Memory(instance_id, {})


def remember(machine: Machine, memory: Memory, outcome: Outcome) -> None:
    document = {
        "format": 1,
        "instance_id": memory.instance_id,
        "wishes": outcome.remembered,
        "once": {url: base64.b64encode(data).decode() for url, data in memory.once.items()},
    }
    content = json.dumps(document).encode()
    try:
        found = files.read(machine.root, STATE, _MAX_KEPT * 8)
        if found is None or found.content != content:
            files.write(machine.root, STATE, content, 0o600, *root_ids())
    except (files.FileProblem, OSError) as error:
        outcome.results.append(Result("memory of what was applied", "failed", str(error)))


# By hand.


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="cloudinit",
        description="Apply the cloud-config of this machine.",
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--file", metavar="FILE", help="apply this document")
    parser.add_argument("--stage", choices=STAGES, default="local", help="which stage to do")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser


def _from_file(path: Path) -> Source:
    from proa.machine.cloudconfig.metadata import Metadata
    from proa.machine.cloudconfig.sources import Source

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
    from proa.machine.cloudconfig.plan import plan_for

    machine = Machine(Path("/"), run_program, _set_hostname)
    plan: Plan = plan_for(_given(machine, source, Memory("", {}), online=True))
    for problem in (*source.problems, *plan.problems):
        print(problem)
    for change in plan.changes:
        print(f"would do: {describe(change)}")
    return REFUSED if plan.refused else OK


# Saying it.


def _told(machine: Machine, did: Did, at: Stage, started: float) -> int:
    """Say what was done, leave the status behind, and return the exit status."""
    seconds = round(time.monotonic() - started, 3)
    _say(did, at, seconds)
    _write_status(machine, did, at, seconds)
    return _CODES.get(did.state, OK)


def _write_status(machine: Machine, did: Did, at: Stage, seconds: float) -> None:
    """Put this stage's doings to those of the earlier ones of this boot."""
    before: dict[str, Any] = {}
    if at != "local":
        try:
            found = files.read(machine.root, STATUS, _MAX_KEPT)
            before = json.loads(found.content) if found else {}
        except (files.FileProblem, OSError, ValueError):
            before = {}
    state = did.state
    if state in ("nothing", "applied") and before.get("state") in ("refused", "failed"):
        state = before["state"]
    source = did.source
    stages = {**before.get("stages", {}), at: {"state": did.state, "seconds": seconds}}
    report = {
        "format": 1,
        "state": state,
        "source": source.name if source else before.get("source"),
        "instance_id": source.metadata.instance_id if source else before.get("instance_id"),
        "problems": [*before.get("problems", ()), *(asdict(problem) for problem in did.problems)],
        "changes": [*before.get("changes", ()), *(asdict(result) for result in did.results)],
        "tried": [asdict(tried) for tried in source.tried] if source else before.get("tried", []),
        "stages": stages,
        "waiting_for": list(did.then),
        "seconds": round(sum(one["seconds"] for one in stages.values()), 3),
    }
    content = (json.dumps(report, indent=1) + "\n").encode()
    try:
        files.write(machine.root, STATUS, content, 0o644, *root_ids())
    except (files.FileProblem, OSError) as error:
        _print(3, f"the status could not be written: {error}")


def _say(did: Did, at: Stage, seconds: float) -> None:
    if did.state == "nothing" and not did.problems:
        _print(6, NO_SOURCE if at == "local" else f"nothing to do in the stage {at}")
        return
    for problem in did.problems:
        place = f"line {problem.line}: " if problem.line else ""
        _print(3 if problem.level == "error" else 4, f"{place}{problem.level}: {problem.message}")
    if did.state == "refused":
        _print(3, "REFUSED: the document is not applied; the cloud's ssh keys and host name are")
    counts = dict.fromkeys(("done", "unchanged", "kept", "failed"), 0)
    for result in did.results:
        counts[result.status] = counts.get(result.status, 0) + 1
        if result.status in ("done", "kept", "failed"):
            note = f": {result.note}" if result.note else ""
            level = 3 if result.status == "failed" else 6
            _print(level, f"{result.status}: {result.what}{note}")
        elif result.note and result.status == "unchanged":
            _print(4, f"{result.what}: {result.note}")
    if did.results or did.source:
        _print(
            6,
            f"{did.source.name if did.source else at}: {counts['done']} changes made, "
            f"{counts['unchanged']} already so, {counts['kept']} edits kept, "
            f"{counts['failed']} failed ({seconds} s)",
        )
    if did.then:
        what = {"network": "the network", "final": "the end of the boot"}[did.then[0]]
        _print(6, f"more waits for {what}")


def _print(level: int, text: str) -> None:
    """One line; with the level of syslog(3) in front where the journal reads it (sd-daemon(3))."""
    mark = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{mark}cloud-config: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
