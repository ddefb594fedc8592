"""Changes reach the machine whole, once, through no link, and never undo what its owner did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proa.machine.cloudconfig.authorized import with_keys
from proa.machine.cloudconfig.changes import stage
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.placing import with_settings
from proa.machine.cloudconfig.plan import plan
from support.cloudconfig import STAGES, Fake, mode_of, statuses

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
KEY2 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9y me@there"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6Ew"


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# The host name.


def test_the_host_name_is_set_for_now_and_for_the_next_boot(fake: Fake) -> None:
    fake.boot("hostname: web-1\n")
    assert fake.text("etc/hostname") == "web-1\n"
    assert fake.kernel_hostname == "web-1"


def test_the_document_wins_over_the_cloud_and_an_empty_name_wipes_nothing(fake: Fake) -> None:
    fake.boot("hostname: web-1\n", Metadata(hostname="cloud"))
    assert fake.text("etc/hostname") == "web-1\n"
    fake.boot("hostname: ''\n", Metadata(hostname=""))
    assert fake.text("etc/hostname") == "web-1\n"


def test_a_name_that_the_owner_set_stays_until_the_document_changes(fake: Fake) -> None:
    fake.boot("hostname: web-1\n")
    (fake.root / "etc/hostname").write_text("mine\n")
    assert statuses(fake.boot("hostname: web-1\n")) == {"host name web-1": "kept"}
    assert fake.text("etc/hostname") == "mine\n"
    fake.boot("hostname: web-2\n")
    assert fake.text("etc/hostname") == "web-2\n"


# Keys.


def test_keys_open_a_home_that_did_not_exist(fake: Fake) -> None:
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n", Metadata(ssh_keys=(KEY2, KEY)))
    assert [line for line in fake.authorized().splitlines() if line[0] != "#"] == [KEY, KEY2]
    assert mode_of(fake.root / "home/core/.ssh/authorized_keys") == 0o600
    assert mode_of(fake.root / "home/core/.ssh") == 0o700
    assert mode_of(fake.root / "home/core") == 0o700
    assert fake.text("home/core/.profile") == "# skeleton\n"


def test_keys_that_the_owner_added_stay_and_ours_follow_the_document(fake: Fake) -> None:
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    with (fake.root / "home/core/.ssh/authorized_keys").open("a") as file:
        file.write("ssh-rsa AAAAB3 own\n")
    fake.boot(f"ssh_authorized_keys: ['{KEY2}']\n")
    assert KEY not in fake.authorized()
    assert KEY2 in fake.authorized()
    assert fake.authorized().endswith("ssh-rsa AAAAB3 own\n")


def test_a_key_that_the_owner_took_away_does_not_come_back(fake: Fake) -> None:
    fake.boot(f"ssh_authorized_keys: ['{KEY}', '{KEY2}']\n")
    path = fake.root / "home/core/.ssh/authorized_keys"
    path.write_text(path.read_text().replace(f"{KEY}\n", ""))
    fake.boot(f"ssh_authorized_keys: ['{KEY}', '{KEY2}']\n")
    assert KEY not in fake.authorized()


def test_keys_go_when_the_document_names_none_any_more(fake: Fake) -> None:
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    fake.boot("hostname: web-1\n")
    assert KEY not in fake.authorized()


def test_a_refused_document_adds_the_clouds_keys_and_takes_none_away(fake: Fake) -> None:
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    fake.boot("hostname: [typo\n", Metadata(hostname="cloud", ssh_keys=(KEY2,)))
    assert KEY in fake.authorized()
    assert KEY2 in fake.authorized()
    assert fake.text("etc/hostname") == "cloud\n"


def test_keys_are_not_written_through_a_link_in_the_home(fake: Fake, tmp_path: Path) -> None:
    (fake.root / "home/core").mkdir(parents=True)
    (fake.root / "etc/secret").mkdir()
    (fake.root / "home/core/.ssh").symlink_to(tmp_path / "etc/secret")
    (result,) = fake.boot(f"ssh_authorized_keys: ['{KEY}']\n").results
    assert result.status == "failed"
    assert "/home/core/.ssh is a symbolic link" in result.note
    assert list((fake.root / "etc/secret").iterdir()) == []


def test_a_part_that_is_ours_is_found_again_whatever_stands_around_it() -> None:
    once = with_keys("# mine\nssh-rsa A mine\n", [KEY], keep=False)
    assert with_keys(once, [KEY], keep=False) == once
    assert with_keys(once, [], keep=False) == "# mine\nssh-rsa A mine\n"
    assert with_keys(once, [KEY2], keep=True).count("ssh-ed25519") == 2


# Users.


def test_a_new_user_is_made_with_its_password_off_the_command_line(fake: Fake) -> None:
    outcome = fake.boot(
        f"users: [{{name: alice, groups: [sudo, wheel], shell: /bin/bash, passwd: '{HASH}'}}]\n"
    )
    assert fake.commands == [
        "groupadd -- wheel",
        "useradd --password * --groups sudo,wheel --shell /bin/bash --create-home -- alice",
        "chpasswd --encrypted",
    ]
    assert fake.stdin[2] == f"alice:{HASH}\n".encode()
    assert outcome.results[0].note == "made the group wheel"


def test_a_user_who_exists_gets_only_what_is_missing(fake: Fake) -> None:
    fake.boot(f"users: [{{name: core, groups: [docker, sudo], passwd: '{HASH}'}}]\n")
    assert fake.commands == ["usermod --append --groups sudo -- core", "chpasswd --encrypted"]


def test_on_the_next_boot_a_user_is_left_alone(fake: Fake) -> None:
    body = f"users: [{{name: alice, groups: [sudo], passwd: '{HASH}'}}]\n"
    fake.boot(body)
    assert statuses(fake.boot(body)) == {"user alice": "unchanged"}
    assert fake.commands == []


def test_a_user_who_cannot_be_made_does_not_stop_the_rest(fake: Fake) -> None:
    fake.broken = {"useradd"}
    outcome = fake.boot("users: [{name: alice}]\nhostname: web-1\nwrite_files: [{path: /srv/a}]\n")
    assert statuses(outcome) == {
        "host name web-1": "done",
        "user alice": "failed",
        "file /srv/a": "done",
    }
    fake.broken = set()
    assert statuses(fake.boot("users: [{name: alice}]\n")) == {"user alice": "done"}


# Files.


def test_a_file_is_written_with_its_mode_and_its_directories(fake: Fake) -> None:
    fake.boot("write_files: [{path: /srv/deep/down/a, content: hi, permissions: '4750'}]\n")
    path = fake.root / "srv/deep/down/a"
    assert path.read_text() == "hi"
    assert mode_of(path) == 0o4750
    assert mode_of(path.parent) == 0o755
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_a_file_that_is_right_already_is_not_written_again(fake: Fake) -> None:
    body = "write_files: [{path: /srv/a, content: hi}]\n"
    fake.boot(body)
    before = (fake.root / "srv/a").stat()
    fake.remembered = {}  # as after a cut before the memory was written
    assert statuses(fake.boot(body)) == {"file /srv/a": "unchanged"}
    assert (fake.root / "srv/a").stat().st_ino == before.st_ino


def test_an_edit_stays_a_new_text_is_written_and_a_missing_file_comes_back(fake: Fake) -> None:
    body = "write_files: [{path: /srv/a, content: hi}]\n"
    fake.boot(body)
    (fake.root / "srv/a").write_text("edited")
    assert statuses(fake.boot(body)) == {"file /srv/a": "kept"}
    assert fake.text("srv/a") == "edited"
    fake.boot("write_files: [{path: /srv/a, content: new}]\n")
    assert fake.text("srv/a") == "new"
    (fake.root / "srv/a").unlink()
    fake.boot("write_files: [{path: /srv/a, content: new}]\n")
    assert fake.text("srv/a") == "new"


def test_a_link_planted_in_a_path_is_not_followed(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/trap").symlink_to(fake.root / "etc")
    (result,) = fake.boot("write_files: [{path: /srv/trap/passwd, content: x}]\n").results
    assert result.status == "failed"
    assert "/srv/trap is a symbolic link" in result.note
    assert "core:x:" in fake.text("etc/passwd")


def test_a_link_in_place_of_the_file_is_replaced_not_followed(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").symlink_to(fake.root / "etc/passwd")
    fake.boot("write_files: [{path: /srv/a, content: x}]\n")
    assert not (fake.root / "srv/a").is_symlink()
    assert fake.text("srv/a") == "x"
    assert "core:x:" in fake.text("etc/passwd")


def test_a_directory_or_a_fifo_in_place_of_the_file_is_an_error_not_a_wait(fake: Fake) -> None:
    (fake.root / "srv/a").mkdir(parents=True)
    os.mkfifo(fake.root / "srv/b")
    outcome = fake.boot("write_files: [{path: /srv/a}, {path: /srv/b}]\n")
    assert set(statuses(outcome).values()) == {"failed"}


def test_an_unknown_owner_fails_that_file_alone(fake: Fake) -> None:
    outcome = fake.boot("write_files: [{path: /srv/a, owner: nobody9}, {path: /srv/b}]\n")
    assert statuses(outcome) == {"file /srv/a": "failed", "file /srv/b": "done"}
    assert not (fake.root / "srv/a").exists()


# update.conf.


def test_update_settings_are_set_and_other_lines_stay(fake: Fake) -> None:
    (fake.root / "etc/coreos").mkdir()
    (fake.root / "etc/coreos/update.conf").write_text("# mine\nGROUP=stable\nX=1\nGROUP=again\n")
    fake.boot("coreos: {update: {group: alpha, reboot-strategy: off}}\n")
    assert fake.text("etc/coreos/update.conf") == "# mine\nGROUP=alpha\nX=1\nREBOOT_STRATEGY=off\n"


def test_settings_are_found_again() -> None:
    once = with_settings("", {"B": "2", "A": "1"})
    assert once == "A=1\nB=2\n"
    assert with_settings(once, {"B": "2", "A": "1"}) == once


# Units.

WEB = """
coreos:
  units:
  - name: web.service
    enable: true
    command: start
    content: "[Service]\\nExecStart=/bin/true\\n"
    drop_ins: [{name: 10-x.conf, content: "[Unit]\\n"}]
"""


def test_a_unit_is_written_enabled_read_and_started_in_this_order(fake: Fake) -> None:
    fake.boot(WEB)
    assert "ExecStart" in fake.text("etc/systemd/system/web.service")
    assert fake.text("etc/systemd/system/web.service.d/10-x.conf") == "[Unit]\n"
    assert fake.commands == [
        "systemctl enable --no-reload -- web.service",
        "systemctl daemon-reload",
        "systemctl --no-block start -- web.service",
    ]


def test_on_the_next_boot_only_the_command_is_given_again(fake: Fake) -> None:
    fake.boot(WEB)
    fake.boot(WEB)
    assert fake.commands == ["systemctl --no-block start -- web.service"]


def test_a_runtime_unit_is_written_again_on_each_boot(fake: Fake) -> None:
    body = "coreos: {units: [{name: a.service, runtime: true, content: '[Unit]'}]}\n"
    fake.boot(body)
    (fake.root / "run/systemd/system/a.service").unlink()  # a new boot, an empty /run
    fake.boot(body)
    assert fake.commands == ["systemctl daemon-reload"]


FILES = """
write_files:
- {path: /etc/systemd/system/early.service, content: a}
- {path: /etc/systemd/system/late.service, content: b, defer: true}
- {path: /etc/systemd/system/web.service.d/10-x.conf, source: {uri: "http://there/x"}}
runcmd: [systemctl start late]
"""


def test_units_among_the_files_are_read_once_in_each_stage_that_wrote_some(fake: Fake) -> None:
    fake.network["http://there/x"] = b"[Unit]\n"
    wanted = plan(f"#cloud-config\n{FILES}".encode()).changes
    for now in STAGES:
        names = [type(change).__name__ for change in wanted if stage(change) == now]
        assert names.count("ReloadUnits") == 1
        assert names.index("ReloadUnits") < names.index("RunScript") if now == "final" else True
    reload = ["systemctl daemon-reload"]
    # Only the first two stages: scripts want a systemd.
    assert [fake.do(wanted, now) for now in STAGES[:2]] == [reload, reload]
    assert [fake.do(wanted, now) for now in STAGES[:2]] == [[], []]


def test_what_was_read_again_is_not_read_twice_where_two_stages_are_one(fake: Fake) -> None:
    """So it is where a metadata service brings the document."""
    fake.network["http://there/x"] = b"[Unit]\n"
    wanted = plan(f"#cloud-config\n{FILES}".encode()).changes
    assert fake.do(wanted, "local", "network") == ["systemctl daemon-reload"]


def test_a_file_that_is_no_unit_makes_systemd_read_nothing() -> None:
    body = b"#cloud-config\nwrite_files: [{path: /etc/systemd/logind.conf.d/a.conf, content: a}]\n"
    assert [type(change).__name__ for change in plan(body).changes] == ["WriteFile"]


def test_a_masked_unit_is_a_link_to_nothing(fake: Fake) -> None:
    body = "coreos: {units: [{name: a.service, mask: true, content: x}]}\n"
    fake.boot(body)
    path = fake.root / "etc/systemd/system/a.service"
    assert path.readlink() == Path("/dev/null")
    assert set(statuses(fake.boot(body)).values()) == {"unchanged", "skipped"}


def test_a_runtime_unit_without_content_takes_a_mask_away_and_nothing_else(fake: Fake) -> None:
    folder = fake.root / "run/systemd/system"
    folder.mkdir(parents=True)
    (folder / "a.service").symlink_to("/dev/null")
    (folder / "b.service").write_text("[Unit]\n")
    body = "{name: a.service, runtime: true}, {name: b.service, runtime: true}"
    fake.boot(f"coreos: {{units: [{body}]}}\n")
    assert [p.name for p in folder.iterdir()] == ["b.service"]


def test_network_files_go_to_networkd_which_reads_them_again(fake: Fake) -> None:
    fake.boot("coreos: {units: [{name: 10-a.network, enable: true, content: '[Match]'}]}\n")
    assert fake.text("etc/systemd/network/10-a.network") == "[Match]"
    assert fake.commands == ["systemctl --no-block try-restart systemd-networkd.service"]


def test_what_is_said_of_changes_holds_no_secret(fake: Fake) -> None:
    outcome = fake.boot(
        f"ssh_authorized_keys: ['{KEY}']\nusers: [{{name: a, passwd: '{HASH}'}}]\n"
        "write_files: [{path: /srv/a, content: topsecret}]\n"
    )
    shown = repr(outcome)
    for secret in (KEY, HASH, "topsecret"):
        assert secret not in shown


def test_masking_a_unit_that_nobody_has_makes_systemd_read_nothing_again(fake: Fake) -> None:
    body = "coreos: {units: [{name: far.service, mask: true, runtime: true}]}\n"
    assert statuses(fake.boot(body))["systemd's units read again"] == "skipped"
    unit = fake.root / "usr/lib/systemd/system/near.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    body = body.replace("far", "near")
    assert statuses(fake.boot(body))["systemd's units read again"] == "done"
