"""Commands on a machine, through the host's own ssh.

All commands of one :class:`Shell` share one connection: under emulation a new one costs seconds
of key exchange and session start on the machine. The connection is opened when it is first
needed, and again when the machine has rebooted under it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path

USER = "core"
_MASTER = "ssh.sock"


class ShellError(Exception):
    """A command failed, or the machine could not be reached (then ``status`` is 255 or None)."""

    def __init__(self, command: str, status: int | None, output: str) -> None:
        how = "no answer in time" if status is None else f"exit status {status}"
        super().__init__(f"{command!r} on the machine: {how}\n{output.strip()}".strip())
        self.command = command
        self.status = status
        self.output = output

    @property
    def is_connection(self) -> bool:
        """True if it was the way to the machine that failed and not the command."""
        return self.status in (255, None)


def make_key(path: Path) -> str:
    """Make an ed25519 key pair at ``path`` unless it is there; return the public key's line."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "proa-lab", "-f", str(path)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    return path.with_name(path.name + ".pub").read_text().strip()


def options(directory: Path, key: Path) -> list[str]:
    """ssh's options for a machine of the lab: the owner's own ssh configuration plays no part."""
    return [
        *("-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes"),
        # The machine's key is made at its first boot: trust it then, and hold it to that after.
        *("-o", "StrictHostKeyChecking=accept-new"),
        *("-o", f"UserKnownHostsFile={directory / 'known_hosts'}"),
        *("-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"),
        *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6"),
    ]


class Shell:
    """Runs commands as ``core`` on the machine whose ssh is forwarded to ``port``."""

    def __init__(self, directory: Path, key: Path, port: int) -> None:
        self._directory = directory
        self._options = options(directory, key)
        self._port = port
        self._master: subprocess.Popen[bytes] | None = None

    def run(
        self,
        command: str,
        *,
        timeout: float = 120.0,
        stdin: bytes | None = None,
        check: bool = True,
    ) -> str:
        """Run ``command`` (for sh) and return what it wrote to stdout and stderr, stripped.

        Raises :class:`ShellError` if the machine cannot be reached within ``timeout`` seconds or,
        with ``check``, if the command fails.
        """
        end = time.monotonic() + timeout
        self._open(command, end)
        try:
            result = subprocess.run(
                [*self._ssh("-o", "BatchMode=yes"), "--", command],
                cwd=self._directory,
                input=stdin if stdin is not None else b"",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, end - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            self.close()
            said = (error.stdout or b"").decode(errors="replace")
            raise ShellError(command, None, said) from None
        output = result.stdout.decode(errors="replace").strip()
        if result.returncode == 255:
            self.close()
        if result.returncode and (check or result.returncode == 255):
            raise ShellError(command, result.returncode, output)
        return output

    def answers(self) -> bool:
        """Say whether an ssh server answers, at the cost of a few packets."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def close(self) -> None:
        """Drop the shared connection."""
        if self._master is not None:
            self._master.kill()
            self._master.wait()
            self._master = None
        (self._directory / _MASTER).unlink(missing_ok=True)

    def _ssh(self, *extra: str) -> list[str]:
        return [
            *("ssh", *self._options, "-S", _MASTER, *extra),
            *("-p", str(self._port), f"{USER}@127.0.0.1"),
        ]

    def _open(self, command: str, end: float) -> None:
        if self._master is not None and self._master.poll() is None:
            return
        self.close()
        if not self.answers():
            raise ShellError(command, 255, "no ssh server answers")
        self._master = subprocess.Popen(
            self._ssh("-o", "BatchMode=yes", "-M", "-N"),
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # ssh makes the socket once it has been let in.
        while not (self._directory / _MASTER).exists():
            if time.monotonic() > end or self._master.poll() is not None:
                status = self._master.poll()
                self.close()
                raise ShellError(command, None if status is None else 255, "ssh was not let in")
            time.sleep(0.05)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(OSError):
            self.close()
