"""A machine's life as the server sees it, request by request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proa.server import policy, service
from proa.server.catalogue import Catalogue, File, Release
from proa.server.policy import Channel, Status
from proa.server.store import Machine, Store
from proa.wire import omaha
from proa.wire.omaha import AppRequest, AppResponse, Event, Request, UpdateCheck

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FILES = (File("aa.usr.erofs", 100, "dXNy", "c2hhMQ=="), File("bb.proa.efi", 10, "dWtp", ""))
CATALOGUE = Catalogue({v: Release(v, "amd64", FILES) for v in ("1.0.0", "1.1.0", "1.2.0")})
APP = AppRequest(
    omaha.DEFAULT_APP_ID, "1.0.0", "alpha", "{boot}", "m1", ping=True, update_check=True
)


class Server:
    """The service with a database, and no HTTP around it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ask(self, app: AppRequest) -> AppResponse:
        request = Request((app,))
        # By way of the wire, as a machine would get it.
        answer = service.answer(
            request, self.store, CATALOGUE, base="http://u", ip="10.0.0.9", now=NOW
        )
        (found,) = omaha.load_response(omaha.dump_response(answer)).apps
        return found

    def lead(self, version: str) -> None:
        self.store.save_channel(Channel("alpha", version), NOW)

    @property
    def machine(self) -> Machine:
        (machine,) = self.store.machines()
        return machine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with closing(Store(tmp_path / "server.db")) as store:
        found = Server(store)
        found.lead("1.1.0")
        yield found


def test_an_offer_says_where_the_files_are_and_what_they_are(server: Server) -> None:
    answer = server.ask(APP)
    assert (answer.app_id, answer.status, answer.ping) == (omaha.DEFAULT_APP_ID, "ok", True)
    check = answer.update_check
    assert check is not None
    assert check.codebases == ("http://u/repository/targets/1.1.0/",)
    assert check.version == "1.1.0"
    assert [p.name for p in check.packages] == ["aa.usr.erofs", "bb.proa.efi"]
    assert (check.packages[0].size, check.packages[0].sha1_b64) == (100, "c2hhMQ==")
    assert check.sha256_b64 == check.packages[0].sha256_b64 == "dXNy"
    assert check.disable_payload_backoff


@pytest.mark.parametrize("track", ["nobody", "beta", ""])
def test_who_has_no_version_gets_noupdate_and_no_error(server: Server, track: str) -> None:
    answer = server.ask(replace(APP, track=track))
    assert answer.status == "ok"
    assert answer.update_check == UpdateCheck("noupdate")


def test_app_ids_are_one_with_and_without_braces_and_come_back_as_they_went(
    server: Server,
) -> None:
    bare = omaha.bare_app_id(omaha.DEFAULT_APP_ID)
    for app_id in (omaha.DEFAULT_APP_ID, bare, bare.upper()):
        answer = server.ask(replace(APP, app_id=app_id))
        assert answer.app_id == app_id
        assert answer.update_check is not None and answer.update_check.status == "ok"
    assert server.machine.machine_id == "m1"


def test_another_product_is_told_so_and_not_remembered(server: Server) -> None:
    answer = server.ask(replace(APP, app_id="{11111111-1111-1111-1111-111111111111}"))
    assert answer.status == "error-unknownApplication"
    assert answer.update_check == UpdateCheck("noupdate")
    assert server.store.machines() == []


def test_only_what_was_asked_is_answered(server: Server) -> None:
    ping = server.ask(replace(APP, update_check=False))
    assert ping.ping and ping.update_check is None and ping.events == 0
    event = server.ask(replace(APP, ping=False, update_check=False, events=(Event(13, 1),) * 2))
    assert not event.ping and event.update_check is None and event.events == 2


def test_a_machine_without_an_id_is_answered_and_not_remembered(server: Server) -> None:
    check = server.ask(replace(APP, machine_id="")).update_check
    assert check is not None and check.status == "ok"
    assert server.store.machines() == []


def test_a_good_update_from_offer_to_up_to_date(server: Server) -> None:
    server.ask(APP)
    assert server.machine.progress == policy.Progress(Status.OFFERED, "1.1.0")
    quiet = replace(APP, ping=False, update_check=False)
    for event, status in (
        (Event(13, 1), Status.DOWNLOADING),
        (Event(14, 1), Status.DOWNLOADED),
        (Event(3, 1), Status.STAGED),
    ):
        server.ask(replace(quiet, events=(event,)))
        assert server.machine.progress == policy.Progress(status, "1.1.0")
    server.ask(replace(quiet, ping=True, next_version="1.1.0"))
    assert server.machine.next_version == "1.1.0"
    server.ask(replace(APP, version="1.1.0", events=(Event(3, 2, previous_version="1.0.0"),)))
    assert server.machine.status is Status.CURRENT
    assert (server.machine.version, server.machine.next_version) == ("1.1.0", "")


def test_the_server_knows_what_failed_on_a_machine_and_why(server: Server) -> None:
    server.ask(APP)
    why = "docker.service failed: exit code 1"
    failure = Event(3, 0, 0x1000002C, error_version="1.1.0", reason=why)
    answer = server.ask(replace(APP, events=(failure,)))
    assert answer.update_check is not None
    assert answer.update_check.status == "ok", "whether to try again is the machine's to say"
    assert server.machine.progress == policy.Progress(Status.ROLLED_BACK, "1.1.0")
    for _ in range(3):
        server.ask(APP)
    assert server.machine.progress == policy.Progress(Status.ROLLED_BACK, "1.1.0")
    known = server.store.last_failure(server.machine)
    assert known is not None
    assert (known.version, known.errorcode, known.reason) == ("1.1.0", 44, why)
    server.lead("1.2.0")
    server.ask(APP)
    assert server.machine.progress == policy.Progress(Status.OFFERED, "1.2.0")
    known = server.store.last_failure(server.machine)
    assert known is not None and known.version == "1.1.0", "it is not forgotten"


def test_a_failure_without_words_or_version_is_about_what_was_offered(server: Server) -> None:
    server.ask(APP)
    server.ask(replace(APP, update_check=False, events=(Event(3, 0, 10),)))
    known = server.store.last_failure(server.machine)
    assert known is not None and (known.version, known.errorcode) == ("1.1.0", 10)


def test_where_a_machine_is_and_when_it_came_is_remembered(server: Server) -> None:
    server.ask(replace(APP, machine_alias="web-1"))
    machine = server.machine
    assert (machine.alias, machine.ip, machine.group_name) == ("web-1", "10.0.0.9", "alpha")
    assert machine.first_seen == machine.last_seen == "2026-01-02T03:04:05Z"


def test_a_machine_cannot_write_lines_of_its_own_into_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "proa.server")
    failure = Event(3, 0, 44, reason="sad\nroot: all is well\x7f")
    server.ask(replace(APP, machine_alias="web\r\n-1", events=(failure,)))
    assert len(caplog.messages) == 2
    assert all(message.isprintable() for message in caplog.messages)
