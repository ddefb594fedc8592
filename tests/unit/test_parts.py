"""What a cloud hands over is taken apart into what its first lines and types say, and no bytes
make that fall over, run away or drop something without a word."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest

from proa.machine.cloudconfig.parse import MAX_BYTES, Refused
from proa.machine.cloudconfig.parts import (
    MAX_FETCHES,
    MAX_PARTS,
    Parts,
    file_name,
    take_apart,
    without_secrets,
)

CONFIG = b"#cloud-config\nhostname: a\n"
SCRIPT = b"#!/bin/sh\necho a\n"


def kinds(data: bytes, fetch: Callable[[str], bytes] | None = None) -> list[str]:
    """The kinds of the parts of data in which nothing is wrong."""
    taken = take_apart(data, fetch)
    assert taken.problems == ()
    return [part.kind for part in taken.parts]


def refusal(data: bytes, fetch: Callable[[str], bytes] | None = None) -> str:
    """The only problem of data that has no part at all."""
    taken = take_apart(data, fetch)
    assert taken.parts == ()
    assert [problem.level for problem in taken.problems] == ["error"]
    return str(taken.problems[0])


def only(taken: Parts) -> bytes:
    assert taken.problems == ()
    (part,) = taken.parts
    return part.content


def message(*parts: tuple[str, bytes], **headers: str) -> bytes:
    """A MIME message as a person writes one: each part is a head and a content."""
    text = b"Content-Type: multipart/mixed; boundary=X\nMIME-Version: 1.0\n\n"
    for head, content in parts:
        text += b"--X\n" + head.encode() + b"\n\n" + content + b"\n"
    return text + b"--X--\n"


# One document.


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (CONFIG, "cloud-config"),
        (b"#cloud-config  \r\nhostname: a\r\n", "cloud-config"),
        (SCRIPT, "script"),
        (b"#!/usr/bin/env python3\n", "script"),
        (b"#cloud-boothook\n#!/bin/sh\n", "boothook"),
        (b"## template: jinja\n#cloud-config\n", "template"),
        (b"##template:jinja\n#cloud-config\n", "template"),
        (b'{"ignition": {"version": "3.4.0"}}', "ignition"),
        (b'{"ignitionVersion": 1}', "ignition"),
        (b"variant: flatcar\nversion: 1.0.0\n", "butane"),
        (b"# my machine\nversion: 1.0.0\nvariant: fcos\n", "butane"),
    ],
)
def test_a_document_is_what_its_first_line_says(data: bytes, kind: str) -> None:
    assert kinds(data) == [kind]
    assert kinds(gzip.compress(data)) == [kind]
    assert kinds(b"\xef\xbb\xbf" + data) == [kind]


@pytest.mark.parametrize("data", [b"", b"\n \n", gzip.compress(b""), b"\xef\xbb\xbf"])
def test_nothing_is_no_part_and_no_problem(data: bytes) -> None:
    assert kinds(data) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"#cloud-config foo\nhostname: a\n", 'must be "#cloud-config" and nothing else'),
        (b"#Cloud-Config\nhostname: a\n", 'must be "#cloud-config" and nothing else'),
        (b"hostname: a\n", 'the first line is not "#cloud-config"'),
        ("#cloud-config\n".encode("utf-16"), "this is UTF-16"),
        (b"passwd:\n  users: []\n", "another known form; for Butane, which Container Linux"),
        (b"# me\n#cloud-config\n", "must be the first line of all; it stands on line 2"),
        (b"#part-handler\nimport os\n", "a part-handler: Python code for cloud-init itself"),
        (b"#upstart-job\n", "upstart, which is not here; write a systemd unit"),
        (b"#cloud-config-jsonp\n[]\n", "a JSON patch"),
        (b"## template: mako\n", "of templates only jinja is known"),
        (b'{"a": 1}', "begins like JSON"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page (HTML)"),
        (b"\x7fELF\2\1\1", "the first line is not"),
        (b"\0" * 100, "the first line is not"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(data: bytes, words: str) -> None:
    assert refusal(data).startswith("line 1: error: ")
    assert words in refusal(data)


def test_white_space_before_the_first_line_is_skipped_and_lines_stay_right() -> None:
    assert only(take_apart(b"\n \n" + SCRIPT)) == SCRIPT
    assert refusal(b"\n\n#part-handler\n").startswith("line 3: error: ")


def test_base64_round_a_whole_document_is_taken_off() -> None:
    assert only(take_apart(base64.encodebytes(CONFIG))) == CONFIG
    assert only(take_apart(base64.b64encode(gzip.compress(CONFIG)))) == CONFIG


def test_what_only_looks_like_base64_is_not_opened() -> None:
    assert "the first line is not" in refusal(b"thisIsNoDocumentAtAllButAWord012")
    assert "the first line is not" in refusal(base64.b64encode(b"something that is not known"))


def test_a_script_keeps_its_bytes_but_for_windows_line_ends() -> None:
    archive = SCRIPT + bytes(range(256))
    assert only(take_apart(archive)) == archive
    assert only(take_apart(b"#!/bin/sh\r\necho a\r\n")) == SCRIPT


def test_a_boothook_is_the_program_behind_its_first_line() -> None:
    taken = take_apart(b"#cloud-boothook\n" + SCRIPT)
    assert only(taken) == SCRIPT
    assert taken.parts[0].frequency == "per-boot"


def test_a_script_that_names_no_program_is_run_by_sh_and_told() -> None:
    taken = take_apart(b"#cloud-boothook\n# swap\nswapon /swap\n")
    assert taken.parts[0].content == b"#!/bin/sh\n# swap\nswapon /swap\n"
    assert 'does not begin with "#!"; /bin/sh runs it' in str(taken.problems[0])


# Size and wrapping.


@pytest.mark.parametrize("size", [10_000_000, MAX_BYTES + 1])
def test_a_document_over_the_limit_is_refused_before_it_is_looked_at(size: int) -> None:
    assert "larger than 2048 KiB" in refusal(b"[" * size)
    assert "larger than 2048 KiB" in refusal(gzip.compress(bytes(size), 1))


def test_a_gzip_bomb_in_gzip_is_refused_where_it_goes_off() -> None:
    assert "larger than 2048 KiB" in refusal(gzip.compress(gzip.compress(bytes(50_000_000))))


def test_gzip_of_very_many_members_is_refused() -> None:
    # Each member costs a copy of all that follows: a hundred thousand would take minutes.
    assert "more than 100 members" in refusal(gzip.compress(b"") * 100_000)


@pytest.mark.parametrize("cut", [slice(0, 12), slice(0, -9)])
def test_damaged_gzip_is_refused(cut: slice) -> None:
    assert "gzip" in refusal(gzip.compress(CONFIG * 9)[cut])


def test_a_document_wrapped_again_and_again_is_refused() -> None:
    data = CONFIG
    for _ in range(6):
        data = gzip.compress(data)
    assert kinds(data) == ["cloud-config"]
    assert "wrapped deeper than 6 times" in refusal(gzip.compress(data))


def test_all_documents_together_are_bounded_too() -> None:
    part = gzip.compress(b"#!" + b"a" * (MAX_BYTES - 10))
    many = message(*[("Content-Transfer-Encoding: base64", base64.b64encode(part))] * 9)
    assert "all documents together are larger than 8192 KiB" in str(take_apart(many).problems[0])


# MIME.


def test_each_part_of_a_message_is_what_its_type_says() -> None:
    data = message(
        ("Content-Type: text/cloud-config", b"hostname: a"),
        ("Content-Type: text/x-shellscript", SCRIPT),
        ("Content-Type: text/cloud-boothook", SCRIPT),
        ("Content-Type: text/jinja2", b"#cloud-config"),
        ("Content-Type: text/plain", b'{"ignition": {"version": "3.4.0"}}'),
        ("Content-Type: application/json", b'{"ignition": {"version": "3.4.0"}}'),
        ("Content-Type: text/cloud-config-archive", b"- '#!/bin/sh'"),
        ("", CONFIG),
    )
    assert kinds(data) == [
        *("cloud-config", "script", "boothook", "template", "ignition", "ignition"),
        *("script", "cloud-config"),
    ]


def test_the_type_of_a_script_says_how_often_it_runs() -> None:
    data = message(
        *((f"Content-Type: text/x-shellscript{often}", SCRIPT) for often in _FREQUENCIES)
    )
    found = [part.frequency for part in take_apart(data).parts]
    assert found == list(_FREQUENCIES.values())


_FREQUENCIES = {
    "": "per-instance",
    "-per-boot": "per-boot",
    "-per-instance": "per-instance",
    "-per-once": "per-once",
}


def test_what_is_called_a_script_and_is_none_is_what_its_first_line_says() -> None:
    assert kinds(message(("Content-Type: text/x-shellscript", CONFIG))) == ["cloud-config"]
    often = take_apart(message(("Content-Type: text/x-shellscript-per-boot", CONFIG)))
    assert [part.kind for part in often.parts] == ["script"]  # as in cloud-init
    template = b"## template: jinja\n#cloud-config"
    assert kinds(message(("Content-Type: text/cloud-config", template))) == ["template"]


def test_a_message_made_by_pythons_own_library_is_read_back() -> None:
    made = MIMEMultipart()
    first = MIMEText("#cloud-config\nhostname: größe\n", "cloud-config", "utf-8")  # base64
    first.add_header("Content-Disposition", "attachment", filename="größe.yaml")
    made.attach(first)
    second = MIMEBase("application", "gzip")
    second.set_payload(gzip.compress(SCRIPT), "latin-1")
    second.replace_header("MIME-Version", "1.0")
    del second["MIME-Version"]
    text = MIMEText("#!/bin/sh\necho =\n", "x-shellscript", "us-ascii")
    text.add_header("Content-Disposition", "attachment", filename="../../etc/b.sh")
    inner = MIMEMultipart("alternative")
    inner.attach(text)
    made.attach(inner)
    taken = take_apart(made.as_bytes())
    assert taken.problems == ()
    assert [part.content for part in taken.parts] == [
        "#cloud-config\nhostname: größe\n".encode(),
        b"#!/bin/sh\necho =\n",
    ]
    assert [part.name for part in taken.parts] == ["gr__e.yaml", "b.sh"]


def test_a_message_as_write_mime_multipart_makes_it_is_read() -> None:
    assert kinds(b"From nobody Fri Jan 11 07:00:00 1980\n" + message(("", CONFIG))) == [
        "cloud-config"
    ]
    assert kinds(message(("", CONFIG)).replace(b"\n", b"\r\n")) == ["cloud-config"]
    assert kinds(b"MIME-Version: 1.0\nContent-Type: text/cloud-config\n\nhostname: a\n") == [
        "cloud-config"
    ]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("base64", base64.encodebytes(CONFIG)),
        ("Base64", base64.encodebytes(gzip.compress(CONFIG))),
        ("quoted-printable", CONFIG.replace(b":", b"=3A")),
        ("8bit", CONFIG),
        ("binary", gzip.compress(CONFIG)),
    ],
)
def test_every_transfer_encoding_is_taken_off(encoding: str, content: bytes) -> None:
    data = message((f"Content-Transfer-Encoding: {encoding}", content))
    assert only(take_apart(data)).rstrip() == CONFIG.rstrip()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (message(("", CONFIG))[:-7], "line 8: error: the closing boundary is missing"),
        (message(("", CONFIG)).replace(b"--X", b"--Y"), "line 4: error: the boundary that a multi"),
        (b"Content-Type: multipart/mixed\n\n", "line 1: error: a multipart names no boundary"),
        (
            message(("Content-Type: multipart/mixed; boundary=X", b"--X\n\na\n")),
            "line 5: error: a part has the boundary of the part round it: it holds itself",
        ),
        (
            message(("Content-Transfer-Encoding: base64", b"*")),
            "line 7: error: what is said to be base64 is not",
        ),
        (
            message(("Content-Transfer-Encoding: uuencode", b"a")),
            'line 7: error: the transfer encoding "uuencode" is not known',
        ),
        (b"Content-Type: text/plain", "line 1: error: no empty line ends the head"),
        (
            message(("Content-Disposition: a; filename*=idna''%ff", b"a")),
            "line 5: error: the head of",
        ),
        (message(("Content-Type: text/plain; name*=\0''a", b"a")), "line 5: error: the head of"),
        (message(*[("", SCRIPT)] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
    ],
)
def test_a_broken_message_is_refused_with_its_line_and_the_reason(
    data: bytes, complaint: str
) -> None:
    assert complaint in refusal(data)


def test_multiparts_that_stand_in_one_another_without_end_are_refused() -> None:
    heads = b"".join(
        b"Content-Type: multipart/mixed; boundary=B%d\n\n--B%d\n" % (n, n) for n in range(9000)
    )
    tails = b"".join(b"--B%d--\n" % n for n in reversed(range(9000)))
    assert "deeper than 4" in refusal(heads + b"\n" + CONFIG + tails)


def test_a_message_that_holds_itself_in_base64_ends_at_the_bound() -> None:
    data = CONFIG
    for _ in range(7):
        data = message(("Content-Transfer-Encoding: base64", base64.b64encode(data)))
    assert "wrapped deeper than 6 times; is it in itself?" in refusal(data)


def test_a_part_of_an_unknown_type_is_left_out_by_name() -> None:
    data = message(("Content-Type: image/png", b"\x89PNG"), ("", CONFIG))
    taken = take_apart(data)
    assert [part.kind for part in taken.parts] == ["cloud-config"]
    assert str(taken.problems[0]) == (
        "line 5: warning: part 1: the type image/png is not known; this part is left out"
    )


def test_a_bad_part_is_named_with_its_line_in_the_whole_message() -> None:
    data = message(
        ("Content-Type: text/cloud-config", b"hostname: a"),
        ("Content-Disposition: attachment; filename=web.sh", b"\n#part-handler\n"),
    )
    assert str(take_apart(data).problems[0]).startswith("line 12: error: part 2 (web.sh): this is")


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("text/part-handler", "a part-handler"),
        ("text/upstart-job", "write a systemd unit"),
        ("text/cloud-config-jsonp", "merge_how may do"),
    ],
)
def test_a_type_that_is_not_taken_refuses_the_message_by_its_name(
    content_type: str, words: str
) -> None:
    assert words in refusal(message((f"Content-Type: {content_type}", b"a")))


def test_a_launch_index_is_told_since_it_is_not_taken() -> None:
    taken = take_apart(message(("Launch-Index: 2", CONFIG)))
    assert "Launch-Index is not taken" in str(taken.problems[0])


# Archives.


def test_an_archive_is_a_list_of_documents() -> None:
    data = b"""#cloud-config-archive
- type: text/cloud-config
  filename: a.yaml
  content: |
    hostname: a
- |
  #!/bin/sh
  echo a
- content: !!binary IyEvYmluL3NoCg==
- "hostname: b"
"""
    taken = take_apart(data)
    assert taken.problems == ()
    assert [(part.kind, part.content, part.name) for part in taken.parts] == [
        ("cloud-config", b"hostname: a\n", "a.yaml"),
        ("script", SCRIPT, ""),
        ("script", b"#!/bin/sh\n", ""),
        ("cloud-config", b"hostname: b", ""),
    ]


def test_an_item_of_an_archive_with_a_type_of_its_own_is_left_out_by_name() -> None:
    data = b"#cloud-config-archive\n- {type: foo/wark, content: hello}\n- 'hostname: a'\n"
    taken = take_apart(data)
    assert [part.kind for part in taken.parts] == ["cloud-config"]
    (problem,) = taken.problems
    assert str(problem) == (
        "line 2: warning: item 1 of the archive: the type foo/wark is not known; this part is left"
        " out"
    )


def test_an_archive_of_archives_has_no_more_parts_than_a_message() -> None:
    inner = "#cloud-config-archive\n" + "- '#!/bin/sh'\n" * 60
    data = b"#cloud-config-archive\n" + b"- %s\n" % json.dumps(inner).encode() * 2
    taken = take_apart(data)
    assert len(taken.parts) == MAX_PARTS
    assert f"more than {MAX_PARTS} parts" in str(taken.problems[0])


def test_an_empty_archive_has_no_part_and_a_launch_index_in_one_is_told() -> None:
    assert kinds(b"#cloud-config-archive\n") == []
    taken = take_apart(b"#cloud-config-archive\n- {content: 'a: b', launch-index: 1}\n")
    assert "launch-index is not taken" in str(taken.problems[0])


def test_what_would_make_very_many_problems_makes_one() -> None:
    assert "more than 32 addresses" in refusal(b"#include\n" + b"http://a/\n" * 100_000)
    wrong = b"#include\n" + b"file:///a\n" * 100_000
    assert len(take_apart(wrong).problems) == MAX_FETCHES + 1
    archive = b"#cloud-config-archive\n" + b"- '#part-handler'\n" * 10_000
    assert f"more than {MAX_PARTS} parts in an archive" in refusal(archive)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"a: b\n", "line 2: error: an archive wants a list"),
        (b"- a\n- content: [a]\n", "line 3: error: item 2 of the archive has no text"),
        (b"- [\n", "line 3: error: YAML: "),
        (b"- '#part-handler'\n", "line 2: error: item 1 of the archive, line 1: this is a part-"),
        (b"- &a [*a]\n", "line 2: error: an alias to an anchor that is not complete"),
    ],
)
def test_a_bad_archive_is_refused_with_its_line(body: bytes, complaint: str) -> None:
    problems = take_apart(b"#cloud-config-archive\n" + body).problems
    assert str(problems[0]).startswith(complaint)


# Includes.


def test_what_an_include_fetches_is_a_document_again() -> None:
    answers = {
        "http://example.com/list": b"#include\nhttp://example.com/a\n",
        "http://example.com/a": gzip.compress(CONFIG),
        "https://example.com/b": message(("", SCRIPT)),
    }
    data = b"#include http://example.com/list\n# a remark\n\nhttps://example.com/b\n"
    assert kinds(data, answers.__getitem__) == ["cloud-config", "script"]


def test_without_a_network_an_include_waits_and_says_so() -> None:
    taken = take_apart(message(("", b"#include\nhttp://example.com/a"), ("", CONFIG)))
    assert taken.needs_network
    assert [part.kind for part in taken.parts] == ["cloud-config"]
    assert not take_apart(CONFIG).needs_network


def test_what_is_included_once_is_kept_and_never_fetched_again() -> None:
    first = take_apart(b"#include-once\nhttp://example.com/a\n", lambda url: CONFIG)
    assert first.once == {"http://example.com/a": CONFIG}
    later = take_apart(b"#include-once\nhttp://example.com/a\n", None, kept=first.once)
    assert only(later) == CONFIG
    assert later.once == first.once
    assert not later.needs_network


@pytest.mark.parametrize("answer", [b"<html>", b"", b"#!" + bytes(MAX_BYTES)])
def test_a_bad_answer_is_not_kept_so_that_the_next_boot_asks_again(answer: bytes) -> None:
    assert take_apart(b"#include-once\nhttp://example.com/a\n", lambda url: answer).once == {}


def test_an_include_that_includes_itself_is_refused() -> None:
    def fetch(url: str) -> bytes:
        return b"#include\nhttp://example.com/%s\n" % (b"b" if url.endswith("a") else b"a")

    data = b"#include\nhttp://example.com/a\n"
    assert "http://example.com/a includes itself" in refusal(data, fetch)


def test_includes_without_end_are_cut_off() -> None:
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return b"#include\n" + b"".join(b"%s%d\n" % (url.encode(), n) for n in range(10))

    taken = take_apart(b"#include\nhttp://example.com/\n", fetch)
    assert len(fetched) == MAX_FETCHES
    assert any(f"more than {MAX_FETCHES} addresses" in str(p) for p in taken.problems)


def fails(error: Exception) -> Callable[[str], bytes]:
    def fetch(url: str) -> bytes:
        raise error

    return fetch


@pytest.mark.parametrize(
    ("fetch", "complaint"),
    [
        (lambda url: b"<html><body>Sign in</body></html>", "a web page (HTML)"),
        (lambda url: b"hostname: a\n", "the first line is not"),
        (lambda url: b"#!" + bytes(MAX_BYTES), "larger than 2048 KiB"),
        (fails(TimeoutError()), "could not be fetched: TimeoutError"),
        (fails(OSError(111, "Connection refused")), "could not be fetched: Connection refused"),
        (fails(OSError("http://example.com/a: no answer")), "http://example.com/a: no answer"),
        (fails(Refused("the answer is 404")), "the answer is 404"),
    ],
)
def test_a_bad_answer_is_refused_with_its_address_and_the_line_that_named_it(
    fetch: Callable[[str], bytes], complaint: str
) -> None:
    told = refusal(b"#include\n\nhttp://me:secret@example.com/a?token=secret#secret\n", fetch)
    assert told.startswith("line 3: error: http://example.com/a")
    assert complaint in told
    assert "secret" not in told


@pytest.mark.parametrize("address", [b"file:///etc/shadow", b"ftp://a/", b"http://a b/", b"a"])
def test_only_http_and_https_are_included(address: bytes) -> None:
    told = refusal(b"#include\n" + address + b"\n", lambda url: CONFIG)
    assert told.startswith("line 2: error: an #include wants addresses that begin with http://")


# Names.


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../x", "x"), (".bashrc", "bashrc"), ("-rf", "rf"), ("a b;c", "a_b_c"), ("C:\\a", "a")],
)
def test_the_name_of_a_part_never_leaves_its_directory(name: str, safe: str) -> None:
    assert file_name(name) == safe


def test_an_address_is_told_without_what_may_be_secret() -> None:
    assert without_secrets("https://a:b@c.example/d/e?f#g") == "https://c.example/d/e"
    assert without_secrets("https://c.example?f") == "https://c.example"


def test_no_content_is_in_the_text_of_a_part() -> None:
    assert "hostname" not in repr(take_apart(CONFIG))
