"""A boot finds its disk, applies it, and always goes on, whatever the disk holds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.machine import cloudinit
from proa.machine.cloudconfig.apply import CommandFailed, Machine
from proa.machine.cloudconfig.changes import Metadata, describe, plan, wish
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.source import drive_metadata, nocloud_metadata

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"


class Lab:
    """A root directory with disks that the fake mount copies into place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disks: dict[str, dict[str, bytes]] = {}
        self.late = False
        self.commands: list[str] = []
        self.hostname = ""
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

    def boot(self) -> int:
        if not self.late:
            self._show()
        return cloudinit.boot(Machine(self.root, self.run, self.set_hostname))

    @property
    def status(self) -> dict[str, object]:
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

    monkeypatch.setattr(cloudinit, "fetch", fault)
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
