"""Host names, /etc/hosts, and files that are added to, come later or come over the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.changes import (
    AppendFile,
    Change,
    FetchFile,
    ImportKeys,
    SetHostname,
    TellHostKeys,
    WriteFile,
    stage,
)
from proa.machine.cloudconfig.keys.names import Names, short_and_full
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.plan import plan, understand
from support.cloudconfig import Fake, mode_of, statuses

URL = "https://files.example/a"


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def changes_of(body: str) -> tuple[Change, ...]:
    planned = plan(f"#cloud-config\n{body}".encode())
    assert planned.problems == ()
    return planned.changes


# Names.


@pytest.mark.parametrize(
    ("names", "cloud", "expected"),
    [
        (Names(), "", ("", "")),
        (Names(), "c.example", ("c.example", "c.example")),
        (Names("web"), "c.example", ("web", "web")),
        (Names("web.example"), "", ("web.example", "web.example")),
        (Names("web.example", prefer_fqdn=False), "", ("web", "web.example")),
        (Names(fqdn="web.example"), "", ("web", "web.example")),
        (Names(fqdn="web.example"), "cloud", ("web", "web.example")),
        (Names("w", "web.example"), "", ("w", "web.example")),
        (Names("w", "web.example", prefer_fqdn=True), "", ("web.example", "web.example")),
    ],
)
def test_what_the_machine_is_called(names: Names, cloud: str, expected: tuple[str, str]) -> None:
    assert short_and_full(names, cloud) == expected


def test_preserve_hostname_keeps_the_name_that_the_machine_has() -> None:
    body = b"#cloud-config\nhostname: web\npreserve_hostname: true\n"
    assert plan(body, Metadata(hostname="cloud")).changes == ()
    assert plan(b"#cloud-config\nhostname: web\n").changes == (SetHostname("web"),)


def test_manage_etc_hosts_localhost_is_the_one_line_of_coreos(fake: Fake) -> None:
    fake.boot("hostname: web-1\nmanage_etc_hosts: localhost\n")
    assert fake.text("etc/hosts") == "127.0.0.1 web-1\n"


def test_without_a_name_in_the_document_hosts_has_that_of_the_machine(fake: Fake) -> None:
    outcome = fake.boot("manage_etc_hosts: localhost\n")
    assert outcome.results[0].note == "this machine has no host name yet"
    (fake.root / "etc/hostname").write_text("old\n")
    fake.boot("manage_etc_hosts: localhost\n")
    assert fake.text("etc/hosts") == "127.0.0.1 old\n"


@pytest.mark.parametrize("word", ["true", "template"])
def test_manage_etc_hosts_true_is_the_file_of_cloud_inits_template(fake: Fake, word: str) -> None:
    fake.boot(f"fqdn: web-1.example.com\nmanage_etc_hosts: {word}\n")
    assert fake.text("etc/hosts").splitlines() == [
        "127.0.1.1 web-1.example.com web-1",
        "127.0.0.1 localhost",
        "",
        "::1 localhost ip6-localhost ip6-loopback",
        "ff02::1 ip6-allnodes",
        "ff02::2 ip6-allrouters",
    ]


def test_a_hosts_file_that_the_owner_edited_stays(fake: Fake) -> None:
    body = "hostname: web-1\nmanage_etc_hosts: true\n"
    fake.boot(body)
    (fake.root / "etc/hosts").write_text("mine\n")
    assert statuses(fake.boot(body))["file /etc/hosts"] == "kept"
    assert changes_of("manage_etc_hosts: false\n") == ()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("fqdn: 'a b'\n", 'fqdn "a b" is not a host name'),
        ("manage_etc_hosts: sometimes\n", "is not one of localhost, true, false"),
        ("prefer_fqdn_over_hostname: x\n", "wants true or false"),
        ("write_files: [{path: /srv/a, source: {uri: 'file:///etc/shadow'}}]\n", "is not an http"),
        ("write_files: [{path: /srv/a, source: {uri: 'http://a b/'}}]\n", "is not an http"),
        ("write_files: [{path: /srv/a, source: {uri: 'http:///x'}}]\n", "is not an http"),
        (
            "write_files: [{path: /srv/a, source: {uri: 'http://a/', headers: {'A:b': c}}}]\n",
            "cannot be a header",
        ),
        (
            "write_files:\n"
            '- {path: /srv/a, source: {uri: "http://a/", headers: {A: "b\\r\\nHost: x"}}}\n',
            "cannot be a header",
        ),
        (
            "write_files: [{path: /srv/a, source: {uri: 'http://a/', headers: [x]}}]\n",
            "wants a mapping of at most 32 headers",
        ),
    ],
)
def test_a_bad_value_refuses_the_whole_document(body: str, complaint: str) -> None:
    planned = plan(f"#cloud-config\n{body}".encode())
    assert planned.refused
    (problem,) = planned.problems
    assert complaint in str(problem)


# Added to.

APPEND = 'write_files: [{path: /srv/a, append: true, content: "two\\n"}]\n'


def test_a_file_is_added_to_once_and_keeps_its_mode(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    path = fake.root / "srv/a"
    path.write_text("one\n")
    path.chmod(0o600)
    fake.boot(APPEND)
    assert path.read_text() == "one\ntwo\n"
    assert mode_of(path) == 0o600
    path.write_text("three\n")
    fake.boot(APPEND)
    assert path.read_text() == "three\n"
    path.unlink()
    fake.boot(APPEND)
    assert path.read_text() == "two\n"


def test_a_boot_that_was_cut_does_not_add_twice(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("one\n")
    body = APPEND.replace("]\n", ', {path: /srv/a, append: true, content: "three\\n"}]\n')
    fake.boot(body)
    fake.remembered = {}  # as after a cut before the memory was written
    fake.boot(body)
    assert fake.text("srv/a") == "one\ntwo\nthree\n"


def test_mode_and_owner_of_a_file_that_is_added_to_change_only_if_they_are_given(
    fake: Fake,
) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("one\n")
    fake.boot(APPEND.replace("append", "permissions: '0640', append"))
    assert mode_of(fake.root / "srv/a") == 0o640
    (change,) = changes_of(APPEND)
    assert change == AppendFile("/srv/a", b"two\n")


def test_what_is_added_to_a_file_of_the_same_document_is_written_with_it(fake: Fake) -> None:
    body = (
        'write_files: [{path: /srv/a, content: "one\\n"},'
        " {path: /srv/a, append: true, content: \"two\\n\", permissions: '0600'}]\n"
    )
    assert changes_of(body) == (WriteFile("/srv/a", b"one\ntwo\n", 0o600),)
    fake.boot(body)
    assert statuses(fake.boot(body)) == {"file /srv/a": "unchanged"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/srv/a", "/srv/b"]),
            st.text("ab\n", max_size=4),
            st.booleans(),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_however_files_are_added_to_a_second_boot_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str, bool, bool]]
) -> None:
    fake = Fake(tmp_path_factory.mktemp("root"))
    files = [
        {"path": path, "content": content, "append": append, "defer": defer}
        for path, content, append, defer in entries
    ]
    body = f"write_files: {json.dumps(files)}\n"
    fake.boot(body)
    before = {path: path.read_bytes() for path in fake.root.glob("srv/*")}
    fake.boot(body)
    assert {path: path.read_bytes() for path in fake.root.glob("srv/*")} == before


def test_text_plain_is_an_encoding() -> None:
    body = "write_files: [{path: /srv/a, encoding: text/plain, content: x}]\n"
    assert changes_of(body) == (WriteFile("/srv/a", b"x"),)


# Over the network.

SOURCE = f"write_files: [{{path: /srv/a, source: {{uri: '{URL}', headers: {{X-Key: hunter2}}}}}}]\n"


def test_a_file_is_fetched_once_and_comes_back_if_it_is_missing(fake: Fake) -> None:
    fake.network = {URL: b"fetched"}
    fake.boot(SOURCE)
    assert fake.text("srv/a") == "fetched"
    assert fake.asked == [(URL, {"X-Key": "hunter2"})]
    (fake.root / "srv/a").write_text("edited")
    fake.boot(SOURCE)
    assert (fake.text("srv/a"), fake.asked) == ("edited", [])
    (fake.root / "srv/a").unlink()
    fake.boot(SOURCE)
    assert fake.text("srv/a") == "fetched"


def test_where_the_source_fails_the_content_stands_in_until_it_does_not(fake: Fake) -> None:
    body = SOURCE.replace("source", "content: meanwhile, source")
    outcome = fake.boot(body)
    assert statuses(outcome) == {f"file /srv/a from {URL[:-2]}": "failed"}
    assert outcome.results[0].note == (
        "there: HTTP 404; the content of the document is in its place"
    )
    assert fake.text("srv/a") == "meanwhile"
    fake.network = {URL: b"fetched"}
    fake.boot(body)
    assert fake.text("srv/a") == "fetched"


def test_a_source_that_fails_leaves_no_empty_file(fake: Fake) -> None:
    fake.boot(SOURCE)
    assert not (fake.root / "srv/a").exists()


def test_what_is_fetched_may_be_added_too(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("one\n")
    fake.network = {URL: b"two\n"}
    body = SOURCE.replace("source", "append: true, source")
    fake.boot(body)
    fake.boot(body)
    assert fake.text("srv/a") == "one\ntwo\n"


def test_neither_the_address_nor_the_headers_of_a_source_are_shown(fake: Fake) -> None:
    body = SOURCE.replace("https://", "https://me:hunter2@").replace("/a'", "/a?key=hunter2'")
    planned = plan(f"#cloud-config\n{body}".encode())
    shown = repr(planned) + repr(fake.boot(body)) + repr(fake.remembered)
    assert "hunter2" not in shown
    assert "https://files.example" in shown


# Stages.


def test_each_change_is_made_when_what_it_needs_is_there() -> None:
    assert stage(WriteFile("/srv/a", b"")) == "local"
    assert stage(WriteFile("/srv/a", b"", defer=True)) == "final"
    assert stage(AppendFile("/srv/a", b"", defer=True)) == "final"
    assert stage(FetchFile("/srv/a", URL)) == "network"
    assert stage(FetchFile("/srv/a", URL, defer=True)) == "final"
    assert stage(ImportKeys("core", ("gh:alice",))) == "network"
    assert stage(ImportKeys("core", ())) == "local"
    assert stage(TellHostKeys()) == "final"


def test_a_deferred_file_is_not_one_with_its_early_namesake() -> None:
    body = "write_files: [{path: /srv/a, content: x}, {path: /srv/b, defer: true, content: y}]\n"
    assert [stage(change) for change in changes_of(body)] == ["local", "final"]
    assert understand(f"#cloud-config\n{body}".encode())[1] == ()
