"""A boot finds its disk, applies it, and always goes on, whatever the disk holds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.machine import cloudinit
from proa.machine.cloudconfig.changes import Stage, describe, wish
from proa.machine.cloudconfig.machine import CommandFailed, FetchFailed, Machine
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.plan import plan
from proa.machine.cloudconfig.sources.nocloud import nocloud_metadata
from proa.machine.cloudconfig.sources.openstack import drive_metadata

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"


class Lab:
    """A root directory with disks that the fake mount copies into place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disks: dict[str, dict[str, bytes]] = {}
        self.late = False
        self.commands: list[str] = []
        self.hostname = ""
        self.answers: dict[str, bytes] = {}
        self.started: list[str] = []
        self.scripts: list[str] = []
        (root / "etc").mkdir()
        ids = f"{os.geteuid()}:{os.getegid()}"
        (root / "etc/passwd").write_text(f"core:x:{ids}::/home/core:/bin/bash\n")

    def plug(self, label: str, files: dict[str, bytes]) -> None:
        self.disks[label] = files

    def _show(self) -> None:
        folder = self.root / "dev/disk/by-label"
        folder.mkdir(parents=True, exist_ok=True)
        for label in self.disks:
            (folder / label).touch()

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        self.commands.append(command[0])
        if "start" in command:
            self.started.append(command[-1])
        if command[0] == "udevadm":
            self._show()
        if command[0] == "mount":
            for name, content in self.disks[Path(command[-2]).name].items():
                path = Path(command[-1]) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if command[0] == "umount":
            for path in sorted(Path(command[-1]).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def set_hostname(self, name: str) -> None:
        self.hostname = name

    def fetch(self, url: str, _headers: Mapping[str, str]) -> bytes:
        if url not in self.answers:
            raise FetchFailed(f"{url}: HTTP 404")
        return self.answers[url]

    def start(self, unit: str, _timeout: float | None) -> int:
        self.scripts.append(unit)
        return 0

    def boot(self, at: Stage = "local") -> int:
        if not self.late:
            self._show()
        machine = Machine(
            self.root, self.run, self.set_hostname, fetch=self.fetch, start=self.start
        )
        return cloudinit.boot(machine, at=at)

    @property
    def status(self) -> dict[str, Any]:
        content = json.loads((self.root / "run/proa/cloudinit.json").read_text())
        assert isinstance(content, dict)
        return content

    @property
    def keys(self) -> str:
        return (self.root / "home/core/.ssh/authorized_keys").read_text()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def drive(user_data: bytes, **metadata: object) -> dict[str, bytes]:
    return {
        "openstack/latest/meta_data.json": json.dumps(metadata).encode(),
        "openstack/latest/user_data": user_data,
    }


def test_a_config_drive_is_applied_and_let_go(lab: Lab) -> None:
    document = b"#cloud-config\nhostname: web-1\n"
    lab.plug("config-2", drive(document, uuid="i-1", hostname="x", public_keys={"a": KEY}))
    assert lab.boot() == 0
    assert lab.hostname == "web-1"
    assert KEY in lab.keys
    assert lab.commands == ["mount", "umount"]
    assert not (lab.root / "run/proa/configdrive").exists()
    assert (lab.status["state"], lab.status["instance_id"]) == ("applied", "i-1")


def test_a_nocloud_disk_is_applied(lab: Lab) -> None:
    meta = f"instance-id: i-1\nlocal-hostname: web-2\npublic-keys:\n- {KEY}\n".encode()
    lab.plug("cidata", {"meta-data": meta, "user-data": b"#cloud-config\n"})
    assert lab.boot() == 0
    assert lab.hostname == "web-2"
    assert KEY in lab.keys


def test_the_network_that_a_cloud_describes_is_set_up_for_this_boot(lab: Lab) -> None:
    network = b"version: 2\nethernets:\n  a:\n    match: {macaddress: '52:54:00:12:34:56'}\n"
    network += b"    addresses: [192.0.2.7/24]\n    gateway4: 192.0.2.1\n"
    lab.plug("cidata", {"meta-data": b"instance-id: i-1\n", "network-config": network})
    assert lab.boot() == 0
    (file,) = (lab.root / "run/systemd/network").glob("*.network")
    assert "Address=192.0.2.7/24\n" in file.read_text()
    assert "systemctl" in lab.commands


def test_a_vendors_error_does_not_refuse_the_owners_document(lab: Lab) -> None:
    lab.plug(
        "cidata",
        {
            "meta-data": b"instance-id: i-1\n",
            "user-data": b"#cloud-config\nhostname: web-1\n",
            "vendor-data": b"#cloud-config\nusers: nobody knows\nwrite_files: {a: b}\n",
        },
    )
    assert lab.boot() == 0
    assert lab.hostname == "web-1"
    assert lab.status["state"] == "applied"
    assert any("vendor-data" in problem["message"] for problem in lab.status["problems"])


def test_a_network_that_is_not_understood_leaves_the_network_as_it_is(lab: Lab) -> None:
    document = b"#cloud-config\nhostname: web-1\n"
    lab.plug("cidata", {"meta-data": b"", "user-data": document, "network-config": b"version: 9\n"})
    assert lab.boot() == cloudinit.FAILED
    assert lab.hostname == "web-1"
    assert not (lab.root / "run/systemd").exists()
    assert any("network" in str(problem) for problem in lab.status["problems"])
    assert lab.status["state"] == "failed"


def test_a_stage_that_cannot_be_started_is_a_failure(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "systemctl":
            raise CommandFailed("systemctl: no such unit (5)")
        lab.run(command, stdin)

    lab.plug("config-2", drive(b"#cloud-config\nruncmd: [echo hello]\n"))
    lab._show()
    machine = Machine(lab.root, broken, lab.set_hostname)
    assert cloudinit.boot(machine) == cloudinit.FAILED
    assert lab.status["state"] == "failed"
    assert "no such unit" in json.dumps(lab.status["problems"])


def test_a_disk_that_udev_is_slow_about_is_waited_for(lab: Lab) -> None:
    lab.late = True
    lab.plug("config-2", drive(b"", hostname="web-1"))
    assert lab.boot() == 0
    assert lab.hostname == "web-1"


def test_no_disk_is_nothing_to_do(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.boot() == 0
    assert lab.status["state"] == "nothing"
    assert "nothing to apply" in capsys.readouterr().out


def test_a_refused_document_leaves_the_machine_reachable_and_says_why(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.plug("config-2", drive(b"#cloud-config\nhostname: [\n", public_keys={"a": KEY}))
    assert lab.boot() == cloudinit.REFUSED
    assert KEY in lab.keys
    assert lab.status["state"] == "refused"
    printed = capsys.readouterr().out
    assert "cloud-config: line 3: error: YAML:" in printed
    assert "REFUSED" in printed


def test_a_disk_that_cannot_be_mounted_is_told_and_the_boot_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(command: Sequence[str], stdin: bytes) -> None:
        raise CommandFailed(f"{command[0]}: bad superblock (32)")

    lab.plug("config-2", {})
    monkeypatch.setattr(lab, "run", broken)
    assert lab.boot() == cloudinit.REFUSED
    assert "bad superblock" in json.dumps(lab.status)


def test_a_link_on_the_disk_reads_nothing_of_the_machine(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "mount":
            folder = Path(command[-1]) / "openstack/latest"
            folder.mkdir(parents=True)
            (folder / "user_data").symlink_to(lab.root / "etc/passwd")

    lab.plug("config-2", {})
    monkeypatch.setattr(lab, "run", mount)
    assert lab.boot() == cloudinit.REFUSED
    assert "is a symbolic link" in json.dumps(lab.status)


def test_a_fault_of_our_own_does_not_stop_the_boot(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("proa.machine.cloudconfig.sources.find", fault)
    assert lab.boot() == cloudinit.UNEXPECTED
    assert "RuntimeError" in json.dumps(lab.status)


def test_a_second_boot_changes_nothing(lab: Lab) -> None:
    document = b"#cloud-config\nhostname: web-1\nwrite_files: [{path: /srv/a, content: hi}]\n"
    lab.plug("config-2", drive(document, uuid="i-1", public_keys={"a": KEY}))
    lab.boot()
    lab.boot()
    changes = lab.status["changes"]
    assert isinstance(changes, list)
    assert {change["status"] for change in changes} == {"unchanged"}


def test_a_copied_disk_on_another_instance_begins_anew(lab: Lab) -> None:
    document = b"#cloud-config\nwrite_files: [{path: /srv/a, content: hi}]\n"
    lab.plug("config-2", drive(document, uuid="i-1"))
    lab.boot()
    (lab.root / "srv/a").write_text("edited")
    lab.boot()
    assert (lab.root / "srv/a").read_text() == "edited"
    lab.plug("config-2", drive(document, uuid="i-2"))
    lab.boot()
    assert (lab.root / "srv/a").read_text() == "hi"


def test_a_copied_disk_has_neither_the_host_keys_nor_the_rights_of_the_first(lab: Lab) -> None:
    first = f"#cloud-config\nssh_authorized_keys: ['{KEY}']\nssh_pwauth: true\n".encode()
    lab.plug("config-2", drive(first, uuid="i-1"))
    (lab.root / "etc/ssh").mkdir()
    host_key = lab.root / "etc/ssh/ssh_host_ed25519_key"
    host_key.write_text("of the first")
    lab.boot()
    lab.boot()
    assert host_key.read_text() == "of the first"
    assert KEY in lab.keys
    lab.commands.clear()
    lab.plug("config-2", drive(b"#cloud-config\nhostname: two\n", uuid="i-2"))
    lab.boot()
    assert not host_key.exists()
    assert lab.commands.count("ssh-keygen") == 2
    assert KEY not in lab.keys
    assert list((lab.root / "etc/ssh/sshd_config.d").iterdir()) == []
    host_key.write_text("of the second")
    lab.boot()
    assert host_key.read_text() == "of the second"


OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9z other@there"
FIRST = f"#cloud-config\nssh_authorized_keys: ['{KEY}']\nssh_pwauth: true\n".encode()


@pytest.mark.parametrize("document", [b"#cloud-config\nhostname: [", b"#include\nhttp://x/y\n"])
def test_a_copied_disk_whose_own_document_is_not_there_yet_opens_to_its_clouds_keys_alone(
    lab: Lab, document: bytes
) -> None:
    lab.plug("config-2", drive(FIRST, uuid="i-1"))
    lab.boot()
    assert KEY in lab.keys
    lab.plug("config-2", drive(document, uuid="i-2", public_keys={"a": OTHER_KEY}))
    for _ in range(2):
        lab.boot()
        assert (KEY in lab.keys, OTHER_KEY in lab.keys) == (False, True)
        assert list((lab.root / "etc/ssh/sshd_config.d").iterdir()) == []


def test_on_the_same_instance_a_refused_document_takes_no_key_away(lab: Lab) -> None:
    lab.plug("config-2", drive(FIRST, uuid="i-1"))
    lab.boot()
    refused = drive(b"#cloud-config\nhostname: [", uuid="i-1", public_keys={"a": OTHER_KEY})
    lab.plug("config-2", refused)
    assert lab.boot() == cloudinit.REFUSED
    assert (KEY in lab.keys, OTHER_KEY in lab.keys) == (True, True)


def test_a_copied_disk_keeps_its_host_keys_where_the_document_says_so(lab: Lab) -> None:
    (lab.root / "etc/ssh").mkdir()
    host_key = lab.root / "etc/ssh/ssh_host_ed25519_key"
    host_key.write_text("for all")
    for instance in ("i-1", "i-2"):
        lab.plug("config-2", drive(b"#cloud-config\nssh_deletekeys: false\n", uuid=instance))
        lab.boot()
        assert host_key.read_text() == "for all"


@pytest.mark.parametrize("memory", [b"", b"[]", b"{", b'{"wishes": 1}', b"[" * 100_000])
def test_a_damaged_memory_is_forgotten(lab: Lab, memory: bytes) -> None:
    (lab.root / "var/lib/proa").mkdir(parents=True)
    (lab.root / "var/lib/proa/cloudinit.json").write_bytes(memory)
    lab.plug("config-2", drive(b"#cloud-config\nhostname: web-1\n"))
    assert lab.boot() == 0
    assert lab.hostname == "web-1"


def test_metadata_that_is_wrong_is_left_out_and_told() -> None:
    planned = plan(None, Metadata(hostname="not a name", ssh_keys=("x", KEY)))
    assert not planned.refused
    assert [describe(change) for change in planned.changes] == ["ssh keys of core (1)"]
    assert len(planned.problems) == 2


def test_by_hand_a_dry_run_says_what_would_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("#cloud-config\nhostname: web-1\nhostnam: x\n")
    assert cloudinit.main(["--file", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'line 3: warning: hostnam is not a known key; ignored; did you mean "hostname"?',
        "would do: host name web-1",
    ]
    assert cloudinit.main(["--file", str(tmp_path / "none"), "--dry-run"]) == cloudinit.REFUSED
    assert "No such file" in capsys.readouterr().out


# Whatever the bytes are.

_WORDS = st.sampled_from(
    [
        *("hostname", "users", "write_files", "coreos", "units", "update", "name", "path", "x"),
        *("content", "encoding", "b64", "gzip", "permissions", "0644", "drop_ins", "a.service"),
        *("ssh_authorized_keys", KEY, "/etc/a", "../../x", "true", "~", "group", "passwd"),
        *(": ", "\n", "\n  ", "\n- ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "!!"),
        *("'", '"', "|\n", ">-\n", "\t", "\r\n", "\0", "#", "---\n", "%YAML 1.1\n", "\\", "é"),
    ]
)
_DOCUMENTS = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda tail: b"#cloud-config\n" + tail),
    st.binary(max_size=300).map(lambda tail: b"\x1f\x8b" + tail),
    st.lists(_WORDS, max_size=40).map(lambda words: f"#cloud-config\n{''.join(words)}".encode()),
)


@settings(max_examples=400, deadline=None)
@given(_DOCUMENTS)
def test_any_bytes_give_a_plan_or_a_clear_refusal(document: bytes) -> None:
    planned = plan(document)
    if planned.refused:
        assert planned.changes == ()
        assert any(problem.level == "error" for problem in planned.problems)
    for problem in planned.problems:
        assert str(problem).isprintable()
    for change in planned.changes:
        assert describe(change).isprintable()
        assert wish(change)


_TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12), _WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(_WORDS, st.text()), inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(_TREES)
def test_any_tree_of_values_gives_a_plan_or_a_clear_refusal(tree: object) -> None:
    planned = plan(b"#cloud-config\n" + json.dumps(tree).encode())
    if planned.refused:
        assert planned.changes == ()
        assert any(problem.level == "error" for problem in planned.problems)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), _TREES.map(lambda tree: json.dumps(tree).encode())))
def test_any_metadata_is_read_or_told(data: bytes) -> None:
    for read in (drive_metadata, nocloud_metadata):
        problems: list[Problem] = []
        plan(None, read(data, problems))
        assert all(str(problem).isprintable() for problem in problems)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(user_data=st.binary(max_size=100), meta_data=st.binary(max_size=100))
def test_any_disk_lets_the_boot_go_on(lab: Lab, user_data: bytes, meta_data: bytes) -> None:
    files = {"openstack/latest/meta_data.json": meta_data}
    lab.plug("config-2", {**files, "openstack/latest/user_data": user_data})
    assert lab.boot() in (cloudinit.OK, cloudinit.REFUSED)


# What comes over the network.


def test_a_document_that_includes_another_waits_for_the_network(lab: Lab) -> None:
    url = "http://192.0.2.1/web.yaml"
    metadata = {"uuid": "i-1", "hostname": "web-1", "public_keys": {"a": KEY}}
    lab.plug("config-2", drive(f"#include\n{url}\n".encode(), **metadata))
    lab.answers[url] = b"#cloud-config\nhostname: web-2\n"
    assert lab.boot() == 0
    assert (lab.hostname, lab.status["waiting_for"]) == ("web-1", ["network"])
    assert KEY in lab.keys
    assert "proa-cloudinit-network.service" in lab.started
    assert lab.boot("network") == 0
    assert (lab.hostname, lab.status["state"]) == ("web-2", "applied")
    assert set(lab.status["stages"]) == {"local", "network"}


def test_a_cloud_that_wants_not_to_be_told_is_not_remembered_as_told(lab: Lab) -> None:
    url = "http://192.0.2.1/web.yaml"
    lab.plug("config-2", drive(f"#include\n{url}\n".encode(), uuid="i-1"))
    lab.answers[url] = b"#cloud-config\nhostname: web-2\n"
    lab.boot()
    lab.boot("network")
    memory = json.loads((lab.root / cloudinit.STATE[1:]).read_text())
    assert list(memory["wishes"]) == ["hostname"]


def test_what_is_included_and_cannot_be_had_is_told_and_the_machine_is_reachable(lab: Lab) -> None:
    lab.plug("config-2", drive(b"#include\nhttp://192.0.2.1/x\n", public_keys={"a": KEY}))
    lab.boot()
    assert lab.boot("network") == cloudinit.REFUSED
    assert KEY in lab.keys
    assert any("192.0.2.1" in problem["message"] for problem in lab.status["problems"])


def test_commands_wait_for_the_end_of_the_boot_and_run_once(lab: Lab) -> None:
    document = b"#cloud-config\nruncmd: [echo hello]\n"
    lab.plug("config-2", drive(document, uuid="i-1"))
    for _ in range(2):
        lab.scripts.clear()
        lab.boot()
        assert lab.status["waiting_for"] == ["final"]
        assert lab.scripts == []
        lab.boot("final")
        assert lab.status["waiting_for"] == []
    assert lab.scripts == []
    assert [c["status"] for c in lab.status["changes"]] == ["unchanged"]


def test_a_card_is_renamed_by_a_program_outside_of_our_narrow_rights(lab: Lab) -> None:
    network = b"version: 2\nethernets:\n  a:\n    match: {macaddress: '52:54:00:12:34:56'}\n"
    network += b"    set-name: lan0\n    dhcp4: true\n"
    lab.plug("cidata", {"meta-data": b"instance-id: i-1\n", "network-config": network})
    assert lab.boot() == 0
    assert lab.scripts == ["proa-script@network-names.service"]
