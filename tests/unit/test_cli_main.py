"""The ``proa`` command as a whole: help, errors, interruption."""

from __future__ import annotations

import io

import pytest

from proa.cli import main as cli
from proa.cli import progress


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n    {name} " in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "example" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sail"])
    assert ended.value.code == 2


def test_a_user_error_is_shown_with_its_hint_and_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROA_HOME", str(tmp_path))
    assert cli.main(["status"]) == 1
    shown = capsys.readouterr().err
    assert "there is no machine 'proa'" in shown
    assert "./proa up" in shown
    assert "Traceback" not in shown


def test_a_step_says_that_it_starts_and_that_it_is_done() -> None:
    out = io.StringIO()
    with progress.step("Sailing", out) as shown:
        shown.text = "Sailed to Guam"
    first, last = out.getvalue().splitlines()
    assert first == "▸ Sailing …"
    assert last.startswith("✓ Sailed to Guam  (")


def test_a_step_that_fails_says_so() -> None:
    out = io.StringIO()
    with pytest.raises(OSError), progress.step("Sailing", out):
        raise OSError("reef")
    assert out.getvalue().splitlines()[-1].startswith("✗ Sailing")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (125.2, "2 min 05 s")],
)
def test_a_duration_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
