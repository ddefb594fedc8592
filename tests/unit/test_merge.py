"""Several cloud-configs become one as cloud-init merges them, and every value keeps its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.merge import FIRST_WINS, REPLACING, merge, moved, taken_out
from proa.machine.cloudconfig.parse import Items, Node, Refused, Table, Text, load


def tree(text: str) -> Table:
    root = load(text)
    assert isinstance(root, Table)
    return root


def plain(node: Node) -> object:
    match node:
        case Text():
            return None if node.null else node.text
        case Items():
            return [plain(item) for item in node.items]
        case Table():
            return {key.text: plain(value) for key, value in node.entries}


def merged(old: str, new: str, header: str = "") -> object:
    """What cloud-init makes of two parts, ``new`` after ``old``."""
    part, how, problems = taken_out(tree(new), header)
    assert problems == ()
    return plain(merge(tree(old), part, how))


def test_without_a_word_the_keys_of_a_later_part_take_the_place_of_earlier_ones() -> None:
    assert merged("{a: 1, b: {c: 1}, d: [1]}", "{b: {e: 2}, d: [2], f: 2}") == {
        "a": "1",
        "b": {"e": "2"},
        "d": ["2"],
        "f": "2",
    }


@pytest.mark.parametrize(
    ("how", "result"),
    [
        ("list(append)+dict(recurse_list)+str()", ["1", "2", "3"]),
        ("list(prepend)+dict(recurse_array)+str()", ["3", "1", "2"]),
        ("list()+dict(recurse_list)+str()", ["3", "2"]),
        ("list(replace)+dict(recurse_list)", ["3", "2"]),
        ("list(no_replace)+dict(recurse_list)", ["1", "2"]),
        ("list(append)+dict()", ["1", "2"]),
        ("dict(no_replace,recurse_list)", ["1", "2"]),
        ("dict(replace)", ["3"]),
    ],
)
def test_lists_are_merged_as_the_part_says(how: str, result: list[str]) -> None:
    assert merged("runcmd: [1, 2]", f"runcmd: [3]\nmerge_how: {how}") == {"runcmd": result}


def test_the_example_of_cloud_inits_documentation_joins_the_lists() -> None:
    how = """
merge_how:
 - name: list
   settings: [append]
 - name: dict
   settings: [no_replace, recurse_list]
"""
    assert merged(f"runcmd: [bash1, bash2]{how}", f"runcmd: [bash3, bash4]{how}") == {
        "runcmd": ["bash1", "bash2", "bash3", "bash4"],
        "merge_how": [
            {"name": "list", "settings": ["append"]},
            {"name": "dict", "settings": ["no_replace", "recurse_list"]},
        ],
    }


@pytest.mark.parametrize(
    "way",
    [
        "merge_how: list(append)+dict(recurse_list)+str()",
        "merge_type: list(append)+dict(recurse_list)+str()",
        "merge-how: ' List(Append) + Dict(Recurse_List)'",
        "merge_how: [[list, append], [dict, recurse_list]]",
    ],
)
def test_the_way_is_written_in_any_of_cloud_inits_forms(way: str) -> None:
    assert merged("a: [1]", f"a: [2]\n{way}") == {"a": ["1", "2"]}


def test_the_head_of_a_mime_part_says_it_too_and_the_part_itself_goes_before() -> None:
    assert merged("a: [1]", "a: [2]", "list(append)+dict(recurse_list)") == {"a": ["1", "2"]}
    own = "a: [2]\nmerge_how: dict(replace)"
    assert merged("a: [1]", own, "list(append)+dict(recurse_list)") == {"a": ["2"]}


@pytest.mark.parametrize(
    ("old", "new", "how", "result"),
    [
        ("{a: {b: 1}}", "{a: {b: 2, c: 2}}", "dict()", {"a": {"b": "1", "c": "2"}}),
        ("{a: {b: 1}}", "{a: {b: 2, c: 2}}", "dict(replace)", {"a": {"b": "2", "c": "2"}}),
        ("{a: x, b: y}", "{a: z}", "dict(recurse_str)+str(append)", {"a": "xz", "b": "y"}),
        ("{a: x}", "{a: z}", "dict(recurse_str)+str()", {"a": "z"}),
        ("{a: x}", "{a: z}", "dict(recurse_str)", {"a": "x"}),
        ("{a: x}", "{a: [z]}", "dict(recurse_list)+str()", {"a": ["z"]}),
        ("{a: x}", "{a: [z]}", "dict(recurse_list)+str(append)", {"a": "x"}),
        ("{a: x, b: y}", "{a: ~}", "dict(allow_delete)", {"b": "y"}),
        ("{a: x}", "{a: ~}", "dict()", {"a": "x"}),
        ("{a: [x]}", "{a: z}", "dict(recurse_str)+list()", {"a": "z"}),
        ("{a: [x]}", "{a: z}", "dict(recurse_str)+list(append)", {"a": ["x"]}),
        ("{a: [{b: 1}]}", "{a: [{c: 2}]}", "dict(recurse_list)+list()", {"a": [{"c": "2"}]}),
        (
            "{a: [{b: 1}]}",
            "{a: [{c: 2}]}",
            "dict(recurse_list)+list(recurse_dict)",
            {"a": [{"b": "1", "c": "2"}]},
        ),
        ("{a-b: {c: 1}}", "{a_b: {d: 2}}", "dict()", {"a-b": {"c": "1", "d": "2"}}),
    ],
)
def test_mappings_and_texts_are_merged_as_the_part_says(
    old: str, new: str, how: str, result: object
) -> None:
    assert merged(old, f"{new[:-1]}, merge_how: '{how}'}}") == result


@pytest.mark.parametrize(
    ("way", "complaint"),
    [
        ("merge_how: set(append)+dict()", '"set" is not a way to merge: dict, list and str are'),
        ("merge_how: dict(recurse)", 'dict has no setting "recurse"; ignored'),
        ("merge_how: append", '"append" is not of the form name(setting,…)'),
        ("merge_how: list(append)", 'no "dict" is named; taken as dict()'),
        ("merge_how: [append]", "an item has no name; ignored"),
        ("merge_how: [{settings: [append]}]", "an item has no name; ignored"),
        ("merge_how: {list: append}", "wants a text or a list"),
    ],
)
def test_what_is_not_understood_is_told_with_its_line(way: str, complaint: str) -> None:
    rest, _, problems = taken_out(tree(f"a: 1\n{way}"))
    assert str(problems[0]) == f"line 2: warning: merge_how: {complaint}"
    assert plain(rest) == {"a": "1"}


def test_many_complaints_about_one_way_are_cut_short() -> None:
    _, _, problems = taken_out(tree(f"merge_how: {'a+' * 10_000}"))
    assert [problem.message for problem in problems[-1:]] == ["merge_how: and more of the kind"]
    assert len(problems) == 11


def test_vendor_data_fills_in_what_the_owner_does_not_say() -> None:
    user = tree("{hostname: web, users: [a], coreos: {update: {group: alpha}}}")
    vendor = tree("{hostname: v, users: [b], coreos: {update: {group: x, server: y}}, locale: C}")
    assert plain(merge(user, vendor, FIRST_WINS)) == {
        "hostname": "web",
        "users": ["a"],
        "coreos": {"update": {"group": "alpha", "server": "y"}},
        "locale": "C",
    }


def test_every_value_keeps_its_line_and_a_moved_tree_has_others() -> None:
    both = merge(tree("a: 1\nb: 2"), moved(tree("c:\n- 3"), 10), REPLACING)
    assert isinstance(both, Table)
    assert [key.line for key, _ in both.entries] == [1, 2, 11]
    (item,) = both.entries[2][1].items  # type: ignore[union-attr]
    assert item.line == 12


def test_what_aliases_repeat_is_moved_once_and_not_multiplied() -> None:
    root = moved(tree("a: &a [x, y]\nb: [*a, *a]"), 5)
    assert isinstance(root, Table)
    repeated = root.entries[1][1]
    assert isinstance(repeated, Items)
    assert repeated.items[0] is repeated.items[1] is root.entries[0][1]


def test_parts_that_are_small_alone_and_too_much_together_are_refused() -> None:
    way = "merge_how: list(append)+dict(recurse_list)"
    part, how, _ = taken_out(tree(f"a: [{'x, ' * 60_000}]\n{way}"))
    with pytest.raises(Refused, match="too much content in all the parts together"):
        merge(part, part, how)


nodes = st.recursive(
    st.sampled_from(["x", "y", "~"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(
            lambda entries: "{" + ", ".join(f"{k}: {v}" for k, v in entries.items()) + "}"
        )
    ),
    max_leaves=8,
)
tables = st.dictionaries(st.sampled_from("abc"), nodes).map(
    lambda entries: "\n".join(f"{key}: {value}" for key, value in entries.items()) or "a: 1"
)
settings = st.lists(
    st.sampled_from(
        [
            *("replace", "no_replace", "append", "prepend", "allow_delete"),
            *("recurse_dict", "recurse_list", "recurse_str"),
        ]
    )
).map(",".join)


@given(tables, tables, settings, settings, settings)
def test_any_two_parts_merge_and_the_weight_is_that_of_the_tree(
    old: str, new: str, lists: str, mappings: str, strings: str
) -> None:
    part, how, _ = taken_out(tree(new), f"list({lists})+dict({mappings})+str({strings})")
    both = merge(tree(old), part, how)
    assert both.weight == _weight(both)


def _weight(node: Node) -> int:
    match node:
        case Text():
            return node.weight
        case Items():
            return 1 + sum(map(_weight, node.items))
        case Table():
            return 1 + sum(_weight(key) + _weight(value) for key, value in node.entries)
