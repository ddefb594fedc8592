"""A document can be looked at, tried and gone back from, and nobody is locked out by it."""

from __future__ import annotations

import io
import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from proa.cli import main as cli
from proa.machine import cloudinit, config_command, config_trial, proactl
from proa.machine.cloudconfig.changes import Stage
from proa.machine.cloudconfig.machine import CommandFailed, Machine
from proa.machine.system import System

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6Ew"


class Fake:
    """A machine that is a directory. Units are active or enabled if a set here says so."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.commands: list[str] = []
        self.active: set[str] = set()
        self.cut_off_at = ""
        self.hostname = "old"
        for folder in ("etc/skel", "run/proa", "var/lib/proa"):
            (root / folder).mkdir(parents=True)
        ids = f"{os.geteuid()}:{os.getegid()}"
        (root / "etc/passwd").write_text(f"core:x:{ids}::/home/core:/bin/bash\n")
        (root / "etc/group").write_text("sudo:x:27:\n")
        (root / "etc/shadow").write_text("core:*:1::::::\n")
        (root / "etc/hostname").write_text("old\n")
        monkeypatch.setattr("proa.machine.cloudconfig.machine.run_program", self._run)
        monkeypatch.setattr("socket.sethostname", self._set_hostname)
        self.machine = Machine(root, self._run, self._set_hostname)

    def _set_hostname(self, name: str) -> None:
        self.hostname = name

    def _run(self, command: Sequence[str], stdin: bytes = b"") -> None:
        line = " ".join(command)
        if self.cut_off_at and self.cut_off_at in line:
            raise KeyboardInterrupt
        self.commands.append(line)
        if "is-active" in line and command[-1] not in self.active:
            raise CommandFailed("inactive")
        if "is-enabled" in line:
            raise CommandFailed("disabled")
        if command[0] == "useradd":
            ids = f"{os.geteuid()}:{os.getegid()}"
            with (self.root / "etc/passwd").open("a") as file:
                file.write(f"{command[-1]}:x:{ids}::/home/{command[-1]}:/bin/sh\n")

    def call(self, *arguments: str) -> int:
        self.commands = []
        return proactl.main(["config", *arguments], System(root=self.root))

    def document(self, body: str) -> str:
        path = self.root / "web.yaml"
        path.write_text(f"#cloud-config\n{body}")
        return str(path)

    def seed(self, body: str) -> None:
        """The machine's own document, for boots."""
        folder = self.root / "var/lib/cloud/seed/nocloud"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta-data").write_text("instance-id: i-1\n")
        (folder / "user-data").write_text(f"#cloud-config\n{body}")

    def tree(self) -> dict[str, tuple[bytes, int]]:
        """All files of the machine with their modes."""
        mine = ("web.yaml", "config-try.lock")
        found = [p for p in self.root.rglob("*") if p.is_file() and p.name not in mine]
        return {
            str(p.relative_to(self.root)): (p.read_bytes(), stat.S_IMODE(p.stat().st_mode))
            for p in found
        }


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


# Validating.


def test_a_good_document_is_called_good(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    path = fake.document("hostname: web-1\n")
    assert fake.call("validate", path) == 0
    assert capsys.readouterr().out == f"{path}: good\n"


def test_addresses_that_only_a_machine_knows_are_no_problem(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    document = "coreos: {etcd: {addr: '$private_ipv4:4001', peer_addr: '$public_ipv4:7001'}}\n"
    assert fake.call("validate", fake.document(document)) == 0
    assert capsys.readouterr().out.endswith(": good\n")


def test_a_problem_of_a_part_whose_column_nobody_knows_has_a_line_alone(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.document("")
    Path(path).write_text("#cloud-config-archive\n- '#part-handler'\n")
    assert fake.call("validate", path) == 3
    assert capsys.readouterr().out.startswith(f"{path}:2: error: item 1 of the archive")


def test_each_problem_has_line_column_key_and_what_was_meant(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.document("hostname: -web\ncoreos:\n  unit: []\n")
    assert fake.call("validate", path) == 3
    assert capsys.readouterr().out.splitlines() == [
        f'{path}:2:11: error: hostname "-web" is not a host name: letters, digits and "-" (not '
        "first or last), in parts with dots between; at most 64 characters",
        f'{path}:4:3: warning: coreos.unit is not a known key; ignored; did you mean "units"?',
        f"{path}: a machine would REFUSE this: 1 error and 1 warning",
    ]
    assert fake.call("validate", "--json", path) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["refused"], report["problems"][1]) == (
        True,
        {
            "level": "warning",
            "message": 'coreos.unit is not a known key; ignored; did you mean "units"?',
            "line": 4,
            "column": 3,
            "key": "coreos.unit",
            "suggestion": "units",
        },
    )


def test_a_warning_is_a_failure_only_where_that_is_wanted(fake: Fake) -> None:
    path = fake.document("hostnam: a\n")
    assert fake.call("validate", path) == 0
    assert fake.call("validate", path, "--strict") == 3


def test_a_document_may_come_by_standard_input(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = io.BytesIO(b"#cloud-config\nhostname: -\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
    assert fake.call("validate", "-") == 3
    assert capsys.readouterr().out.startswith("-:2:11: error: ")


def test_what_is_included_from_elsewhere_is_not_called_good(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.root / "web.yaml"
    path.write_text("#include\nhttp://127.0.0.1:9/web.yaml\n")
    assert fake.call("validate", str(path)) == 0
    assert "not fetched and not looked at" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_no_verdict(fake: Fake) -> None:
    assert fake.call("validate", str(fake.root / "nothing")) == 1


def test_a_workstation_says_the_same_as_a_machine(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.document("hostname: -web\nusers: [{nam: x}]\n")
    for arguments in (["validate", path], ["validate", "--json", path]):
        assert fake.call(*arguments) == 3
        there = capsys.readouterr().out
        assert cli.main(["config", *arguments]) == 3
        assert capsys.readouterr().out == there


def test_several_documents_are_checked_in_one_go(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = fake.document("hostname: a\n"), str(fake.root / "bad.yaml")
    Path(bad).write_text("hostname: a\n")
    assert cli.main(["config", "validate", "--json", good, bad]) == 3
    assert [v["refused"] for v in json.loads(capsys.readouterr().out)] == [False, True]
    assert cli.main(["config", "validate", str(fake.root / "nothing")]) == 1


# Differences.


def test_the_difference_is_shown_and_nothing_is_touched(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("one\ntwo\n")
    (fake.root / "srv/a").chmod(0o644)
    path = fake.document(
        "hostname: web-1\n"
        'write_files:\n- {path: /srv/a, content: "one\\nthree\\n"}\n'
        "- {path: /srv/b, content: new}\n"
        "coreos: {update: {group: beta}, units: [{name: b.service, mask: true, command: stop}]}\n"
    )
    before = fake.tree()
    assert fake.call("diff", path) == 0
    assert (fake.tree(), fake.commands, fake.hostname) == (before, [], "old")
    shown = capsys.readouterr().out
    for words in (
        "would do: host name web-1",
        "--- /etc/hostname\n+++ /etc/hostname\n@@ -1 +1 @@\n-old\n+web-1\n",
        " one\n-two\n+three\n",
        "--- /dev/null\n+++ /srv/b\n@@ -0,0 +1 @@\n+new\n",
        "+GROUP=beta\n",
        "+++ /etc/systemd/system/b.service\n+(a link to /dev/null)",
    ):
        assert words in shown


def test_a_look_runs_no_script_of_the_document_and_touches_no_disk(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "runcmd: [touch /x]\npower_state: {mode: reboot}\ntimezone: Europe/Paris\n"
    path = fake.document(body + "fs_setup: [{device: /dev/vdz, filesystem: ext4}]\n")
    before = fake.tree()
    assert fake.call("diff", path) == 0
    assert (fake.tree(), fake.commands) == (before, [])
    shown = capsys.readouterr().out
    assert "not rehearsed" in shown
    assert "touch /x" not in shown


def test_what_is_private_is_named_and_not_shown(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fake.document(
        f"ssh_authorized_keys: ['{KEY}']\n"
        f"users: [{{name: alice, passwd: '{HASH}', ssh_authorized_keys: ['{KEY}']}}]\n"
        "write_files: [{path: /srv/key, permissions: '0600', content: hunter2}]\n"
    )
    for arguments in (["diff", path], ["diff", "--json", path]):
        assert fake.call(*arguments) == 0
        shown = capsys.readouterr().out
        assert "/srv/key" in shown and "/home/alice/.ssh/authorized_keys" in shown
        assert not any(secret in shown for secret in ("hunter2", HASH, "AAAAC3Nz"))


def test_nothing_to_change_is_said(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake.call("diff", fake.document("hostname: old\n")) == 0
    assert capsys.readouterr().out == "nothing would change\n"


def test_what_would_fail_is_said_before_it_does(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / "srv").symlink_to("/etc")
    (fake.root / "opt/dir").mkdir(parents=True)
    body = "write_files: [{path: /srv/a, content: x}, {path: /opt/dir, content: x}]\n"
    assert fake.call("diff", fake.document(body)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would fail: file /srv/a: /srv is a symbolic link, and none is followed",
        "would fail: file /opt/dir: /opt/dir is not a regular file",
    ]


@pytest.mark.parametrize("action", [["diff"], ["apply"], ["apply", "--try", "5"]])
def test_a_refused_document_changes_nothing(fake: Fake, action: list[str]) -> None:
    path = fake.document("hostname: -x\nwrite_files: [{path: /srv/a, content: x}]\n")
    before = fake.tree()
    assert fake.call(*action, path) == 3
    assert (fake.tree(), fake.commands) == (before, [])


# Applying.


def test_a_document_is_applied_and_takes_no_keys_away(fake: Fake) -> None:
    ssh = fake.root / "home/core/.ssh"
    assert fake.call("apply", fake.document(f"ssh_authorized_keys: ['{KEY}']\n")) == 0
    other = KEY.replace("9x me@here", "9y you@there")
    assert fake.call("apply", fake.document(f"ssh_authorized_keys: ['{other}']\n")) == 0
    keys = (ssh / "authorized_keys").read_text()
    assert KEY in keys and other in keys


@pytest.mark.parametrize("action", ["diff", "apply"])
def test_on_a_machine_an_address_that_it_has_not_is_told(
    fake: Fake, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    path = fake.document("write_files: [{path: /etc/x, content: 'a $private_ipv4'}]\n")
    assert fake.call(action, path) == 0
    assert "$private_ipv4 has no value on this machine" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["diff", "apply"])
def test_on_a_machine_what_a_document_includes_counts_for_whether_it_is_refused(
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    answers = {"https://x.example/a": b"#cloud-config\nhostname: -a\n"}
    fetch = "proa.machine.cloudconfig.web.fetch"
    monkeypatch.setattr(fetch, lambda url, headers: answers[url])
    path = fake.document("")
    Path(path).write_text("#include https://x.example/a\n")
    before = fake.tree()
    assert fake.call(action, path) == 3
    assert 'hostname "-a" is not a host name' in capsys.readouterr().out
    assert fake.tree() == before


def test_keys_that_are_imported_by_hand_take_none_away_and_stay_at_the_next_boot(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KEY.replace("9x me@here", "9y you@there")
    published = {"alice": KEY, "bob": other}
    monkeypatch.setattr(
        "proa.machine.cloudconfig.web.fetch",
        lambda url, headers: published[url.split("/")[-2]].encode(),
    )
    fake.seed("ssh_import_id: gh:alice\n")
    stages: tuple[Stage, ...] = ("local", "network")
    for stage in stages:
        assert cloudinit.boot(fake.machine, at=stage) == 0
    assert fake.call("apply", fake.document("ssh_import_id: gh:bob\n")) == 0
    keys = fake.root / "home/core/.ssh/authorized_keys"
    assert KEY in keys.read_text() and other in keys.read_text()
    for stage in stages:
        assert cloudinit.boot(fake.machine, at=stage) == 0
    assert KEY in keys.read_text() and other in keys.read_text()


def test_keys_that_were_added_by_hand_stay_until_the_documents_keys_change(fake: Fake) -> None:
    other, third = (KEY.replace("9x", word) for word in ("9y", "9z"))
    keys = fake.root / "home/core/.ssh/authorized_keys"

    def boot(body: str) -> str:
        fake.seed(body)
        assert cloudinit.boot(fake.machine) == 0
        return keys.read_text()

    boot(f"ssh_authorized_keys: ['{KEY}']\n")
    assert fake.call("apply", fake.document(f"ssh_authorized_keys: ['{other}']\n")) == 0
    assert other in boot(f"ssh_authorized_keys: ['{KEY}']\nhostname: b\n")
    assert other not in boot(f"ssh_authorized_keys: ['{third}']\n")


def test_a_power_state_is_left_to_the_boot(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    document = "power_state: {mode: reboot}\nwrite_files: [{path: /etc/x, content: a}]\n"
    assert fake.call("apply", fake.document(document)) == 0
    assert (fake.root / "etc/x").read_text() == "a"
    assert not any(command.startswith("shutdown") for command in fake.commands)
    assert "power_state is for boots" in capsys.readouterr().out


def test_a_change_that_fails_is_told(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    body = "write_files: [{path: /srv/a, owner: nobody-here, content: x}]\n"
    assert fake.call("apply", fake.document(body)) == 4
    assert "failed: file /srv/a: there is no user nobody-here" in capsys.readouterr().out


def test_applying_by_hand_keeps_the_identity_of_the_boot(fake: Fake) -> None:
    state = fake.root / cloudinit.STATE[1:]
    state.write_text(json.dumps({"format": 1, "instance_id": "i-1", "wishes": {}}))
    assert fake.call("apply", fake.document("hostname: b\n")) == 0
    kept = json.loads(state.read_text())
    assert (kept["instance_id"], list(kept["wishes"])) == ("i-1", ["hostname"])


# Trying.

BODY = f"""
hostname: new
ssh_authorized_keys: ['{KEY}']
users: [{{name: alice, no_create_home: true}}]
write_files:
- {{path: /etc/there, content: new}}
- {{path: /etc/fresh, content: new}}
coreos:
  update: {{group: beta}}
  units:
  - {{name: a.service, content: '[Service]', enable: true, command: start}}
  - {{name: b.service, command: restart}}
  - {{name: c.service, mask: true}}
  - {{name: 10-x.network, content: '[Match]'}}
"""


def _there(fake: Fake) -> None:
    (fake.root / "etc/there").write_text("old")
    (fake.root / "etc/there").chmod(0o640)
    fake.active = {"b.service"}


def test_what_nobody_confirms_goes_back_to_the_last_bit(fake: Fake) -> None:
    _there(fake)
    before = fake.tree()
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 0
    timer = next(c for c in fake.commands if c.startswith("systemd-run"))
    assert "--on-active=600s" in timer and timer.endswith("-- /usr/bin/proactl config revert")
    assert (fake.root / "etc/there").read_text() == "new"
    assert fake.hostname == "new"
    assert "alice" in (fake.root / "etc/passwd").read_text()
    assert fake.call("revert") == 0
    assert fake.tree() == before
    assert fake.hostname == "old"
    assert not (fake.root / "etc/systemd/system/c.service").is_symlink()
    for wanted in (
        "systemctl disable --no-reload -- a.service",
        "systemctl daemon-reload",
        "systemctl --no-block stop -- a.service",
        "systemctl --no-block restart -- b.service",
        "systemctl --no-block try-restart systemd-networkd.service",
        "systemctl stop proa-config-revert.timer",
    ):
        assert wanted in fake.commands


def test_the_timer_is_armed_before_anything_is_changed(fake: Fake) -> None:
    fake.cut_off_at = "systemd-run"
    before = fake.tree()
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 130
    changed = set(fake.tree().items() ^ before.items())
    assert all(name.startswith("var/lib/proa/config-try") for name, _ in changed)


def test_what_is_confirmed_stays(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 0
    assert fake.call("confirm") == 0
    assert "systemctl stop proa-config-revert.timer" in fake.commands
    assert (fake.root / "etc/fresh").read_text() == "new"
    assert not (fake.root / config_trial.FOLDER[1:]).exists()
    assert fake.call("confirm") == 1
    assert fake.call("revert") == 1
    assert "no trial is open" in capsys.readouterr().err


def test_there_is_one_trial_at_a_time(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert fake.call("apply", "--try", "10", fake.document("hostname: a\n")) == 0
    assert fake.call("apply", "--try", "10", fake.document("hostname: b\n")) == 1
    assert "a trial is open already" in capsys.readouterr().err
    assert fake.hostname == "a"


def test_a_reboot_in_the_middle_leaves_the_rest_of_the_time(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 0
    assert fake.call("resume") == 0
    (timer,) = [c for c in fake.commands if c.startswith("systemd-run")]
    seconds = int(timer.partition("--on-active=")[2].partition("s ")[0])
    assert 500 < seconds <= 600
    assert "goes back in 10 minutes unless confirmed" in capsys.readouterr().out
    assert (fake.root / "etc/fresh").exists()


@pytest.mark.parametrize("later", [3600, -86400 * 365])
def test_a_boot_after_the_end_or_without_a_clock_goes_back_first(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    before = fake.tree()
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 0
    now = time.time() + later
    monkeypatch.setattr(time, "time", lambda: now)
    assert fake.call("resume") == 0
    assert fake.tree() == before
    # The units are not started yet: what runs later finds the old files.
    assert not any("--no-block" in command for command in fake.commands)


@pytest.mark.parametrize("place", ["useradd", "daemon-reload", "start -- a.service"])
def test_a_trial_cut_off_half_done_goes_back_at_the_next_boot(fake: Fake, place: str) -> None:
    _there(fake)
    before = fake.tree()
    fake.cut_off_at = place
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 130
    fake.cut_off_at = ""
    assert fake.call("resume") == 0
    assert fake.tree() == before


@pytest.mark.parametrize("place", ["disable", "daemon-reload", "stop proa-config-revert.timer"])
def test_going_back_can_be_cut_off_and_done_again(fake: Fake, place: str) -> None:
    _there(fake)
    before = fake.tree()
    assert fake.call("apply", "--try", "10", fake.document(BODY)) == 0
    fake.cut_off_at = place
    assert fake.call("revert") == 130
    fake.cut_off_at = ""
    fake.call("resume")
    assert fake.tree() == before


def test_what_cannot_be_taken_back_is_said_beforehand(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "users: [{name: bob}]\nhostname: a\n"
    assert fake.call("apply", "--try", "1", fake.document(body)) == 0
    shown = capsys.readouterr().out
    assert "stays if it goes back: user bob" in shown
    assert "on trial: goes back in 1 minutes" in shown


@pytest.mark.parametrize("minutes", ["0", "1441", "x", "-1", "9" * 5000])
def test_the_time_of_a_trial_is_between_a_minute_and_a_day(fake: Fake, minutes: str) -> None:
    with pytest.raises(SystemExit) as ended:
        fake.call("apply", f"--try={minutes}", fake.document(""))
    assert ended.value.code == 2


@pytest.mark.parametrize("manifest", ["", "[]", '{"format": 1}', "[" * 100000])
def test_a_damaged_manifest_ends_the_trial_and_stops_no_boot(fake: Fake, manifest: str) -> None:
    folder = fake.root / config_trial.FOLDER[1:]
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    assert fake.call("resume") == 0
    assert not folder.exists()


# The status.


def test_the_status_tells_what_the_boot_did(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        "state": "applied",
        "source": "config drive /dev/sr0",
        "instance_id": "i-1",
        "seconds": 0.2,
        "problems": [{"level": "warning", "message": "x is not known", "line": 3}],
        "changes": [
            {"what": "host name a", "status": "done", "note": ""},
            {"what": "file /srv/a", "status": "kept", "note": "it was edited on the machine"},
        ],
        "tried": [{"name": "EC2", "outcome": "no answer", "seconds": 1.0}],
    }
    (fake.root / cloudinit.STATUS[1:]).write_text(json.dumps(report))
    assert fake.call("status") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Source    config drive /dev/sr0",
        "Instance  i-1",
        "State     applied (0.2 s)",
        "Changes   1 done, 1 kept",
        "Tried     EC2: no answer (1.0 s)",
        "Warning   line 3: x is not known",
        "Kept      file /srv/a: it was edited on the machine",
    ]
    assert fake.call("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"] == "config drive /dev/sr0"


def test_the_status_says_that_a_trial_is_open(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / cloudinit.STATUS[1:]).write_text('{"state": "nothing", "source": null}')
    fake.call("apply", "--try", "5", fake.document("hostname: a\n"))
    capsys.readouterr()
    assert fake.call("status") == 0
    assert "unless: proactl config confirm" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "no json"])
def test_without_a_report_it_says_where_to_look(
    fake: Fake, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / cloudinit.STATUS[1:]).write_text(text)
    assert fake.call("status") == 1
    assert "journalctl -b -u proa-cloudinit" in capsys.readouterr().err


def test_the_help_has_an_example_for_each_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        proactl.main(["config", "--help"])
    shown = capsys.readouterr().out
    for action in ("status", "validate", "diff", "apply", "confirm", "revert"):
        assert f"proactl config {action}" in shown
    assert config_command.EPILOG in shown
