"""What Debian's package database says of a tree: which packages, and whose each file is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proa.wire.manifest import Package

_STATUS = "var/lib/dpkg/status"
_INFO = "var/lib/dpkg/info"
_MERGED = ("/bin/", "/sbin/", "/lib/", "/lib64/")


@dataclass(frozen=True)
class Details:
    """A package with what an SBOM wants to know beyond :class:`proa.wire.manifest.Package`."""

    package: Package
    maintainer: str
    homepage: str
    description: str


def packages(tree: Path) -> tuple[Details, ...]:
    """Return the installed packages of ``tree``, by name."""
    found = []
    for fields in _paragraphs((tree / _STATUS).read_text()):
        if not fields.get("Status", "").endswith(" installed"):
            continue
        # "Source: glibc (2.41-12)", or without a version if it is the package's own.
        source, _, version = fields.get("Source", fields["Package"]).partition(" ")
        package = Package(
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
            source=source,
            source_version=version.strip("()") or fields["Version"],
        )
        found.append(
            Details(
                package,
                fields.get("Maintainer", ""),
                fields.get("Homepage", ""),
                fields.get("Description", ""),
            )
        )
    return tuple(sorted(found, key=lambda details: details.package.name))


def owners(tree: Path) -> dict[str, str]:
    """Return the package of each file, by its path below ``/`` (``usr/bin/bash``)."""
    result: dict[str, str] = {}
    for listing in sorted((tree / _INFO).glob("*.list")):
        package = listing.name.removesuffix(".list").partition(":")[0]
        for line in listing.read_text().splitlines():
            path = f"/usr{line}" if line.startswith(_MERGED) else line
            result[path.lstrip("/")] = package
    return result


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the stanzas of a control file; of a folded field only the first line."""
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            if line and not line[0].isspace():
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields
