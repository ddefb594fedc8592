"""``bootcmd`` and ``runcmd``: commands of the owner (cloud-init: cc_bootcmd, cc_runcmd)."""

from __future__ import annotations

from proa.machine.cloudconfig.parse import Items, Node, Text
from proa.machine.cloudconfig.reader import Reader, a_colon_in
from proa.machine.cloudconfig.values import INSTEAD


def read_commands(r: Reader, node: Node | None, key: str) -> bytes | None:
    """The shell script of a list of commands; ``None`` if there is none.

    As cloud-init makes it: a list is one command, each word quoted, so that it reaches the program
    as it stands; a text is a line for /bin/sh. One fails: the next runs all the same.
    """
    lines: list[str] = []
    for index, item in enumerate(r.items(node, key)):
        place = f"{key}[{index}]"
        if isinstance(item, Items):
            words = [r.text(word, f"{place}[{i}]") for i, word in enumerate(r.items(item, place))]
            lines.append(" ".join(quote(word or "") for word in words))
            _tell_installer(r, item, place, " ".join(word or "" for word in words))
        elif not isinstance(item, Text):
            r.error(item, place, f"{place} wants a text or a list of texts{a_colon_in(item)}")
        elif (line := r.text(item, place)) is not None:  # None: only a comment in YAML
            lines.append(line)
            _tell_installer(r, item, place, line)
    return "".join(("#!/bin/sh\n", *(f"{line}\n" for line in lines))).encode() if lines else None


_INSTALLERS = ("apt-get", "apt", "aptitude", "dpkg", "yum", "dnf", "snap", "apk", "zypper")


def _tell_installer(r: Reader, node: Node, place: str, line: str) -> None:
    program = _program(line[:500].split())
    if program in _INSTALLERS:
        message = f"{place} calls {program}, which is not on Proa: nothing is installed into it"
        r.warn(node, place, f"{message}; {INSTEAD}")


def _program(words: list[str]) -> str:
    """The program that a line calls, as far as its first words say: behind sudo with its options
    and behind variables like DEBIAN_FRONTEND=noninteractive."""
    for word in words:
        if word != "sudo" and not word.startswith("-") and not word.partition("=")[0].isupper():
            return word.rpartition("/")[2]
    return ""


def quote(word: str) -> str:
    """A word that /bin/sh takes as it stands."""
    return "'" + word.replace("'", "'\\''") + "'"
