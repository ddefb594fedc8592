"""A machine of files that updates by payloads, and mirrors in memory that a test can spoil."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from proa.factory import layout
from proa.factory import payload as factory
from proa.machine import fetch, slot, stage
from proa.machine.payload import Signed
from proa.machine.state import Store, Transfer
from proa.machine.system import System
from proa.wire import manifest
from proa.wire import payload as form
from proa.wire.codec import Codec
from support import payload_releases
from support.machine import Machine, Release

OLD, NEW = "1.0.0", "1.1.0"
ENCODER = f"zstd {Codec().zstd.version}"
CHUNK = 5000  # bytes that come over this network at once


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make groups and windows so small that these releases have several, which do not align."""
    monkeypatch.setattr(layout, "GROUP", 9000)
    monkeypatch.setattr(form, "WINDOW", 32 << 10)


@dataclass(frozen=True)
class Made:
    """A payload as a repository has it."""

    data: bytes
    head_length: int
    source: str
    scratch: int

    @property
    def head(self) -> form.Head:
        return form.load_head(self.data[: self.head_length])

    def signed(self, *urls: str) -> Signed:
        return Signed(
            urls=urls,
            size=len(self.data),
            head_length=self.head_length,
            head_sha256=hashlib.sha256(self.data[: self.head_length]).hexdigest(),
            encoder=ENCODER,
            source=self.source,
            origin=OLD if self.source else "",
            scratch=self.scratch,
        )

    def blob(self, number: int) -> tuple[int, int]:
        """Return where the blob of a group begins and ends in the file."""
        sizes = [group.size for group in (*self.head.usr.groups, *self.head.uki.groups)]
        start = self.head_length + sum(sizes[:number])
        return start, start + sizes[number]


@dataclass(frozen=True)
class Pair:
    """Two releases, and what leads to the second. ``directories`` are theirs, as built."""

    old: Release
    new: Release
    delta: Made
    full: Made
    directories: tuple[Path, Path]


def make_pair(directory: Path) -> Pair:
    """Make the releases and their payloads."""
    old, new = (payload_releases.make_release(directory / name, name) for name in (OLD, NEW))
    return Pair(
        _release(old),
        _release(new),
        make(directory, old, new),
        make(directory, None, new),
        (old, new),
    )


def _release(directory: Path) -> Release:
    found = manifest.load((directory / manifest.MANIFEST).read_bytes())
    content = {name: (directory / name).read_bytes() for name in manifest.PAYLOAD_FILES}
    return Release(str(found.version), content, found.root_hash)


def make(directory: Path, old: Path | None, new: Path) -> Made:
    """Make a payload between two release directories, or from nothing."""
    tools = factory.Tools(Codec, directory / "store", 1, ENCODER)
    out = directory / "payload"
    source = factory.open_release(old) if old else None
    head = factory.make(source, factory.open_release(new), out, tools, lambda _: None)
    data = out.read_bytes()
    return Made(data, len(data) - head.body, head.source.hex(), head.scratch)


def make_machine(directory: Path, pair: Pair) -> Machine:
    """Return a machine that runs the old release and can judge the new one."""
    machine = Machine(directory, "uefi", pair.old)
    machine.releases[pair.new.root_hash] = pair.new
    return machine


# --- The network ----------------------------------------------------------------------------------


class Stop(BaseException):
    """What ends a run from outside, in these tests; raised in place of KeyboardInterrupt."""


@dataclass
class Network:
    """Files at mirrors. ``fetched`` counts bytes; ``chunk`` is called before each piece comes."""

    files: dict[str, bytes] = field(default_factory=dict)
    fetched: int = 0
    chunk: Callable[[str, int], None] = lambda url, offset: None

    def download(
        self,
        url: str,
        start: int,
        size: int,
        _patience: fetch.Patience,
        _pause: Callable[[float], None] = lambda _: None,
        *,
        end: int | None = None,
    ) -> Iterator[bytes]:
        """Stand in for ``fetch.download``."""
        if url not in self.files:
            raise fetch.FetchError(f"{url}: the server answered 404", status=404, temporary=False)
        data = self.files[url]
        if len(data) != size:
            raise fetch.WrongSize(f"{url} has {len(data)} bytes; {size} were signed")
        end = size if end is None else end
        for offset in range(start, end, CHUNK):
            self.chunk(url, offset)
            piece = data[offset : min(offset + CHUNK, end)]
            self.fetched += len(piece)
            yield piece


def serve(network: Network, pair: Pair, mirror: str = "http://one/") -> stage.Release:
    """Put the second release on a mirror; return it with all ways to it, the delta first."""
    urls = {}
    for name, data in pair.new.content.items():
        network.files[f"{mirror}{name}"] = data
        urls[name] = [f"{mirror}{name}"]
    network.files[f"{mirror}delta"] = pair.delta.data
    network.files[f"{mirror}full"] = pair.full.data
    ways = [pair.delta.signed(f"{mirror}delta"), pair.full.signed(f"{mirror}full")]
    return stage.Release(pair.new.manifest, urls, ways)


def also_at(release: stage.Release, network: Network, mirror: str) -> stage.Release:
    """Put the same files on one more mirror, which is asked after the others."""

    def at(urls: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        name = urls[0].rpartition("/")[2]
        network.files[f"{mirror}{name}"] = network.files[urls[0]]
        return (*urls, f"{mirror}{name}")

    return replace(
        release,
        urls={name: at(list(urls)) for name, urls in release.urls.items()},
        payloads=[replace(signed, urls=at(signed.urls)) for signed in release.payloads],
    )


def only(release: stage.Release, *ways: int) -> stage.Release:
    """Leave these payloads only (0 is the delta, 1 the full one)."""
    return replace(release, payloads=[release.payloads[way] for way in ways])


def put(
    machine: Machine,
    release: stage.Release,
    said: list[str] | None = None,
    system: System | None = None,
    patience: fetch.Patience = fetch.PATIENCE,
) -> Transfer:
    """Stage a release as the updater does once it trusts it; ``said`` gets what it reports."""
    system = system or machine.system()
    work = stage.Staging(
        system=system,
        disk=slot.find(system),
        store=Store(system),
        patience=patience,
        progress=lambda done, size: None,
        report=(said if said is not None else []).append,
    )
    return stage.stage(work, release, machine.running.version)
