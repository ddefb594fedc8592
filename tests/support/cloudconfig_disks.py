"""A machine for cloud-config that is a directory, with disks that sysfs knows of."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.machine import Machine
from proa.machine.cloudconfig.metadata import NO_METADATA, Metadata
from proa.machine.cloudconfig.plan import plan


class FakeMachine:
    """Programs are noted, and ``react`` may do what a program would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        self.stdin: dict[str, bytes] = {}
        self.scripts: dict[str, str] = {}
        self.exits: dict[str, int] = {}
        self.timeouts: dict[str, float | None] = {}
        self.posts: list[tuple[str, bytes]] = []
        self.post_error: Exception | None = None
        self.said: list[str] = []
        self.slept: list[float] = []
        self.contents: dict[str, dict[str, str]] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.react: Callable[[Sequence[str], bytes], None] = lambda command, stdin: None
        self.remembered: dict[str, str] = {}
        self.saved: list[dict[str, str]] = []
        for folder in ("etc", "dev/disk", "proc/self", "sys/class/block", "sys/dev/block"):
            (root / folder).mkdir(parents=True)
        ids = f"{os.geteuid()}:{os.getegid()}"
        (root / "etc/passwd").write_text(f"core:x:{ids}::/home/core:/bin/bash\n")
        (root / "proc/swaps").write_text("Filename Type Size Used Priority\n")
        self.mounts: list[str] = []
        # The disk that Proa runs from: /usr lies on dm-verity over its second partition.
        self.disk("vda", partitions=2)
        self.device("dm-0", "sys/devices/virtual/dm-0", "253:0")
        slaves = root / "sys/devices/virtual/dm-0/slaves"
        slaves.mkdir()
        (slaves / "vda2").touch()
        self.mount("/", "252:1")
        self.mount("/usr", "253:0")

    # Disks.

    def device(self, name: str, place: str, number: str) -> None:
        (self.root / place).mkdir(parents=True, exist_ok=True)
        link = self.root / "sys/class/block" / name
        link.symlink_to(self.root / place)
        (self.root / "sys/dev/block" / number).symlink_to(self.root / place)
        (self.root / "dev" / name).write_bytes(b"\0" * 8192)

    def disk(self, name: str, partitions: int = 0, size: int = 8192) -> Path:
        major = 252 + 16 * (ord(name[-1]) - ord("a"))
        self.device(name, f"sys/devices/{name}", f"{major}:0")
        os.truncate(self.root / "dev" / name, size)
        for number in range(1, partitions + 1):
            self.partition(name, number)
        return self.root / "dev" / name

    def partition(self, disk: str, number: int) -> None:
        major = 252 + 16 * (ord(disk[-1]) - ord("a"))
        name = f"{disk}p{number}" if disk[-1].isdigit() else f"{disk}{number}"
        self.device(name, f"sys/devices/{disk}/{name}", f"{major}:{number}")
        (self.root / f"sys/devices/{disk}/{name}/partition").write_text(f"{number}\n")

    def mount(self, where: str, number: str) -> None:
        self.mounts.append(f"36 35 {number} / {where} rw - ext4 /dev/root rw")
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")

    # Edges.

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        shown = " ".join(command).replace(f"{self.root}/", "/")
        self.commands.append(shown)
        self.stdin[command[0]] = stdin
        self.react(command, stdin)

    def ask(self, command: Sequence[str], stdin: bytes) -> tuple[int, str]:
        if command[0] == "blkid":
            name = Path(command[-1]).name
            found = self.contents.get(name, {})
            if (self.root / "sys/class/block" / name / "partition").exists():
                # Of a partition blkid knows something even if it is empty.
                entry = {"PART_ENTRY_SCHEME": "gpt", "PART_ENTRY_NUMBER": name[-1:]}
                found = {"DEVNAME": command[-1], **found, **entry}
            text = "".join(f"{key}={value}\n" for key, value in found.items())
            return (0, text) if found else (2, "")
        return self.answers.get(command[0], (0, ""))

    def start(self, unit: str, timeout: float | None) -> int:
        name = unit.removeprefix("proa-script@").removesuffix(".service")
        self.commands.append(f"start {unit}")
        self.timeouts[name] = timeout
        self.scripts[name] = (self.root / "run/proa/scripts" / name).read_text()
        return self.exits.get(name, 0)

    def post(self, url: str, data: bytes) -> None:
        self.posts.append((url, data))
        if self.post_error:
            raise self.post_error

    def machine(self) -> Machine:
        return Machine(
            self.root,
            self.run,
            lambda name: None,
            ask=self.ask,
            start=self.start,
            post=self.post,
            say=self.said.append,
            sleep=self.slept.append,
        )

    # Boots.

    def boot(self, body: str, metadata: Metadata = NO_METADATA) -> Outcome:
        """Apply a document with the memory of the boots before it."""
        self.commands, self.scripts, self.posts, self.said = [], {}, [], []
        planned = plan(f"#cloud-config\n{body}".encode(), metadata)
        assert not planned.refused, planned.problems
        outcome = apply(
            planned.changes,
            self.machine(),
            self.remembered,
            lambda outcome: self.saved.append(dict(outcome.remembered)),
        )
        self.remembered = outcome.remembered
        return outcome

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


def notes(outcome: Outcome) -> dict[str, str]:
    return {result.what: result.note for result in outcome.results}
