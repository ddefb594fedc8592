"""The updater against the real server, a real signed repository, and a machine made of files.

Each thing that can go wrong has an exit code of its own and a message that says what to do; the
running slot is the same, byte for byte, after all of them.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from proa.factory import keys
from proa.machine import lock, update_engine_client
from proa.machine.errors import Code
from proa.machine.state import Store
from proa.machine.system import run_command
from proa.server import admin
from proa.wire import manifest
from support.machine import FragileFiles, Nature, make_release, make_verified_release
from support.updater import World, world_at

pytestmark = pytest.mark.skipif(
    shutil.which("veritysetup") is None, reason="needs veritysetup (Debian: cryptsetup-bin)"
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with world_at(tmp_path) as world:
        yield world


Said = pytest.CaptureFixture[str]


def fails(world: World, code: Code, said: Said, *words: str) -> str:
    """Run an update that must fail with this code, say these words, and touch nothing."""
    said.readouterr()
    assert world.proactl("update") == code
    message = said.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert world.untouched()
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    return message


def test_the_whole_way_with_real_signatures_and_real_verity(
    world: World, tmp_path: Path, said: Said
) -> None:
    world.machine.verity = lambda command: run_command(command, 60)
    world.ship(make_verified_release("1.1.0", tmp_path / "made"))
    assert world.proactl("update", "--check") == 0
    assert "1.1.0 is available" in said.readouterr().out
    assert world.untouched()
    assert world.proactl("update", "--scheduled") == 0
    out = said.readouterr()
    assert "1.1.0 is staged; the machine restarts in 2 min" in out.out
    assert "written" in out.err
    assert world.untouched("grub/grubenv")
    assert world.proactl("status", "--json") == 0
    status = json.loads(said.readouterr().out)
    assert status["staged"]["version"] == "1.1.0"
    assert "restarts in 2 min" in status["restart"]
    assert world.proactl("update") == 0
    assert "1.1.0 is staged already" in said.readouterr().out
    restarts = [command[:3] for command in world.machine.commands if command[0] == "shutdown"]
    assert restarts == [("shutdown", "-r", "+2")]
    assert world.machine.boot().version == "1.1.0"
    assert world.proactl("status") == 0
    assert "1.1.0 in slot b, on trial until" in said.readouterr().out
    assert world.proactl("health", "--boot") == 0
    assert world.proactl("status") == 0
    assert "1.1.0 in slot b, committed" in said.readouterr().out
    assert world.proactl("update") == 0
    assert not Store(world.system).load().events
    (report,) = admin.list_machines(world.database)
    assert (report.machine.version, report.failure) == ("1.1.0", None)


def test_the_server_hears_of_a_version_that_was_rolled_back_and_it_is_not_taken_again(
    world: World, said: Said
) -> None:
    world.ship(make_release("1.1.0", "unhealthy"))
    assert world.proactl("update") == 0
    for _ in range(3):
        assert world.machine.boot().version == "1.1.0"
        assert world.proactl("health", "--boot") == 1
    assert world.machine.boot().version == "1.0.0"
    assert world.proactl("health", "--boot") == 0
    said.readouterr()
    assert world.proactl("update") == Code.FAILED_BEFORE
    assert "1.1.0 is not taken: it failed on this machine: unit web.service failed" in (
        said.readouterr().err
    )
    (report,) = admin.list_machines(world.database)
    assert report.failure is not None
    assert report.failure.version == "1.1.0"
    assert "web.service failed" in report.failure_reason
    assert world.proactl("status") == 0
    assert "Failed    1.1.0" in said.readouterr().out
    world.ship(make_release("1.2.0"))
    assert world.proactl("update") == 0
    world.offer("1.1.0")
    assert world.proactl("update", "--force") == 0


# --- What bad input gets ------------------------------------------------------------------------


def test_an_unreachable_server(world: World, said: Said) -> None:
    world.configure(SERVER="http://127.0.0.1:1/v1/update/")
    fails(world, Code.SERVER_UNREACHABLE, said, "127.0.0.1:1", "Connection refused", "update.conf")
    assert world.proactl("status") == 0
    assert "Connection refused" in said.readouterr().out


def test_a_server_of_another_kind(world: World, said: Said) -> None:
    world.configure(SERVER=f"{world.url}/healthz")
    fails(world, Code.BAD_ANSWER, said, "/healthz")


def test_updates_switched_off(world: World, said: Said) -> None:
    world.configure(SERVER="disabled")
    fails(world, Code.SWITCHED_OFF, said, "SERVER=disabled", "/etc/proa/update.conf")
    assert world.wire.requests == []


def test_a_clock_in_1970_is_called_that(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    world.machine.now = 1000.0
    fails(world, Code.CLOCK_NOT_SET, said, "1970-01-01", "timedatectl")


def test_an_older_version_is_refused_unless_asked_for(world: World, said: Said) -> None:
    world.publish(make_release("0.9.0"))
    world.offer("0.9.0", allow_downgrade=True)
    fails(world, Code.OLDER_VERSION, said, "0.9.0", "older", "--allow-downgrade")
    assert world.proactl("update", "--allow-downgrade") == 0
    assert world.machine.boot().version == "0.9.0"


def test_a_release_for_another_architecture(world: World, said: Said) -> None:
    # A server that knows machines by their board does not even offer it; others do.
    world.wire.rewrite = (b'board="amd64-usr"', b'board="arm64-usr"')
    world.ship(make_release("1.1.0", architecture="arm64"))
    fails(world, Code.WRONG_ARCHITECTURE, said, "arm64", "amd64")


def test_expired_metadata(world: World, said: Said) -> None:
    world.publish(make_release("1.1.0"), age=timedelta(days=2))
    world.offer("1.1.0")
    fails(world, Code.METADATA_EXPIRED, said, "timestamp", "expired", "proa repo refresh")


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_missing_metadata(world: World, said: Said, name: str) -> None:
    world.ship(make_release("1.1.0"))
    world.wire.missing = f"/{name}"
    fails(world, Code.METADATA_UNTRUSTED, said, "metadata is missing", "404", name)


def test_a_strangers_key(world: World, said: Said) -> None:
    keys.init(world.path / "stranger", world.now)
    world.publish(make_release("1.1.0"), keys_dir=world.path / "stranger")
    world.offer("1.1.0")
    fails(world, Code.METADATA_UNTRUSTED, said, "not signed by the keys that this machine trusts")
    (report,) = admin.list_machines(world.database)
    assert report.failure is not None
    assert "not signed" in report.failure_reason


@pytest.mark.parametrize("name", manifest.PAYLOAD_FILES)
def test_a_flipped_byte(world: World, said: Said, name: str) -> None:
    world.ship(make_release("1.1.0"))
    path = world.target("1.1.0", name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fails(world, Code.PAYLOAD_MISMATCH, said, name, "not the file that was signed")
    assert world.machine.boot().version == "1.0.0"
    # Put right, it is taken.
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.1.0"


def test_half_a_download_goes_on_where_it_stopped(world: World, said: Said) -> None:
    release = make_release("1.1.0")
    world.ship(release)
    world.wire.cut_after = 100_000
    assert world.proactl("update") == 0
    size = len(release.content[manifest.USR])
    ranges = [r for _, path, r in world.wire.requests if path.endswith(manifest.USR)]
    assert ranges == [None, *(f"bytes={start}-" for start in range(100_000, size, 100_000))]
    assert world.machine.boot().version == "1.1.0"


def test_a_download_that_gives_up_is_gone_on_with_by_the_next_run(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    world.wire.cut_after = 0
    message = fails(world, Code.DOWNLOAD_FAILED, said, "the next check goes on from there")
    assert "the download stopped at 0 of 0 MiB" in message
    state = Store(world.system).load()
    assert state.download is not None
    # A first part of it came in an earlier run.
    usr = make_release("1.1.0").content[manifest.USR]
    with (world.machine.dev / "vda5").open("r+b") as partition:
        partition.write(usr[:200_000])
    sha256 = make_release("1.1.0").manifest.files[manifest.USR].sha256
    Store(world.system).update(download=replace(state.download, durable={sha256: 200_000}))
    world.wire.cut_after = None
    world.wire.requests.clear()
    assert world.proactl("update") == 0
    assert "bytes=200000-" in [r for _, _, r in world.wire.requests]
    assert world.machine.boot().version == "1.1.0"


def test_a_kept_part_that_is_not_of_this_file_is_fetched_again(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    world.wire.cut_after = 0
    fails(world, Code.DOWNLOAD_FAILED, said)
    state = Store(world.system).load()
    assert state.download is not None
    sha256 = make_release("1.1.0").manifest.files[manifest.USR].sha256
    Store(world.system).update(download=replace(state.download, durable={sha256: 5000}))
    world.wire.cut_after = None
    assert world.proactl("update") == 0
    assert "starting over" in said.readouterr().err
    assert world.machine.boot().version == "1.1.0"


@pytest.mark.parametrize("room", [0, 300, 10_000])
def test_a_full_disk(world: World, said: Said, room: int) -> None:
    """Whatever does not fit: not even the state, not the metadata, or only the payload."""
    world.ship(make_release("1.1.0"))

    class Full(FragileFiles):
        def pwrite(self, fd: int, data: bytes, offset: int) -> None:
            if len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().pwrite(fd, data, offset)

    world.system = replace(world.system, files=Full())
    fails(world, Code.NO_ROOM, said, "no room left", "the running system is untouched")


def test_a_boot_partition_without_room(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    world.machine.free = 50_000
    fails(world, Code.NO_ROOM, said, "/boot", "MiB left")


def test_a_release_larger_than_the_partition(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0", size=3 << 20))
    fails(world, Code.NO_ROOM, said, "vda5", "layout is too small")


def test_a_write_that_does_not_read_back(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    read_back = world.machine.verity

    def broken(command: object) -> object:
        with (world.machine.dev / "vda5").open("r+b") as partition:
            partition.write(b"rot")
        return read_back(command)  # type: ignore[arg-type]

    world.machine.verity = broken  # type: ignore[assignment]
    fails(world, Code.SLOT_FAILED, said, "does not verify", "journalctl -k")
    world.machine.verity = read_back
    assert world.proactl("update") == 0


def test_a_boot_image_that_does_not_read_back(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    check = world.machine.verity

    def rotten(command: object) -> object:
        with (world.machine.root / "boot/proa/incoming.efi.part").open("r+b") as image:
            image.seek(5000)
            image.write(b"rot")
        return check(command)  # type: ignore[arg-type]

    world.machine.verity = rotten  # type: ignore[assignment]
    fails(world, Code.SLOT_FAILED, said, "reads back other bytes than were written", "journalctl")
    world.machine.verity = check
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.1.0"


def test_a_slot_in_use_is_not_written(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    holder = world.machine.root / "sys/devices/pci/block/vda/vda5/holders/dm-7"
    holder.touch()
    before = world.machine.slot_bytes("b")
    fails(world, Code.SLOT_FAILED, said, "in use")
    assert world.machine.slot_bytes("b") == before


def test_two_updaters_at_once(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    with lock.held(world.system):
        fails(world, Code.BUSY, said, "another updater is at work (process ")
        assert world.proactl("rollback") == Code.BUSY


def test_no_update_while_on_trial(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    assert world.proactl("update") == 0
    world.machine.boot()
    world.ship(make_release("1.2.0"))
    usr = world.machine.slot_bytes("a")
    assert world.proactl("update") == Code.ON_TRIAL
    assert world.machine.slot_bytes("a") == usr


def test_a_newer_version_replaces_one_that_waits(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    assert world.proactl("update") == 0
    world.ship(make_release("1.2.0"))
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.2.0"


def test_keys_are_rotated_under_a_machines_feet(world: World, said: Said) -> None:
    world.ship(make_release("1.1.0"))
    assert world.proactl("update") == 0
    world.machine.boot()
    assert world.proactl("health", "--boot") == 0
    for role in ("root", "targets", "timestamp"):
        keys.rotate(world.path / "keys", role, world.now)
    world.ship(make_release("1.2.0"))
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.2.0"


def test_errors_in_json(world: World, said: Said) -> None:
    world.configure(SERVER="disabled")
    assert world.proactl("update", "--json") == Code.SWITCHED_OFF
    document = json.loads(said.readouterr().out)
    assert document["code"] == 22
    assert "switched off" in document["error"]


def test_rollback_by_hand(world: World, said: Said) -> None:
    assert world.proactl("rollback") == Code.NOTHING_TO_GO_BACK_TO
    world.ship(make_release("1.1.0"))
    assert world.proactl("update") == 0
    world.machine.boot()
    assert world.proactl("health", "--boot") == 0
    assert world.proactl("rollback", "--reboot") == 0
    assert world.machine.restarting
    assert world.machine.boot().version == "1.0.0"
    assert world.proactl("health", "--boot") == 0
    said.readouterr()
    assert world.proactl("update") == Code.FAILED_BEFORE
    assert "its owner went back from it to 1.0.0" in said.readouterr().err
    assert world.proactl("status") == 0
    assert "On hold   1.1.0" in said.readouterr().out


@pytest.mark.parametrize("nature", ["dies", "unhealthy"])
def test_a_version_that_failed_is_not_taken_again_by_an_early_check(
    world: World, said: Said, nature: Nature
) -> None:
    """The timer may come before the boot was judged that the fall back led to."""
    world.ship(make_release("1.1.0", nature))
    assert world.proactl("update") == 0
    while world.machine.boot().version != "1.0.0":
        world.proactl("health", "--boot")
    said.readouterr()
    assert world.proactl("update") == Code.FAILED_BEFORE
    assert "1.1.0 was given up" in said.readouterr().err
    # The server is told in the very check.
    (report,) = admin.list_machines(world.database)
    assert report.failure is not None
    assert report.failure.version == "1.1.0"
    assert world.proactl("health", "--boot") == 0
    assert world.proactl("update") == Code.FAILED_BEFORE
    assert Store(world.system).load().failed.keys() == {"1.1.0"}


def test_update_engine_client(world: World, said: Said) -> None:
    def client(*arguments: str) -> int:
        return update_engine_client.main(arguments, world.system)

    assert client("-status") == 0
    assert said.readouterr().out == (
        "LAST_CHECKED_TIME=0\nPROGRESS=0.000000\nCURRENT_OP=UPDATE_STATUS_IDLE\n"
        "NEW_VERSION=0.0.0\nNEW_SIZE=0\n"
    )
    release = make_release("1.1.0")
    world.ship(release)
    _on_start(world, lambda: world.proactl("update", "--scheduled"))
    assert client("-update") == 0
    said.readouterr()
    assert client("--status") == 0
    size = sum(len(data) for data in release.content.values())
    assert said.readouterr().out == (
        f"LAST_CHECKED_TIME={int(world.machine.now)}\nPROGRESS=0.000000\n"
        f"CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT\nNEW_VERSION=1.1.0\nNEW_SIZE={size}\n"
    )
    assert client("-reset_status") == 0
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    said.readouterr()
    assert client("-status") == 0
    assert "UPDATE_STATUS_IDLE" in said.readouterr().out


def _on_start(world: World, act: Callable[[], int]) -> None:
    """Let `systemctl start` of the updater's unit run the updater."""
    run = world.machine.run

    def start(command: object, timeout: float) -> object:
        if list(command)[:2] == ["systemctl", "start"]:  # type: ignore[call-overload]
            world.machine.now += 1
            act()
            return type(run(["shutdown"], 1))(0, "")
        return run(command, timeout)  # type: ignore[arg-type]

    world.system = replace(world.system, run=start)  # type: ignore[arg-type]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """What the command says: standard output and standard error."""
    return capsys
