"""A tree map as SVG: nested rectangles whose areas are sizes. Plain text, no library.

The layout is the squarified one (Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Leaf:
    """A rectangle: ``size`` is what its area shows, ``tip`` is shown when one points at it."""

    name: str
    size: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Branch:
    """A group of rectangles with a heading."""

    name: str
    leaves: Sequence[Leaf]

    @property
    def size(self) -> float:
        return sum(leaf.size for leaf in self.leaves)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    def inset(self, by: float, top: float) -> Box:
        return Box(
            self.x + by,
            self.y + top,
            max(self.width - 2 * by, 0),
            max(self.height - by - top, 0),
        )


WIDTH, HEIGHT = 1200.0, 800.0
_HEAD, _LEGEND = 64.0, 36.0
# An average letter is so wide, in parts of the size of the font; for what fits into a box.
_LETTER = 0.56


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return boxes for ``sizes`` (positive, the largest first), which together fill ``box``."""
    boxes: list[Box] = []
    left = list(sizes)
    total = sum(left)
    while left:
        scale = box.width * box.height / total if total else 0
        short = min(box.width, box.height)
        count = 1
        while count < len(left) and _worst(left[: count + 1], short, scale) <= _worst(
            left[:count], short, scale
        ):
            count += 1
        row = left[:count]
        part = sum(row) / total if total else 0
        boxes += _row(row, box, part)
        if box.width >= box.height:
            taken = box.width * part
            box = Box(box.x + taken, box.y, box.width - taken, box.height)
        else:
            taken = box.height * part
            box = Box(box.x, box.y + taken, box.width, box.height - taken)
        left = left[count:]
        total = sum(left)
    return boxes


def _worst(row: Sequence[float], short: float, scale: float) -> float:
    """Return the ratio of the sides of the row's most oblong box."""
    area = sum(row) * scale
    if not area or not short:
        return float("inf")
    most, least = max(row) * scale, min(row) * scale
    return max(short**2 * most / area**2, area**2 / (short**2 * least) if least else float("inf"))


def _row(row: Sequence[float], box: Box, part: float) -> Iterator[Box]:
    at, whole = 0.0, sum(row)
    for size in row:
        share = size / whole if whole else 0
        if box.width >= box.height:
            yield Box(box.x, box.y + at, box.width * part, box.height * share)
            at += box.height * share
        else:
            yield Box(box.x + at, box.y, box.width * share, box.height * part)
            at += box.width * share


def draw(
    title: str,
    subtitle: str,
    branches: Sequence[Branch],
    colours: Mapping[str, str],
    label: Mapping[str, str],
) -> str:
    """Return the picture. ``colours`` has the colour of each kind, ``label`` what the legend says
    of it; kinds that do not occur are left out."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'width="{WIDTH:.0f}" height="{HEIGHT:.0f}" font-family="sans-serif">',
        f'<rect width="{WIDTH:.0f}" height="{HEIGHT:.0f}" fill="#ffffff"/>',
        '<text x="16" y="30" font-size="22" font-weight="bold" fill="#1a1a1a">'
        f"{escape(title)}</text>",
        f'<text x="16" y="52" font-size="14" fill="#555555">{escape(subtitle)}</text>',
    ]
    whole = Box(16, _HEAD, WIDTH - 32, HEIGHT - _HEAD - _LEGEND - 10)
    ordered = sorted((b for b in branches if b.size > 0), key=lambda b: -b.size)
    for branch, box in zip(ordered, squarify([b.size for b in ordered], whole), strict=True):
        lines += _branch(branch, box, colours)
    used = [
        kind for kind in colours if any(leaf.kind == kind for b in ordered for leaf in b.leaves)
    ]
    at = 16.0
    for kind in used:
        y = HEIGHT - _LEGEND + 4
        lines.append(
            f'<rect x="{at:.1f}" y="{y:.1f}" width="14" height="14" rx="2" fill="{colours[kind]}"/>'
        )
        text = label.get(kind, kind)
        lines.append(
            f'<text x="{at + 20:.1f}" y="{y + 12:.1f}" font-size="13" fill="#333333">'
            f"{escape(text)}</text>"
        )
        at += 20 + len(text) * 13 * _LETTER + 24
    return "\n".join([*lines, "</svg>", ""])


def _branch(branch: Branch, box: Box, colours: Mapping[str, str]) -> Iterator[str]:
    yield _rectangle(box, "#ffffff", "#ffffff", 0)
    heading = _fitting(branch.name, box.width - 8, 13)
    roomy = bool(heading) and box.height > 44
    inner = box.inset(1.5, 20 if roomy else 1.5)
    if roomy:
        yield (
            f'<text x="{box.x + 4:.1f}" y="{box.y + 15:.1f}" font-size="13" font-weight="bold" '
            f'fill="#1a1a1a">{escape(heading)}</text>'
        )
    leaves = sorted((leaf for leaf in branch.leaves if leaf.size > 0), key=lambda f: -f.size)
    for leaf, place in zip(leaves, squarify([f.size for f in leaves], inner), strict=True):
        yield f"<g><title>{escape(leaf.tip)}</title>"
        yield _rectangle(place, colours[leaf.kind], "#ffffff", 1)
        yield from _text(leaf, place)
        yield "</g>"


def _text(leaf: Leaf, box: Box) -> Iterator[str]:
    name = leaf.name.rpartition("/")[2] or leaf.name
    size = 13 if box.width > 90 else 11
    text = _fitting(name, box.width - 8, size)
    if not text or box.height < size + 6:
        return
    place = f'x="{box.x + 4:.1f}"'
    yield (
        f'<text {place} y="{box.y + size + 3:.1f}" font-size="{size}" fill="#ffffff">'
        f"{escape(text)}</text>"
    )
    second = leaf.tip.rpartition("\n")[2]
    if box.height > 2 * size + 12 and _fitting(second, box.width - 8, size - 1) == second:
        yield (
            f'<text {place} y="{box.y + 2 * size + 7:.1f}" font-size="{size - 1}" '
            f'fill="#ffffff" fill-opacity="0.85">{escape(second)}</text>'
        )


def _fitting(text: str, width: float, size: float) -> str:
    """Return ``text``, shortened to fit, or "" where too little of it would be left."""
    letters = int(width / (size * _LETTER))
    if len(text) <= letters:
        return text
    return f"{text[: letters - 1]}…" if letters >= 6 else ""


def _rectangle(box: Box, fill: str, stroke: str, width: float) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" fill="{fill}" stroke="{stroke}" stroke-width="{width:g}"/>'
    )
