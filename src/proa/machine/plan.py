"""Deciding what to do about an offered version. Pure: no disk, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proa.machine.errors import Code
from proa.wire.version import Version


@dataclass(frozen=True)
class Situation:
    """What the decision rests on. ``avoided`` maps a version to why it is not taken by itself.

    ``staged`` is the version that waits in the other slot. ``on_trial`` says that the running
    version is not committed yet.
    """

    running: Version
    offered: Version
    staged: str = ""
    on_trial: bool = False
    avoided: Mapping[str, str] | None = None
    force: bool = False
    allow_downgrade: bool = False


@dataclass(frozen=True)
class Install:
    """Write the offered version to the passive slot."""


@dataclass(frozen=True)
class Nothing:
    """There is nothing to do; ``words`` say why."""

    words: str
    staged: bool = False


@dataclass(frozen=True)
class Refusal:
    """The offer is not taken."""

    code: Code
    message: str
    hint: str


def decide(situation: Situation) -> Install | Nothing | Refusal:
    """Say what to do about an offer. The first rule that applies counts."""
    s = situation
    offered = str(s.offered)
    if s.offered == s.running:
        return Nothing(f"{offered} is offered, and runs already")
    if s.on_trial:
        # The other slot holds the only version that is known to be good: it is not overwritten.
        return Refusal(
            Code.ON_TRIAL,
            f"{offered} is offered, but {s.running} is still on trial here",
            "wait until it is committed; `proactl status` says until when",
        )
    if s.offered < s.running and not s.allow_downgrade:
        return Refusal(
            Code.OLDER_VERSION,
            f"the server offers {offered}, which is older than the running {s.running}",
            "if going back is meant: `proactl update --allow-downgrade`",
        )
    if not s.force and offered in (s.avoided or {}):
        return Refusal(
            Code.FAILED_BEFORE,
            f"{offered} is not taken: {(s.avoided or {})[offered]}",
            "to try it again all the same: `proactl update --force`",
        )
    if offered == s.staged and not s.force:
        return Nothing(f"{offered} is staged already", staged=True)
    return Install()


@dataclass(frozen=True)
class Way:
    """One way to get a release. ``name`` is what the repository calls it, "" for the images.

    ``source`` is the root hash that it starts from and ``origin`` that version ("" for none);
    ``size`` are the bytes to fetch, ``encoder`` what must be on the machine, ``scratch`` the room
    that it needs beside the slot, in bytes.
    """

    name: str
    size: int
    source: str = ""
    origin: str = ""
    encoder: str = ""
    scratch: int = 0

    @property
    def kind(self) -> str:
        if not self.name:
            return "images"
        return "delta" if self.source else "full"

    @property
    def words(self) -> str:
        if not self.name:
            return "the images as they are"
        return f"a delta from {self.origin}" if self.source else "the full payload"


@dataclass(frozen=True)
class Choice:
    """The ways that can be gone, the best first, and why others cannot."""

    ways: tuple[Way, ...]
    refused: tuple[str, ...]


def choose(
    ways: Sequence[Way],
    *,
    running: str,
    encoder: str,
    room: int,
    setting: str,
    given_up: Mapping[str, str] | None = None,
) -> Choice:
    """Order the ways by what has to be fetched, without those that this machine cannot go.

    ``running`` is the root hash of the running /usr, ``encoder`` the machine's compressor, ``room``
    the free bytes of its state directory, ``setting`` is PAYLOAD of update.conf. ``given_up`` says
    of ways by name why earlier runs have given them up. The images are always a way, and the last
    one: they need nothing of the machine.
    """
    good, refused, gone = [], [], given_up or {}
    images = min((way.size for way in ways if not way.name), default=None)
    for way in sorted(ways, key=lambda w: (not w.name, w.size)):
        if way.name and setting == "image":
            refused.append(f"{way.words}: PAYLOAD=image is set")
        elif way.source and setting == "full":
            refused.append(f"{way.words}: PAYLOAD=full is set")
        elif way.source and way.source != running:
            refused.append(f"{way.words}: that version does not run here")
        elif way.name and images is not None and way.size >= images:
            refused.append(f"{way.words}: it is no smaller than the images")
        elif way.encoder and way.encoder != encoder:
            refused.append(f"{way.words}: it needs {way.encoder}; here is {encoder or 'none'}")
        elif way.scratch > room:
            refused.append(f"{way.words}: it needs {way.scratch >> 20} MiB of room for old content")
        elif way.name and way.name in gone:
            refused.append(f"{way.words}: {gone[way.name]}")
        else:
            good.append(way)
    return Choice(tuple(good), tuple(refused))
