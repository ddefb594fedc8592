"""The server over real HTTP: Omaha, files with ranges, and a TUF client that follows it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tuf.ngclient import Updater

from proa.cli.serve import refresher
from proa.factory import keys, repository
from proa.server import admin, run
from proa.server.errors import ServerError
from proa.wire import manifest, omaha
from proa.wire.omaha import AppRequest, Event, Request
from support.releases import make_release

NOW = datetime.now(UTC)
APP = AppRequest(
    omaha.DEFAULT_APP_ID, "1.0.0", "alpha", "{b}", "m1", "web-1", ping=True, update_check=True
)


@dataclass
class Site:
    """Keys, a repository with 1.0.0 and 1.1.0, and where a server keeps its database."""

    path: Path

    @property
    def settings(self) -> run.Settings:
        return run.Settings(self.path / "repository", self.path / "server.db", port=0)

    def publish(self, name: str, content: bytes = b"") -> Path:
        release = make_release(self.path / name, name, content=content)
        repository.publish(release, self.settings.repository, self.path / "keys", NOW)
        return release

    def lead(self, version: str) -> None:
        settings = self.settings
        admin.set_channel(settings.database, settings.repository, "alpha", version, NOW)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    keys.init(tmp_path / "keys", NOW)
    found = Site(tmp_path)
    for name in ("1.0.0", "1.1.0"):
        found.publish(name)
    found.lead("1.1.0")
    return found


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with run.running(site.settings) as found:
        yield found


def ask(url: str, app: AppRequest, path: str = "/v1/update/") -> omaha.AppResponse:
    answer = httpx.post(url + path, content=omaha.dump_request(Request((app,))))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    return omaha.load_response(answer.content).apps[0]


@pytest.mark.parametrize("path", ["/v1/update/", "/v1/update"])
def test_what_is_offered_can_be_fetched_and_verified(
    url: str, site: Site, tmp_path: Path, path: str
) -> None:
    check = ask(url, APP, path).update_check
    assert check is not None and check.version == "1.1.0"
    for package in check.packages:
        data = httpx.get(check.codebases[0] + package.name).content
        assert len(data) == package.size
        assert package.name.startswith(hashlib.sha256(data).hexdigest())
    # The machine finds the metadata beside: everything before "targets/" is the repository.
    base = check.codebases[0].partition("targets/")[0]
    client = tmp_path / "client"
    client.mkdir()
    shutil.copy(site.path / "keys" / "root.json", client)
    updater = Updater(str(client), base + "metadata/", str(client), base + "targets/")
    info = updater.get_targetinfo("1.1.0/usr.erofs")
    assert info is not None
    assert (
        Path(updater.download_target(info)).read_bytes()
        == (site.path / "1.1.0" / manifest.USR).read_bytes()
    )


def test_the_channel_is_moved_while_the_server_runs(url: str, site: Site) -> None:
    site.publish("1.2.0")
    site.lead("1.2.0")
    check = ask(url, APP).update_check
    assert check is not None and check.version == "1.2.0"
    repository.withdraw("1.2.0", site.settings.repository, site.path / "keys", NOW)
    check = ask(url, APP).update_check
    assert check is not None and check.status == "noupdate"


def test_a_failure_reaches_the_operator_with_its_reason(url: str, site: Site) -> None:
    failure = Event(3, 0, 0x1000002C, error_version="1.1.0", reason="etcd did not answer")
    ask(url, replace(APP, update_check=False, events=(failure,)))
    (report,) = admin.list_machines(site.settings.database)
    assert report.machine.alias == "web-1"
    assert report.status == "rolled back from 1.1.0"
    assert report.failure is not None and report.failure.version == "1.1.0"
    assert report.failure_reason == "etcd did not answer"
    ask(url, replace(APP, update_check=False, events=(replace(failure, reason=None),)))
    (report,) = admin.list_machines(site.settings.database)
    assert "rolled back" in report.failure_reason, "without a reason the code is told in words"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"<request", 400, "not well-formed"),
        (b"<!DOCTYPE r><request/>", 400, "document type"),
        (b"<request/>", 400, "no <app>"),
        (b"x" * (omaha.MAX_BYTES + 1), 413, "at most"),
    ],
)
def test_a_bad_request_is_refused_in_words(url: str, body: bytes, status: int, words: str) -> None:
    answer = httpx.post(url + "/v1/update/", content=body)
    assert answer.status_code == status
    assert words in answer.text


def test_a_body_without_an_end_is_cut_off(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(4096):
            yield b"x" * 4096

    try:
        status = httpx.post(url + "/v1/update/", content=endless()).status_code
    except httpx.WriteError:
        return  # The server had answered and hung up before all was sent.
    assert status == 413


def test_the_wrong_method_is_refused(url: str) -> None:
    assert httpx.get(url + "/v1/update/").status_code == 405


def test_a_download_can_be_resumed(url: str, site: Site) -> None:
    check = ask(url, APP).update_check
    assert check is not None
    file = check.codebases[0] + check.packages[0].name
    whole = (site.path / "1.1.0" / manifest.USR).read_bytes()
    first = httpx.get(file, headers={"Range": "bytes=0-99"})
    assert (first.status_code, first.content) == (206, whole[:100])
    assert first.headers["content-range"] == f"bytes 0-99/{len(whole)}"
    resume = {"Range": "bytes=100-", "If-Range": first.headers["etag"]}
    rest = httpx.get(file, headers=resume)
    assert (rest.status_code, rest.content) == (206, whole[100:])
    changed = httpx.get(file, headers={**resume, "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole)
    beyond = httpx.get(file, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416


def test_only_files_of_the_repository_are_served(url: str, site: Site) -> None:
    (site.settings.repository / "metadata" / ".new-half").write_text("x")
    (site.settings.repository / "targets" / "1.0.0" / ".new-half").write_text("x")
    (site.settings.repository / "secret.json").write_text("x")
    for path in (
        "metadata/.new-half",
        "metadata/..%2Fsecret.json",
        "metadata/9.root.json",
        "targets/1.0.0/.new-half",
        "targets/1.0.0/",
        "targets/1.0.0",
        "targets/..%2Fsecret.json",
        "targets/1.0.0/%2e%2e/%2e%2e/secret.json",
        ".lock",
        "",
    ):
        assert httpx.get(f"{url}/repository/{path}").status_code == 404, path


def test_metadata_is_asked_for_anew_and_files_are_kept(url: str) -> None:
    timestamp = httpx.get(url + "/repository/metadata/timestamp.json")
    assert timestamp.headers["cache-control"] == "no-cache"
    again = httpx.get(
        url + "/repository/metadata/timestamp.json",
        headers={"If-None-Match": timestamp.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    check = ask(url, APP).update_check
    assert check is not None
    file = httpx.head(check.codebases[0] + check.packages[0].name)
    assert "immutable" in file.headers["cache-control"]
    assert file.headers["etag"] == f'"{check.packages[0].name.partition(".")[0]}"'
    kept = {"If-None-Match": file.headers["etag"]}
    again = httpx.get(check.codebases[0] + check.packages[0].name, headers=kept)
    assert (again.status_code, again.content) == (304, b"")


def test_the_codebase_is_where_the_client_asked_or_what_the_operator_says(
    url: str, site: Site
) -> None:
    data = omaha.dump_request(Request((APP,)))
    answer = httpx.post(url + "/v1/update/", content=data, headers={"Host": "10.0.2.2:99"})
    check = omaha.load_response(answer.content).apps[0].update_check
    assert check is not None
    assert check.codebases == ("http://10.0.2.2:99/repository/targets/1.1.0/",)
    settings = replace(site.settings, public_url="https://updates.example.org/")
    with run.running(settings) as other:
        check = ask(other, APP).update_check
    assert check is not None
    assert check.codebases == ("https://updates.example.org/repository/targets/1.1.0/",)


def test_a_server_starts_before_the_first_publish(tmp_path: Path) -> None:
    settings = run.Settings(tmp_path / "repository", tmp_path / "server.db", port=0)
    with run.running(settings) as url:
        check = ask(url, APP).update_check
        assert check is not None and check.status == "noupdate"
        name = "0" * 64 + ".usr.erofs"
        for path in ("metadata/timestamp.json", f"targets/1.0.0/{name}", "targets/x/y"):
            assert httpx.get(f"{url}/repository/{path}").status_code == 404
        assert httpx.get(url + "/healthz").json() == {"status": "ok", "versions": 0, "machines": 1}


def test_a_repository_that_cannot_be_read_is_told_and_machines_get_noupdate(
    url: str, site: Site
) -> None:
    (site.settings.repository / "metadata" / "timestamp.json").write_text("{}")
    check = ask(url, APP).update_check
    assert check is not None and check.status == "noupdate"
    health = httpx.get(url + "/healthz")
    assert health.status_code == 503
    assert "cannot be read" in health.json()["reason"]


def test_freshness_is_signed_before_half_of_it_is_gone(site: Site) -> None:
    settings = site.settings
    online = site.path / "online"
    shutil.copytree(site.path / "keys" / "online", online)
    refresh = refresher(settings.repository, online)
    before = repository.signatures(settings.repository)
    assert refresh(NOW) == before.timestamp - timedelta(hours=12)
    assert repository.signatures(settings.repository) == before
    later = NOW + timedelta(hours=13)
    assert refresh(later) > later
    assert repository.signatures(settings.repository).timestamp > before.timestamp


def test_the_server_signs_when_it_starts(site: Site) -> None:
    settings = site.settings
    signed = threading.Event()

    def refresh(now: datetime) -> datetime:
        repository.refresh(settings.repository, site.path / "keys" / "online", now, force=True)
        signed.set()
        return now + timedelta(hours=12)

    with run.running(replace(settings, refresh=refresh)):
        assert signed.wait(30)


def test_a_refresh_that_fails_does_not_stop_the_server(site: Site) -> None:
    tried = threading.Event()

    def refresh(_: datetime) -> datetime:
        tried.set()
        raise keys.KeysError("the key is gone")

    with run.running(replace(site.settings, refresh=refresh)) as url:
        assert tried.wait(30)
        check = ask(url, APP).update_check
        assert check is not None and check.status == "ok"


def test_two_servers_cannot_listen_on_one_port(site: Site, url: str) -> None:
    port = int(url.rpartition(":")[2])
    other = replace(site.settings, database=site.path / "other.db", port=port)
    with pytest.raises(ServerError, match="cannot listen on"), run.running(other):
        pass


def test_many_machines_at_once_are_all_remembered(url: str, site: Site) -> None:
    def machine(number: int) -> None:
        for _ in range(5):
            ask(url, replace(APP, machine_id=f"m{number}", events=(Event(13, 1),)))

    threads = [threading.Thread(target=machine, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = admin.list_machines(site.settings.database)
    assert [report.machine.machine_id for report in found] == [f"m{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104
        (":0", ("127.0.0.1", 0)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_where_to_listen_is_read(text: str, address: tuple[str, int]) -> None:
    assert run.parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "8080", "::1:8080", "host:99999", "host:port", "a:1:2"])
def test_where_to_listen_is_refused_if_unclear(text: str) -> None:
    with pytest.raises(ServerError, match="cannot listen on"):
        run.parse_listen(text)


def test_ipv6_is_listened_on(site: Site) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with run.running(replace(site.settings, host="::1")) as url:
        assert url.startswith("http://[::1]:")
        check = ask(url, APP).update_check
        assert check is not None and check.codebases[0].startswith(url)
