"""Google Compute Engine: one request brings everything.

Format: cloud.google.com/compute/docs, "About VM metadata". The service is known by the header
``Metadata-Flavor: Google``, which it wants and gives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources.http import Client
from proa.machine.cloudconfig.sources.reading import (
    MAX_KEYS,
    addresses,
    at,
    json_object,
    text,
    unpack,
)
from proa.machine.cloudconfig.sources.source import Source

_HEADERS = {"Metadata-Flavor": "Google"}


def fetch(client: Client, base: str) -> Source:
    url = f"{base}/computeMetadata/v1/?recursive=true&alt=json"
    answer = client.until(lambda: client.once(url, _HEADERS))
    if answer.headers.get("metadata-flavor") != "Google":
        client.refuse(url, "lacks Google's mark (Metadata-Flavor)")
    problems: list[Problem] = []
    raw = json_object(answer.body, "computeMetadata", problems)
    if not isinstance(raw.get("instance"), dict):
        client.refuse(url, "is not Google's description of an instance")
    user_data = _user_data(raw, problems)
    name = f"GCE metadata service ({client.place(base)})"
    return Source(name, metadata(raw, time.time()), user_data, tuple(problems))


def _user_data(raw: dict[str, Any], problems: list[Problem]) -> bytes | None:
    """The instance's, or else the project's, which CoreOS took too."""
    for where in ("instance", "project"):
        given = at(raw, where, "attributes", "user-data")
        if isinstance(given, str):
            encoding = text(at(raw, where, "attributes", "user-data-encoding"))
            return unpack(given.encode(), encoding, "user-data", problems)
    return None


def metadata(raw: dict[str, Any], now: float) -> Metadata:
    instance = at(raw, "instance")
    card = at(instance, "networkInterfaces", 0)
    zone = text(at(instance, "zone")).rpartition("/")[2]
    return Metadata(
        instance_id=text(at(instance, "id")),
        # The full name is longer than a host name may be.
        hostname=text(at(instance, "hostname")).partition(".")[0],
        ssh_keys=tuple(_keys(raw, now))[:MAX_KEYS],
        addresses=addresses(
            {
                "private_ipv4": at(card, "ip"),
                "public_ipv4": at(card, "accessConfigs", 0, "externalIp"),
                "public_ipv6": at(card, "ipv6s", 0),
            }
        ),
        cloud="gce",
        region=zone.rpartition("-")[0],
        zone=zone,
        instance_type=text(at(instance, "machineType")).rpartition("/")[2],
        raw=raw,
    )


def _keys(raw: dict[str, Any], now: float) -> Iterator[str]:
    """Lines ``user:key``. Whoever may set one for any user may log in, so all are taken but those
    whose time is over; the project's are left out where the instance says so."""
    own = at(raw, "instance", "attributes")
    given = [at(own, "ssh-keys"), at(own, "sshKeys")]
    blocked = text(at(own, "block-project-ssh-keys")).lower() == "true"
    if not blocked and not at(own, "sshKeys"):
        shared = at(raw, "project", "attributes")
        given += [at(shared, "ssh-keys"), at(shared, "sshKeys")]
    for lines in given:
        for line in lines.splitlines() if isinstance(lines, str) else ():
            user, colon, key = line.partition(":")
            if not colon or " " in user:
                key = line
            if key.strip() and not _expired(key, now):
                # Google's mark and JSON after the key are no comment for authorized_keys.
                yield key.partition(" google-ssh ")[0].strip()


def _expired(key: str, now: float) -> bool:
    mark = key.partition(" google-ssh ")[2]
    if not mark:
        return False
    try:
        until = json.loads(mark).get("expireOn")
        parsed = time.strptime(until, "%Y-%m-%dT%H:%M:%S%z")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    import calendar

    return calendar.timegm(parsed) - (parsed.tm_gmtoff or 0) < now
