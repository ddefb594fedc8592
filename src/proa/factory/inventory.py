"""What is in a release: the software bill of materials, and where the bytes of /usr are."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from cyclonedx.exception import MissingOptionalDependencyException
from cyclonedx.model import Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from proa.factory.dpkg import Details
from proa.wire.errors import UserError
from proa.wire.version import Version

# The name of what files_json() gives, in a release.
FILES = "files.json"


@dataclass(frozen=True)
class Size:
    """Bytes that one package has in /usr, in ``files`` files."""

    package: str
    bytes: int
    files: int


def sbom(packages: Sequence[Details], name: str, version: Version, epoch: int, serial: UUID) -> str:
    """Return a CycloneDX 1.6 JSON document of a release, valid by CycloneDX's own schema.

    The same input gives the same text: time stamp and serial number come from the caller.
    """
    # Not in the package database, but most of the file names: our own programs.
    system = Component(
        name=name,
        version=str(version),
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"{name}@{version}",
    )
    components = [_component(details) for details in packages]
    bom = Bom(
        components=components,
        metadata=BomMetaData(component=system, timestamp=datetime.fromtimestamp(epoch, UTC)),
        serial_number=serial,
        version=1,
    )
    bom.register_dependency(system, components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    try:
        problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except MissingOptionalDependencyException as error:
        raise UserError(f"the SBOM cannot be checked: {error}") from None
    if problem is not None:
        raise UserError(f"the SBOM is not valid CycloneDX: {problem}")
    return text + "\n"


def _component(details: Details) -> Component:
    package = details.package
    purl = PackageURL(
        "deb",
        "debian",
        package.name,
        package.version,
        {"arch": package.architecture, "distro": "debian-13"},
    )
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        description=details.description or None,
        supplier=OrganizationalEntity(
            name=details.maintainer or "Debian",
            urls=[XsUri(details.homepage)] if details.homepage else None,
        ),
        purl=purl,
        bom_ref=purl.to_string(),
        properties=[
            Property(name="debian:source", value=package.source),
            Property(name="debian:source-version", value=package.source_version),
        ],
    )


def sizes(tree: Path, owners: Mapping[str, str]) -> tuple[Size, ...]:
    """Return the apparent bytes of ``tree/usr`` by package, the largest first.

    What no package owns is grouped by what made it: ``(proa)``, ``(byte code)``, ``(made)``.
    """
    count: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, package in _owned(tree, owners):
        count[package] += path.lstat().st_size
        files[package] += 1
    ordered = sorted(count.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Size(package, size, files[package]) for package, size in ordered)


def files_json(tree: Path, owners: Mapping[str, str]) -> str:
    """Return which paths below /usr each package has, for whoever asks where an update is from."""
    found: dict[str, list[str]] = {}
    for path, package in _owned(tree, owners):
        found.setdefault(package, []).append(path.relative_to(tree / "usr").as_posix())
    return json.dumps({name: sorted(paths) for name, paths in sorted(found.items())}) + "\n"


def _owned(tree: Path, owners: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    for directory, _, names in os.walk(tree / "usr"):
        for name in names:
            path = Path(directory, name)
            yield path, _owner(path.relative_to(tree).as_posix(), owners)


def _owner(path: str, owners: Mapping[str, str]) -> str:
    if path.startswith("usr/share/proa/etc/"):
        path = path.removeprefix("usr/share/proa/")
    if package := owners.get(path):
        return package
    if path.endswith("/vmlinuz"):
        return "(kernel image)"
    if path.endswith(".pyc"):
        return "(byte code)"
    return "(proa)" if "proa" in path else "(made at build)"


def size_table(report: Sequence[Size], images: Mapping[str, int]) -> str:
    """Return the size report for people: images first, then /usr by package."""
    lines = ["Images (bytes)"]
    lines += [f"{size:>13,}  {name}" for name, size in images.items()]
    total = sum(size.bytes for size in report)
    lines += ["", f"/usr by package (bytes before compression; {total:,} in all)"]
    lines += [f"{s.bytes:>13,}  {s.files:>6,} files  {s.package}" for s in report]
    return "\n".join(lines) + "\n"


def size_json(report: Sequence[Size], images: Mapping[str, int]) -> str:
    """Return the size report for programs."""
    document = {
        "images": dict(images),
        "packages": [{"package": s.package, "bytes": s.bytes, "files": s.files} for s in report],
    }
    return json.dumps(document, indent=1) + "\n"
