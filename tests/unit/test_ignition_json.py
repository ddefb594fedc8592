"""JSON is read as strictly as by Python's own reader, and each value has its line and column."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.jsontext import load_json
from proa.machine.cloudconfig.parse import Items, Node, Refused, Table, Text


def plain(node: Node) -> Any:
    """The Python value of a tree, as json.loads would give it."""
    match node:
        case Table(entries):
            return {key.text: plain(value) for key, value in entries}
        case Items(items):
            return [plain(item) for item in items]
        case Text(text, plain=True):
            return json.loads(text)
        case _:
            return node.text


def refusal(text: str) -> str:
    with pytest.raises(Refused) as caught:
        load_json(text)
    problem = caught.value.problem
    return f"{problem.line}:{problem.column} {problem.message}"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_whatever_json_says_is_read_as_it_says(value: Any, ascii: bool, indent: Any) -> None:
    assert plain(load_json(json.dumps(value, ensure_ascii=ascii, indent=indent))) == value


@given(st.text(alphabet='{}[]:," \n\\u0d8e1-.trufalsn', max_size=30))
def test_what_is_taken_is_json(text: str) -> None:
    try:
        tree = load_json(text)
    except Refused:
        return
    assert plain(tree) == json.loads(text)


def test_escapes_and_pairs_of_surrogates_make_characters() -> None:
    assert load_json(r'"a\/b \uD83D\uDE00 \u00e9 \n"') == Text("a/b \U0001f600 é \n", 1, 1)


def test_white_space_may_be_anywhere_and_may_be_tabs() -> None:
    assert plain(load_json('\n{\t"a"\n:\n\t1 , "b":[ ]}\n')) == {"a": 1, "b": []}


def test_a_number_stays_as_it_was_written_and_a_string_is_no_number() -> None:
    assert load_json("420") == Text("420", 1, 1, plain=True)
    assert load_json('"420"') == Text("420", 1, 1)
    assert load_json('"null"') != load_json("null")


def test_every_value_knows_its_line_and_column() -> None:
    tree = load_json('{"a": 1,\n  "b": ["x",\n "y"]}')
    assert isinstance(tree, Table)
    (_, one), (key, two) = tree.entries
    assert isinstance(two, Items)
    assert [(n.line, n.column) for n in (one, key, two, *two.items)] == [
        *((1, 7), (2, 3), (2, 8), (2, 9), (3, 2))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1 JSON: a value should stand here"),
        ('{"a": 1,\n "a": 2}', '2:2 the key "a" stands on line 1 already'),
        ('{"a": 1,}', '1:9 JSON: a comma before "}"'),
        ('{"a" 1}', '1:6 JSON: ":" should stand here'),
        ('{"a": 1\n "b": 2}', '2:2 JSON: "," or "}" should stand here'),
        ("{a: 1}", "1:2 JSON: a key in quotes should stand here"),
        ("[1] 2", "1:5 JSON: something follows the end of the document"),
        ("[0644]", "1:2 JSON: a value should stand here"),
        ("[yes]", "1:2 JSON: a value should stand here"),
        ('["a\nb"]', "1:2 JSON: a string that does not end on its line"),
        (r'["\x41"]', "1:2 JSON: an escape in this string is not known"),
        (r'["\ud83d"]', "1:2 half of a surrogate pair is not a character"),
        ('// comment\n{"a": 1}', "1:1 JSON: a value should stand here"),
        ("[" * 100, "1:33 nested deeper than 32 levels"),
        ("[" + "1," * 100_001 + "1]", "1:200001 too much content"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place_and_the_reason(text: str, expected: str) -> None:
    assert refusal(text) == expected


def test_a_string_without_end_is_refused_at_once() -> None:
    assert "does not end" in refusal('"' + "a\\\\" * 500_000)
