"""EC2's metadata service, and those of others with the same paths.

Format: docs.aws.amazon.com, "Instance metadata and user data". Version 2 wants a token that is
given for a PUT; where that is refused, version 1 answers without. The paths are those below
``latest``, or, on a service that has no such version, below ``2009-04-04`` as CoreOS used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources.http import Client, Failed
from proa.machine.cloudconfig.sources.reading import MAX_KEYS, addresses, text
from proa.machine.cloudconfig.sources.source import Source
from proa.machine.record import dataclass, field

TOKEN_SECONDS = 600
"""For how long a token is asked for: longer than all of this may take."""
VERSIONS = ("latest", "2009-04-04")

_NAMES = (
    "instance-id",
    "hostname",
    "local-hostname",
    "local-ipv4",
    "public-ipv4",
    "ipv6",
    "instance-type",
    "ami-id",
    "placement/availability-zone",
    "placement/region",
)


@dataclass(frozen=True)
class _Session:
    """The answer to the first question, and what the others need."""

    root: str
    instance_id: str
    headers: Mapping[str, str] = field(repr=False)


def fetch(client: Client, base: str, cloud: str = "EC2") -> Source:
    session = client.until(lambda: _open(client, base))
    problems: list[Problem] = []

    def item(name: str) -> bytes | None:
        return client.soon(f"{session.root}/meta-data/{name}", session.headers)

    names = [name for name in _NAMES if name != "instance-id"]
    # The keys in one go with the rest: user-data that does not come must not keep them away.
    calls: list[Callable[[], Any]] = [
        lambda: client.user_data(f"{session.root}/user-data", problems, session.headers),
        lambda: _keys(client, session),
        *(functools.partial(item, name) for name in names),
    ]
    user_data, keys, *values = client.together(*calls)
    found = {"instance-id": session.instance_id} | {
        name: _line(value) for name, value in zip(names, values, strict=True) if value
    }
    version = "IMDSv2" if session.headers else "IMDSv1"
    name = f"{cloud} metadata service, {version} ({client.place(base)})"
    return Source(name, _metadata(found, keys, cloud.lower()), user_data, tuple(problems))


def _open(client: Client, base: str) -> _Session:
    """Find out how this service wants to be asked. One that wants a token is never asked without:
    its refusal would look like the end of the matter."""
    headers: dict[str, str] = {}
    wish = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
    refused: Failed | None = None
    try:
        answer = client.once(f"{base}/latest/api/token", wish, method="PUT", limit=4096)
        token = answer.body.decode("ascii", "replace").strip()
        if not token or not token.isprintable() or not token.isascii():
            client.refuse(f"{base}/latest/api/token", "is not a token")
        headers = {"X-aws-ec2-metadata-token": token}
    except Failed as failed:
        if failed.status is None and failed.final:
            raise  # it lies
        refused = failed
    for version in VERSIONS:
        root = f"{base}/{version}"
        try:
            answer = client.once(f"{root}/meta-data/instance-id", headers, limit=4096)
        except Failed as failed:
            if failed.status == 401 and refused is not None and not refused.final:
                raise refused from None  # it wants a token, and will give one
            if failed.status in (404, 410) and version != VERSIONS[-1]:
                continue
            raise
        instance_id = text(answer.body.decode("utf-8", "replace"))
        if not instance_id or " " in instance_id:
            client.refuse(f"{root}/meta-data/instance-id", "is not an instance id")
        return _Session(root, instance_id, headers)
    raise AssertionError  # the last version returns or raises


def _line(value: bytes) -> str:
    return text(value.decode("utf-8", "replace"))


def _keys(client: Client, session: _Session) -> tuple[str, ...]:
    """Each line of the listing is ``0=name``; the key is in ``0/openssh-key``."""
    url = f"{session.root}/meta-data/public-keys"

    def key(number: str) -> bytes | None:
        return client.soon(f"{url}/{number}/openssh-key", session.headers)

    listing = client.soon(f"{url}/", session.headers) or b""
    lines = listing.decode("utf-8", "replace").splitlines()
    numbers = [line.partition("=")[0].strip() for line in lines]
    numbers = [number for number in numbers if number.isascii() and number.isdigit()][:MAX_KEYS]
    found = client.together(*(functools.partial(key, number) for number in numbers))
    return tuple(key.decode("utf-8", "replace").strip() for key in found if key)


def _metadata(found: Mapping[str, str], keys: tuple[str, ...], cloud: str) -> Metadata:
    names = (found.get("hostname") or found.get("local-hostname") or "").split()
    zone = found.get("placement/availability-zone", "")
    raw: dict[str, Any] = {n: value for n, value in found.items() if "/" not in n}
    raw["placement"] = {
        name.partition("/")[2]: value for name, value in found.items() if "/" in name
    }
    return Metadata(
        instance_id=found["instance-id"],
        hostname=names[0] if names else "",
        ssh_keys=keys,
        addresses=addresses(
            {
                "private_ipv4": found.get("local-ipv4"),
                "public_ipv4": found.get("public-ipv4"),
                # EC2's IPv6 addresses are reached from everywhere, unless its owner forbids it.
                "public_ipv6": found.get("ipv6"),
            }
        ),
        cloud=cloud,
        # A zone is its region and one letter.
        region=found.get("placement/region") or zone.rstrip("abcdefghijklmnopqrstuvwxyz"),
        zone=zone,
        instance_type=found.get("instance-type", ""),
        raw=raw,
    )
