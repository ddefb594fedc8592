"""Joining a terminal to a machine's serial console."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from proa.lab.qmp import unix_socket

# Ctrl-], as telnet and machinectl have it.
_LEAVE = b"\x1d"


def join(path: Path, keyboard: int, screen: int) -> None:
    """Carry bytes both ways between the console socket ``path`` and two file descriptors.

    Returns when Ctrl-] is typed, the input ends, or the machine does.
    """
    with unix_socket(path) as console, _raw(keyboard):
        while True:
            ready, _, _ = select.select([keyboard, console.fileno()], [], [])
            if keyboard in ready:
                typed = os.read(keyboard, 4096)
                before, leave, _ = typed.partition(_LEAVE)
                console.sendall(before)
                if leave or not typed:
                    return
            if console.fileno() in ready:
                said = console.recv(65536)
                if not said:
                    return
                os.write(screen, said)


@contextlib.contextmanager
def _raw(keyboard: int) -> Iterator[None]:
    """Pass every key on as it is typed, and put the terminal back afterwards."""
    if not os.isatty(keyboard):
        yield
        return
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
