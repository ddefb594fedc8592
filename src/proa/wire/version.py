"""Release versions: ``MAJOR.MINOR.PATCH`` with an optional ``-PRERELEASE``.

The order is that of Semantic Versioning 2.0.0 (§11). systemd-boot orders boot entries with
``strverscmp_improved`` (UAPI.10); for the versions that :func:`parse` accepts, both agree only
without a pre-release, so no boot decision may rest on the order of two pre-releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

_PATTERN = re.compile(
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(?:-([0-9A-Za-z]{1,32}(?:\.[0-9A-Za-z]{1,32}){0,7}))?"
)


class VersionError(ValueError):
    """The text is not a version."""


@total_ordering
@dataclass(frozen=True)
class Version:
    """A parsed release version; ``str()`` gives the text back."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()

    def __str__(self) -> str:
        base = f"{self.major}.{self.minor}.{self.patch}"
        return f"{base}-{'.'.join(self.pre)}" if self.pre else base

    def _key(self) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
        identifiers = tuple((False, int(p), "") if p.isdigit() else (True, 0, p) for p in self.pre)
        return (self.major, self.minor, self.patch), not self.pre, identifiers

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return self._key() < other._key()


def parse(text: str) -> Version:
    """Return the version that ``text`` names, or raise :class:`VersionError`."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise VersionError(f"{text!r} is not a version; write it as 1.2.3 or 1.2.3-rc.1")
    major, minor, patch, pre = match.groups()
    return Version(int(major), int(minor), int(patch), tuple(pre.split(".")) if pre else ())
