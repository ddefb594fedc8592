"""Looking needs no sudo typed: proactl asks it, for those who may use it, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from proa.machine import proactl, status
from proa.machine.system import Completed, System


def refused(_: System) -> status.Status:
    raise PermissionError(13, "Permission denied", "/dev/vda")


@pytest.fixture(autouse=True)
def _as_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(status, "gather", refused)


def machine(code: int, asked: list[Sequence[str]]) -> System:
    def run(command: Sequence[str], _: float) -> Completed:
        asked.append(command)
        return Completed(code, '{"version": "1.0.0"}\n')

    return System(run=run)


def test_status_asks_sudo_for_whoever_may(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Sequence[str]] = []
    assert proactl.main(["status", "--json"], machine(0, asked)) == 0
    assert asked == [["sudo", "--non-interactive", "/usr/bin/proactl", "status", "--json"]]
    assert capsys.readouterr().out == '{"version": "1.0.0"}\n'


def test_who_may_not_is_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert proactl.main(["slots"], machine(1, [])) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "/dev/vda: not allowed" in said.err and "run it with sudo" in said.err


def test_what_changes_something_never_asks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from proa.machine import rollback

    asked: list[Sequence[str]] = []
    monkeypatch.setattr(rollback, "rollback", lambda *_, **__: refused(System()))
    assert proactl.main(["rollback"], machine(0, asked)) == 1
    assert asked == []
