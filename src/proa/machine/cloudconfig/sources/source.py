"""What a search for the machine's configuration brings, and what it may use for that."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proa.machine.cloudconfig import programs
from proa.machine.cloudconfig.machine import CommandFailed, Run
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.record import dataclass, field

PROGRAM_TIMEOUT = 10.0
"""Seconds; a program that asks the hypervisor answers in milliseconds."""


@dataclass(frozen=True)
class Tried:
    """One place that was looked at: how long it took (seconds) and what came of it."""

    name: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Source:
    """What was found, and where.

    ``follow`` is an address that has the user-data, which can be read once there is a network.
    """

    name: str
    metadata: Metadata
    user_data: bytes | None = field(repr=False)
    problems: tuple[Problem, ...] = ()
    vendor_data: bytes | None = field(default=None, repr=False)
    tried: tuple[Tried, ...] = ()
    follow: str = field(default="", repr=False)

    @property
    def unread(self) -> bool:
        """Something that is there could not be read: what it would have said is not known."""
        return any(problem.level == "error" for problem in self.problems)


Capture = Callable[[Sequence[str]], bytes | None]
"""Run a program and return what it prints; ``None`` if there is no such program.

Raises :class:`CommandFailed` if it fails.
"""


@dataclass(frozen=True)
class Edge:
    """All that a source may touch of the machine: / as ``root``, programs, the environment."""

    root: Path
    run: Run
    capture: Capture
    environ: Mapping[str, str]


def capture(command: Sequence[str]) -> bytes | None:
    try:
        code, said = programs.run(
            command,
            output="stdout",  # What else it says is not told: it may repeat a private value.
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            timeout=PROGRAM_TIMEOUT,
        )
    except FileNotFoundError:
        return None
    except programs.TookTooLong:
        raise CommandFailed(f"{command[0]}: took more than {PROGRAM_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {type(error).__name__}") from None
    if code:
        raise CommandFailed(f"{command[0]}: failed ({code})")
    return said
