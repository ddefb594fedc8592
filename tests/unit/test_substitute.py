"""CoreOS's words for addresses become addresses, never anything else, and no line moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.substitute import NAMES, substitute

ADDRESSES = {
    "public_ipv4": "192.0.2.1",
    "private_ipv4": "10.0.0.1",
    "public_ipv6": "2001:db8::1",
    "private_ipv6": "fd00::1",
}


def put_in(text: str) -> str:
    made, problems = substitute(text, ADDRESSES, {})
    assert problems == ()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_each_word_becomes_the_address_of_its_name(name: str) -> None:
    assert put_in(f"a: ${name}:2379\n") == f"a: {ADDRESSES[name]}:2379\n"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("$private_ipv4", "10.0.0.1"),
        ("$private_ipv4$private_ipv4", "10.0.0.110.0.0.1"),
        ("$private_ipv4$public_ipv4", "10.0.0.1192.0.2.1"),
        ("\\$private_ipv4", "$private_ipv4"),
        ("\\$private_ipv4$private_ipv4", "$private_ipv410.0.0.1"),
        ("\\\\$private_ipv4", "\\$private_ipv4"),
        ("$private_ipv4_x", "10.0.0.1_x"),
        ("${private_ipv4}", "${private_ipv4}"),
        (
            "$private_ipv5 $PRIVATE_IPV4 private_ipv4 $",
            "$private_ipv5 $PRIVATE_IPV4 private_ipv4 $",
        ),
    ],
)
def test_the_words_are_found_as_coreos_found_them(text: str, made: str) -> None:
    assert put_in(text) == made


def test_the_environment_gives_what_the_cloud_does_not() -> None:
    environment = {"COREOS_PRIVATE_IPV4": "10.0.0.2", "COREOS_PUBLIC_IPV4": "192.0.2.2"}
    made, problems = substitute(
        "$private_ipv4 $public_ipv4", {"public_ipv4": "192.0.2.1"}, environment
    )
    assert made == "10.0.0.2 192.0.2.1"
    assert problems == ()


def test_a_word_without_a_value_becomes_nothing_and_is_told_once_with_its_line() -> None:
    made, problems = substitute("a\nb: $public_ipv6\nc: $public_ipv6\n", {}, {})
    assert made == "a\nb: \nc: \n"
    assert [str(problem) for problem in problems] == [
        "line 2: warning: $public_ipv6 has no value on this machine; the empty text stands in its"
        " place"
    ]
    assert problems[0].column == 4


def test_a_word_in_a_remark_is_not_worth_a_warning() -> None:
    assert substitute("# $public_ipv6\n  #$public_ipv6\n", {}, {}) == ("# \n  #\n", ())
    _, problems = substitute("# $public_ipv6\na: $public_ipv6\n", {}, {})
    assert [(problem.line, problem.column) for problem in problems] == [(2, 4)]


@pytest.mark.parametrize(
    "lie",
    [
        "10.0.0.1\nusers: [{name: mallory}]",
        "10.0.0.1 ",
        "10.0.0.1\0",
        "10.1",
        "010.0.0.1",
        "fd00::1",
        "$public_ipv4",
        "example.com",
        "１０.0.0.1",
        "x" * 1_000_000,
    ],
)
def test_a_service_that_lies_about_an_address_gets_nothing_into_the_document(lie: str) -> None:
    made, problems = substitute("a: $private_ipv4\n", {"private_ipv4": lie}, {})
    assert made == "a: \n"
    told = "\n".join(map(str, problems))
    assert "what the cloud gives is not such an address; not taken" in told
    assert "mallory" not in told


def test_an_address_that_would_be_a_key_in_yaml_is_not_put_in() -> None:
    made, problems = substitute("a: $public_ipv6\n", {"public_ipv6": "2001:db8::"}, {})
    assert made == "a: \n"
    assert "not such an address" in str(problems[0])


def test_a_bad_value_of_the_cloud_leaves_room_for_a_good_one_of_the_environment() -> None:
    good = {"COREOS_PRIVATE_IPV4": "10.0.0.2"}
    assert substitute("$private_ipv4", {"private_ipv4": "?"}, good)[0] == "10.0.0.2"
    bad = {"COREOS_PRIVATE_IPV4": "?"}
    assert "what COREOS_PRIVATE_IPV4 gives" in str(substitute("$private_ipv4", {}, bad)[1][0])


@given(
    st.lists(st.sampled_from([*(f"${name}" for name in NAMES), "\\", "\n", "$", "x", " "])),
    st.dictionaries(st.sampled_from(NAMES), st.text() | st.just("10.0.0.1")),
)
def test_no_text_and_no_value_ever_changes_the_number_of_lines(
    words: list[str], addresses: dict[str, str]
) -> None:
    text = "".join(words)
    made, _ = substitute(text, addresses, {})
    assert made.count("\n") == text.count("\n")
