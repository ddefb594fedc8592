"""Run a program to its end: the part of ``subprocess`` that a boot needs.

``subprocess`` has pipes, and brings threads, selectors and locales for them: 3 ms and 0.6 MB of a
boot. Here input and output are files in memory (memfd_create(2)). None is ever full, and a program
that leaves another one behind, with its output still open, is not waited for longer than itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator, Mapping, Sequence

from proa.machine.hints import Literal

Output = Literal["all", "stdout", "nothing"]


class TookTooLong(Exception):
    """The program did not end in time, and was killed."""


def run(
    command: Sequence[str],
    stdin: bytes = b"",
    *,
    output: Output,
    environment: Mapping[str, str],
    timeout: float | None,
) -> tuple[int, bytes]:
    """The exit status (a signal's number below zero) and the output, with the errors if "all".

    ``timeout`` is in seconds. The program is looked for in the ``PATH`` of its own environment.
    Raises ``FileNotFoundError`` if it is not there, another ``OSError`` if it cannot be run, and
    :class:`TookTooLong`.
    """
    with _in_memory("stdin") as given, _in_memory("stdout") as said:
        rest = memoryview(stdin)
        while rest:
            rest = rest[os.write(given, rest) :]
        os.lseek(given, 0, os.SEEK_SET)
        to = {"all": (said, said), "stdout": (said, None), "nothing": (None, None)}[output]
        pid = _start(command, environment, (given, *to))
        status = _end(pid, timeout)
        size = os.lseek(said, 0, os.SEEK_END)
        return status, os.pread(said, size, 0)


@contextlib.contextmanager
def _in_memory(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _start(
    command: Sequence[str], environment: Mapping[str, str], streams: Sequence[int | None]
) -> int:
    """``streams`` are descriptors for 0, 1 and 2; ``None`` is /dev/null."""
    actions = [
        (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0)
        if stream is None
        else (os.POSIX_SPAWN_DUP2, stream, number)
        for number, stream in enumerate(streams)
    ]
    failure: OSError = FileNotFoundError(command[0])
    for path in _paths(command[0], environment):
        try:
            return os.posix_spawn(
                path,
                list(command),
                environment,
                file_actions=actions,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:  # another folder may have one that can be run: exec(3)
            failure = error
    raise failure


def _paths(program: str, environment: Mapping[str, str]) -> list[str]:
    if "/" in program:
        return [program]
    return [f"{folder}/{program}" for folder in environment["PATH"].split(":") if folder]


def _end(pid: int, timeout: float | None) -> int:
    ended = False
    try:
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            ended = bool(poll.poll(None if timeout is None else timeout * 1000))
        finally:
            os.close(descriptor)
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if not ended:
        raise TookTooLong
    return os.waitstatus_to_exitcode(status)
