"""A tree map's areas are the sizes, and the picture is well formed."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.factory import treemap
from proa.factory.treemap import Box, Branch, Leaf

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.floats(1, 1e6), min_size=1, max_size=40).map(lambda s: sorted(s, reverse=True)),
    st.floats(50, 2000),
    st.floats(50, 2000),
)
def test_boxes_have_the_area_of_their_size_lie_inside_and_do_not_overlap(
    sizes: list[float], width: float, height: float
) -> None:
    boxes = treemap.squarify(sizes, Box(10, 20, width, height))
    scale = width * height / sum(sizes)
    for size, box in zip(sizes, boxes, strict=True):
        assert box.width * box.height == pytest.approx(size * scale, rel=1e-6)
        assert box.x >= 10 - 1e-6
        assert box.y >= 20 - 1e-6
        assert box.x + box.width <= 10 + width + 1e-6
        assert box.y + box.height <= 20 + height + 1e-6
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(across, down) <= 1e-6


def test_a_picture_shows_each_leaf_once_and_names_the_kinds_that_occur() -> None:
    leaves = [Leaf("a/<b>&c", 70, "new", "a/<b>&c\n70"), Leaf("d", 30, "old", "d\n30")]
    nothing = Branch("empty", [Leaf("zero", 0, "new", "zero\n0")])
    colours = {"new": "#111111", "old": "#222222", "none": "#333333"}
    text = treemap.draw(
        "A & B", "sub", [Branch("p", leaves), nothing], colours, {"new": "new 70 %"}
    )
    root = ElementTree.fromstring(text)  # noqa: S314
    assert [title.text for title in root.iter(f"{SVG}title")] == ["a/<b>&c\n70", "d\n30"]
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"A & B", "p", "new 70 %", "old"} <= {*words}
    assert "none" not in words
    areas = {
        box.get("fill"): float(box.get("width", 0)) * float(box.get("height", 0))
        for group in root.iter(f"{SVG}g")
        for box in group.iter(f"{SVG}rect")
    }
    assert areas["#111111"] / areas["#222222"] == pytest.approx(70 / 30, rel=0.01)
