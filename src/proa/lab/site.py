"""A site: keys, releases, repository and update server of one owner, all under one directory.

What happens here happens through the ``proa`` command itself, in a process of its own, just as
the owner would do it by hand. So ``up`` and ``tour`` prove the commands that they show.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proa.lab import process
from proa.lab.machine import free_port
from proa.lab.process import Process
from proa.wire.errors import UserError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """Where an owner's things are: ``home`` as PROA_HOME, ``cache`` as PROA_CACHE."""

    home: Path
    cache: Path

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def root(self) -> Path:
        """The trust anchor that is built into images."""
        return self.keys / "root.json"

    @property
    def repository(self) -> Path:
        return self.home / "repository"

    @property
    def machines(self) -> Path:
        return self.home / "machines"

    @property
    def ssh_key(self) -> Path:
        return self.home / "ssh" / "id_ed25519"

    def release(self, version: str) -> Path:
        return self.home / "releases" / version

    # --- commands ---

    def proa(self, *arguments: str | Path, report: Report | None = None) -> str:
        """Run ``proa ARGUMENTS`` on this site and return its stdout.

        Its progress lines go to ``report``. Raises :class:`UserError` with its own message if it
        fails. If this process is interrupted, the command is ended first, and may clean up.
        """
        command = self._command(*arguments)
        said: list[str] = []
        # stdout goes to a file: no pipe can then be full while the other one is read.
        with tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            )
            with process.ended_on_error(child):
                for line in child.stderr or ():
                    said.append(line.rstrip())
                    if report is not None and line.startswith(("▸", "✓")):
                        report(line.strip("▸✓… \n"))
                status = child.wait()
            output.seek(0)
            answer = output.read()
        if status:
            shown = " ".join(str(argument) for argument in arguments)
            told = "\n".join("  " + line for line in said[-15:])
            raise UserError(f"`proa {shown}` failed with exit status {status}:\n{told}")
        return answer

    def serve(self, *, port: int, log: Path, dies_with_us: bool) -> Process:
        """Start the update server on ``port`` of the loopback interface; return when it answers."""
        started = process.start(
            self._command(
                *("serve", "--listen", f"127.0.0.1:{port}"),
                *("--repo", self.repository, "--online-keys", self.keys / "online"),
            ),
            directory=self.home,
            log=log,
            dies_with_us=dies_with_us,
            environment=self._environment(),
        )
        with process.stopped_on_error(started):
            end = time.monotonic() + 30
            while not _is_healthy(port):
                if not process.is_running(started) or time.monotonic() > end:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                    raise UserError(f"the update server did not start on port {port}:\n{tail}")
                time.sleep(0.1)
        return started

    def _command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "proa.cli", *(str(argument) for argument in arguments)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PROA_HOME": str(self.home), "PROA_CACHE": str(self.cache)}


def server_port(wanted: int | None = None) -> int:
    """A port for an update server: the one wanted, if it is free."""
    if wanted is not None and not _in_use(wanted):
        return wanted
    return free_port()


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
