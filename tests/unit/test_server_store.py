"""The database keeps what it was told, and is never used by a program that would damage it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proa.server import store
from proa.server.errors import ServerError
from proa.server.policy import Channel, Status
from proa.server.store import Group, Machine, Store
from proa.wire.omaha import Event

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
MACHINE = Machine(
    app_id="app",
    machine_id="m1",
    alias="web-1",
    version="1.0.0",
    next_version="",
    group_name="web",
    board="amd64-usr",
    oem="",
    aleph_version="1.0.0",
    boot_id="b",
    ip="10.0.0.1",
    status=Status.CURRENT,
    status_version="1.0.0",
    status_since="2026-01-02T03:04:05Z",
    first_seen="2026-01-02T03:04:05Z",
    last_seen="2026-01-02T03:04:05Z",
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "new" / "server.db")) as db:
        yield db


def test_a_new_database_has_the_usual_channels_leading_nowhere(opened: Store) -> None:
    assert opened.channels() == [Channel("alpha"), Channel("beta"), Channel("stable")]
    assert opened.groups() == [Group(n, n) for n in ("alpha", "beta", "stable")]
    assert opened.machines() == []


def test_a_group_leads_through_its_channel(opened: Store) -> None:
    opened.save_channel(Channel("beta", "1.1.0", allow_downgrade=True), NOW)
    opened.save_group(Group("web", "beta"), NOW)
    assert opened.channel_of("web") == Channel("beta", "1.1.0", True)


def test_a_group_goes_before_a_channel_of_the_same_name(opened: Store) -> None:
    opened.save_channel(Channel("beta", "1.1.0"), NOW)
    opened.save_group(Group("alpha", "beta"), NOW)
    assert opened.channel_of("alpha") == Channel("beta", "1.1.0")


def test_an_unknown_group_gets_the_channel_of_its_name_or_none(opened: Store) -> None:
    opened.save_channel(Channel("canary", "1.1.0"), NOW)
    assert opened.channel_of("canary") == Channel("canary", "1.1.0")
    assert opened.channel_of("nobody") is None
    assert opened.channel_of("'; DROP TABLE channel; --") is None


def test_a_group_cannot_follow_a_channel_that_is_not_there(opened: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        opened.save_group(Group("web", "nowhere"), NOW)
    assert opened.channel_of("web") is None


def test_all_survives_closing(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with closing(Store(path)) as db:
        db.save_channel(Channel("alpha", "1.1.0"), NOW)
        db.save_machine(MACHINE)
        db.add_event(MACHINE, Event(3, 0, 0x1000002C, reason="sad"), "1.1.0", NOW)
    with closing(Store(path)) as db:
        assert db.channel_of("alpha") == Channel("alpha", "1.1.0")
        assert db.machines() == [MACHINE]
        failure = db.last_failure(MACHINE)
        assert failure == store.Failure("2026-01-02T03:04:05Z", "1.1.0", 44, "sad")


def test_saving_a_machine_again_replaces_its_row(opened: Store) -> None:
    opened.save_machine(MACHINE)
    later = replace(MACHINE, version="1.1.0", status=Status.STAGED)
    opened.save_machine(later)
    assert opened.machines() == [later]
    assert opened.machine("app", "m1") == later
    assert opened.machine("app", "m2") is None


def test_the_last_failure_is_the_last(opened: Store) -> None:
    opened.save_machine(MACHINE)
    assert opened.last_failure(MACHINE) is None
    for number in range(3):
        opened.add_event(MACHINE, Event(3, 0, reason=str(number)), "1.1.0", NOW)
    opened.add_event(MACHINE, Event(13, 1), "1.1.0", NOW)
    failure = opened.last_failure(MACHINE)
    assert failure is not None and failure.reason == "2"


def test_a_machine_in_a_loop_does_not_fill_the_disk(opened: Store, tmp_path: Path) -> None:
    other = replace(MACHINE, machine_id="m2")
    for machine in (MACHINE, other):
        opened.save_machine(machine)
    opened.add_event(other, Event(3, 0, reason="kept"), "1.1.0", NOW)
    for number in range(store.KEPT_EVENTS + 50):
        opened.add_event(MACHINE, Event(3, 0, reason=str(number)), "1.1.0", NOW)
    with closing(sqlite3.connect(tmp_path / "new" / "server.db")) as db:
        count = db.execute("SELECT count(*) FROM event WHERE machine_id = 'm1'").fetchone()
    assert count == (store.KEPT_EVENTS,)
    assert opened.last_failure(other) is not None


def test_a_transaction_happens_wholly_or_not(opened: Store) -> None:
    def save_and_fail() -> None:
        with opened.transaction():
            opened.save_machine(MACHINE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_fail()
    assert opened.machines() == []


def test_opening_again_migrates_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    for _ in range(2):
        with closing(Store(path)) as db:
            assert len(db.channels()) == 3
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT version FROM schema_version").fetchall()
    assert rows == [(len(store.MIGRATIONS),)]


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ServerError, match=r"newer proa \(schema 99\)"):
        Store(path)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_text("precious notes" * 100)
    with pytest.raises(ServerError, match="cannot use the server database") as caught:
        Store(path)
    assert caught.value.code == store.DATABASE_EXIT
    assert path.read_text() == "precious notes" * 100


def test_reading_does_not_make_a_database(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no server database"):
        Store(tmp_path / "server.db", create=False)
    assert not (tmp_path / "server.db").exists()
