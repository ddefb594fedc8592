"""The ``proa`` command as a whole: help, errors, interruption."""

from __future__ import annotations

import io
import signal
import subprocess
import sys

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


CLEANS_UP = """
import time
from proa.cli import main
main.interruptible()
try:
    print("at work", flush=True)
    time.sleep(30)
finally:
    print("cleaning", flush=True)
    time.sleep(0.5)
    print("clean", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_cleaning_up_is_not_cut_short_by_a_polite_kill(first: signal.Signals) -> None:
    """Ctrl-C comes to `proa up` and to its `proa build`, which then gets the parent's kill too."""
    with subprocess.Popen(
        [sys.executable, "-c", CLEANS_UP],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Whoever runs these tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "clean\n"


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
