"""Where the bytes of a payload are: by package, by file, and by how each file is made.

A group's pieces are packed together, so a file has no packed bytes of its own. Each is given its
share of every stream that it uses (control, diff, new bytes), in proportion to its bytes in it
before packing. The shares add up to the payload's size exactly; each by itself is an estimate.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proa.factory import inventory, payload_file, treemap
from proa.factory.compare import Usr
from proa.factory.payload_file import PayloadFile
from proa.wire import patch
from proa.wire import payload as form
from proa.wire.bytecode import PayloadError
from proa.wire.codec import Codec, CodecError
from proa.wire.payload import (
    MAX_LANES,
    Copy,
    Drop,
    Encode,
    Frame,
    Hold,
    Image,
    Item,
    Patch,
    Plain,
    Plan,
    Section,
    Source,
    Zero,
)
from proa.wire.unpack import look_into

FILES, META = 0, 1  # lanes, as the maker lays them out

# Kinds, in words for people.
PROGRAM = "program patch"
PATCH = "patch"
NEW = "new content"
INSIDE = "patch inside a compressed file"
METADATA = "file system metadata"
PLAN = "plan"

HEAD, BOOT, UNKNOWN = "(head and tables)", "(boot image)", "(some file)"


@dataclass(frozen=True)
class Share:
    """What one file takes: ``made`` bytes of it come out of the payload, from ``packed`` bytes."""

    file: str
    package: str
    kind: str
    made: int
    packed: float


@dataclass(frozen=True)
class Report:
    """A payload's bytes. ``copied`` bytes of the new image come from the old one as they are."""

    size: int
    copied: int
    shares: tuple[Share, ...]

    def by(self, key: Callable[[Share], str]) -> list[tuple[str, int]]:
        """Return (name, packed bytes) of each name that ``key`` gives, the largest first."""
        found: Counter[str] = Counter()
        exact: dict[str, float] = {}
        for share in self.shares:
            exact[key(share)] = exact.get(key(share), 0) + share.packed
        for name, packed in exact.items():
            found[name] = round(packed)
        return found.most_common()


def explain(
    opened: PayloadFile, codec: Codec, new: Usr | None, owner: Callable[[str], str]
) -> Report:
    """Take a payload's groups apart, and say where their bytes are.

    ``new`` is the image that it makes, which gives the files their names; ``owner`` gives the
    package of a path below /usr. Raises :class:`UserError` for a damaged payload.
    """
    names = _Names(new)
    found: list[Share] = [Share(HEAD, HEAD, PLAN, 0, opened.head_length)]
    copied, offset = 0, 0
    for output, group, data in payload_file.blobs(opened):
        try:
            blob, plan, controls = look_into(data, codec)
            places = _places(plan, offset) if output == form.Output.USR else {}
            label = _labels(plan, places, names, output)
            items = list(_items(plan, blob.lanes, controls, label))
        except (PayloadError, CodecError, patch.PatchError) as error:
            raise payload_file.bad(opened.path, str(error)) from None
        copied += sum(step.length for step in plan.steps if isinstance(step, Copy))
        found += items
        found.append(Share(HEAD, HEAD, PLAN, 0, blob.content + blob.plan.stored))
        offset += group.length
    shares = [replace(s, package=s.package or owner(s.file)) for s in _joined(found)]
    shares.sort(key=lambda share: (-share.packed, share.file, share.kind))
    return Report(opened.size, copied, tuple(shares))


def _joined(shares: Sequence[Share]) -> Iterator[Share]:
    """Join the shares of one file and kind."""
    joined: dict[tuple[str, str], Share] = {}
    for share in shares:
        key = share.file, share.kind
        if before := joined.get(key):
            share = replace(
                share, made=before.made + share.made, packed=before.packed + share.packed
            )
        joined[key] = share
    yield from joined.values()


class _Names:
    """The new image's files by where they lie in it."""

    def __init__(self, new: Usr | None) -> None:
        regions = [r for r in new.regions() if r.file is not None] if new else []
        self._starts = [region.start for region in regions]
        self._ends = [region.end for region in regions]
        self._files = [region.file.paths[0] for region in regions if region.file]
        self._by_place = (
            {f.extents[0].physical: f.paths[0] for f in new.files if f.extents} if new else {}
        )

    def at(self, offset: int | None) -> str:
        if offset is None:
            return UNKNOWN
        index = bisect_right(self._starts, offset) - 1
        inside = index >= 0 and offset < self._ends[index]
        return self._files[index] if inside else UNKNOWN

    def of(self, source: Source) -> str:
        """Return the file of the new image that a source is."""
        first = source.extents[0].physical if source.extents else -1
        return self._by_place.get(first, UNKNOWN)


def _places(plan: Plan, offset: int) -> Mapping[int, list[tuple[int, int]]]:
    """Return for each lane (offset in the lane, offset in the output) of what is taken from it."""
    taken = [0] * MAX_LANES
    aside: list[tuple[int, int]] = []
    places: dict[int, list[tuple[int, int]]] = {}
    for step in plan.steps:
        match step:
            case Copy(_, length) | Zero(length):
                offset += length
            case Hold(lane, length):
                aside.append((lane, taken[lane]))
                taken[lane] += length
            case Drop(lane, length):
                taken[lane] += length
            case Plain(lane, length) | Encode(lane, _, length, _):
                if lane >= MAX_LANES:
                    lane, at = aside[lane - MAX_LANES]
                else:
                    at = taken[lane]
                    taken[lane] += length
                places.setdefault(lane, []).append((at, offset))
                offset += step.stored if isinstance(step, Encode) else length
    return places


Label = Callable[[int, int, Item], str]


def _labels(
    plan: Plan,
    places: Mapping[int, list[tuple[int, int]]],
    names: _Names,
    output: form.Output,
) -> Label:
    """Return what names the file that an item makes: by (lane, offset in the lane, item)."""
    # Whose content a lane is that frames are made from: where each frame lies in the outer lane.
    inside: dict[int, list[tuple[int, int, Frame]]] = {}
    for lane, items in enumerate(plan.lanes):
        at = 0
        for item in items:
            size = item.size if isinstance(item, Patch) else item.stored
            if isinstance(item, Frame):
                inside.setdefault(item.lane, []).append((lane, at, item))
            at += size

    def label(lane: int, at: int, item: Item) -> str:
        if output == form.Output.UKI:
            if lane in inside:
                return f"{BOOT[:-1]}: initrd)"
            number = item.source if isinstance(item, Patch) else 0
            if number and plan.sources[number - 1].image == Image.NEW_USR:
                return f"{BOOT[:-1]}: {names.of(plan.sources[number - 1])})"
            return BOOT
        if lane == META:
            return f"({METADATA})"
        if lane in inside:
            begin = 0
            for outer, place, frame in inside[lane]:
                begin += frame.plain
                if at < begin:
                    return label(outer, place, frame)
        end = at + (item.size if isinstance(item, Patch) else item.stored)
        return names.at(next((o for start, o in places.get(lane, []) if at <= start < end), None))

    return label


def _items(
    plan: Plan,
    sections: Sequence[tuple[Section, Section, Section]],
    controls: Sequence[bytes],
    label: Label,
) -> Iterator[Share]:
    """Yield the share of each item; of each section all packed bytes go to some item."""
    for lane, (items, streams, control) in enumerate(
        zip(plan.lanes, sections, controls, strict=True)
    ):
        at = read = 0
        used: list[tuple[str, str, int, tuple[int, int, int]]] = []
        for item in items:
            if isinstance(item, Patch):
                kind, diff, extra = _kind(control[read : read + item.control], item, plan, lane)
                used.append((label(lane, at, item), kind, item.size, (item.control, diff, extra)))
                read += item.control
                at += item.size
            else:
                at += item.stored
        totals = [sum(sizes[i] for *_, sizes in used) for i in range(3)]
        for name, kind, made, sizes in used:
            rules, difference, fresh = (
                stream.stored * size / total if total else 0.0
                for stream, size, total in zip(streams, sizes, totals, strict=True)
            )
            package = BOOT if name.startswith(BOOT[:-1]) else name if name[0] == "(" else ""
            if kind == METADATA:
                yield Share(name, package, kind, made, rules + difference + fresh)
                continue
            # What is corrected and what is nowhere in the old release are two things to know.
            if sizes[2]:
                yield Share(name, package, NEW, sizes[2], fresh)
            yield Share(name, package, kind, made - sizes[2], rules + difference)


def _kind(control: bytes, item: Patch, plan: Plan, lane: int) -> tuple[str, int, int]:
    """Return (kind of what is not new, bytes of diff, bytes of new content) of a patch."""
    found = patch.read_control(control, item.size)
    diff = sum(found.runs.next() for _ in range(found.run_count))
    extra = sum(found.copies.extra)
    source = plan.sources[item.source - 1] if item.source else None
    if lane == META:
        return METADATA, diff, extra
    if source is not None and source.inner is not None:
        return INSIDE, diff, extra
    return PROGRAM if found.kind == patch.ELF else PATCH, diff, extra


# --- Packages -------------------------------------------------------------------------------------


def owners(release: Path | None) -> Callable[[str], str]:
    """Return what gives the package of a path below /usr, by the release's ``files.json``.

    Without one that can be read it is the path's directory, two deep.
    """
    listed = None
    if release is not None:
        with contextlib.suppress(OSError, ValueError):
            listed = json.loads((release / inventory.FILES).read_bytes())
    if not isinstance(listed, dict):
        return lambda path: "/".join(path.split("/")[:-1][:2]) or "."
    by_path = {path: package for package, paths in listed.items() for path in paths}
    return lambda path: by_path.get(path, "(made at build)")


# --- The picture ----------------------------------------------------------------------------------

_COLOURS = {
    PROGRAM: "#2f6db3",
    PATCH: "#3c9a8f",
    INSIDE: "#7a5fb5",
    NEW: "#c8553d",
    METADATA: "#8a8f98",
    PLAN: "#5c6470",
}


def picture(opened: PayloadFile, report: Report, title: str) -> str:
    """Return the report as an SVG tree map: packages, their files in them, coloured by kind."""
    packages: dict[str, list[treemap.Leaf]] = {}
    for share in report.shares:
        tip = (
            f"{share.file}\n{share.kind}, makes {share.made:,} bytes\n{round(share.packed):,} bytes"
        )
        leaf = treemap.Leaf(share.file, share.packed, share.kind, tip)
        packages.setdefault(share.package, []).append(leaf)
    branches = [treemap.Branch(name, leaves) for name, leaves in packages.items()]
    kinds = dict(report.by(lambda share: share.kind))
    legend = {kind: f"{kind} {100 * kinds.get(kind, 0) / report.size:.0f} %" for kind in _COLOURS}
    subtitle = (
        f"{report.size:,} bytes make {opened.head.size:,}; "
        f"{report.copied:,} of them are copied from the running system"
    )
    if not opened.source:
        subtitle = f"{report.size:,} bytes make {opened.head.size:,}"
    return treemap.draw(title, subtitle, branches, _COLOURS, legend)
