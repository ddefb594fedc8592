"""``coreos-cloudinit`` answers as the original did: flags, lines, exit codes, files."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import coreos_cloudinit
from proa.machine.cloudconfig.coreos_validate import validate
from proa.machine.cloudconfig.machine import Machine
from proa.machine.coreos_cloudinit import main, parse

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
KEY2 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9y me@there"


def lines(body: str) -> list[str]:
    return [str(entry) for entry in validate(f"#cloud-config\n{body}".encode())]


class Fake:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        (root / "etc").mkdir()
        ids = f"{os.geteuid()}:{os.getegid()}"
        (root / "etc/passwd").write_text(f"core:x:{ids}::/home/core:/bin/bash\n")
        self.machine = Machine(root, self._run, lambda _: None)

    def _run(self, command: Sequence[str], stdin: bytes) -> None:
        self.commands.append(" ".join(command))

    def file(self, content: str | bytes) -> str:
        path = self.root / "user-data"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def call(self, *arguments: str, patience: float = 5) -> int:
        return main(arguments, self.machine, patience)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# The validator.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("coreos: {update: {reboot-strategy: sometimes}}\n", "error: invalid value sometimes"),
        ("coreos: {update: {reboot-strategy: best-effort}}\n", "error: invalid value best-effort"),
        ("coreos: {units: [{name: a, command: restrat}]}\n", "error: invalid value restrat"),
        ("write_files: [{path: /a, permissions: 999}]\n", "error: invalid value 999"),
        (
            "write_files: [{path: /a, encoding: gz+base64, content: x}]\n",
            'error: content cannot be decoded as "gz+base64"',
        ),
        ("coreos: {unit: []}\n", 'warning: unrecognized key "unit"'),
        (
            "coreos: {units: [{name: a, runtime: maybe}]}\n",
            'warning: incorrect type for "runtime" (want bool)',
        ),
        (
            "coreos: {etcd2: {}}\n",
            'warning: deprecated key "etcd2" (etcd2 is no longer shipped in Container Linux)',
        ),
        (
            "coreos: {fleet: {}}\n",
            'warning: deprecated key "fleet" (fleet is no longer shipped in Container Linux)',
        ),
        ("users: [a]\n", 'warning: incorrect type for "users[0]" (want struct)'),
        ("users: {a: b}\n", 'warning: incorrect type for "users" (want []struct)'),
        ("users: [{name: a, groups: x}]\n", 'warning: incorrect type for "groups" (want []string)'),
        ("hostname: [a]\n", 'warning: incorrect type for "hostname" (want string)'),
        ("hostname:\n", 'warning: incorrect type for "hostname" (want string)'),
        (
            "write_files: [{path: /usr/bin/a}]\n",
            "error: file cannot be written to a read-only filesystem",
        ),
        ("coreos: {locksmith: {window_start: 25:00}}\n", "error: invalid value 25:00"),
        ("coreos: {locksmith: {window_length: 3}}\n", "error: invalid value 3"),
    ],
)
def test_the_validator_says_the_recorded_words(body: str, said: str) -> None:
    assert lines(body) == [f"line 2: {said}"]


def test_lines_are_counted_from_the_first_of_the_document() -> None:
    body = "hostname: a\nwrite_files:\n  - path: /usr/x\n  - {path: /y, permissions: '999'}\n"
    assert lines(body) == [
        "line 5: error: invalid value 999",
        "line 4: error: file cannot be written to a read-only filesystem",
    ]


def test_what_yaml_makes_a_number_or_a_truth_is_still_a_text_where_one_is_wanted() -> None:
    assert (
        lines("hostname: 12\nmanage_etc_hosts: off\ncoreos: {update: {reboot_strategy: off}}\n")
        == []
    )
    assert lines("write_files: [{path: /a, permissions: 0644, content: 1.5}]\n") == []
    assert lines("coreos: {fleet: {etcd_request_timeout: 2}}\n")[1:] == []
    assert lines("coreos: {units: [{name: a, enable: yes, mask: 'no'}]}\n") == [
        'line 2: warning: incorrect type for "mask" (want bool)'
    ]


def test_an_error_of_yaml_is_told_with_its_line_and_the_missing_rest() -> None:
    assert lines("hostname: a\nusers: [\n") == [
        "line 4: error: did not find expected node content",
        'line 0: warning: incorrect type for "" (want struct)',
    ]
    assert lines("a: b: c\n")[0] == (
        "line 2: error: mapping values are not allowed in this context"  # Proa's hint is not said
    )


def test_files_below_coreos_are_told_twice_as_ever() -> None:
    assert lines("coreos: {write_files: []}\n") == [
        'line 2: warning: unrecognized key "write_files"',
        "line 2: info: write_files doesn't belong under coreos",
    ]


def test_a_discovery_address_that_is_none_is_told() -> None:
    assert lines("coreos: {etcd: {discovery: somewhere}}\n")[0] == (
        "line 2: warning: discovery URL is not valid"
    )
    assert len(lines("coreos: {etcd: {discovery: 'https://d.example/x'}}\n")) == 1  # deprecated


@pytest.mark.parametrize(
    "good",
    [
        b"",
        b"#!/bin/sh\n",
        b'{"ignitionVersion": 1}',
        b'{"ignition": {"version": "3.4.0"}}',
        b"#cloud-config\n- a\n",
        b"#cloud-config\r\nhostname: a\r\n",
        gzip.compress(b"#cloud-config\nhostname: a\n"),
    ],
)
def test_nothing_is_said_of_what_the_original_passed_over(good: bytes) -> None:
    assert validate(good) == ()


@pytest.mark.parametrize(
    "other", [b"Content-Type: multipart/mixed\n", b"hostname: a\n", b"#cloud-config foo\n"]
)
def test_anything_else_is_one_error_on_the_first_line(other: bytes) -> None:
    assert [str(entry) for entry in validate(other)] == [
        'line 1: error: must be "#cloud-config" or begin with "#!"'
    ]


@given(st.binary(max_size=300))
def test_any_bytes_are_answered(data: bytes) -> None:
    for entry in validate(b"#cloud-config\n" + data):
        assert str(entry).isprintable()


@given(st.text("0123456789.abz+-", max_size=60))
def test_a_long_length_of_time_is_answered_at_once(text: str) -> None:
    assert len(lines(f"coreos: {{locksmith: {{window_length: '{text}{'a1' * 2000}'}}}}\n")) == 1


# The flags.


def test_flags_take_one_dash_or_two_and_the_value_with_or_without_an_equals_sign() -> None:
    wanted = {"from-file": "a", "validate": "true"}
    assert parse(["-from-file", "a", "-validate"]) == wanted
    assert parse(["--from-file=a", "--validate=true"]) == wanted
    assert parse(["-validate=false", "-from-file", "-x"]) == {"from-file": "-x"}
    assert parse(["-validate", "word", "-from-file", "a"]) == {"validate": "true"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-nonsense"], "flag provided but not defined: -nonsense"),
        (["-from-file"], "flag needs an argument: -from-file"),
        (["-validate=maybe"], 'invalid boolean value "maybe" for -validate: parse error'),
    ],
)
def test_a_wrong_command_line_gives_the_words_of_go_and_the_usage(
    fake: Fake, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert fake.call(*arguments) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[:2] == [words, "Usage of coreos-cloudinit:"]
    assert "  -from-file string" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Provide at least one of --from-file"),
        (["-oem", "x"], 'Invalid option to -oem: "x". Supported options: ["azure"'),
        (["-convert-netconf=x", "-from-file=a"], "Invalid option to -convert-netconf: 'x'."),
        (["-workspace=relative", "-from-file=a"], "Invalid option to -workspace"),
        (["-ssh-key-name=a b", "-from-file=a"], "Invalid option to -ssh-key-name"),
    ],
)
def test_what_cannot_be_done_ends_with_2(
    fake: Fake, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert fake.call(*arguments) == 2
    assert capsys.readouterr().out.startswith(words)


def test_the_version_and_the_help_are_asked_for_alone(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("-version") == 0
    assert capsys.readouterr().out.startswith("coreos-cloudinit 1.")
    assert fake.call("--help") == 0
    assert "Usage of coreos-cloudinit:" in capsys.readouterr().err


def test_an_oem_names_its_sources(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}
    monkeypatch.setattr(
        coreos_cloudinit, "select", lambda flags, machine, patience: asked.update(flags)
    )
    assert fake.call("-oem", "rackspace-onmetal") == 1
    assert asked["from-configdrive"] == "/media/configdrive"
    assert asked["convert-netconf"] == "debian"


# The program.


def test_validate_changes_nothing_and_any_line_is_a_failure(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = "#cloud-config\nhostname: a\n", "#cloud-config\nhostnam: a\n"
    assert fake.call("-validate", "-from-file", fake.file(good)) == 0
    assert fake.call("-validate", "-from-file", fake.file(bad)) == 1
    assert 'line 2: warning: unrecognized key "hostnam"' in capsys.readouterr().err.splitlines()
    assert not (fake.root / "etc/hostname").exists()


def test_a_document_is_applied(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    body = f"#cloud-config\nhostname: web-1\nssh_authorized_keys: ['{KEY}']\n"
    assert fake.call("--from-file", fake.file(gzip.compress(body.encode()))) == 0
    assert (fake.root / "etc/hostname").read_text() == "web-1\n"
    assert KEY in (fake.root / "home/core/.ssh/authorized_keys").read_text()
    shown = capsys.readouterr().err.splitlines()
    assert shown[:3] == [
        'Checking availability of "local-file"',
        'Fetching meta-data from datasource of type "local-file"',
        'Fetching user-data from datasource of type "local-file"',
    ]


def test_a_bad_document_fails_unless_that_is_to_be_ignored(fake: Fake) -> None:
    path = fake.file("#cloud-config\nhostname: -a-\n")
    assert fake.call("-from-file", path) == 1
    assert fake.call("-from-file", path, "-ignore-failure") == 0
    assert not (fake.root / "etc/hostname").exists()


def test_a_config_drives_metadata_is_applied_even_if_its_document_is_not_one(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = fake.root / "drive/openstack/latest"
    drive.mkdir(parents=True)
    (drive / "meta_data.json").write_text('{"hostname": "web-2", "public_keys": {}}')
    (drive / "user_data").write_text("what is this\n")
    assert fake.call("-from-configdrive", "/drive") == 1
    assert (fake.root / "etc/hostname").read_text() == "web-2\n"
    assert "Failed to parse user-data: Unrecognized user-data format" in capsys.readouterr().err


def test_an_ignition_config_is_left_to_ignition(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("-from-file", fake.file('{"ignition": {"version": "2.0.0"}}')) == 0
    assert capsys.readouterr().out == "Detected an Ignition config. Exiting...\n"


def test_a_script_is_kept_in_the_workspace_and_started(fake: Fake) -> None:
    path = fake.file("#!/bin/sh\necho hello\n")
    assert fake.call("-from-file", path, "-workspace", "/var/lib/mine") == 0
    (script,) = (fake.root / "var/lib/mine/scripts").glob("[0-9a-f]*")
    assert script.read_text() == "#!/bin/sh\necho hello\n"
    assert any(command.startswith("systemd-run ") for command in fake.commands)


def test_keys_under_another_name_stand_beside_the_boots_own(fake: Fake) -> None:
    def run(key: str, *more: str) -> str:
        body = f"#cloud-config\nssh_authorized_keys: ['{key}']\n"
        assert fake.call("-from-file", fake.file(body), *more) == 0
        return (fake.root / "home/core/.ssh/authorized_keys").read_text()

    run(KEY)
    both = run(KEY2, "-ssh-key-name", "ops")
    assert (KEY in both, KEY2 in both) == (True, True)
    assert KEY2 not in run(KEY, "-ssh-key-name", "ops")


def test_a_source_that_never_comes_ends_in_time(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("-from-file", str(fake.root / "nothing"), patience=0.01) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "No datasources available in time"


def test_the_first_source_that_is_there_wins(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.file("#cloud-config\nhostname: a\n")
    assert fake.call("-from-configdrive", "/nothing", "-from-file", path) == 0
    assert 'datasource of type "local-file"' in capsys.readouterr().err


def test_a_cloud_that_is_not_known_is_told_at_once(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("-from-cloudsigma-metadata", patience=60) == 1
    assert "this cloud is not known to Proa" in capsys.readouterr().err


@pytest.fixture
def address() -> Iterator[str]:
    """A web server that has one cloud-config."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/web.yaml" else 404)
            self.end_headers()
            self.wfile.write(b"#cloud-config\nhostname: from-the-web\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_document_comes_from_an_address(fake: Fake, address: str) -> None:
    assert fake.call("-from-url", f"{address}/web.yaml") == 0
    assert (fake.root / "etc/hostname").read_text() == "from-the-web\n"


def test_an_address_may_stand_on_the_kernel_command_line_and_the_last_one_counts(
    fake: Fake, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / "proc").mkdir()
    cmdline = f"ro cloud-config-url={address}/old cloud_config_url={address}/web.yaml quiet\n"
    (fake.root / "proc/cmdline").write_text(cmdline)
    assert fake.call("-from-proc-cmdline", "-validate") == 0
    assert 'datasource of type "proc-cmdline"' in capsys.readouterr().err


def test_an_address_that_does_not_answer_is_told(
    fake: Fake, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("-from-url", f"{address}/nothing", patience=0.5) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "No datasources available in time"


def test_a_drives_network_is_converted_where_that_is_asked_for(fake: Fake) -> None:
    latest = fake.root / "drive/openstack/latest"
    latest.mkdir(parents=True)
    (fake.root / "drive/openstack/content").mkdir()
    meta = '{"hostname": "a", "network_config": {"content_path": "/content/0000"}}'
    (latest / "meta_data.json").write_text(meta)
    interfaces = "auto eth0\niface eth0 inet static\n address 10.0.0.2\n netmask 255.255.255.0\n"
    (fake.root / "drive/openstack/content/0000").write_text(interfaces)
    placed = fake.root / "run/systemd/network"
    assert fake.call("-from-configdrive", "/drive") == 0
    assert not placed.exists()
    assert fake.call("-from-configdrive", "/drive", "-convert-netconf", "packet") == 1
    assert fake.call("-from-configdrive", "/drive", "-convert-netconf", "debian") == 0
    assert any("Address=10.0.0.2/24" in file.read_text() for file in placed.iterdir())


def test_network_config_that_is_not_there_cannot_be_converted(fake: Fake) -> None:
    path = fake.file("#cloud-config\nhostname: a\n")
    assert fake.call("-from-file", path, "-convert-netconf", "debian") == 1
    assert not (fake.root / "etc/hostname").exists()
