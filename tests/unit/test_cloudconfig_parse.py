"""A document is read, or refused with its line. No text makes the reader fall over or run away."""

from __future__ import annotations

import gzip

import pytest

from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Items,
    Refused,
    Table,
    load,
    printable,
)
from proa.machine.cloudconfig.plan import plan, understand

HEAD = b"#cloud-config\n"


def refusal(document: bytes) -> str:
    """The only problem of a document that is refused as a whole."""
    planned = plan(document)
    assert planned.refused
    assert planned.changes == ()
    assert len(planned.problems) == 1
    return str(planned.problems[0])


def hostname(document: bytes) -> str:
    config, problems = understand(document)
    assert problems == ()
    return config.names.hostname


@pytest.mark.parametrize("nothing", [b"", b"\n \n", b"#cloud-config", b"#cloud-config\n---\n"])
def test_an_empty_document_asks_for_nothing(nothing: bytes) -> None:
    planned = plan(nothing)
    assert planned.changes == ()
    assert planned.problems == ()


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (b"hostname: a\n", "#cloud-config"),
        (b"#cloud-config foo\nhostname: a\n", "#cloud-config"),
    ],
)
def test_any_other_format_is_refused_by_its_name(document: bytes, word: str) -> None:
    assert refusal(document).startswith("line 1: error: ")
    assert word in refusal(document)


def test_windows_line_ends_a_byte_order_mark_and_gzip_are_taken() -> None:
    assert hostname(b"#cloud-config\r\nhostname: web-1\r\n") == "web-1"
    assert hostname(b"\xef\xbb\xbf#cloud-config\nhostname: web-1\n") == "web-1"
    assert hostname(gzip.compress(HEAD + b"hostname: web-1\n")) == "web-1"


def test_values_mean_what_they_look_like_whatever_yaml_would_make_of_them() -> None:
    assert hostname(HEAD + b"hostname: 0123\n") == "0123"
    assert hostname(HEAD + b"hostname: yes\n") == "yes"
    assert hostname(HEAD + b"hostname: ~\n") == ""
    assert hostname(HEAD + b'hostname: "null"\n') == "null"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"hostname: a\nhostname: b\n", 'line 3: error: the key "hostname" stands on line 2'),
        (b"ssh-authorized-keys: []\nssh_authorized_keys: []\n", "line 3: error: the key"),
        (b"users:\n\t- name: a\n", "line 3: error: YAML: a tab indents this line; use spaces"),
        (b"hostname: [a\n", "line 3: error: YAML: "),
        (b"hostname: a\0b\n", "line 2: error: the character U+0000"),
        (b"x: 1\nhostname: \xff\n", "line 3: error: this is not UTF-8 text"),
        (b'hostname: "\\ud800"\n', "line 2: error: "),
        (b"a: &a [*a]\n", "line 2: error: an alias to an anchor that is not complete"),
        (b"a: *b\n", "line 2: error: an alias to an anchor that is nowhere before it; a text that"),
        (b"a: @b\n", "line 2: error: YAML: found character that cannot start any token; a text"),
        (b"a: b: c\n", "line 2: error: YAML: mapping values are not allowed in this context; a t"),
        (b"hostname: {a: b}\n", 'line 2: error: hostname wants a text; a text with ": " in it'),
        (b"a: !!python/object/apply:os.system [id]\n", "line 2: error: the tag"),
        (b"a: !x b\n", "line 2: error: the tag !x is not taken"),
        (b"{[a]: b}\n", "line 2: error: a key must be a word"),
        (
            b"hostname: {{ v1.name }}\n",
            "line 2: error: a key must be a word; for {{ … }} the first",
        ),
        (b"a: 1\n---\nb: 1\n", "line 3: error: a second document"),
        (b"a: !!binary '*'\n", "line 2: error: !!binary"),
        (b"<<: x\n", 'line 2: error: "<<" wants a mapping'),
        (b"- a\n", "line 2: error: a cloud-config wants a mapping"),
    ],
)
def test_a_bad_document_is_refused_with_its_line_and_the_reason(
    body: bytes, complaint: str
) -> None:
    assert refusal(HEAD + body).startswith(complaint)


@pytest.mark.parametrize("opening", [b"[", b"{", b"- ", b"? ", b"[{a: "])
def test_a_megabyte_of_open_brackets_is_refused_by_its_depth(opening: bytes) -> None:
    assert "nested deeper than 32 levels" in refusal(HEAD + opening * (1_000_000 // len(opening)))


def test_a_yaml_bomb_is_refused_before_it_goes_off() -> None:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 30)
    ]
    assert "counting what aliases repeat" in refusal(HEAD + b"\n".join(lines))


def test_a_long_text_repeated_by_aliases_is_refused_too() -> None:
    files = b", ".join([b"{path: /srv/a, content: *a}"] * 1000)
    document = HEAD + b"x: &a %s\nwrite_files: [%s]\n" % (b"a" * 1_000_000, files)
    assert "counting what aliases repeat" in refusal(document)


def test_a_document_over_the_limit_is_refused_packed_or_not() -> None:
    large = HEAD + b"#" * MAX_BYTES
    assert "larger than 2048 KiB" in refusal(large)
    assert "larger than 2048 KiB" in refusal(gzip.compress(bytes(50_000_000)))


@pytest.mark.parametrize("damage", [slice(0, 12), slice(0, -9)])
def test_damaged_gzip_is_refused(damage: slice) -> None:
    assert "gzip" in refusal(gzip.compress(HEAD + b"hostname: web-1\n" * 9)[damage])


def test_aliases_and_merge_keys_work_and_what_is_written_out_wins() -> None:
    common = b"x: &x {permissions: '0600', owner: core}\n"
    files = b"write_files:\n- {<<: *x, path: /srv/a, owner: root}\n"
    config, _ = understand(HEAD + common + files)
    assert (config.write_files[0].mode, config.write_files[0].owner) == (0o600, "root")


def test_every_value_knows_its_line_and_column() -> None:
    root = load("a:\n  - b\n  - c\n")
    assert isinstance(root, Table)
    items = root.entries[0][1]
    assert isinstance(items, Items)
    assert [(item.line, item.column) for item in items.items] == [(2, 5), (3, 5)]


def test_a_yaml_error_knows_its_line_and_column() -> None:
    with pytest.raises(Refused) as refused:
        load("a: 1\n  b: 2\n")
    assert (refused.value.problem.line, refused.value.problem.column) == (2, 4)


def test_text_for_the_console_holds_no_control_characters() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\ufffd[2Jb\ufffdc"
    assert len(printable("x" * 1000)) == 60


@pytest.mark.parametrize(
    "body",
    [
        b"hostname: ~\n",
        b"a: [" * 9999,
        b"a: \t@\n",
        b"? a\n",
        b'a: "\\UFFFFFFFF"\n',
        b"a: b: c",
    ],
)
def test_without_libyaml_the_answer_is_the_same(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    with_libyaml = plan(HEAD + body)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    without = plan(HEAD + body)
    assert (without.refused, without.changes) == (with_libyaml.refused, with_libyaml.changes)
