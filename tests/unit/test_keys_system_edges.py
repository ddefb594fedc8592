"""Programs, units and addresses as cloud-config meets them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from proa.machine.cloudconfig import machine
from proa.machine.cloudconfig.machine import CommandFailed, ask_program, post_form, start_unit


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the programs are looked up in first."""
    path = machine._ENVIRONMENT["PATH"]
    monkeypatch.setitem(machine._ENVIRONMENT, "PATH", f"{tmp_path}:{path}")
    return tmp_path


def systemctl(folder: Path, start: str, shown: str = "") -> Path:
    """A systemctl that does this for ``start``, says this for ``show``, and notes its calls."""
    path = folder / "systemctl"
    log = folder / "log"
    path.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\ncase "$1" in\n'
        f"start) {start} ;;\nshow) printf '{shown}' ;;\nesac\n"
    )
    path.chmod(0o755)
    return log


UNIT = "proa-script@runcmd.service"


def test_a_unit_is_started_and_waited_for(programs: Path) -> None:
    log = systemctl(programs, "exit 0")
    assert start_unit(UNIT) == 0
    assert log.read_text() == f"start -- {UNIT}\n"


def test_the_exit_status_of_its_program_is_told_and_the_failure_is_taken_away(
    programs: Path,
) -> None:
    log = systemctl(programs, "exit 1", "ExecMainCode=1\\nExecMainStatus=7\\n")
    assert start_unit(UNIT) == 7
    assert log.read_text().splitlines()[-1] == f"reset-failed -- {UNIT}"


def test_a_unit_that_cannot_be_started_is_no_exit_status(programs: Path) -> None:
    systemctl(programs, "exit 1", "ExecMainCode=0\\nExecMainStatus=0\\n")
    with pytest.raises(CommandFailed, match="could not be started"):
        start_unit(UNIT)


def test_a_unit_that_takes_too_long_is_stopped(programs: Path) -> None:
    log = systemctl(programs, "exec sleep 100")
    with pytest.raises(CommandFailed, match="was stopped"):
        start_unit(UNIT, 0.2)
    assert log.read_text().splitlines()[-2:] == [
        f"kill --kill-whom=all -- {UNIT}",
        f"stop -- {UNIT}",
    ]


def test_an_answer_is_standard_output_and_the_exit_status(programs: Path) -> None:
    program = programs / "answer"
    program.write_text("#!/bin/sh\ncat\necho no >&2\nexit 2\n")
    program.chmod(0o755)
    assert ask_program(("answer",), b"yes\n") == (2, "yes\n")
    with pytest.raises(CommandFailed, match="is not on this machine"):
        ask_program(("no-such-program",))


# Addresses.


class Home(http.server.BaseHTTPRequestHandler):
    got: ClassVar[list[tuple[str, str, bytes]]] = []
    status: ClassVar[int] = 200
    authorization: ClassVar[str | None] = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Home.authorization = self.headers["Authorization"]
        Home.got.append((self.path, self.headers["Content-Type"], body))
        self.send_response(Home.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def home() -> Iterator[str]:
    Home.got, Home.status = [], 200
    with http.server.HTTPServer(("127.0.0.1", 0), Home) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_form_reaches_its_address(home: str) -> None:
    post_form(f"http://{home}/i-1/?a=b", b"hostname=web")
    assert Home.got == [("/i-1/?a=b", "application/x-www-form-urlencoded", b"hostname=web")]


def test_a_user_in_the_address_is_told_as_a_browser_would(home: str) -> None:
    post_form(f"http://{home}/", b"")
    assert Home.authorization is None
    post_form(f"http://me:s%40cret@{home}/", b"")
    assert Home.authorization == "Basic bWU6c0BjcmV0"


@pytest.mark.parametrize(
    "url",
    [
        "http://u:s3cret@127.0.0.1:1/s3cret",
        "http://s3cret:port/",
        "http://s3cret.invalid/s3cret",
        "http://[s3cret/",
        "http:///s3cret",
    ],
)
def test_an_address_that_does_not_answer_is_told_without_being_named(url: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        post_form(url, b"")
    assert "s3cret" not in str(failed.value)


def test_an_answer_that_is_none_is_told(home: str) -> None:
    Home.status = 503
    with pytest.raises(CommandFailed, match="the answer was 503"):
        post_form(f"http://{home}/", b"")
