"""The updater takes deltas from a real server and a real repository, and is lied to about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater

from proa.factory import repository
from proa.machine import lock, stage
from proa.machine import payload as machine_payload
from proa.machine.attempts import MOST_DEATHS
from proa.machine.errors import Code
from proa.machine.state import Store
from proa.wire.payload import Built
from support import payload_machine
from support.machine import make_release
from support.payload_machine import Pair
from support.updater import World, world_at

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return payload_machine.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def world(tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with world_at(tmp_path, pair.old) as world:
        yield world
    assert world.untouched("grub/grubenv", "EFI/Linux/proa-a.efi")


@pytest.fixture
def said(capsys: Said) -> Said:
    """What the command says."""
    return capsys


def ship(world: World, pair: Pair) -> None:
    """Publish both releases, the second with its payloads, and offer it."""
    world.publish(pair.old)
    files = []
    for name, made in (("delta", pair.delta), ("full", pair.full)):
        files.append(world.path / name)
        files[-1].write_bytes(made.data)
    world.publish(pair.new, payloads=files)
    world.offer(pair.new.version)


def gets(world: World, end: str) -> int:
    return sum(path.endswith(end) for _, path, _ in world.wire.requests)


def test_the_whole_way_by_a_delta(world: World, pair: Pair, said: Said) -> None:
    ship(world, pair)
    assert world.proactl("update", "--check") == 0
    assert "a delta from 1.0.0, 56.4 kB to fetch" in said.readouterr().out
    assert gets(world, ".payload") == 0
    assert world.proactl("update") == 0
    assert "the delta from 1.0.0: 56.4 kB fetched, 246 kB written" in said.readouterr().err
    assert gets(world, "usr.erofs") == 0
    assert world.machine.boot().version == "1.1.0"


@pytest.mark.parametrize(
    ("setting", "way"), [("full", "the full payload"), ("image", "the images")]
)
def test_the_owner_may_say_which_way(
    world: World, pair: Pair, said: Said, setting: str, way: str
) -> None:
    ship(world, pair)
    world.configure(SERVER=f"{world.url}/v1/update/", GROUP="stable", PAYLOAD=setting)
    assert world.proactl("update") == 0
    out = said.readouterr().err
    assert f"{way}: " in out
    assert f"not a delta from 1.0.0: PAYLOAD={setting} is set" in out
    assert world.machine.boot().version == "1.1.0"


def test_a_check_tells_a_program_what_the_chosen_way_takes_and_why_it_is_not_smaller(
    world: World, pair: Pair, said: Said
) -> None:
    ship(world, pair)
    assert world.proactl("update", "--check", "--json") == 0
    cost = json.loads(said.readouterr().out)["cost"]
    (delta,) = (world.repository / "targets").rglob("*from-*.payload")
    assert (cost["kind"], cost["origin"], cost["refused"]) == ("delta", "1.0.0", [])
    assert cost["fetch"] == delta.stat().st_size
    outputs = ("usr.erofs", "usr.verity", "proa.efi")
    assert cost["write"] == sum((pair.directories[1] / name).stat().st_size for name in outputs)
    assert cost["seconds"] is None  # nothing was ever fetched here
    world.configure(SERVER=f"{world.url}/v1/update/", GROUP="stable", PAYLOAD="image")
    assert world.proactl("update", "--check", "--json") == 0
    cost = json.loads(said.readouterr().out)["cost"]
    assert (cost["kind"], cost["origin"], cost["fetch"]) == ("images", "", cost["write"])
    assert [reason.partition(":")[0] for reason in cost["refused"]] == [
        "a delta from 1.0.0",
        "the full payload",
    ]


def test_a_way_at_which_the_updater_dies_is_given_up_and_the_reason_said(
    world: World, pair: Pair, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(world, pair)

    def killed(*_: object) -> NoReturn:
        raise payload_machine.Stop

    with monkeypatch.context() as patch:
        patch.setattr(machine_payload, "unpack", killed)
        for death in range(MOST_DEATHS):
            assert world.proactl("update", "--check") == 0
            assert "a delta from 1.0.0, 56.4 kB to fetch" in said.readouterr().out, death
            with pytest.raises(payload_machine.Stop):
                world.proactl("update")
    assert world.proactl("update", "--check") == 0
    out = said.readouterr().out
    assert "1.1.0 is available: the full payload, " in out
    assert f"; not a delta from 1.0.0: {MOST_DEATHS} runs of the updater died at it" in out
    assert world.proactl("update") == 0
    assert world.proactl("status") == 0
    out = said.readouterr().out
    assert "Came by   1.1.0 by the full payload: " in out
    assert f"; not the delta from 1.0.0: {MOST_DEATHS} runs of the updater died at it" in out
    assert world.machine.boot().version == "1.1.0"


def test_a_check_says_which_way_an_earlier_run_has_refused(
    world: World, pair: Pair, said: Said
) -> None:
    """The first run finds the delta altered, takes another way and is cut short there."""
    ship(world, pair)
    (delta,) = (world.repository / "targets").rglob("*from-*.payload")
    data = bytearray(delta.read_bytes())
    data[-1] ^= 1
    delta.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_payload, "group_start", interrupt_second())
        assert world.proactl("update") == 130
    said.readouterr()
    assert world.proactl("update", "--check") == 0
    out = said.readouterr().out
    assert "1.1.0 is available: the full payload, " in out
    assert "; not a delta from 1.0.0: " in out
    assert "is not what was signed (its sha256 differs)" in out


def interrupt_second() -> Callable[[Built, int], int]:
    """Stand in for what begins a way: the second time it is interrupted."""
    calls, begin = 0, machine_payload.group_start

    def group_start(built: Built, durable: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return begin(built, durable)

    return group_start


LENGTHS: tuple[object, ...] = (-1, 0, 1, 1 << 20, 1 << 80, True, None, "12", [])
GARBAGE: dict[str, object] = {
    "nothing": None,
    "a word": "proa",
    "a list": [],
    "no object within": {"proa": []},
    "an empty one": {"proa": {}},
    "a head that is none": {"proa": {"head": 7}},
    "no length": {"proa": {"head": {"sha256": "0" * 64}}},
    **{
        f"a length of {length!r}": {
            "proa": {
                "head": {"length": length, "sha256": "0" * 64},
                "encoder": payload_machine.ENCODER,
                "source": "",
                "from": "",
                "scratch": 0,
            }
        }
        for length in LENGTHS
    },
    "scratch of all disks": {
        "proa": {
            "head": {"length": 100, "sha256": "0" * 64},
            "encoder": payload_machine.ENCODER,
            "source": "",
            "from": "",
            "scratch": 1 << 90,
        }
    },
    "an encoder of a megabyte": {
        "proa": {
            "head": {"length": 100, "sha256": "0" * 64},
            "encoder": "x" * (1 << 20),
            "source": {"a": 1},
            "from": ["b"],
            "scratch": 0,
        }
    },
}


@pytest.mark.parametrize("what", GARBAGE)
def test_nonsense_about_a_payload_leaves_the_images(
    world: World, pair: Pair, said: Said, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed nonsense: of a later format, or by a factory gone wrong."""
    make = repository._payload_target

    def garbage(*arguments: object, **more: object) -> object:
        target = make(*arguments, **more)  # type: ignore[arg-type]
        target.unrecognized_fields = {} if GARBAGE[what] is None else {"custom": GARBAGE[what]}
        return target

    monkeypatch.setattr(repository, "_payload_target", garbage)
    ship(world, pair)
    assert world.proactl("update") == 0
    error = said.readouterr().err
    assert "the images: " in error
    assert len(error) < 5000
    assert world.machine.boot().version == "1.1.0"


def test_targets_without_a_hash_that_is_known_are_not_trusted(
    world: World, pair: Pair, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(world, pair)

    def other_hash(_: object, path: str) -> TargetFile:
        return TargetFile(100, {"sha512": "0" * 128}, path)

    monkeypatch.setattr(Updater, "get_targetinfo", other_hash)
    assert world.proactl("update") == Code.METADATA_UNTRUSTED
    assert "is signed without its sha256" in said.readouterr().err


# --- Replayed, mixed, withdrawn -----------------------------------------------------------------


def metadata(world: World) -> dict[str, bytes]:
    folder = world.repository / "metadata"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_older_repository_is_refused_once_a_newer_was_seen(
    world: World, pair: Pair, said: Said
) -> None:
    world.publish(make_release("1.0.5"))
    world.offer("1.0.5")
    older = metadata(world)
    ship(world, pair)
    assert world.proactl("update", "--check") == 0
    # The attacker has the server and the repository of yesterday, signed and not expired.
    world.offer("1.0.5", allow_downgrade=True)
    world.wire.instead = {f"/{name}": data for name, data in older.items()}
    assert world.proactl("update") == Code.METADATA_UNTRUSTED
    assert "1.0.5" not in {path.name for path in world.machine.dev.iterdir()}
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    world.wire.instead = {}
    world.offer("1.1.0")
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.1.0"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("seen", [False, True])
def test_metadata_of_two_states_is_refused(
    world: World, pair: Pair, said: Said, role: str, seen: bool
) -> None:
    """One role's file is of the older state of the repository, under the newer one's name."""
    world.publish(make_release("1.0.5"))
    older = metadata(world)
    ship(world, pair)
    if seen:
        assert world.proactl("update", "--check") == 0
        shutil.rmtree(world.system.state_dir / "tuf")
    newer = metadata(world)

    def last(files: dict[str, bytes]) -> str:
        if role == "timestamp":
            return "timestamp.json"
        return max(
            (name for name in files if name.endswith(f".{role}.json")),
            key=lambda name: int(name.partition(".")[0]),
        )

    world.wire.instead = {f"/{last(newer)}": older[last(older)]}
    code = world.proactl("update")
    assert code == Code.METADATA_UNTRUSTED, said.readouterr().err
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    world.wire.instead = {}
    assert world.proactl("update") == 0


def test_a_version_that_is_withdrawn_half_way(world: World, pair: Pair, said: Said) -> None:
    ship(world, pair)
    world.wire.missing = ".payload"
    world.wire.cut_after = 0
    assert world.proactl("update") == Code.DOWNLOAD_FAILED
    world.wire.missing, world.wire.cut_after = "never", None
    # The server still names it, the repository does not vouch for it any more.
    repository.withdraw(pair.new.version, world.repository, world.path / "keys", world.now)
    assert world.proactl("update") in (0, Code.METADATA_UNTRUSTED)
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    newer = make_release("1.2.0")
    world.ship(newer)
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.2.0"


def test_superseded_half_way_by_the_server(world: World, pair: Pair, said: Said) -> None:
    ship(world, pair)
    world.configure(SERVER=f"{world.url}/v1/update/", GROUP="stable", PAYLOAD="image")
    world.wire.cut_after = 0
    assert world.proactl("update") == Code.DOWNLOAD_FAILED
    state = Store(world.system).load()
    assert state.download is not None and state.download.version == "1.1.0"
    world.wire.cut_after = None
    world.ship(make_release("1.2.0"))
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.2.0"


def test_rollback_while_the_updater_is_at_work(world: World, pair: Pair, said: Said) -> None:
    ship(world, pair)
    with lock.held(world.system):
        assert world.proactl("rollback") == Code.BUSY
        message = said.readouterr().err
    assert "another updater is at work (process " in message
    assert "proactl status" in message
    assert world.proactl("update") == 0


def test_rollback_in_the_middle_of_an_update_that_was_stopped(
    world: World, pair: Pair, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go back to in a slot that is half written; the update goes on later."""
    ship(world, pair)

    def stopped(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_make_uki", stopped)
        assert world.proactl("update") == 130
    assert world.proactl("rollback") == Code.NOTHING_TO_GO_BACK_TO
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
    assert world.machine.boot().version == "1.0.0"
    assert world.proactl("update") == 0
    assert world.machine.boot().version == "1.1.0"


# --- Mirrors ------------------------------------------------------------------------------------

PORTAL = b"<html>Please log in</html>"


def serves(folder: Path, but: str = "never") -> Callable[[str], tuple[int, bytes]]:
    """A mirror of a repository's copy, which has some files wrong."""

    def behave(path: str) -> tuple[int, bytes]:
        file = folder / path.removeprefix("/repository/")
        if not file.is_file():
            return 404, b""
        data = file.read_bytes()
        return 200, data[::-1] if but in file.name else data

    return behave


@pytest.mark.parametrize("mirror", ["portal", "gone", "stale", "wrong manifest", "wrong payloads"])
def test_a_mirror_that_is_no_good_is_passed_over(
    world: World, pair: Pair, said: Said, mirror: str
) -> None:
    world.publish(make_release("1.0.5"))
    stale = world.path / "stale"
    shutil.copytree(world.repository, stale)
    ship(world, pair)
    behave = {
        "portal": lambda path: (200, PORTAL),
        "gone": lambda path: (404, b""),
        "stale": serves(stale),
        "wrong manifest": serves(world.repository, "manifest"),
        "wrong payloads": serves(world.repository, ".payload"),
    }
    world.wire.mirrors["bad"] = behave[mirror]
    assert world.proactl("update") == 0, said.readouterr().err
    error = said.readouterr().err
    assert "the delta from 1.0.0: " in error
    assert ("trying the next address" in error) == (mirror != "wrong payloads")
    assert any(path.startswith("/bad/") for _, path, _ in world.wire.requests)
    assert world.machine.boot().version == "1.1.0"


def test_what_is_wrong_with_the_signatures_is_not_hidden_by_a_mirror_that_is_down(
    world: World, pair: Pair, said: Said
) -> None:
    ship(world, pair)
    world.wire.mirrors["bad"] = lambda path: (503, b"")
    world.wire.instead = {"/timestamp.json": PORTAL}
    assert world.proactl("update") == Code.METADATA_UNTRUSTED
    world.wire.mirrors["bad"] = lambda path: (200, PORTAL)
    world.wire.instead = {}
    world.wire.missing = "/timestamp.json"
    assert world.proactl("update") == Code.METADATA_UNTRUSTED
    assert world.bootable() == {"EFI/Linux/proa-a.efi"}
