"""The QMP client, against a server that answers as QEMU's specification has it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proa.lab import qmp

Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


@contextmanager
def _server(path: Path, answer: Answer) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                stream.write('{"QMP": {"version": {}, "capabilities": []}}\n')
                stream.flush()
                for line in stream:
                    for message in answer(json.loads(line)):
                        stream.write(json.dumps(message) + "\n")
                    stream.flush()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_events_before_the_answer_are_read_past(tmp_path: Path) -> None:
    path = tmp_path / "qmp"

    def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
        if request["execute"] == "qmp_capabilities":
            return [{"return": {}}]
        return [{"event": "RESET"}, {"return": {"status": "running"}}]

    with _server(path, answer):
        assert qmp.execute(path, "query-status") == {"status": "running"}


def test_a_refusal_names_the_command_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "qmp"

    def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
        if request["execute"] == "qmp_capabilities":
            return [{"return": {}}]
        return [{"error": {"class": "GenericError", "desc": "no such device"}}]

    with _server(path, answer), pytest.raises(qmp.QmpError, match=r"eject.*no such device"):
        qmp.execute(path, "eject")


def test_a_socket_with_a_path_longer_than_the_kernel_allows_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    short = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short))
        short.rename(deep / "s")
        listener.listen()
        with qmp.unix_socket(deep / "s") as client:
            client.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
