"""A machine that is a directory, for what cloud-config does to one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.changes import Change, Stage, stage
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.machine import CommandFailed, FetchFailed, Machine
from proa.machine.cloudconfig.metadata import NO_METADATA, Metadata
from proa.machine.cloudconfig.plan import plan, understand

STAGES: tuple[Stage, ...] = ("local", "network", "final")


def said(body: str) -> Config:
    """What a document without any problem says."""
    config, problems = understand(f"#cloud-config\n{body}".encode())
    assert [str(problem) for problem in problems] == []
    return config


def problems_of(body: str) -> list[str]:
    """What is wrong with a document, or worth a word."""
    return [str(problem) for problem in understand(f"#cloud-config\n{body}".encode())[1]]


class Fake:
    """Programs are noted, and those that make users, groups and passwords pretend."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        self.stdin: list[bytes] = []
        self.broken: set[str] = set()
        self.kernel_hostname = "localhost"
        self.remembered: dict[str, str] = {}
        self.network: dict[str, bytes] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.console = ""
        (root / "etc/skel").mkdir(parents=True)
        (root / "etc/skel/.profile").write_text("# skeleton\n")
        ids = f"{os.geteuid()}:{os.getegid()}"
        (root / "etc/passwd").write_text(f"core:x:{ids}::/home/core:/bin/bash\n")
        (root / "etc/group").write_text("sudo:x:27:\ndocker:x:101:core\n")
        (root / "etc/shadow").write_text("core:*:1::::::\n")

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        self.commands.append(" ".join(command))
        self.stdin.append(stdin)
        if command[0] in self.broken:
            raise CommandFailed(f"{command[0]}: it is broken (1)")
        if command[0] == "useradd":
            ids = f"{os.geteuid()}:{os.getegid()}"
            self._add("passwd", f"{command[-1]}:x:{ids}::/home/{command[-1]}:/bin/sh\n")
            self._add("shadow", f"{command[-1]}:*:1::::::\n")
        if command[0] == "groupadd":
            self._add("group", f"{command[-1]}:x:900:\n")
        if command[0] == "chpasswd":
            name, _, secret = stdin.decode().strip().partition(":")
            self._add("shadow", f"{name}:{secret if '-e' in command[1] else '$y$'}:1::::::\n")
        if command[:3] == ("usermod", "--append", "--groups"):
            lines = self.text("etc/group").splitlines()
            for name in command[3].split(","):
                lines = [
                    f"{line}{'' if line.endswith(':') else ','}{command[-1]}"
                    if line.startswith(f"{name}:")
                    else line
                    for line in lines
                ]
            (self.root / "etc/group").write_text("".join(f"{line}\n" for line in lines))
        if command[0] == "ssh-keygen":
            place = self.root / command[-1].lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("new private key\n")
            place.with_name(f"{place.name}.pub").write_text("ssh-ed25519 AAAAnew\n")

    def _add(self, database: str, line: str) -> None:
        with (self.root / "etc" / database).open("a") as file:
            file.write(line)

    def set_hostname(self, name: str) -> None:
        self.kernel_hostname = name

    def fetch(self, url: str, headers: Mapping[str, str]) -> bytes:
        self.asked.append((url, dict(headers)))
        if url not in self.network:
            raise FetchFailed("there: HTTP 404")
        return self.network[url]

    def download(
        self, url: str, headers: Mapping[str, str], store: Callable[[Iterable[bytes]], None]
    ) -> None:
        content = self.fetch(url, headers)
        store(content[at : at + 7] for at in range(0, len(content), 7))

    def tell(self, text: str) -> None:
        if "console" in self.broken:
            raise OSError(5, "no console")
        self.console += text

    def boot(self, body: str, metadata: Metadata = NO_METADATA) -> Outcome:
        """Apply a cloud-config as a boot does."""
        return self.boot_with(f"#cloud-config\n{body}".encode(), metadata)

    def boot_with(self, document: bytes, metadata: Metadata = NO_METADATA) -> Outcome:
        """Apply a document as a boot does, stage by stage, with the memory of the boots before."""
        self.commands, self.stdin, self.asked = [], [], []
        planned = plan(document, metadata, self.remembered)
        whole = Outcome()
        for now in STAGES:
            whole.results += self._make(planned.changes, (now,)).results
        whole.remembered = self.remembered
        return whole

    def do(self, changes: Iterable[Change], *stages: Stage) -> list[str]:
        """Make those of the changes that are for these stages; the programs that it ran."""
        self.commands = []
        self._make(changes, stages)
        return self.commands

    def _make(self, changes: Iterable[Change], stages: Sequence[Stage]) -> Outcome:
        machine = Machine(
            self.root, self.run, self.set_hostname, self.fetch, self.tell, download=self.download
        )
        now = [change for change in changes if stage(change) in stages]
        outcome = apply(now, machine, self.remembered)
        self.remembered = outcome.remembered
        return outcome

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def authorized(self, user: str = "core") -> str:
        return self.text(f"home/{user}/.ssh/authorized_keys")


def statuses(outcome: Outcome) -> dict[str, str]:
    return {result.what: result.status for result in outcome.results}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)
