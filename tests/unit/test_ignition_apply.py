"""What an Ignition config asks for reaches the machine, once, and spares what is there."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from proa.machine.cloudconfig.apply import Outcome
from proa.machine.cloudconfig.changes import describe, stage
from proa.machine.cloudconfig.plan import plan
from support.cloudconfig import Fake, mode_of


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def boot(fake: Fake, **sections: Any) -> Outcome:
    return fake.boot_with(json.dumps({"ignition": {"version": "3.4.0"}, **sections}).encode())


def store(fake: Fake, **storage: Any) -> dict[str, str]:
    """The statuses of the changes by what they are about, with the note of a failure."""
    return {
        result.what: f"failed: {result.note}" if result.status == "failed" else result.status
        for result in boot(fake, storage=storage).results
    }


def file(path: str = "/srv/a", content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"path": path, "contents": {"source": f"data:,{content}"}, **more}


# Files.


def test_a_file_is_made_with_its_mode_and_the_next_boot_leaves_it(fake: Fake) -> None:
    assert store(fake, files=[file(mode=384)]) == {"file /srv/a": "done"}
    assert (fake.root / "srv/a").read_text() == "hi"
    assert mode_of(fake.root / "srv/a") == 0o600
    assert store(fake, files=[file(mode=384)]) == {"file /srv/a": "unchanged"}


def test_a_file_of_someone_else_is_spared_unless_overwrite_says_otherwise(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("mine")
    spared = "failed: /srv/a is there already, and overwrite is not true"
    assert store(fake, files=[file()]) == {"file /srv/a": spared}
    assert (fake.root / "srv/a").read_text() == "mine"
    assert store(fake, files=[file(overwrite=True)]) == {"file /srv/a": "done"}
    assert (fake.root / "srv/a").read_text() == "hi"


def test_a_link_in_place_of_the_file_is_spared_too(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").symlink_to("/etc/passwd")
    (status,) = store(fake, files=[file()]).values()
    assert "is there already" in status
    store(fake, files=[file(overwrite=True)])
    assert not (fake.root / "srv/a").is_symlink()
    assert "core:x:" in (fake.root / "etc/passwd").read_text()


def test_what_an_earlier_boot_made_follows_the_config(fake: Fake) -> None:
    store(fake, files=[file()])
    assert store(fake, files=[file(content="new")]) == {"file /srv/a": "done"}
    assert (fake.root / "srv/a").read_text() == "new"


def test_an_edit_stays_and_a_cut_boot_is_finished(fake: Fake) -> None:
    store(fake, files=[file()])
    fake.remembered = {}  # the power went before the memory was written
    assert store(fake, files=[file()]) == {"file /srv/a": "unchanged"}
    (fake.root / "srv/a").write_text("edited")
    assert store(fake, files=[file()]) == {"file /srv/a": "kept"}
    assert (fake.root / "srv/a").read_text() == "edited"


def test_a_file_without_content_is_made_empty_and_otherwise_left(fake: Fake) -> None:
    assert store(fake, files=[{"path": "/srv/a"}]) == {"file /srv/a": "done"}
    assert (fake.root / "srv/a").read_bytes() == b""
    (fake.root / "srv/a").write_text("mine")
    (fake.root / "srv/a").chmod(0o640)
    fake.remembered = {}
    assert store(fake, files=[{"path": "/srv/a"}]) == {"file /srv/a": "unchanged"}
    assert store(fake, files=[{"path": "/srv/a", "mode": 384}]) == {"file /srv/a": "done"}
    assert (fake.root / "srv/a").read_text() == "mine"
    assert mode_of(fake.root / "srv/a") == 0o600


def test_what_is_appended_is_there_once_whatever_happens(fake: Fake) -> None:
    (fake.root / "etc/motd").write_text("Debian\n")
    (fake.root / "etc/motd").chmod(0o640)
    more = {"path": "/etc/motd", "append": [{"source": "data:,Proa%0A"}]}
    assert store(fake, files=[more]) == {"end of the file /etc/motd": "done"}
    assert (fake.root / "etc/motd").read_text() == "Debian\nProa\n"
    assert mode_of(fake.root / "etc/motd") == 0o640
    fake.remembered = {}
    assert store(fake, files=[more]) == {"end of the file /etc/motd": "unchanged"}
    (fake.root / "etc/motd").write_text("edited\n")
    assert store(fake, files=[more]) == {"end of the file /etc/motd": "unchanged"}
    assert (fake.root / "etc/motd").read_text() == "edited\n"


# Files on the network.

URL = "https://user:secret@example.com/x"


def test_what_is_fetched_is_unpacked_verified_and_fetched_once(fake: Fake) -> None:
    fake.network[URL] = gzip.compress(b"hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    contents = {
        "source": URL,
        "compression": "gzip",
        "verification": {"hash": f"sha256-{digest}"},
        "httpHeaders": [{"name": "X-Token", "value": "secret"}],
    }
    entry = {"path": "/srv/a", "mode": 448, "contents": contents}
    what = "file /srv/a from https://example.com"
    assert store(fake, files=[entry]) == {what: "done"}
    assert fake.asked == [(URL, {"X-Token": "secret"})]
    assert (fake.root / "srv/a").read_bytes() == b"hello"
    assert mode_of(fake.root / "srv/a") == 0o700
    assert store(fake, files=[entry]) == {what: "unchanged"}
    assert fake.asked == []


def test_what_is_fetched_and_not_what_was_meant_is_never_placed(fake: Fake) -> None:
    fake.network[URL] = b"evil"
    contents = {"source": URL, "verification": {"hash": "sha256-" + "0" * 64}}
    (status,) = store(fake, files=[{"path": "/srv/a", "contents": contents}]).values()
    assert status.startswith("failed: what was fetched is not good: its sha256")
    assert not (fake.root / "srv/a").exists()


def test_what_cannot_be_fetched_fails_alone_and_is_tried_again(fake: Fake) -> None:
    files = [{"path": "/srv/a", "contents": {"source": URL}}, file("/srv/b")]
    assert store(fake, files=files) == {
        "file /srv/a from https://example.com": "failed: there: HTTP 404",
        "file /srv/b": "done",
    }
    fake.network[URL] = b"late"
    assert set(store(fake, files=files).values()) == {"done", "unchanged"}
    assert (fake.root / "srv/a").read_bytes() == b"late"


def test_nothing_is_fetched_for_a_place_that_is_spared(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("mine")
    (status,) = store(fake, files=[{"path": "/srv/a", "contents": {"source": URL}}]).values()
    assert "is there already" in status
    assert fake.asked == []


# Directories.


def test_a_directory_is_made_with_its_mode_and_those_above_it_with_theirs(fake: Fake) -> None:
    directories = [{"path": "/srv/a/b/c", "mode": 448}, {"path": "/srv/a", "mode": 488}]
    store(fake, directories=directories)
    assert mode_of(fake.root / "srv/a") == 0o750
    assert mode_of(fake.root / "srv/a/b") == 0o755
    assert mode_of(fake.root / "srv/a/b/c") == 0o700
    assert set(store(fake, directories=directories).values()) == {"unchanged"}


def test_a_directory_that_is_there_gets_its_mode_once_and_keeps_what_is_in_it(fake: Fake) -> None:
    (fake.root / "srv/a").mkdir(parents=True)
    (fake.root / "srv/a/x").touch()
    directory = {"path": "/srv/a", "mode": 448, "overwrite": True, "group": {"id": os.getegid()}}
    directory["user"] = {"name": "core"}
    assert store(fake, directories=[directory]) == {"directory /srv/a": "done"}
    assert mode_of(fake.root / "srv/a") == 0o700
    assert (fake.root / "srv/a/x").exists()
    (fake.root / "srv/a").chmod(0o755)
    assert store(fake, directories=[directory]) == {"directory /srv/a": "unchanged"}
    assert mode_of(fake.root / "srv/a") == 0o755


def test_a_file_where_a_directory_should_be_is_replaced_only_if_it_says_so(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("mine")
    (status,) = store(fake, directories=[{"path": "/srv/a"}]).values()
    assert status.startswith("failed: /srv/a")
    assert (fake.root / "srv/a").read_text() == "mine"
    store(fake, directories=[{"path": "/srv/a", "overwrite": True}])
    assert (fake.root / "srv/a").is_dir()


def test_no_link_is_followed_to_make_a_directory(fake: Fake, tmp_path: Path) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/trap").symlink_to(tmp_path / "etc")
    directories = [{"path": "/srv/trap"}, {"path": "/srv/trap/x"}]
    statuses = store(fake, directories=directories).values()
    assert all(status.startswith("failed") for status in statuses)
    assert sorted(p.name for p in (tmp_path / "etc").iterdir()) == [
        "group",
        "passwd",
        "shadow",
        "skel",
    ]


# Links.


def test_a_symbolic_link_is_made_and_need_not_point_to_anything(fake: Fake) -> None:
    link = {"path": "/etc/localtime", "target": "../usr/share/zoneinfo/Europe/Zurich"}
    assert store(fake, links=[link]) == {"link /etc/localtime": "done"}
    assert str((fake.root / "etc/localtime").readlink()) == link["target"]
    assert store(fake, links=[link]) == {"link /etc/localtime": "unchanged"}


def test_a_hard_link_is_another_name_of_the_file(fake: Fake) -> None:
    link = {"path": "/srv/b", "target": "/srv/a", "hard": True}
    store(fake, files=[file()], links=[link])
    assert (fake.root / "srv/a").samefile(fake.root / "srv/b")
    assert store(fake, files=[file()], links=[link])["link /srv/b"] == "unchanged"
    assert sorted(p.name for p in (fake.root / "srv").iterdir()) == ["a", "b"]


def test_a_link_replaces_what_is_there_only_if_it_says_so_or_is_its_own(fake: Fake) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/a").write_text("mine")
    link = {"path": "/srv/a", "target": "b"}
    (status,) = store(fake, links=[link]).values()
    assert status == "failed: /srv/a is there already, and overwrite is not true"
    assert store(fake, links=[{**link, "overwrite": True}]) == {"link /srv/a": "done"}
    assert store(fake, links=[{**link, "target": "c"}]) == {"link /srv/a": "done"}
    assert str((fake.root / "srv/a").readlink()) == "c"


def test_a_link_that_the_owner_changed_stays(fake: Fake) -> None:
    link = {"path": "/srv/a", "target": "b"}
    store(fake, links=[link])
    (fake.root / "srv/a").unlink()
    (fake.root / "srv/a").symlink_to("mine")
    assert store(fake, links=[link]) == {"link /srv/a": "kept"}
    assert str((fake.root / "srv/a").readlink()) == "mine"


def test_a_hard_link_is_made_of_no_file_through_a_link(fake: Fake, tmp_path: Path) -> None:
    (fake.root / "srv").mkdir()
    (fake.root / "srv/trap").symlink_to(tmp_path / "etc")
    link = {"path": "/srv/a", "target": "/srv/trap/passwd", "hard": True}
    (status,) = store(fake, links=[link]).values()
    assert "/srv/trap is a symbolic link" in status
    assert [p.name for p in (fake.root / "srv").iterdir()] == ["trap"]


# Groups, users and units.


def test_groups_are_made_before_the_users_who_are_in_them(fake: Fake) -> None:
    groups = [{"name": "web", "gid": 600, "system": True}, {"name": "docker", "gid": 5}]
    outcome = boot(fake, passwd={"groups": groups, "users": [{"name": "alice", "uid": 1600}]})
    assert fake.commands == [
        "groupadd --gid 600 --system -- web",
        "useradd --password * --uid 1600 --create-home -- alice",
    ]
    assert [(r.what, r.status, r.note) for r in outcome.results] == [
        ("group web", "done", ""),
        ("group docker", "unchanged", "it has the id 101"),
        ("user alice", "done", ""),
    ]


def test_a_unit_is_enabled_and_started_at_the_first_boot_and_then_left_to_systemd(
    fake: Fake,
) -> None:
    contents = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    units = [
        {"name": "web.service", "enabled": True, "contents": contents},
        {"name": "docker.service", "enabled": False},
    ]
    boot(fake, systemd={"units": units})
    assert fake.commands == [
        "systemctl enable --no-reload -- web.service",
        "systemctl disable --no-reload -- docker.service",
        "systemctl daemon-reload",
        "systemctl --no-block start -- web.service",
        "systemctl --no-block stop -- docker.service",
    ]
    boot(fake, systemd={"units": units})
    assert fake.commands == []
    units[1]["enabled"] = True
    boot(fake, systemd={"units": units})
    assert fake.commands == [
        "systemctl enable --no-reload -- docker.service",
        "systemctl daemon-reload",
        "systemctl --no-block start -- docker.service",
    ]


def test_units_that_come_as_files_and_links_are_read_by_systemd(fake: Fake) -> None:
    wants = "/etc/systemd/system/multi-user.target.wants/web.service"
    link = {"path": wants, "target": "../web.service"}
    store(fake, files=[file("/etc/systemd/system/web.service")], links=[link])
    assert fake.commands == ["systemctl daemon-reload"]
    store(fake, files=[file("/etc/systemd/network/10-a.network")])
    assert fake.commands == ["systemctl --no-block try-restart systemd-networkd.service"]


def test_a_unit_that_is_downloaded_is_read_and_the_enabled_ones_start_after_that(
    fake: Fake,
) -> None:
    fake.network[URL] = b"[Service]\nExecStart=/bin/true\n"
    files = [{"path": "/etc/systemd/system/x.service", "contents": {"source": URL}}]
    units = [{"name": "web.service", "enabled": True}]
    boot(fake, storage={"files": files}, systemd={"units": units})
    assert fake.commands == [
        "systemctl enable --no-reload -- web.service",
        "systemctl daemon-reload",
        "systemctl daemon-reload",
        "systemctl --no-block start -- web.service",
    ]
    boot(fake, storage={"files": files}, systemd={"units": units})
    assert fake.commands == []


def test_a_unit_that_is_downloaded_is_enabled_after_that() -> None:
    text = (
        '{"ignition": {"version": "3.4.0"}, "storage": {"files": [{"path": '
        '"/etc/systemd/system/far.service", "contents": {"source": "http://192.0.2.1/u"}}]}, '
        '"systemd": {"units": [{"name": "far.service", "enabled": true}, '
        '{"name": "near.service", "enabled": true, "contents": '
        '"[Service]\\n[Install]\\nWantedBy=multi-user.target"}]}}'
    )
    planned = plan(text.encode())
    stages = {describe(change): stage(change) for change in planned.changes}
    assert stages["enabled far.service"] == "network"
    assert stages["enabled near.service"] == "local"
