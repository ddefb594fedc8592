"""What the server remembers, in one SQLite file.

Machines are rows of what they last said; what they reported is kept as events, and what the
operator should see as activity. A rollout adds tables and columns to this (a group already stands
between a machine and its channel), so every change of the schema is a new entry in ``MIGRATIONS``.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proa.server.errors import ServerError
from proa.server.policy import Channel, Progress, Status
from proa.wire.omaha import Event, mask_error

DATABASE_EXIT = 9
DEFAULT_CHANNELS = ("alpha", "beta", "stable")

# Per machine; the oldest go first, so that a machine in a loop cannot fill the disk.
KEPT_EVENTS = 200

# Each entry brings the schema from its index to the next number. Never change one that shipped.
MIGRATIONS = (
    """
    CREATE TABLE channel (
        name TEXT PRIMARY KEY,
        version TEXT,
        allow_downgrade INTEGER NOT NULL DEFAULT 0,
        changed_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE machine_group (
        name TEXT PRIMARY KEY,
        channel TEXT NOT NULL REFERENCES channel (name),
        changed_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE release (
        version TEXT PRIMARY KEY,
        first_used_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE machine (
        app_id TEXT NOT NULL,
        machine_id TEXT NOT NULL,
        alias TEXT NOT NULL,
        version TEXT NOT NULL,
        next_version TEXT NOT NULL,
        group_name TEXT NOT NULL,
        board TEXT NOT NULL,
        oem TEXT NOT NULL,
        aleph_version TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        ip TEXT NOT NULL,
        status TEXT NOT NULL,
        status_version TEXT NOT NULL,
        status_since TEXT NOT NULL,
        first_seen TEXT NOT NULL,
        last_seen TEXT NOT NULL,
        PRIMARY KEY (app_id, machine_id)
    ) STRICT;
    CREATE INDEX machine_by_group ON machine (group_name, status);
    CREATE TABLE event (
        id INTEGER PRIMARY KEY,
        app_id TEXT NOT NULL,
        machine_id TEXT NOT NULL,
        at TEXT NOT NULL,
        type INTEGER NOT NULL,
        result INTEGER NOT NULL,
        errorcode INTEGER,
        version TEXT NOT NULL,
        previous_version TEXT NOT NULL,
        error_version TEXT NOT NULL,
        reason TEXT NOT NULL,
        FOREIGN KEY (app_id, machine_id) REFERENCES machine (app_id, machine_id) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX event_by_machine ON event (app_id, machine_id, id);
    CREATE TABLE activity (
        id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    """,
)


@dataclass(frozen=True)
class Group:
    """Machines that follow one channel."""

    name: str
    channel: str


@dataclass(frozen=True)
class Machine:
    """What a machine last said of itself; times are UTC, ``2026-01-02T03:04:05Z``."""

    app_id: str
    machine_id: str
    alias: str
    version: str
    next_version: str
    group_name: str
    board: str
    oem: str
    aleph_version: str
    boot_id: str
    ip: str
    status: Status
    status_version: str
    status_since: str
    first_seen: str
    last_seen: str

    @property
    def progress(self) -> Progress:
        return Progress(self.status, self.status_version)


@dataclass(frozen=True)
class Failure:
    """An update that failed on a machine: which version, and why."""

    at: str
    version: str
    errorcode: int
    reason: str


_COLUMNS = tuple(field.name for field in fields(Machine))


class Store:
    """An open database. Calls may come from any thread; each runs in a transaction of its own."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.exists():
            raise ServerError(
                f"there is no server database {path}",
                hint="Start `proa serve`, or say where it is with --db.",
                code=DATABASE_EXIT,
            )
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            # A reader never waits for a writer; a power cut may lose the last answers, no more.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate(path)
        except (sqlite3.Error, OSError) as error:
            raise ServerError(
                f"cannot use the server database {path}: {error}",
                hint="Put it back from a copy, or move it away: machines report themselves again.",
                code=DATABASE_EXIT,
            ) from None

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body as one change: all of it happens, or nothing."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # --- Channels and groups ---

    def channels(self) -> list[Channel]:
        """Return all channels by name."""
        rows = self._all("SELECT name, version, allow_downgrade FROM channel ORDER BY name")
        return [_channel(row) for row in rows]

    def groups(self) -> list[Group]:
        """Return all groups by name."""
        rows = self._all("SELECT name, channel FROM machine_group ORDER BY name")
        return [Group(row["name"], row["channel"]) for row in rows]

    def channel_of(self, track: str) -> Channel | None:
        """Return the channel of group ``track``, or the channel of that name, or None."""
        rows = self._all(
            "SELECT c.name, c.version, c.allow_downgrade FROM machine_group g "
            "JOIN channel c ON c.name = g.channel WHERE g.name = ? "
            "UNION ALL SELECT name, version, allow_downgrade FROM channel WHERE name = ?",
            track,
            track,
        )
        return _channel(rows[0]) if rows else None

    def save_channel(self, channel: Channel, now: datetime) -> None:
        """Make or change a channel."""
        with self.transaction():
            self._run(
                "INSERT INTO channel (name, version, allow_downgrade, changed_at) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version, "
                "allow_downgrade = excluded.allow_downgrade, changed_at = excluded.changed_at",
                channel.name,
                channel.version,
                channel.allow_downgrade,
                stamp(now),
            )
            if channel.version is not None:
                self._run(
                    "INSERT INTO release (version, first_used_at) VALUES (?, ?) "
                    "ON CONFLICT DO NOTHING",
                    channel.version,
                    stamp(now),
                )
            self.add_activity("channel", channel.name, f"now leads to {channel.version}", now)

    def save_group(self, group: Group, now: datetime) -> None:
        """Make or change a group; its channel must exist."""
        with self.transaction():
            self._run(
                "INSERT INTO machine_group (name, channel, changed_at) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET channel = excluded.channel, "
                "changed_at = excluded.changed_at",
                group.name,
                group.channel,
                stamp(now),
            )
            self.add_activity("group", group.name, f"now follows {group.channel}", now)

    # --- Machines ---

    def machines(self) -> list[Machine]:
        """Return all machines, by group, alias and id."""
        rows = self._all("SELECT * FROM machine ORDER BY group_name, alias, machine_id")
        return [_machine(row) for row in rows]

    def machine(self, app_id: str, machine_id: str) -> Machine | None:
        """Return what is known of a machine."""
        rows = self._all(
            "SELECT * FROM machine WHERE app_id = ? AND machine_id = ?", app_id, machine_id
        )
        return _machine(rows[0]) if rows else None

    def save_machine(self, machine: Machine) -> None:
        """Write a machine's row."""
        sets = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS)
        self._run(
            f"INSERT INTO machine ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own column names
            f"VALUES ({', '.join('?' * len(_COLUMNS))}) "
            f"ON CONFLICT (app_id, machine_id) DO UPDATE SET {sets}",
            *asdict(machine).values(),
        )

    def add_event(self, machine: Machine, event: Event, version: str, now: datetime) -> None:
        """Keep an event of a machine; ``version`` is the one that it is about, if known."""
        self._run(
            "INSERT INTO event (app_id, machine_id, at, type, result, errorcode, version, "
            "previous_version, error_version, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            machine.app_id,
            machine.machine_id,
            stamp(now),
            event.type,
            event.result,
            None if event.errorcode is None else mask_error(event.errorcode),
            machine.version,
            event.previous_version or "",
            version,
            event.reason or "",
        )
        self._run(
            "DELETE FROM event WHERE app_id = ?1 AND machine_id = ?2 AND id <= (SELECT id FROM "
            "event WHERE app_id = ?1 AND machine_id = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
            machine.app_id,
            machine.machine_id,
            KEPT_EVENTS,
        )

    def last_failure(self, machine: Machine) -> Failure | None:
        """Return the last update that failed on a machine."""
        rows = self._all(
            "SELECT at, error_version, errorcode, reason FROM event WHERE app_id = ? AND "
            "machine_id = ? AND result = 0 ORDER BY id DESC LIMIT 1",
            machine.app_id,
            machine.machine_id,
        )
        for row in rows:
            return Failure(row["at"], row["error_version"], row["errorcode"] or 0, row["reason"])
        return None

    def add_activity(self, kind: str, subject: str, text: str, now: datetime) -> None:
        """Keep a line for the operator."""
        self._run(
            "INSERT INTO activity (at, kind, subject, text) VALUES (?, ?, ?, ?)",
            stamp(now),
            kind,
            subject,
            text,
        )

    # --- SQLite ---

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _run(self, sql: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(sql, values)

    def _migrate(self, path: Path) -> None:
        with self.transaction():
            self._run("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")
            rows = self._all("SELECT version FROM schema_version")
            version = rows[0]["version"] if rows else 0
            if version > len(MIGRATIONS):
                raise ServerError(
                    f"the server database {path} was made by a newer proa (schema {version})",
                    hint="Use that one; this one would damage it.",
                    code=DATABASE_EXIT,
                )
            for migration in MIGRATIONS[version:]:
                # Not executescript, which would commit in the middle.
                for statement in migration.split(";"):
                    self._run(statement)
            if version < len(MIGRATIONS):
                self._run("DELETE FROM schema_version")
                self._run("INSERT INTO schema_version VALUES (?)", len(MIGRATIONS))
            if version == 0:
                self._add_defaults()

    def _add_defaults(self) -> None:
        for name in DEFAULT_CHANNELS:
            for table, columns, values in (
                ("channel", "name, changed_at", (name, "")),
                ("machine_group", "name, channel, changed_at", (name, name, "")),
            ):
                marks = ", ".join("?" * len(values))
                self._run(f"INSERT INTO {table} ({columns}) VALUES ({marks})", *values)  # noqa: S608


def stamp(moment: datetime) -> str:
    """Return a moment as it is stored: UTC, whole seconds, sortable as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _channel(row: sqlite3.Row) -> Channel:
    return Channel(row["name"], row["version"], bool(row["allow_downgrade"]))


def _machine(row: sqlite3.Row) -> Machine:
    values = {column: row[column] for column in _COLUMNS}
    return Machine(**{**values, "status": Status(values["status"])})
