"""What is wrong with a document, for its author, on a machine and on a workstation alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from proa.machine.cloudconfig.parse import MAX_BYTES, Problem
from proa.machine.cloudconfig.plan import Given, Plan, plan_for
from proa.machine.record import asdict, dataclass, replace


@dataclass(frozen=True)
class Verdict:
    """What a machine would say of a document. ``name`` is what its author calls it."""

    name: str
    problems: tuple[Problem, ...]
    refused: bool

    @property
    def warned(self) -> bool:
        return bool(self.problems) and not self.refused


# What stands in for addresses that only the machine's cloud knows (RFC 5737, RFC 3849).
_STAND_INS = {
    "COREOS_PRIVATE_IPV4": "192.0.2.1",
    "COREOS_PUBLIC_IPV4": "198.51.100.1",
    "COREOS_PRIVATE_IPV6": "2001:db8::1",
    "COREOS_PUBLIC_IPV6": "2001:db8::2",
}


def content(name: str) -> bytes:
    """A document; "-" is standard input. Bounded: one byte more than may be, so that a larger one
    is refused as such. Raises :class:`OSError`."""
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(name).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def examine(name: str, data: bytes) -> Verdict:
    """Read a document as a boot would, on a machine whose addresses are known. Never raises."""
    planned = plan_for(Given(data, environment=_STAND_INS))
    verdict = judged(name, planned)
    if planned.needs_network:
        message = "it includes others from addresses, which were not fetched and not looked at"
        verdict = replace(verdict, problems=(*verdict.problems, Problem("warning", message)))
    return verdict


def judged(name: str, planned: Plan) -> Verdict:
    """What is to be said of a document that was planned, on the machine that it is for."""
    return Verdict(name, planned.problems, planned.refused)


def as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "format": 1,
        "file": verdict.name,
        "refused": verdict.refused,
        "problems": [asdict(problem) for problem in verdict.problems],
    }


def as_text(verdict: Verdict) -> str:
    """One line for each problem, in the form that editors and terminals make links of, and the
    verdict."""
    lines = [_line(verdict.name, problem) for problem in verdict.problems]
    errors = sum(problem.level == "error" for problem in verdict.problems)
    counts = _count(errors, "error"), _count(len(verdict.problems) - errors, "warning")
    words = " and ".join(count for count in counts if count)
    if verdict.refused:
        end = f"{verdict.name}: a machine would REFUSE this: {words}"
    elif verdict.problems:
        end = f"{verdict.name}: a machine would apply this, with {words}"
    else:
        end = f"{verdict.name}: good"
    return "\n".join((*lines, end))


def _line(name: str, problem: Problem) -> str:
    # Of a part that is wrapped in others the line is known, and mostly no column.
    numbers = (n for n in (problem.line, problem.column) if n)
    place = ":".join((name, *map(str, numbers)))
    return f"{place}: {problem.level}: {problem.message}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}" if number else ""


def worst(verdicts: Sequence[Verdict], *, strict: bool) -> bool:
    """Whether one of the documents would be refused, or with ``strict`` warned of."""
    return any(verdict.refused or (strict and verdict.warned) for verdict in verdicts)
