"""Find the document and the metadata that a cloud, a hypervisor or the lab gives to this machine.

In two stages. :func:`find` looks at what is in the machine or attached to it, before there is a
network. :func:`find_online` asks what can only be asked over one; :func:`wants_network` says
whether there is anything to ask. Each way to get a configuration is a *source*:

    facts     what the machine shows of itself: SMBIOS, labels of disks, kernel command line
    detect    which sources these facts name, in order; pure
    local     the sources that need no network: disk, nocloud, openstack, ovf, vmware, azure, xen
    services  those that need one: ec2, gce, azure, openstack, digitalocean and smaller ones
    http      asking a service that may be slow, failing or lying
    race      which of several is taken

docs/datasources.md is the page for people.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from proa.machine.cloudconfig.machine import CommandFailed, Run
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem, printable
from proa.machine.cloudconfig.sources.detect import (
    LOCAL,
    SERVICES,
    Candidate,
    Candidates,
    deadline,
    detect,
)
from proa.machine.cloudconfig.sources.facts import Facts, gather
from proa.machine.cloudconfig.sources.local import as_warnings, look, with_oem
from proa.machine.cloudconfig.sources.source import Capture, Edge, Source, Tried, capture
from proa.machine.hints import TYPE_CHECKING
from proa.machine.record import replace

if TYPE_CHECKING:  # only a machine that asks the network needs HTTP
    from proa.machine.cloudconfig.sources.http import Patience

__all__ = [
    "Source",
    "Tried",
    "check_in",
    "find",
    "find_named",
    "find_online",
    "wants_check_in",
    "wants_network",
]

SETTLE_SECONDS = 10


def find(
    root: Path,
    run: Run,
    *,
    capture: Capture = capture,
    environ: Mapping[str, str] = os.environ,
) -> Source | None:
    """The first good source that needs no network, or ``None``.

    An unreadable one is taken if no other is good and there is no network to ask: what it would
    have said is a problem in it. ``root`` is / on a machine; ``run`` runs udevadm, mount, umount.

    A source with ``follow`` is not complete yet: :func:`find_online` has the rest. The OEM's
    document alone is a source only where there is nothing to ask over a network either.
    """
    edge = Edge(root, run, capture, environ)
    facts = gather(edge)
    candidates = detect(facts)
    if not _disks_are_known(candidates):
        # The disk may be there and udev not done with it. Costs nothing once udev is idle.
        command = ("udevadm", "settle", f"--timeout={SETTLE_SECONDS}")
        label = root / "dev/disk/by-label/config-2"
        with contextlib.suppress(CommandFailed):  # a busy udev is not a reason to give up
            run((*command, f"--exit-if-exists={label}"), b"")
        facts = gather(edge)
        candidates = detect(facts)
    source, oem, tried = _first(candidates, edge)
    if source is not None:
        source = _outranked(source, candidates)
    if source is not None and source.unread and candidates.network:
        return None  # the network may know; if it does not, this is found again
    if source is not None:
        source = with_oem(source, oem)
    elif candidates.network:
        return None
    elif oem is not None:
        source = oem
    elif candidates.problems:
        source = Source("no source of configuration", Metadata(), None)
    else:
        return None
    return replace(source, problems=(*source.problems, *candidates.problems), tried=tried)


def _disks_are_known(candidates: Candidates) -> bool:
    """Whether a disk is seen already, or what goes before any disk."""
    before = ("credentials", "fw-cfg")
    return any(
        c.at.startswith("/dev/disk/") or c.kind in before or (c.explicit and c.at)
        for c in candidates.local
    )


def _first(
    candidates: Candidates, edge: Edge
) -> tuple[Source | None, Source | None, tuple[Tried, ...]]:
    """The first good source or else the first bad one; what the OEM says; what was tried."""
    poor: list[Source] = []
    oem: Source | None = None
    tried: list[Tried] = []
    for candidate in candidates.local:
        began = time.monotonic()
        source = look(candidate, edge)
        name = source.name if source else _name(candidate)
        seconds = round(time.monotonic() - began, 3)
        if source is None:
            tried.append(Tried(name, seconds, "nothing there"))
        elif candidate.kind == "oem":
            oem = oem or source
            tried.append(Tried(name, seconds, "kept for what the owner does not say"))
        elif _is_good(source):
            tried.append(Tried(name, seconds, "taken"))
            oems = (look(c, edge) for c in candidates.local if c.kind == "oem")
            return source, next((found for found in oems if found), None), tuple(tried)
        else:
            poor.append(source)
            told = "; ".join(problem.message for problem in source.problems)
            tried.append(Tried(name, seconds, told))
    unread = [source for source in poor if source.unread]
    # One that could not be asked is told of, but nothing is known to be there.
    usable = unread if candidates.network else unread + poor
    return next(iter(usable), None), oem, tuple(tried)


def _is_good(source: Source) -> bool:
    if source.unread:
        return False
    said = source.user_data is not None or source.vendor_data or source.follow
    return bool(said) or source.metadata != Metadata()


def _name(candidate: Candidate) -> str:
    return f"{candidate.kind} {printable(candidate.at, 200)}".rstrip()


def _outranked(source: Source, candidates: Candidates) -> Source | None:
    """What the owner wrote on the kernel command line goes before what was found."""
    explicit = next((c for c in candidates.network if c.explicit), None)
    if explicit is None or any(c.explicit for c in candidates.local):
        return source
    if explicit.kind != "url":
        return None
    problems = source.problems
    if source.user_data:
        message = (
            f"{source.name}: its user-data is not taken: the kernel command line names another"
        )
        problems = (*problems, Problem("warning", message))
    return replace(source, user_data=None, follow=explicit.at, problems=problems)


def wants_network(
    root: Path, found: Source | None = None, *, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether :func:`find_online` has anything to ask. Touches nothing but a few small files.

    ``found`` is what :func:`find` returned.
    """
    if found is not None:
        return bool(found.follow)
    return bool(detect(gather(Edge(root, _no_run, _no_capture, environ))).network)


def _no_run(command: object, stdin: bytes) -> None:
    raise CommandFailed("detection runs no program")


def _no_capture(command: object) -> bytes | None:
    return None


def find_online(
    root: Path,
    run: Run,
    *,
    found: Source | None = None,
    patience: Patience | None = None,
    capture: Capture = capture,
    environ: Mapping[str, str] = os.environ,
) -> Source | None:
    """The source that the network brings; ``None`` if there was none to ask for.

    ``found`` is what :func:`find` returned; what it has stays. Without ``patience``, it is the
    setting ``DEADLINE`` and coreos-cloudinit's numbers. Where none answers, the source that is
    returned has an error that says who was asked and what each did, and the OEM's vendor-data.
    """
    if found is not None and not found.follow:
        return found
    edge = Edge(root, run, capture, environ)
    facts = gather(edge)
    candidates = detect(facts)
    if found is None and not candidates.network:
        return None

    from proa.machine.cloudconfig.sources import race, services  # with them comes HTTP

    patience = patience or _patience(facts)
    if found is not None:
        asked = Candidate("url", found.follow, explicit=True)
        answer, tried = race.race([services.racer(asked, edge)], patience)
        if answer is None:
            problems = (*found.problems, race.nobody(tried))
            return replace(found, problems=problems, tried=(*found.tried, *tried))
        name = f"{found.name} and {answer.name}"
        tried = (*found.tried, *tried)
        return replace(found, name=name, user_data=answer.user_data, tried=tried, follow="")
    # A disk may have come meanwhile, and one that could not be read is told of.
    local, oem, seen = _first(candidates, edge)
    if local is not None and _is_good(local):
        local = _outranked(local, candidates)
        if local is not None:
            return with_oem(replace(local, tried=seen), oem)
    racers = [services.racer(candidate, edge) for candidate in candidates.network]
    source, tried = race.race(racers, patience)
    if source is None:
        nobody = Source("no source answered", Metadata(), None)
        source = local or nobody
        source = replace(source, problems=(*source.problems, race.nobody(tried)))
    elif local is not None:
        source = replace(source, problems=(*source.problems, *as_warnings(local.problems)))
    source = with_oem(source, oem)
    problems = (*source.problems, *candidates.problems)
    return replace(source, problems=problems, tried=(*seen, *tried))


def find_named(
    kind: str,
    at: str,
    root: Path,
    run: Run,
    *,
    patience: Patience | None = None,
    capture: Capture = capture,
    environ: Mapping[str, str] = os.environ,
) -> Source | None:
    """This one source, without looking for others: what ``coreos-cloudinit -from-…`` asks for.

    ``kind`` is one of :data:`detect.KINDS` and ``at`` the place: a directory for ``config-drive``
    and ``nocloud``, a file for ``ovf`` and ``file``, an address for ``url`` and the services, where
    it may be empty. ``waagent`` is the directory of Azure's agent. ``None`` if nothing is there.
    """
    from proa.machine.cloudconfig.sources import azure, disk, vmware

    edge = Edge(root, run, capture, environ)
    place = root / at.lstrip("/")
    problems: list[Problem] = []
    if kind == "waagent":
        return azure.waagent(place)
    if kind == "config-drive":
        return disk.read_drive(place, f"config drive {at}") if place.is_dir() else None
    if kind == "ovf":
        data = disk.read(root, at, problems)
        return vmware.from_environment(f"OVF environment {at}", data, problems)
    candidate = Candidate(kind, at or SERVICES.get(kind, ""), "named", explicit=True)
    if kind in LOCAL and "://" not in at:
        return look(candidate, edge)

    from proa.machine.cloudconfig.sources import race, services

    racers = [services.racer(candidate, edge)]
    source, tried = race.race(racers, patience or _patience(gather(edge)))
    if source is None:
        source = Source(racers[0].name, Metadata(), None, (race.nobody(tried),))
    return replace(source, tried=tried)


def wants_check_in(source: Source) -> bool:
    """Whether the cloud waits for a word that the machine is set up."""
    return source.metadata.cloud == "azure"


def check_in(source: Source, patience: Patience | None = None, base: str = "") -> Problem | None:
    """Tell the cloud that this machine is set up, if it is one that waits for that (Azure).
    ``base`` is the address to tell, where it is not the cloud's own.

    To be called once the configuration is applied, at the first boot of an instance. A cloud that
    cannot be told is a problem, and no reason to stop.
    """
    if not wants_check_in(source):
        return None
    import random

    from proa.machine.cloudconfig.sources import azure, http

    client = http.Client(patience or http.PATIENCE, random.random)
    try:
        azure.report_ready(client, base or azure.WIRE_SERVER)
    except http.Failed as failed:
        return Problem("warning", f"Azure was not told that this machine is ready: {failed}")
    return None


def _patience(facts: Facts) -> Patience:
    from proa.machine.cloudconfig.sources.http import PATIENCE

    seconds = deadline(facts)
    return replace(PATIENCE, deadline=float(seconds)) if seconds else PATIENCE
