"""``power_state``, ``phone_home``, ``final_message``: what comes last, when the machine is up."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.keys.commands import quote
from proa.machine.cloudconfig.parse import Items, Node, Text, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.hints import Literal
from proa.machine.record import dataclass, field

Mode = Literal["halt", "poweroff", "reboot"]

MAX_DELAY = 60 * 24 * 365
"""Minutes; a year."""
MAX_TRIES = 100


@dataclass(frozen=True)
class Power:
    """Halt, power off or reboot. ``delay`` as shutdown(8) takes it: ``now`` or ``+minutes``."""

    mode: Mode
    delay: str = "now"
    message: str = ""
    condition: bytes | None = field(default=None, repr=False)
    """A shell script; the state changes if it ends with 0."""


@dataclass(frozen=True)
class Home:
    """An address that is told once that the machine is up, and what it is told."""

    url: str = field(repr=False)
    post: tuple[str, ...]
    tries: int = 10


@dataclass(frozen=True)
class Ending:
    power: Power | None = None
    home: Home | None = None
    message: str | None = None


def read_ending(r: Reader, top: Mapping[str, Node]) -> Ending:
    message = r.text(top.get("final_message"), "final_message")
    return Ending(
        power=_power(r, top.get("power_state")),
        home=_home(r, top.get("phone_home")),
        message=message.strip() or None if message else None,
    )


# power_state (cc_power_state_change).


def _power(r: Reader, node: Node | None) -> Power | None:
    known = ("mode", "delay", "timeout", "message", "condition")
    entries = r.table(node, "power_state", known)
    if node is None or not entries:
        return None
    mode = r.text(entries.get("mode"), "power_state.mode") or ""
    delay = _delay(r, entries.get("delay"))
    words = r.text(entries.get("message"), "power_state.message") or ""
    wanted, condition = _condition(r, entries.get("condition"))
    timeout = r.text(entries.get("timeout"), "power_state.timeout")
    if timeout and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?", timeout):
        r.error(entries["timeout"], "power_state.timeout", "power_state.timeout wants seconds")
    if mode not in ("halt", "poweroff", "reboot"):
        message = f'power_state.mode "{printable(mode)}" is not one of halt, poweroff, reboot'
        r.error(entries.get("mode", node), "power_state.mode", message)
        return None
    kind: Mode = "halt" if mode == "halt" else "poweroff" if mode == "poweroff" else "reboot"
    return Power(kind, delay, " ".join(words.split()), condition) if wanted else None


def _condition(r: Reader, node: Node | None) -> tuple[bool, bytes | None]:
    """Whether it may be met at all, and the script that decides."""
    key = "power_state.condition"
    if isinstance(node, Items):
        words = [r.text(word, f"{key}[{i}]") or "" for i, word in enumerate(r.items(node, key))]
        script = f"#!/bin/sh\nexec {' '.join(quote(word) for word in words)}\n".encode()
        return True, script if words else None
    text = r.text(node, key)
    if text is None:
        return True, None
    word = text.lower() if isinstance(node, Text) and node.plain else ""
    if word in ("true", "yes", "on", "false", "no", "off"):
        return word in ("true", "yes", "on"), None
    return True, f"#!/bin/sh\n{text}\n".encode()


def _delay(r: Reader, node: Node | None) -> str:
    text = r.text(node, "power_state.delay") or "now"
    match = re.fullmatch(r"\+?([0-9]{1,6})", text)
    if text == "now" or node is None:
        return "now"
    if match is None or int(match[1]) > MAX_DELAY:
        message = f'power_state.delay "{printable(text)}" is not "now" or minutes like 5 or +5'
        r.error(node, "power_state.delay", message)
        return "now"
    return f"+{int(match[1])}"


# phone_home (cc_phone_home).

POSTS = (
    *("pub_key_rsa", "pub_key_ecdsa", "pub_key_ed25519"),
    *("instance_id", "hostname", "fqdn"),
)
_URL = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%{}-]{1,2000}")


def _home(r: Reader, node: Node | None) -> Home | None:
    entries = r.table(node, "phone_home", ("url", "post", "tries"))
    if node is None or not entries:
        return None
    url = r.text(entries.get("url"), "phone_home.url")
    post = _post(r, entries.get("post"))
    tries = r.text(entries.get("tries"), "phone_home.tries") or "10"
    if not re.fullmatch(r"[0-9]{1,3}", tries) or not 1 <= int(tries) <= MAX_TRIES:
        message = f"phone_home.tries wants a number from 1 to {MAX_TRIES}"
        r.error(entries["tries"], "phone_home.tries", message)
        tries = "10"
    if not url:
        r.warn(node, "phone_home", "phone_home has no url; ignored")
        return None
    if not _URL.fullmatch(url):  # it may hold a password: never show it
        message = "phone_home.url is not an http or https address"
        r.error(entries["url"], "phone_home.url", message)
    return Home(url, post, int(tries))


def _post(r: Reader, node: Node | None) -> tuple[str, ...]:
    if node is None or (
        isinstance(node, Text) and r.text(node, "phone_home.post") in (None, "all")
    ):
        return POSTS
    found: list[str] = []
    for index, item in enumerate(r.items(node, "phone_home.post")):
        key = f"phone_home.post[{index}]"
        text = r.text(item, key) or ""
        if text == "pub_key_dsa":
            r.warn(item, key, f'{key}: there is no dsa key any more; "N/A" is sent')
        elif text not in POSTS:
            message = f'{key} "{printable(text)}" is not one of {", ".join(POSTS)}'
            r.warn(item, key, f'{message}; "N/A" is sent')
        if text:
            found.append(text)
    return tuple(dict.fromkeys(found))
