"""All that the owner and the vendor hand over comes to one tree, an order of scripts, and problems
that name the part and the line; and whatever the bytes are, there is an answer."""

from __future__ import annotations

import base64
import gzip
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz import documents
from fuzz.documents import CONFIG, SCRIPT, check, message
from proa.machine.cloudconfig.assemble import Assembled, assemble
from proa.machine.cloudconfig.document import read
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Items, Node, Problem, Refused, Table, Text

METADATA = Metadata(instance_id="i-1", addresses={"private_ipv4": "10.0.0.1"}, region="here")


def plain(node: Node | None) -> object:
    match node:
        case Text():
            return None if node.null else node.text
        case Items():
            return [plain(item) for item in node.items]
        case Table():
            return {key.text: plain(value) for key, value in node.entries}
    return None


def good(assembled: Assembled) -> Assembled:
    assert assembled.problems == ()
    return assembled


def tree(data: bytes, vendor: bytes | None = None) -> object:
    return plain(good(assemble(data, vendor, METADATA)).root)


# One document.


def test_a_single_cloud_config_keeps_its_lines() -> None:
    assembled = good(assemble(b"\n\n" + CONFIG))
    assert isinstance(assembled.root, Table)
    assert assembled.root.entries[0][0].line == 4
    problem = Problem("warning", "a", 4, 1)
    assert assembled.told(problem) == problem


@pytest.mark.parametrize("nothing", [None, b"", b"#cloud-config\n", gzip.compress(b"")])
def test_nothing_asks_for_nothing(nothing: bytes | None) -> None:
    assert good(assemble(nothing, nothing)) == Assembled(places=assemble(nothing).places)


def test_words_for_addresses_are_put_in_before_the_yaml_is_read() -> None:
    assert tree(b"#cloud-config\na: $private_ipv4\nb: \\$private_ipv4\n") == {
        "a": "10.0.0.1",
        "b": "$private_ipv4",
    }
    (problem,) = assemble(b"#cloud-config\na: 1\nb: $public_ipv4\n").problems
    assert str(problem).startswith("line 3: warning: $public_ipv4 has no value")


def test_a_script_alone_has_the_words_put_in_as_coreos_did_and_other_scripts_do_not() -> None:
    script = b"#!/bin/sh\necho $private_ipv4 \xff\n"
    alone = good(assemble(script, None, METADATA))
    assert [s.content for s in alone.scripts] == [b"#!/bin/sh\necho 10.0.0.1 \xff\n"]
    part = good(assemble(message(b"\n" + script), None, METADATA))
    assert [s.content for s in part.scripts] == [script.rstrip(b"\n") + b"\n"]


def test_ignition_and_butane_are_handed_on_as_text() -> None:
    text = '{"ignition": {"version": "3.4.0"}}'
    ignition = good(assemble(text.encode())).ignition
    assert ignition is not None and ignition.text == text
    butane = good(assemble(b"variant: fcos\nversion: 1.5.0\n")).butane
    assert butane is not None and butane.text.startswith("variant: fcos")
    both = message(b"\nvariant: fcos\n", b"\n" + text.encode())
    assert "write one" in str(assemble(both).problems[0])


# Several.


def test_parts_are_merged_in_their_order() -> None:
    data = message(
        b"\n#cloud-config\nhostname: a\nruncmd: [a]",
        b"\n#cloud-config\nhostname: b",
        b"Merge-Type: list(append)+dict(recurse_list)\n\n#cloud-config\nruncmd: [b]",
    )
    assert tree(data) == {"hostname": "b", "runcmd": ["a", "b"]}


def test_the_word_that_says_how_to_merge_is_no_key_of_the_result() -> None:
    assert tree(b"#cloud-config\nmerge_how: dict(replace)\nhostname: a\n") == {"hostname": "a"}


def test_a_problem_in_any_part_is_told_with_its_line_in_the_whole_document() -> None:
    coded = base64.b64encode(b"#cloud-config\n\nhostname: a\nthird_zzz: 1\n")
    data = message(
        b"\n#cloud-config\nfirst_zzz: a",
        b"Content-Disposition: attachment; filename=b.yaml\n\n#cloud-config\nsecond_zzz: a",
        b"Content-Transfer-Encoding: base64\n\n" + coded,
    )
    assembled = good(assemble(data))
    _, problems = read(assembled.root)
    assert [str(assembled.told(problem)) for problem in problems] == [
        "line 7: warning: part 1: first_zzz is not a known key; ignored",
        "line 12: warning: part 2 (b.yaml): second_zzz is not a known key; ignored",
        "line 14: warning: part 3, line 4: third_zzz is not a known key; ignored",
    ]


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (b"hostname: [a", "line 12: error: part 2: YAML: "),
        (b"a: 1\na: 2", 'line 12: error: part 2: the key "a" stands on line 2 already'),
        (b"\ta: 1", "line 11: error: part 2: YAML: a tab indents this line; use spaces"),
        (b"a: \0", "line 11: error: part 2: the character U+0000"),
        (b"a: 1\nb: \xff", "line 12: error: part 2: this is not UTF-8 text"),
        (b"a: &a [*a]", "line 11: error: part 2: an alias to an anchor that is not complete"),
        (b"- a", "line 11: error: part 2: a cloud-config wants a mapping"),
        (b"[" * 500, "line 11: error: part 2: nested deeper than 32 levels"),
    ],
)
def test_a_bad_part_refuses_the_whole_and_says_where(part: bytes, complaint: str) -> None:
    data = message(b"\n#cloud-config\nhostname: a", b"\n#cloud-config\n" + part)
    assembled = assemble(data)
    assert assembled.refused
    assert str(assembled.problems[0]).startswith(complaint)


def test_windows_line_ends_change_no_line_number() -> None:
    data = message(b"\n#cloud-config\nzzz: a").replace(b"\n", b"\r\n")
    assembled = good(assemble(data))
    (problem,) = read(assembled.root)[1]
    assert assembled.told(problem).line == 7


def test_scripts_have_names_and_keep_the_order_of_the_document() -> None:
    data = message(
        b"Content-Type: text/x-shellscript-per-boot\n\n" + SCRIPT,
        b'Content-Disposition: attachment; filename="a.sh"\n\n' + SCRIPT,
        b"\n#cloud-boothook\n" + SCRIPT,
    )
    assembled = good(assemble(data))
    assert [(s.name, s.frequency) for s in assembled.scripts] == [
        ("part-001", "per-boot"),
        ("a.sh", "per-instance"),
    ]
    assert [(s.name, s.frequency) for s in assembled.boothooks] == [("part-003", "per-boot")]


def test_no_two_scripts_have_one_name() -> None:
    named = b"Content-Disposition: attachment; filename=%s\n\n" + SCRIPT
    data = message(named % b"a", named % b"a", named % b"part-004", b"\n" + SCRIPT)
    assembled = good(assemble(data, message(named % b"a", b"\n#cloud-boothook\n" + SCRIPT)))
    assert [s.name for s in assembled.scripts] == ["vendor-a", "a", "a-2", "part-004", "part-004-2"]
    assert [s.name for s in assembled.boothooks] == ["vendor-part-002"]


def test_a_script_that_is_named_like_a_key_is_not_taken_for_it() -> None:
    named = b"Content-Disposition: attachment; filename=runcmd\n\n" + SCRIPT
    assembled = good(assemble(message(named, b"\n#cloud-config\nruncmd: [a]")))
    assert [s.name for s in assembled.scripts] == ["runcmd-2"]


# Vendor-data.


def test_the_owner_wins_over_the_vendor_whose_scripts_run_first() -> None:
    user = message(b"\n" + CONFIG, b"\n#!/bin/sh\nuser")
    vendor = message(b"\n#cloud-config\nhostname: v\nlocale: C", b"\n#!/bin/sh\nvendor")
    assembled = good(assemble(user, vendor))
    assert plain(assembled.root) == {"hostname": "web-1", "locale": "C"}
    assert [s.content.split()[-1] for s in assembled.scripts] == [b"vendor", b"user"]


def test_an_error_of_the_vendor_is_a_warning_and_leaves_all_of_it_out() -> None:
    vendor = message(b"\n#cloud-config\nlocale: C", b"\n" + SCRIPT, b"\n#cloud-config\n[")
    assembled = assemble(CONFIG, vendor)
    assert not assembled.refused
    assert plain(assembled.root) == {"hostname": "web-1"}
    assert assembled.scripts == ()
    assert str(assembled.problems[0]).startswith("line 17: warning: vendor-data, part 3: YAML: ")
    assert str(assembled.problems[0]).endswith("; all vendor-data is left out")


def test_a_vendor_who_brings_too_much_for_both_together_is_left_out() -> None:
    many = b"#cloud-config\n%s: [" + b"x, " * 60_000 + b"]\n"
    assembled = assemble(many % b"a", message(b"\n" + many % b"b", b"\n" + SCRIPT))
    assert str(assembled.problems[0]) == (
        "warning: vendor-data: too much content in all the parts together;"
        " all vendor-data is left out"
    )
    assert not assembled.refused
    assert assembled.scripts == ()
    assert list(plain(assembled.root)) == ["a"]  # type: ignore[call-overload]


def test_a_problem_in_the_vendors_tree_says_that_it_is_the_vendors() -> None:
    assembled = good(assemble(CONFIG, b"#cloud-config\n\nzzz: 1\n"))
    (problem,) = read(assembled.root)[1]
    assert str(assembled.told(problem)).startswith("line 3: warning: vendor-data: zzz is not")
    assert assembled.of_vendor(problem)
    assert not assembled.of_vendor(Problem("warning", "a", 2))


def test_the_owner_may_refuse_vendor_data() -> None:
    user = b"#cloud-config\nvendor_data: {enabled: false}\n"
    assert tree(user, b"#cloud-config\nlocale: C\n") == {}
    assert tree(user.replace(b"false", b"true"), b"#cloud-config\nlocale: C\n") == {"locale": "C"}


def test_ignition_from_the_vendor_is_not_taken() -> None:
    assembled = assemble(CONFIG, b'{"ignition": {"version": "3.4.0"}}')
    assert assembled.ignition is None
    assert "is taken from user-data only" in str(assembled.problems[0])


# Templates.


def test_a_template_becomes_what_its_second_line_says() -> None:
    data = b"## template: jinja\n#cloud-config\nregion: {{ v1.region }}\na: $private_ipv4\n"
    assert tree(data) == {"region": "here", "a": "10.0.0.1"}
    script = good(assemble(b"## template: jinja\n#!/bin/sh\necho {{ region }}", None, METADATA))
    assert [s.content for s in script.scripts] == [b"#!/bin/sh\necho here"]
    hook = b"## template: jinja\n#cloud-boothook\n#!/bin/sh\n{{ region }}"
    assert [h.content for h in assemble(hook, None, METADATA).boothooks] == [b"#!/bin/sh\nhere"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"#cloud-config\n{{ v1.nothing }}: 1", 'line 3: warning: template: "nothing" is not kno'),
        (b"#cloud-config\n{{", "line 3: error: template: unexpected"),
        (
            b"#cloud-config\n{% if 1 %}\n\n{% endif %}\na: [",
            "the template, filled in, line 5: YAML",
        ),
        (b"hostname: a", "the template, filled in, line 2: the first line is not"),
        (b"variant: fcos", "may become a cloud-config or a script, not a Butane config"),
        (b"## template: jinja", "not another template"),
        (b"{{ '\\ud800' }}", "the first line is not"),
    ],
)
def test_what_is_wrong_with_a_template_is_told_with_its_line(body: bytes, complaint: str) -> None:
    problems = assemble(b"## template: jinja\n" + body).problems
    assert any(complaint in str(problem) for problem in problems), problems


def test_a_cloud_that_lies_in_its_metadata_writes_no_line_of_a_config_without_a_template() -> None:
    lie = Metadata(hostname="a\nusers: [{name: mallory}]", addresses={"private_ipv4": "a\nb: c"})
    assembled = assemble(b"#cloud-config\na: $private_ipv4\n", None, lie)
    assert plain(assembled.root) == {"a": None}


# Includes.


def test_what_waits_for_the_network_is_told_and_comes_with_it() -> None:
    data = message(b"\n" + CONFIG, b"\n#include\nhttp://example.com/a")
    first = good(assemble(data))
    assert first.needs_network
    assert plain(first.root) == {"hostname": "web-1"}
    later = good(assemble(data, fetch=lambda url: b"#cloud-config\nlocale: C\n"))
    assert not later.needs_network
    assert plain(later.root) == {"hostname": "web-1", "locale": "C"}


def test_what_was_included_once_comes_back_to_be_kept_from_either_side() -> None:
    data = b"#include-once\nhttp://example.com/"
    assembled = assemble(data + b"u", data + b"v", fetch=lambda url: CONFIG)
    assert set(assembled.once) == {"http://example.com/u", "http://example.com/v"}
    assert good(assemble(data + b"u", None, kept=assembled.once)).root is not None


# Whatever the bytes are.


def test_an_everyday_document_loads_no_code_for_rare_forms() -> None:
    code = (
        "import sys; from proa.machine.cloudconfig.assemble import assemble;"
        f"assert assemble({CONFIG!r}, {SCRIPT!r}).root is not None;"
        "rare = {'email', 'jinja2', 'proa.machine.cloudconfig.mime',"
        " 'proa.machine.cloudconfig.template'};"
        "sys.exit(str(rare & sys.modules.keys()) if rare & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_secret_is_in_the_text_of_what_was_assembled() -> None:
    data = message(b"\n#cloud-config\nhostname: secret", b"\n#!/bin/sh\nsecret")
    assembled = assemble(data, b"#include-once\nhttp://example.com/", fetch=lambda url: b"#secret")
    assert "secret" not in repr(assembled)


def test_a_yaml_bomb_in_an_archive_is_refused_before_it_goes_off() -> None:
    lines = [b"- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [b"- &a%d [%s]" % (n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 30)]
    assembled = assemble(b"#cloud-config-archive\n" + b"\n".join(lines))
    assert "counting what aliases repeat" in str(assembled.problems[0])


_pieces = st.sampled_from(
    [
        *(
            CONFIG,
            SCRIPT,
            b"#include\nhttp://example.com/a\n",
            b"#include-once\n",
            b"#cloud-boothook",
        ),
        *(b"#cloud-config-archive\n- ", b"## template: jinja\n", b"{{ v1.region }}", b"{% for %}"),
        *(
            b"Content-Type: multipart/mixed; boundary=X\n\n",
            b"\n--X\n",
            b"\n--X--\n",
            b"MIME-Version:",
        ),
        *(b"Content-Transfer-Encoding: base64\n", b"Content-Type: ", b"text/cloud-config", b"\n\n"),
        *(b'{"ignition": {', b"variant: fcos\n", b"\x1f\x8b\x08", b"\xff", b"\0", b"\r\n", b"\t"),
        *(b"merge_how: list(append)+dict()\n", b"a: [", b"&a *a", b"$private_ipv4", b"<<: ", b"- "),
        *(
            b"vendor_data: {enabled: no}\n",
            b"'",
            b'"',
            b"!!binary ",
            b"filename*=utf-8''%ff",
            b"=?",
        ),
        *(gzip.compress(CONFIG), base64.b64encode(CONFIG), b"Content-Disposition: a; filename="),
    ]
)
_documents = st.binary(max_size=60) | st.lists(_pieces | st.binary(max_size=4), max_size=12).map(
    b"".join
)


def answer(url: str) -> bytes:
    raise Refused("there is none")


@settings(max_examples=300, deadline=None)
@given(_documents, st.none() | _documents, st.booleans())
@example(message(b"\n", b"", b"Content-Type: text/x-shellscript\n"), None, False)
@example(b"#cloud-config-archive\n- content: ''\n  type: '\\ud800'", None, False)
@example(b"Content-Type: multipart/mixed; boundary*=utf-8''%ff\n\n--\xff\n\n--\xff--", None, False)
def test_any_bytes_have_an_answer_whose_problems_can_be_told(
    data: bytes, vendor: bytes | None, online: bool
) -> None:
    assembled = check(data, vendor, answer if online else None)
    # Gzip and base64 hide some lines, two in a piece.
    lines = max(data.count(b"\n"), (vendor or b"").count(b"\n")) + 2 * 12 + 2
    for problem in assembled.problems:
        assert problem.line <= lines


def test_nothing_that_the_fuzzer_found_is_without_an_answer() -> None:
    ended = {documents.one(file.read_bytes()) for file in sorted(documents.CORPUS.iterdir())}
    assert ended == {"refused", "waits", "taken"}
