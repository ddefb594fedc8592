"""``proa``: what neither CoreOS nor cloud-init has. The guide to it is docs/proa-section.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from proa.machine.cloudconfig.keys.options import MAX_VALUE, Option, Variables, read_options
from proa.machine.cloudconfig.keys.services import DURATION, WINDOW_START
from proa.machine.cloudconfig.parse import Node, Table, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.hints import TypeVar
from proa.machine.record import dataclass, field

CHECK_SECONDS = 60
"""The longest that a check may take: the health check ends it after this time."""


@dataclass(frozen=True)
class HealthCheck:
    """``command``: words that are run as they are, or one text for /bin/sh. Seconds."""

    name: str
    command: tuple[str, ...] | str = field(repr=False)
    timeout: int = 10

    @property
    def script(self) -> str:
        import shlex  # few documents have commands here

        words = (self.command,) if isinstance(self.command, str) else self.command
        command = shlex.join(words)
        if isinstance(self.command, str):
            command = f"/bin/sh -c {command}"
        return (
            "#!/bin/sh\n"
            "# Made at boot from the cloud-config of this machine: proa.health_checks.\n"
            f"exec timeout {self.timeout} {command}\n"
        )


@dataclass(frozen=True)
class Container:
    name: str
    image: str
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    env: Variables = field(default=(), repr=False)
    command: tuple[str, ...] = field(default=(), repr=False)
    options: tuple[str, ...] = ()
    restart: str = "always"
    pull: str = "always"

    @property
    def unit(self) -> str:
        return f"container-{self.name}.service"


@dataclass(frozen=True)
class Proa:
    health_checks: tuple[HealthCheck, ...] = ()
    containers: tuple[Container, ...] = ()
    update: Variables = ()
    """Settings of update.conf."""
    reboot_window: Variables = ()


_SECONDS = Option(
    "number",
    (
        "[0-9]{1,4}|[1-7][0-9]{4}|8[0-5][0-9]{3}|86[0-3][0-9]{2}|86400",
        "a number of seconds up to 86400",
    ),
)
UPDATE: Mapping[str, Option] = {
    "payload": Option(words=("auto|full|image", "one of auto, full, image")),
    "download_rate": Option(
        words=("[0-9]{1,12}[KMG]?", "a number of bytes per second such as 500K or 2M")
    ),
    "health_timeout": _SECONDS,
    "reboot_delay": _SECONDS,
    "machine_alias": Option(
        words=("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits and ._-")
    ),
}
WINDOW: Mapping[str, Option] = {
    "start": Option(words=(WINDOW_START, 'a time like "Thu 04:00" or "4:00"')),
    "length": Option(words=(DURATION.pattern, 'a length of time like "1h30m"')),
}


def read_proa(r: Reader, node: Node | None) -> Proa:
    known = ("health_checks", "containers", "update", "reboot_window")
    entries = r.table(node, "proa", known)
    update = read_options(r, entries.get("update"), "proa.update", UPDATE)
    return Proa(
        health_checks=_named_once(r, entries.get("health_checks"), "proa.health_checks", _check),
        containers=_named_once(r, entries.get("containers"), "proa.containers", _container),
        update=tuple((name.upper(), value) for name, value in update.items()),
        reboot_window=_window(r, entries.get("reboot_window")),
    )


Named = TypeVar("Named", HealthCheck, Container)


def _named_once(
    r: Reader, node: Node | None, key: str, one: Callable[[Reader, Node, str], Named | None]
) -> tuple[Named, ...]:
    items = r.each(node, key, one)
    names = [item.name for item in items]
    if node is not None and len(set(names)) < len(names):
        r.error(node, key, f"{key} has two items of the same name")
    return items


def _window(r: Reader, node: Node | None) -> Variables:
    values = read_options(r, node, "proa.reboot_window", WINDOW)
    if node is None or not values:
        return ()
    if len(values) < len(WINDOW):
        r.error(node, "proa.reboot_window", "proa.reboot_window wants a start and a length")
    r.warn(
        node,
        "proa.reboot_window",
        "proa.reboot_window is written to update.conf, and this version does not wait for it yet",
    )
    return tuple((f"REBOOT_WINDOW_{name.upper()}", value) for name, value in values.items())


# Health checks.

_CHECK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)


def _check(r: Reader, node: Node, key: str) -> HealthCheck | None:
    entries = r.table(node, key, ("name", "command", "timeout"))
    name = _name(r, node, entries, key, _CHECK_NAME)
    command = _command(r, entries.get("command"), f"{key}.command")
    timeout = r.text(entries.get("timeout"), f"{key}.timeout") or "10"
    if not re.fullmatch("[1-9]|[1-5][0-9]|60", timeout, re.ASCII):
        message = f"{key}.timeout is not a number of seconds from 1 to {CHECK_SECONDS}"
        r.error(entries["timeout"], f"{key}.timeout", message)
        timeout = "10"
    if not command:
        r.error(node, key, f"{key} has no command")
    return HealthCheck(name, command, int(timeout)) if name and command else None


def _name(
    r: Reader, node: Node, entries: Mapping[str, Node], key: str, pattern: re.Pattern[str]
) -> str:
    name = r.text(entries.get("name"), f"{key}.name")
    if not name:
        r.error(node, key, f"{key} has no name")
        return ""
    if not pattern.fullmatch(name):
        message = f'{key}.name "{printable(name)}" is not a name of letters, digits and _.-'
        r.error(entries["name"], f"{key}.name", message)
        return ""
    return name


def _command(r: Reader, node: Node | None, key: str) -> tuple[str, ...] | str:
    if isinstance(node, Text):
        text = r.text(node, key) or ""
        if "\0" in text or len(text) > 16 * MAX_VALUE:
            r.error(node, key, f"{key} is not a command")
        return text
    # Unlike elsewhere, an empty word means something.
    return tuple(r.text(n, f"{key}[{i}]") or "" for i, n in enumerate(r.items(node, key)))


# Containers.

_CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,62}", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", re.ASCII)
_NUMBERS = r"[0-9]{1,5}(-[0-9]{1,5})?"
_PORT = re.compile(
    rf"((\[[0-9A-Fa-f:.]{{2,45}}\]|[0-9.]{{7,15}}):({_NUMBERS})?:|{_NUMBERS}:)?{_NUMBERS}"
    r"(/(tcp|udp|sctp))?",
    re.ASCII,
)
_VOLUME = re.compile(r"(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]{1,200}):/[^:]*(:[A-Za-z,]{1,40})?")
_OPTION = re.compile(r"--[a-z][a-z0-9-]{1,40}(=.*)?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
RESTARTS, PULLS = ("always", "on-failure", "no"), ("always", "missing", "never")


def _container(r: Reader, node: Node, key: str) -> Container | None:
    known = tuple(Container.__match_args__)
    entries = r.table(node, key, known)
    name = _name(r, node, entries, key, _CONTAINER_NAME)
    image = r.text(entries.get("image"), f"{key}.image") or ""
    if not image:
        r.error(node, key, f"{key} has no image")
    elif not _IMAGE.fullmatch(image):
        message = f'{key}.image "{printable(image)}" is not the name of an image'
        r.error(entries["image"], f"{key}.image", message)
    container = Container(
        name=name,
        image=image,
        ports=_words(r, entries, key, "ports", _PORT, 'like "80:8080" or "127.0.0.1:53:53/udp"'),
        volumes=_words(r, entries, key, "volumes", _VOLUME, 'like "/srv/web:/data:ro"'),
        env=_env(r, entries.get("env"), f"{key}.env"),
        command=_words_of_command(r, entries.get("command"), f"{key}.command"),
        options=_words(r, entries, key, "options", _OPTION, 'like "--network=host"'),
        restart=_one_of(r, entries, key, "restart", RESTARTS),
        pull=_one_of(r, entries, key, "pull", PULLS),
    )
    return container if name and image else None


def _words(
    r: Reader,
    entries: Mapping[str, Node],
    key: str,
    name: str,
    pattern: re.Pattern[str],
    wanted: str,
) -> tuple[str, ...]:
    node = entries.get(name)
    words = r.texts(node, f"{key}.{name}")
    for number, word in enumerate(words):
        if not _one_line(word) or not pattern.fullmatch(word):
            # An option may hold a secret: its text is not repeated.
            message = f"{key}.{name}[{number}] is not {wanted}"
            r.error(node or _NOWHERE, f"{key}.{name}[{number}]", message)
    return words


def _words_of_command(r: Reader, node: Node | None, key: str) -> tuple[str, ...]:
    """A list of words, or one text that is taken apart as a shell would, without expanding."""
    import shlex

    command = _command(r, node, key)
    if isinstance(command, str):
        try:
            command = tuple(shlex.split(command))
        except ValueError:
            r.error(node or _NOWHERE, key, f"{key} has a quote that is not closed")
            return ()
    if not all(_one_line(word) for word in command):
        r.error(node or _NOWHERE, key, f"{key} may not contain line ends or control characters")
    return command


def _env(r: Reader, node: Node | None, key: str) -> Variables:
    if node is None or (isinstance(node, Text) and node.null):
        return ()
    if not isinstance(node, Table):
        r.error(node, key, f"{key} wants a mapping (NAME: value)")
        return ()
    variables: list[tuple[str, str]] = []
    for word, value in node.entries:
        if not _VARIABLE.fullmatch(word.text):
            message = f'{key}: "{printable(word.text)}" is not the name of a variable'
            r.error(word, key, message)
            continue
        text = r.text(value, f"{key}.{word.text}") or ""
        if not _one_line(text):
            r.error(value, f"{key}.{word.text}", f"{key}.{word.text} must be one line")
        variables.append((word.text, text))
    return tuple(variables)


def _one_of(
    r: Reader, entries: Mapping[str, Node], key: str, name: str, words: tuple[str, ...]
) -> str:
    text = r.text(entries.get(name), f"{key}.{name}") or words[0]
    if text.lower() in ("false", "off") and "no" in words:
        text = "no"
    if text not in words:
        message = f'{key}.{name} "{printable(text)}" is not one of {", ".join(words)}'
        r.error(entries[name], f"{key}.{name}", message)
    return text


def _one_line(text: str) -> bool:
    return len(text) <= MAX_VALUE and text.isprintable()


_NOWHERE = Table((), 0, 0)
