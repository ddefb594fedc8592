"""Templates of cloud-init: ``## template: jinja``, filled in with what the cloud says.

The variables are those of cloud-init's "Instance-data": ``v1.instance_id``, ``v1.local_hostname``,
``v1.region`` and so on, each without ``v1.`` too, and the cloud's own tree under ``ds.meta_data``.
A name that is not there becomes ``CI_MISSING_JINJA_VAR/name`` in the text, with a warning.

A template is a program: it may loop without end or fill the memory. So it runs in a child process
that has little of both, in Jinja's sandbox, and only its text comes back, through a pipe and
bounded. The child is the one that loads Jinja: the 7 MB are gone with it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Never

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import MAX_BYTES, Problem, Refused, printable

MISSING = "CI_MISSING_JINJA_VAR/"

ROOM = 128 << 20
"""Address space that the child may take beyond what the run has, in bytes."""
MAX_CPU_SECONDS = 10
"""Most of it is for loading Jinja on a slow machine: 0.05 s on a fast one."""
MAX_SECONDS = 30
MAX_NAMES = 20
"""How many missing names are told."""
_NO_MEMORY = 2
"""Exit status of the child."""


def instance_data(metadata: Metadata, version: str = "") -> dict[str, Any]:
    """The variables of a template, by cloud-init's names ("Instance-data", v1 keys).

    ``version`` is the release that runs. What the cloud does not say is ``None``, as there.
    """
    system = os.uname()
    v1: dict[str, Any] = {
        "availability_zone": metadata.zone or None,
        "cloud_id": metadata.cloud or None,
        "cloud_name": metadata.cloud or None,
        "distro": "proa",
        "distro_release": "",
        "distro_version": version,
        "instance_id": metadata.instance_id,
        "kernel_release": system.release,
        "local_hostname": metadata.hostname,
        "machine": system.machine,
        "platform": metadata.cloud or None,
        "public_ssh_keys": list(metadata.ssh_keys),
        "region": metadata.region or None,
        "subplatform": None,
        "system_platform": "linux",
        "variant": "proa",
    }
    dashed = {
        name.replace("_", "-"): v1[name]
        for name in ("availability_zone", "cloud_name", "instance_id", "local_hostname")
    }
    raw = _aliased(metadata.raw)
    return {**v1, "v1": {**v1, **dashed}, "ds": {"meta_data": raw, "meta-data": raw}}


def _aliased(node: Any, depth: int = 0) -> Any:
    """A tree as JSON has it, with ``a_b`` for every ``a-b`` and ``a.b``, for ``{{ x.a_b }}``."""
    if depth > 32:
        return None
    if isinstance(node, Mapping):
        tree: dict[str, Any] = {}
        for key, value in node.items():
            tree[str(key)] = _aliased(value, depth + 1)
        for key in list(tree):
            tree.setdefault(key.replace("-", "_").replace(".", "_"), tree[key])
        return tree
    if isinstance(node, list | tuple):
        return [_aliased(item, depth + 1) for item in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)


def render(source: str, variables: Mapping[str, Any]) -> tuple[str, tuple[Problem, ...]]:
    """The text of a template, and a warning for each name that has no value.

    :class:`Refused`, with the line where there is one, if it is no template, fails, or takes too
    much time, memory or room. In ``source`` the line ``## template: jinja`` is empty.
    """
    answer = _in_child(source, variables)
    if "error" in answer:
        raise Refused(f"template: {answer['error']}", answer.get("line", 0))
    problems = tuple(
        Problem(
            "warning",
            f'template: "{printable(name)}" is not known on this machine',
            source.count("\n", 0, max(source.find(name), 0)) + 1,
        )
        for name in answer["missing"]
    )
    return answer["text"], problems


# The child.


def _in_child(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`_render` says, worked out in a process of little memory and time."""
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return {"error": "no process could be started for it"}
    if child == 0:
        status = 1
        try:
            _limit()
            with os.fdopen(writing, "w", encoding="ascii") as pipe:
                json.dump(_render(source, variables), pipe)
            status = 0
        except MemoryError:
            status = _NO_MEMORY
        finally:
            os._exit(status)  # nothing of the parent's is to be finished here
    os.close(writing)
    in_time = False
    try:
        data, in_time = _read(reading, time.monotonic() + MAX_SECONDS)
    finally:
        os.close(reading)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not in_time or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"error": "it takes too long"}
    if status == 0:
        answer: dict[str, Any] = json.loads(data)
        return answer
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _NO_MEMORY:
        return {"error": "it takes too much memory"}
    return {"error": "its process did not come to an end"}


def _read(reading: int, deadline: float) -> tuple[bytes, bool]:
    """All that comes before the end or the deadline (monotonic, in seconds), and whether that was
    all."""
    data = bytearray()
    while True:  # the child is bounded: what it writes is what :func:`_render` lets through
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return b"", False
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            return bytes(data), True
        data += chunk


def _limit() -> None:
    for name in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _render(source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """``{"text", "missing"}`` or ``{"error", "line"}``. No message holds a value."""
    try:
        import jinja2
        from jinja2.exceptions import SecurityError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return {"error": "Jinja is not on this machine"}

    missing: list[str] = []

    class Missing(jinja2.DebugUndefined):
        """A name without a value, which cloud-init shows in the text instead of failing."""

        __slots__ = ()

        def __str__(self) -> str:
            name = str(self._undefined_name)
            if name not in missing and len(missing) < MAX_NAMES:
                missing.append(name)
            return MISSING + name

        def __sub__(self, other: object) -> Never:
            other = str(other).removeprefix(MISSING)
            raise TypeError(f'"-" takes one away from another; for a name write "_{other}"')

    environment = ImmutableSandboxedEnvironment(
        undefined=Missing,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        extensions=["jinja2.ext.do"],
    )
    try:
        pieces: list[str] = []
        room = MAX_BYTES
        for piece in environment.from_string(source).generate(variables):
            room -= len(piece)
            if room < 0:
                return {"error": f"it makes more than {MAX_BYTES // 1024} KiB"}
            pieces.append(piece)
        return {"text": "".join(pieces), "missing": missing}
    except jinja2.TemplateSyntaxError as error:
        return {"error": printable(error.message or "not understood", 200), "line": error.lineno}
    except SecurityError as error:
        return {"error": "it does what a template may not", "line": _line(error.__traceback__)}
    except jinja2.UndefinedError as error:
        message = printable(error.message or "a name is not known", 200)
        return {"error": message, "line": _line(error.__traceback__)}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except TypeError as error:
        return {"error": printable(str(error), 200), "line": _line(error.__traceback__)}
    except Exception as error:  # whatever a filter may raise on what it is given
        return {"error": type(error).__name__, "line": _line(error.__traceback__)}


def _line(trace: TracebackType | None) -> int:
    """The line of the template where an exception came from; Jinja puts it into the traceback."""
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
