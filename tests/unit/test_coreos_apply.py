"""The files of CoreOS's other sections, and scripts, reach the machine once and whole."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.changes import (
    Change,
    CommandUnit,
    SetEnvironment,
    StartScript,
    WriteFile,
)
from proa.machine.cloudconfig.machine import Machine


class Fake:
    """A machine that is a directory, with a note of the programs that were run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        self.remembered: dict[str, str] = {}
        (root / "etc").mkdir()

    def boot(self, *changes: Change) -> Outcome:
        self.commands = []
        outcome = apply(changes, Machine(self.root, self._run, lambda _: None), self.remembered)
        self.remembered = outcome.remembered
        return outcome

    def _run(self, command: Sequence[str], stdin: bytes) -> None:
        self.commands.append(" ".join(command))

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def status(outcome: Outcome) -> str:
    (result,) = outcome.results
    return result.status


ADDRESSES = SetEnvironment((("COREOS_PRIVATE_IPV4", "10.0.0.1"), ("COREOS_PUBLIC_IPV4", "1.2.3.4")))


def test_addresses_are_merged_into_the_environment_and_the_rest_stays(fake: Fake) -> None:
    path = fake.root / "etc/environment"
    path.write_bytes(b"A=b\r\nCOREOS_PUBLIC_IPV4=9.9.9.9\r\nPATH=/bin\n")
    assert status(fake.boot(ADDRESSES)) == "done"
    assert path.read_bytes() == (
        b"A=b\r\nCOREOS_PUBLIC_IPV4=1.2.3.4\nPATH=/bin\nCOREOS_PRIVATE_IPV4=10.0.0.1\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_an_environment_that_is_right_already_is_not_touched(fake: Fake) -> None:
    fake.boot(ADDRESSES)
    before = (fake.root / "etc/environment").stat().st_ino
    assert status(fake.boot(ADDRESSES)) == "unchanged"
    assert (fake.root / "etc/environment").stat().st_ino == before


def test_a_new_address_is_written_and_an_owners_own_stays(fake: Fake) -> None:
    fake.boot(ADDRESSES)
    (fake.root / "etc/environment").write_text("COREOS_PRIVATE_IPV4=10.9.9.9\n")
    assert status(fake.boot(ADDRESSES)) == "kept"
    assert status(fake.boot(SetEnvironment((("COREOS_PRIVATE_IPV4", "10.0.0.2"),)))) == "done"
    assert fake.text("etc/environment") == "COREOS_PRIVATE_IPV4=10.0.0.2\n"


SCRIPT = StartScript(b"#!/bin/sh\necho hello\n")


def test_a_script_is_kept_and_started_as_a_unit_that_nobody_waits_for(fake: Fake) -> None:
    assert status(fake.boot(SCRIPT)) == "done"
    path = fake.root / SCRIPT.path.lstrip("/")
    assert SCRIPT.path.startswith("/var/lib/coreos-cloudinit/scripts/")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (SCRIPT.content, 0o744)
    (command,) = fake.commands
    assert command.startswith("systemd-run --quiet --no-block")
    assert f"--unit={SCRIPT.unit} " in command
    assert command.endswith(f" -- {path}")
    assert SCRIPT.unit.startswith("coreos-cloudinit-")
    assert fake.text("var/lib/coreos-cloudinit/scripts/unit-name") == SCRIPT.unit


def test_a_script_runs_on_every_boot_or_once_and_its_files_do_not_pile_up(fake: Fake) -> None:
    fake.boot(SCRIPT)
    fake.boot(SCRIPT)
    assert len(fake.commands) == 1
    assert len(list((fake.root / "var/lib/coreos-cloudinit/scripts").iterdir())) == 2
    once = StartScript(b"#!/bin/sh\nonce\n", once=True)
    fake.boot(once)
    assert status(fake.boot(once)) == "unchanged"
    assert fake.commands == []


def test_the_content_of_a_script_is_not_shown(fake: Fake) -> None:
    outcome = fake.boot(StartScript(b"#!/bin/sh\npassword=hunter2\n"))
    assert "hunter2" not in repr((SCRIPT, outcome, fake.commands))


def test_a_command_for_a_unit_that_may_be_missing_is_skipped_if_it_is(fake: Fake) -> None:
    command = CommandUnit("locksmithd.service", "restart", if_there=True)
    assert status(fake.boot(command)) == "skipped"
    assert fake.commands == []
    unit = WriteFile("/usr/lib/systemd/system/locksmithd.service", b"[Service]\n")
    fake.boot(unit, command)
    assert fake.commands == ["systemctl --no-block restart -- locksmithd.service"]
