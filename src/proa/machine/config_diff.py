"""What a document would change on this machine: the changes are rehearsed in a copy.

The copy is a directory of its own with the few files that the changes look at. They are made there
by the very code that makes them for real; programs are only noted. What differs afterwards is what
would change. A file that not everybody may read is named and not shown.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from proa.machine.cloudconfig import files
from proa.machine.cloudconfig.apply import Result, apply
from proa.machine.cloudconfig.changes import (
    Change,
    ChangePower,
    MakeFileSystem,
    MakeSwapFile,
    Mount,
    PartitionDisk,
    PhoneHome,
    RunScript,
    SayFinal,
    SeedRandom,
    StartScript,
    TellHostKeys,
    describe,
    identity,
)
from proa.machine.cloudconfig.machine import MAX_FILE, CommandFailed, Machine, root_ids
from proa.machine.config_trial import ACCOUNT_FILES, touched
from proa.machine.record import dataclass, replace

MAX_SHOWN = 256 * 1024
"""Bytes of a file up to which its differences are worked out."""


@dataclass(frozen=True)
class Difference:
    """``lines`` of a unified diff; none if ``why_not`` says why it is not shown."""

    path: str
    lines: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Rehearsal:
    results: tuple[Result, ...]
    differences: tuple[Difference, ...]
    programs: tuple[str, ...]


def rehearse(
    changes: Sequence[Change], machine: Machine, remembered: Mapping[str, str]
) -> Rehearsal:
    """Make the changes in a copy of what they touch. Nothing of ``machine`` is written."""
    folder = machine.root / "run"
    with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else None) as place:
        copy = Path(place)
        for path in dict.fromkeys(path for c in changes for path in touched(machine, c).paths):
            _copy(machine.root, copy, path)
        for path in ACCOUNT_FILES:
            _copy(machine.root, copy, path)
        programs: list[str] = []

        def note(command: Sequence[str], stdin: bytes) -> None:
            programs.append(" ".join(command))
            if command[0] == "groupadd":
                with (copy / "etc/group").open("a") as file:
                    file.write(f"{command[-1]}:x:{root_ids()[1]}:\n")
            if command[0] == "useradd":
                _pretend_user(copy, command)

        def refuse(unit: str, seconds: float | None) -> int:
            raise CommandFailed(f"{unit} is not started for a look")

        stage = replace(
            machine,
            root=copy,
            run=note,
            start=refuse,
            set_hostname=lambda name: None,
            tell=lambda text: None,
            say=lambda text: None,
            sleep=lambda seconds: None,
        )
        outcome = apply((c for c in changes if not isinstance(c, _NOT_HERE)), stage, remembered)
        differences = _differences(machine.root, copy)
    told = (_told(change, remembered) for change in changes if isinstance(change, _NOT_HERE))
    return Rehearsal((*outcome.results, *told), differences, tuple(programs))


# What a copy of a few files cannot show, or what would be done for real.
_NOT_HERE = (
    *(RunScript, StartScript, PhoneHome, SayFinal, ChangePower, SeedRandom, TellHostKeys),
    *(PartitionDisk, MakeFileSystem, MakeSwapFile, Mount),
)


def _told(change: Change, remembered: Mapping[str, str]) -> Result:
    if (name := identity(change)) and name in remembered:
        return Result(describe(change), "unchanged", "it was done for an earlier document")
    return Result(describe(change), "done", "not rehearsed")


def _copy(source: Path, target: Path, path: str) -> None:
    if files.exists(target, path):
        return
    for folder in reversed(Path(path).parents[:-1]):
        # A link on the way stops the changes; the copy shall have it too.
        if (link := files.target_of(source, str(folder))) is not None:
            files.link(target, str(folder), link)
            return
    if (link := files.target_of(source, path)) is not None:
        files.link(target, path, link)
        return
    try:
        found = files.read(source, path, MAX_FILE)
    except files.FileProblem:
        # A directory or a device: the rehearsal shall meet the same thing there.
        files.make_directory(target, path, 0o755, *root_ids())
        return
    if found:
        files.write(target, path, found.content, found.mode, found.uid, found.gid)


def _pretend_user(copy: Path, command: Sequence[str]) -> None:
    """Enough of a new user for the changes that come after it."""
    name = command[-1]
    home = command[command.index("--home-dir") + 1] if "--home-dir" in command else f"/home/{name}"
    uid, gid = root_ids()
    with (copy / "etc/passwd").open("a") as file:
        file.write(f"{name}:x:{uid}:{gid}::{home}:/bin/sh\n")


def _differences(machine: Path, copy: Path) -> tuple[Difference, ...]:
    found: list[Difference] = []
    for folder, _, names in os.walk(copy):
        for name in names:
            path = f"/{Path(folder, name).relative_to(copy)}"
            if path in ACCOUNT_FILES:
                continue  # the programs say what happens to those
            difference = _difference(machine, copy, path)
            if difference is not None:
                found.append(difference)
    return tuple(sorted(found, key=lambda difference: difference.path))


def _difference(machine: Path, copy: Path, path: str) -> Difference | None:
    before_link, after_link = files.target_of(machine, path), files.target_of(copy, path)
    if after_link is not None:
        if before_link == after_link:
            return None
        return Difference(path, (f"+++ {path}", f"+(a link to {after_link})"))
    after = files.read(copy, path, MAX_FILE)
    before = None if before_link is not None else files.read(machine, path, MAX_FILE)
    if after is None or (before and before.content == after.content and before.mode == after.mode):
        return None
    if not (after.mode & 0o004) or (before and not before.mode & 0o004):
        return Difference(path, why_not="not for everybody to read")
    texts = [_text(content) for content in (before.content if before else b"", after.content)]
    if None in texts:
        return Difference(path, why_not="not text, or too large")
    old, new = ((text or "").splitlines() for text in texts)
    origin = path if before else "/dev/null"
    lines = list(difflib.unified_diff(old, new, origin, path, lineterm=""))
    if before and before.mode != after.mode:
        lines.append(f"(mode {before.mode:04o} becomes {after.mode:04o})")
    return Difference(path, tuple(lines or (f"+++ {path}", "(an empty file)")))


def _text(content: bytes) -> str | None:
    if len(content) > MAX_SHOWN:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t\r" for c in text) else None
