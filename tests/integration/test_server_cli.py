"""The commands of a release's way, as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from proa.wire import manifest, omaha
from proa.wire.omaha import AppRequest, Event, Request
from support.releases import make_release


class Shell:
    """Runs ``proa`` with everything below one directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        source = Path(manifest.__file__).parents[2]
        self.environment = os.environ | {"PROA_HOME": str(home), "PYTHONPATH": str(source)}

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proa.cli", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: str | Path) -> str:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def serve(self, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        command = [sys.executable, "-m", "proa.cli", "serve", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, *arguments], env=self.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().removeprefix("listening on ").strip(), process
            finally:
                process.kill()


@pytest.fixture
def proa(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


@pytest.fixture
def published(proa: Shell, tmp_path: Path) -> Shell:
    proa.ok("keys", "init")
    proa.ok("publish", make_release(tmp_path / "r", "1.1.0"), "--no-payloads")
    return proa


def test_from_keys_to_a_machine_that_is_offered_an_update(published: Shell) -> None:
    proa = published
    assert "Channel alpha now leads to 1.1.0" in proa.ok("channel", "set", "alpha", "1.1.0")
    assert "web" in proa.ok("group", "set", "web", "--channel", "alpha")
    online = str(proa.home / "keys" / "online")
    with proa.serve("--online-keys", online) as (url, process):
        failure = Event(3, 0, 44, error_version="1.0.5", reason="no\x1b[31m answer")
        app = AppRequest(
            omaha.DEFAULT_APP_ID,
            "1.0.0",
            "web",
            "b",
            "m1",
            machine_alias="web-1",
            update_check=True,
            events=(failure,),
        )
        answer = httpx.post(url + "/v1/update/", content=omaha.dump_request(Request((app,))))
        check = omaha.load_response(answer.content).apps[0].update_check
        assert check is not None and check.version == "1.1.0"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    shown = proa.ok("machines")
    assert "web-1" in shown and "was offered 1.1.0" in shown
    assert "1.0.5 failed" in shown
    assert "\x1b" not in shown, "a machine cannot steer the operator's terminal"
    (machine,) = json.loads(proa.ok("machines", "--json"))
    assert machine["last_failure"]["version"] == "1.0.5"
    assert machine["status"] == "offered"
    groups = json.loads(proa.ok("group", "list", "--json"))
    assert {"name": "web", "channel": "alpha", "machines": 1} in groups


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_cleanly_by_a_signal(published: Shell, number: signal.Signals) -> None:
    with published.serve() as (url, process), httpx.Client() as client:
        assert client.get(url + "/healthz").json()["versions"] == 1
        process.send_signal(number)  # The client still holds its connection.
        assert process.wait(30) == 0


def test_a_release_goes_to_the_channels_that_it_was_made_for(proa: Shell, tmp_path: Path) -> None:
    proa.ok("keys", "init")
    release = make_release(tmp_path / "r", "1.1.0", channels=("alpha", "beta"))
    said = proa.ok("publish", release, "--no-payloads")
    assert "next: proa channel set alpha 1.1.0\n  next: proa channel set beta 1.1.0" in said
    assert json.loads(proa.ok("publish", release, "--no-payloads", "--json"))["channels"] == [
        "alpha",
        "beta",
    ]
    proa.ok("channel", "set", "beta", "1.1.0")
    done = proa("channel", "set", "stable", "1.1.0")
    assert done.returncode == 12
    assert "1.1.0 was made for alpha, beta; stable stays as it was" in done.stderr
    assert "--force" in done.stderr
    channels = {c["name"]: c["version"] for c in json.loads(proa.ok("channel", "list", "--json"))}
    assert channels == {"alpha": None, "beta": "1.1.0", "stable": None}
    proa.ok("channel", "set", "stable", "1.1.0", "--force")


def test_a_build_is_told_its_version_by_someone(proa: Shell) -> None:
    done = proa("build", "--out", proa.home / "out")
    assert done.returncode == 2
    assert "neither --version nor" in done.stderr and "version = " in done.stderr


def test_a_channel_is_not_led_to_what_is_not_there(published: Shell) -> None:
    done = published("channel", "set", "alpha", "9.9.9")
    assert done.returncode == 7
    assert "has no version 9.9.9; alpha stays as it was" in done.stderr
    assert "It has 1.1.0." in done.stderr
    done = published("channel", "set", "alhpa", "1.1.0")
    assert done.returncode == 7
    assert "there is no channel alhpa" in done.stderr and "--create" in done.stderr
    published.ok("channel", "set", "canary", "1.1.0", "--create")
    channels = json.loads(published.ok("channel", "list", "--json"))
    assert [c["version"] for c in channels] == [None, None, "1.1.0", None]
    published.ok("repo", "withdraw", "1.1.0")
    done = published("channel", "set", "alpha", "1.1.0")
    assert done.returncode == 7 and "withdrawn" in done.stderr


def test_a_group_does_not_follow_what_is_not_there(published: Shell) -> None:
    done = published("group", "set", "web", "--channel", "nowhere")
    assert done.returncode == 7 and "no channel nowhere" in done.stderr
    done = published("group", "set", "web\x1b", "--channel", "alpha")
    assert done.returncode == 1 and "cannot name a group" in done.stderr


def test_publishing_again_other_bytes_and_altered_bytes(published: Shell, tmp_path: Path) -> None:
    again = json.loads(published.ok("publish", tmp_path / "r", "--no-payloads", "--json"))
    assert again["new"] is False
    other = make_release(tmp_path / "other", "1.1.0", content=b"other")
    done = published("publish", other)
    assert done.returncode == 5 and "other content" in done.stderr
    altered = make_release(tmp_path / "altered", "1.2.0")
    (altered / manifest.UKI).write_bytes(b"MZ")
    done = published("publish", altered)
    assert done.returncode == 4 and "is not the file that was built" in done.stderr
    done = published("publish", tmp_path / "nothing")
    assert done.returncode == 4 and "cannot read" in done.stderr
    versions = json.loads(published.ok("repo", "list", "--json"))["versions"]
    assert [v["version"] for v in versions] == ["1.1.0"]


def test_two_publishes_at_once_both_arrive(published: Shell, tmp_path: Path) -> None:
    releases = [make_release(tmp_path / v, v) for v in ("2.0.0", "2.1.0", "2.2.0")]
    command = [sys.executable, "-m", "proa.cli", "publish", "--no-payloads"]
    running = [
        subprocess.Popen([*command, str(r)], env=published.environment, stderr=subprocess.DEVNULL)
        for r in releases
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    versions = json.loads(published.ok("repo", "list", "--json"))["versions"]
    assert [v["version"] for v in versions] == ["1.1.0", "2.0.0", "2.1.0", "2.2.0"]


def test_keys_are_rotated_and_machines_are_told(published: Shell) -> None:
    assert "repo resign" in published.ok("keys", "rotate", "timestamp")
    assert "timestamp until" in published.ok("repo", "resign")
    assert (published.home / "repository" / "metadata" / "2.root.json").exists()
    shown = json.loads(published.ok("keys", "list", "--json"))
    assert shown["root_version"] == 2
    published.ok("repo", "refresh")
    assert "Root 2 expires" in published.ok("keys", "list")


def test_secrets_are_never_printed(proa: Shell, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    said = [
        proa("keys", "init", "--passphrase-file", secret),
        proa("keys", "list"),
        proa("keys", "rotate", "root", "--passphrase-file", secret),
        proa("keys", "rotate", "root"),
        proa("publish", make_release(tmp_path / "r"), "--no-payloads", "--passphrase-file", secret),
        proa("repo", "resign"),
    ]
    assert [done.returncode for done in said] == [0, 0, 0, 3, 0, 3]
    keys = [file.read_text().splitlines()[1] for file in proa.home.rglob("*.pem")]
    for done in said:
        for text in (*keys, "correct horse", "PRIVATE"):
            assert text not in done.stdout + done.stderr


def test_expiry_can_be_chosen_and_a_wrong_time_is_refused(published: Shell) -> None:
    published.ok("repo", "refresh", "--expires-timestamp", "10s")
    expires = json.loads(published.ok("repo", "list", "--json"))["expires"]
    assert expires["timestamp"] < expires["snapshot"] < expires["targets"] < expires["root"]
    done = published("repo", "refresh", "--expires-timestamp", "soon")
    assert done.returncode == 2 and "write it as 90d" in done.stderr


def test_what_is_missing_is_said(proa: Shell, tmp_path: Path) -> None:
    done = proa("publish", make_release(tmp_path / "r"))
    assert done.returncode == 3 and "proa keys init" in done.stderr
    done = proa("repo", "list")
    assert done.returncode == 8 and "no repository in" in done.stderr
    done = proa("machines")
    assert done.returncode == 9 and "no server database" in done.stderr
    done = proa("serve", "--listen", "nonsense")
    assert done.returncode == 2 and "127.0.0.1:8080" in done.stderr
    done = proa("serve", "--listen", ":0", "--online-keys", tmp_path / "none")
    assert done.returncode == 3 and "no online keys" in done.stderr
