"""What goes wrong while a payload is applied, and what the machine does about it.

Nothing here is fatal: another mirror is asked, another way is gone, or the next run goes on from
where this one stopped. In the end the slot holds the very bytes that were signed, and the slot
that runs was not written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from proa.machine import fetch, plan
from proa.machine.errors import Code, MachineError
from proa.machine.files import Files
from proa.wire import manifest
from proa.wire import payload as form
from support import payload_machine
from support.machine import FragileFiles, Machine, make_release
from support.payload_machine import (
    CHUNK,
    ENCODER,
    OLD,
    Made,
    Network,
    Pair,
    also_at,
    only,
    put,
    serve,
)


@pytest.fixture
def machine(tmp_path: Path, pair: Pair) -> Iterator[Machine]:
    """A machine that runs the old release; what runs must be the same afterwards."""
    machine = payload_machine.make_machine(tmp_path / "machine", pair)
    running, image = machine.slot_bytes("a"), machine.esp()["EFI/Linux/proa-a.efi"]
    machine.files.written.clear()
    yield machine
    assert not {path.name for path in machine.files.written} & {"vda3", "vda4"}
    assert machine.slot_bytes("a")[1] == running[1]
    assert machine.esp().get("EFI/Linux/proa-a.efi", image) == image


def boots(machine: Machine, pair: Pair) -> bool:
    """Whether the new release boots, whole."""
    return machine.boot().version == pair.new.version


def spoil(network: Network, name: str, at: int) -> None:
    """Change a byte of a file at the first mirror."""
    url = f"http://one/{name}"
    data = bytearray(network.files[url])
    data[at] ^= 1
    network.files[url] = bytes(data)


# --- Going on -----------------------------------------------------------------------------------


def runs(
    machine: Machine,
    network: Network,
    act: Callable[[], object],
    stop: BaseException,
    chunks: int,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Act again and again, each time stopped after so many pieces; return how many runs it took."""
    for run in range(1, 400):
        left = chunks

        def chunk(_url: str, _offset: int) -> None:
            nonlocal left
            if left == 0:
                raise stop
            left -= 1

        network.chunk = chunk
        try:
            act()
        except (MachineError, KeyboardInterrupt):
            between()
        else:
            return run
    raise AssertionError("it comes to no end")


STOPS: dict[str, BaseException] = {
    "interrupted": KeyboardInterrupt(),
    "the network fails": fetch.FetchError("no route"),
}


@pytest.mark.parametrize("why", STOPS)
@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_a_run_that_is_stopped_after_every_few_bytes_fetches_nothing_twice(
    machine: Machine, network: Network, pair: Pair, way: int, why: str, chunks: int
) -> None:
    release = only(serve(network, pair), way)
    made: Made = (pair.delta, pair.full)[way]
    count = runs(machine, network, lambda: put(machine, release), STOPS[why], chunks)
    assert count > len(made.data) // CHUNK // chunks
    assert network.fetched == len(made.data)
    assert boots(machine, pair)


@pytest.mark.parametrize("way", [0, 1])
def test_a_power_cut_costs_at_most_the_blob_that_was_coming(
    machine: Machine, network: Network, pair: Pair, way: int
) -> None:
    release = only(serve(network, pair), way)
    made: Made = (pair.delta, pair.full)[way]

    def cut() -> None:
        machine.files.lose(lambda: False)
        machine.boot()

    count = runs(machine, network, lambda: put(machine, release), KeyboardInterrupt(), 3, cut)
    assert network.fetched <= len(made.data) + count * CHUNK
    assert boots(machine, pair)


@pytest.mark.parametrize("way", [0, 1])
def test_a_stop_while_it_is_verified_fetches_nothing_again(
    machine: Machine, network: Network, pair: Pair, way: int
) -> None:
    release = only(serve(network, pair), way)
    verity = machine.verity

    def interrupted(_: Sequence[str]) -> None:
        raise KeyboardInterrupt

    machine.verity = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        put(machine, release)
    machine.verity = verity
    before = network.fetched
    assert put(machine, release).fetched == 0
    assert network.fetched == before
    assert boots(machine, pair)


def test_what_is_kept_of_a_blob_is_gone_when_the_release_is_there(
    machine: Machine, network: Network, pair: Pair
) -> None:
    release = serve(network, pair)
    runs(machine, network, lambda: put(machine, release), KeyboardInterrupt(), 3)
    left = {path.name for path in machine.system().state_dir.iterdir()}
    assert left == {"state.json"}


def test_a_way_that_was_refused_is_not_gone_again(
    machine: Machine, network: Network, pair: Pair
) -> None:
    release = serve(network, pair)
    start, end = pair.delta.blob(1)
    spoil(network, "delta", start)
    said: list[str] = []
    runs(machine, network, lambda: put(machine, release, said), KeyboardInterrupt(), 4)
    refused = [line for line in said if "cannot be used" in line]
    assert len(refused) == 1
    # The delta up to the spoilt blob, that one twice for it came in parts, and the full payload.
    assert network.fetched <= end + (end - start) + len(pair.full.data)
    assert boots(machine, pair)


@pytest.mark.parametrize("wrong", [0, 40_000, 70_000, 130_000])
def test_what_an_earlier_run_left_is_checked_before_it_is_built_upon(
    machine: Machine, network: Network, pair: Pair, wrong: int
) -> None:
    """Part of the image came as it is, and was not right from some byte on."""
    release = serve(network, pair)
    spoil(network, manifest.USR, wrong)
    with pytest.raises(KeyboardInterrupt):
        once(network, 27, lambda: put(machine, only(release)))
    assert put(machine, release).way == "the delta from 1.0.0"
    assert boots(machine, pair)


def test_an_update_that_is_superseded_half_way(
    machine: Machine, network: Network, pair: Pair
) -> None:
    """1.1.0 is half in the slot when 1.2.0 is offered; then 1.1.0 is offered again."""
    release = serve(network, pair)
    other = make_release("1.2.0")
    machine.releases[other.root_hash] = other
    urls = {}
    for name, data in other.content.items():
        network.files[f"http://other/{name}"] = data
        urls[name] = [f"http://other/{name}"]
    newer = replace(release, manifest=other.manifest, urls=urls, payloads=())
    for stop in (3, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            once(network, stop, lambda: put(machine, release))
        with pytest.raises(KeyboardInterrupt):
            once(network, stop, lambda: put(machine, newer))
    put(machine, release)
    put(machine, newer)
    assert machine.boot().version == "1.2.0"


def once(network: Network, chunks: int, act: Callable[[], object]) -> None:
    """Act, and be interrupted after so many pieces."""
    count = 0

    def chunk(_url: str, _offset: int) -> None:
        nonlocal count
        count += 1
        if count > chunks:
            raise KeyboardInterrupt

    network.chunk = chunk
    try:
        act()
    finally:
        network.chunk = lambda url, offset: None


# --- Other ways ---------------------------------------------------------------------------------


def test_the_delta_is_the_first_way_and_the_smallest(
    machine: Machine, network: Network, pair: Pair
) -> None:
    release = serve(network, pair)
    said: list[str] = []
    done = put(machine, release, said)
    assert (done.way, done.fetched) == ("the delta from 1.0.0", len(pair.delta.data))
    assert network.fetched == len(pair.delta.data) < len(pair.full.data) / 2
    assert boots(machine, pair)


def way(made: Made, name: str) -> plan.Way:
    signed = made.signed("")
    return plan.Way(name, signed.size, signed.source, signed.origin, ENCODER, signed.scratch)


@pytest.mark.parametrize(
    ("about", "first", "reason"),
    [
        ({}, "delta", None),
        ({"running": "0" * 64}, "full", "a delta from 1.0.0: that version does not run here"),
        ({"encoder": "zstd 0.1"}, "", f"it needs {ENCODER}; here is zstd 0.1"),
        ({"encoder": ""}, "", f"it needs {ENCODER}; here is none"),
        ({"setting": "full"}, "full", "a delta from 1.0.0: PAYLOAD=full is set"),
        ({"setting": "image"}, "", "the full payload: PAYLOAD=image is set"),
        ({"room": 1000}, "full", "MiB of room for old content"),
    ],
)
def test_each_reason_against_a_way_is_said_and_the_next_is_gone(
    machine: Machine,
    network: Network,
    pair: Pair,
    about: dict[str, str],
    first: str,
    reason: str | None,
) -> None:
    given = {
        "running": pair.old.root_hash,
        "encoder": ENCODER,
        "room": 1 << 30,
        "setting": "auto",
        **about,
    }
    choice = plan.choose(
        [way(pair.full, "full"), way(pair.delta, "delta"), plan.Way("", 1 << 20)],
        **given,  # type: ignore[arg-type]
    )
    assert choice.ways[0].name == first
    assert choice.ways[-1].name == ""
    assert any(reason in refused for refused in choice.refused) if reason else not choice.refused
    release = serve(network, pair)
    left = only(release, *(("delta", "full").index(w.name) for w in choice.ways if w.name))
    done = put(machine, left)
    words = {"delta": "the delta from 1.0.0", "full": "the full payload", "": "the images"}
    assert done.way == words[first]
    assert boots(machine, pair)


@pytest.mark.parametrize("setting", ["auto", "full"])
def test_a_payload_that_is_no_smaller_than_the_images_is_not_taken(setting: str) -> None:
    full, delta, images = (
        plan.Way("full", 900),
        plan.Way("delta", 100, "00", OLD),
        plan.Way("", 900),
    )
    choice = plan.choose([full, delta, images], running="00", encoder="", room=0, setting=setting)
    assert full not in choice.ways
    assert "the full payload: it is no smaller than the images" in choice.refused
    assert choice.ways == ((delta, images) if setting == "auto" else (images,))


@pytest.mark.parametrize("number", [0, 1, 2, -1])
def test_a_corrupt_blob_of_a_delta_is_told_and_the_full_payload_taken(
    machine: Machine, network: Network, pair: Pair, number: int
) -> None:
    release = serve(network, pair)
    count = len(pair.delta.head.usr.groups) + len(pair.delta.head.uki.groups)
    start, end = pair.delta.blob(range(count)[number])
    spoil(network, "delta", (start + end) // 2)
    said: list[str] = []
    done = put(machine, release, said)
    assert done.way == "the full payload"
    assert done.fetched == network.fetched
    (line,) = (line for line in said if "cannot be used" in line)
    assert "the delta from 1.0.0 cannot be used: http://one/delta" in line
    assert "not what was signed" in line
    assert boots(machine, pair)


@pytest.mark.parametrize("also", ["full", "full and the head"])
def test_where_both_payloads_are_corrupt_the_images_are_taken(
    machine: Machine, network: Network, pair: Pair, also: str
) -> None:
    release = serve(network, pair)
    spoil(network, "delta", 0 if "head" in also else pair.delta.blob(1)[0])
    spoil(network, "full", 0 if "head" in also else pair.full.blob(3)[0])
    done = put(machine, release)
    assert done.way == "the images"
    assert boots(machine, pair)


@pytest.mark.parametrize("name", ["delta", "full"])
@pytest.mark.parametrize("status", [403, 404, 410, 416])
def test_a_payload_that_the_mirror_lacks(
    machine: Machine, network: Network, pair: Pair, name: str, status: int
) -> None:
    """Also one that is cut off there: a range behind its end gets the status 416."""
    release = serve(network, pair)

    def chunk(url: str, offset: int) -> None:
        if url.endswith(name) and offset > 0:
            raise fetch.FetchError("gone", status=status, temporary=status == 416)

    network.chunk = chunk
    done = put(machine, release if name == "delta" else only(release, 1))
    assert done.way == ("the full payload" if name == "delta" else "the images")
    assert boots(machine, pair)


def test_a_payload_of_another_length_than_was_signed(
    machine: Machine, network: Network, pair: Pair
) -> None:
    release = serve(network, pair)
    network.files["http://one/delta"] += b"more"
    network.files["http://one/full"] = network.files["http://one/full"][:-1]
    assert put(machine, release).way == "the images"
    assert boots(machine, pair)


def test_the_payload_of_another_release_under_this_ones_name(
    machine: Machine, network: Network, pair: Pair, tmp_path: Path
) -> None:
    """It is signed as a payload of 1.1.0, but it leads to 1.0.0."""
    release = serve(network, pair)
    other = payload_machine.make(tmp_path, None, pair.directories[0])
    network.files["http://one/other"] = other.data
    wrong = replace(release, payloads=[other.signed("http://one/other"), *release.payloads[1:]])
    said: list[str] = []
    assert put(machine, wrong, said).way == "the full payload"
    assert any("it leads to another usr.erofs than 1.1.0 has" in line for line in said)
    assert boots(machine, pair)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_length": 0},
        {"head_length": 10},
        {"head_length": 1 << 60},
        {"head_sha256": "nonsense"},
        {"size": 1},
        {"urls": ()},
    ],
)
def test_signed_nonsense_about_a_payload_only_costs_that_way(
    machine: Machine, network: Network, pair: Pair, changes: dict[str, object]
) -> None:
    release = serve(network, pair)
    wrong = replace(release.payloads[0], **changes)  # type: ignore[arg-type]
    release = replace(release, payloads=[wrong, release.payloads[1]])
    assert put(machine, release).way == "the full payload"
    assert boots(machine, pair)


def altered(directory: Path, release: Path, name: str, at: int) -> Path:
    """Copy a release with one byte of a file changed, and its manifest with that file's hash."""
    copy = shutil.copytree(release, directory)
    data = bytearray((copy / name).read_bytes())
    data[at] ^= 1
    (copy / name).write_bytes(data)
    content = manifest.load((copy / manifest.MANIFEST).read_bytes())
    found = manifest.File(len(data), hashlib.sha256(data).hexdigest())
    content = replace(content, files={**content.files, name: found})
    (copy / manifest.MANIFEST).write_bytes(manifest.dump(content))
    return copy


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("usr", "the usr image that it gives is not the one that was signed"),
        ("salt", "the usr image that it gives has another root hash than was signed"),
        ("uuid", "the hash tree comes out other than it was signed"),
        ("boot image", "the boot image comes out other than it was signed"),
        ("length", "the payload is longer or shorter than its groups"),
    ],
)
def test_each_check_of_what_comes_out_holds_by_itself(
    machine: Machine, network: Network, pair: Pair, tmp_path: Path, what: str, reason: str
) -> None:
    """A factory gone wrong has signed a payload that says what it should and gives another."""
    release = serve(network, pair)
    made, good = pair.full, pair.full.head
    if what == "usr":
        # A byte of the volume's UUID, in the superblock of erofs.
        wrong = altered(tmp_path / "wrong", pair.directories[1], manifest.USR, 1024 + 50)
        made = payload_machine.make(tmp_path, None, wrong)
    elif what == "boot image":
        wrong = altered(tmp_path / "wrong", pair.directories[1], manifest.UKI, -1)
        made = payload_machine.make(tmp_path, None, wrong)
    usr = replace(made.head.usr, sha256=good.usr.sha256)
    uki = replace(made.head.uki, sha256=good.uki.sha256)
    other = {"salt": {"salt": b"pepper"}, "uuid": {"uuid": bytes(16)}}.get(what, {})
    head = form.dump_head(
        replace(made.head, usr=usr, uki=uki, verity=replace(good.verity, **other))  # type: ignore[arg-type]
    )
    body = made.data[made.head_length :] + (b"more" if what == "length" else b"")
    made = replace(made, data=head + body, head_length=len(head))
    network.files["http://one/full"] = made.data
    release = replace(release, payloads=[made.signed("http://one/full")])
    said: list[str] = []
    assert put(machine, release, said).way == "the images"
    (line,) = (line for line in said if "cannot be used" in line)
    assert reason in line
    assert boots(machine, pair)


# --- The slot that it starts from ---------------------------------------------------------------


def reads(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, machine: Machine, network: Network
) -> set[int]:
    """Return which 4 KiB blocks of the old /usr the delta reads."""
    seen: set[int] = set()
    pread = os.pread
    running = (machine.dev / "vda3").stat().st_ino

    def watched(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == running:
            seen.update(range(offset // 4096, (offset + size - 1) // 4096 + 1))
        return pread(fd, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", watched)
        put(machine, only(serve(network, pair), 0))
    return seen


def test_a_byte_that_was_altered_in_the_running_slot_is_noticed_wherever_it_is_read(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    restore = machine.save(tmp_path / "kept")
    blocks = reads(pair, monkeypatch, machine, network)
    assert len(blocks) > 10
    refused = 0
    for block in sorted(blocks):
        restore()
        with (machine.dev / "vda3").open("r+b") as partition:
            partition.seek(block * 4096 + 100)
            (byte,) = partition.read(1)
            partition.seek(block * 4096 + 100)
            partition.write(bytes([byte ^ 1]))
        said: list[str] = []
        done = put(machine, serve(network, pair), said)
        # Padding may be read and not used.
        refused += done.way == "the full payload"
        assert (machine.dev / "vda5").read_bytes().startswith(pair.new.content[manifest.USR])
        if done.way == "the full payload":
            (line,) = (line for line in said if "cannot be used" in line)
            assert "old content is not what it should be" in line or "taken apart" in line
    assert refused > len(blocks) / 2
    restore()


@pytest.mark.parametrize("node", ["vda3", "EFI/Linux/proa-a.efi"])
def test_a_read_error_in_what_it_starts_from(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    path = machine.dev / node if node == "vda3" else machine.root / "boot" / node
    bad, pread = path.stat().st_ino, os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad and offset + size > 10_000:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    said: list[str] = []
    assert put(machine, serve(network, pair), said).way == "the full payload"
    (line,) = (line for line in said if "cannot be used" in line)
    assert "cannot be read: Input/output error" in line
    monkeypatch.undo()
    assert (machine.dev / "vda5").read_bytes().startswith(pair.new.content[manifest.USR])


@pytest.mark.parametrize("what", ["missing", "another", "empty", "cut off"])
def test_a_boot_image_that_is_not_the_old_releases(
    machine: Machine, network: Network, pair: Pair, what: str
) -> None:
    path = machine.root / "boot/EFI/Linux/proa-a.efi"
    kept = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        other = {"another": make_release("7.0.0").content[manifest.UKI], "empty": b""}
        path.write_bytes(other.get(what, kept[: len(kept) // 2]))
    said: list[str] = []
    release = serve(network, pair)
    done = put(machine, release, said)
    path.write_bytes(kept)
    assert done.way == "the full payload"
    assert any("the delta from 1.0.0 cannot be used" in line for line in said)
    # What the delta made of /usr is not made again.
    assert network.fetched < len(pair.delta.data) + len(pair.full.data) / 4
    assert boots(machine, pair)


# --- The disk that it is written to -------------------------------------------------------------


class Failing(FragileFiles):
    """Fails to write to some files."""

    def __init__(self, code: int, names: tuple[str, ...], after: int = 0) -> None:
        super().__init__()
        self.code, self.names, self.left = code, names, after

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name in self.names:
            self.left -= 1
            if self.left < 0:
                raise OSError(self.code, os.strerror(self.code))
        super().pwrite(fd, data, offset)


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("name", ["vda5", "vda6", "incoming.efi.part"])
@pytest.mark.parametrize(
    ("error", "code"), [(errno.EIO, Code.SLOT_FAILED), (errno.ENOSPC, Code.NO_ROOM)]
)
def test_a_write_error(
    machine: Machine,
    network: Network,
    pair: Pair,
    error: int,
    code: Code,
    name: str,
    after: int,
) -> None:
    release = serve(network, pair)
    files: Files = Failing(error, (name,), after if name == "vda5" else 0)
    with pytest.raises(MachineError) as failure:
        put(machine, release, system=replace(machine.system(), files=files))
    assert failure.value.code == code
    assert "the running system is untouched" in str(failure.value.hint)
    assert not list((machine.root / "boot/EFI/Linux").glob("proa-b*"))
    put(machine, release)
    assert boots(machine, pair)


def test_a_slot_that_is_too_small(machine: Machine, network: Network, pair: Pair) -> None:
    (machine.root / "sys/devices/pci/block/vda/vda5/size").write_text("200\n")
    with pytest.raises(MachineError) as failure:
        put(machine, serve(network, pair))
    assert failure.value.code == Code.NO_ROOM
    assert "has room for 102400" in failure.value.message
    assert network.fetched == 0


def test_a_state_partition_that_is_full(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the state can be written: said so, and nothing is started that cannot be noted."""
    release = serve(network, pair)
    full = Failing(errno.ENOSPC, (".state.json.new",))
    with pytest.raises(MachineError) as failure:
        put(machine, release, system=replace(machine.system(), files=full))
    assert failure.value.code == Code.NO_ROOM
    assert network.fetched == 0


def no_room_to_keep(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let the disk be full when ``room`` bytes of a blob are in its file, with a short write."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if "/partial-" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            data = data[: max(room - offset, 0)]
            if not data:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("room", [0, 1, 1000, 5000])
def test_a_blob_that_the_disk_has_no_room_for_goes_on_in_memory(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    no_room_to_keep(monkeypatch, room)
    assert put(machine, serve(network, pair)).way == "the delta from 1.0.0"
    assert network.fetched == len(pair.delta.data)
    assert boots(machine, pair)


def test_a_blob_that_cannot_be_read_back_is_not_used(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if "/partial-" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    said: list[str] = []
    assert put(machine, serve(network, pair), said).way == "the images"
    assert any("is not what was signed" in line for line in said)
    assert boots(machine, pair)


def test_no_room_to_keep_a_blob_or_to_unpack_old_content(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state can be noted, but nothing large: no blob is kept, and the full way needs none."""

    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    no_room_to_keep(monkeypatch, 0)
    said: list[str] = []
    done = put(machine, serve(network, pair), said)
    assert done.way == "the full payload"
    assert any("No space left on device" in line for line in said)
    assert boots(machine, pair)


# --- Mirrors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["delta", "full"])
def test_what_one_mirror_has_wrong_is_fetched_from_the_next_and_no_more(
    machine: Machine, network: Network, pair: Pair, name: str
) -> None:
    release = also_at(serve(network, pair), network, "http://two/")
    release = only(release, ("delta", "full").index(name))
    made: Made = pair.delta if name == "delta" else pair.full
    start, end = made.blob(1)
    spoil(network, name, start)
    put(machine, release)
    assert network.fetched == len(made.data) + end - start
    assert boots(machine, pair)


def test_a_mirror_that_goes_away_in_the_middle(
    machine: Machine, network: Network, pair: Pair
) -> None:
    release = also_at(serve(network, pair), network, "http://two/")

    def chunk(url: str, offset: int) -> None:
        if url.startswith("http://one/") and offset > 12_000:
            raise fetch.FetchError("no route")

    network.chunk = chunk
    assert put(machine, release).way == "the delta from 1.0.0"
    assert network.fetched == len(pair.delta.data)
    assert boots(machine, pair)


def test_a_wrong_mirror_and_a_dead_one_do_not_keep_a_machine_from_updating(
    machine: Machine, network: Network, pair: Pair
) -> None:
    """What one mirror has is wrong, the other cannot be reached: there are other ways."""
    release = also_at(serve(network, pair), network, "http://two/")
    spoil(network, "delta", pair.delta.blob(1)[0])

    def chunk(url: str, _: int) -> None:
        if url.startswith("http://two/"):
            raise fetch.FetchError("no route")

    network.chunk = chunk
    assert put(machine, release).way == "the full payload"
    assert boots(machine, pair)


@pytest.mark.parametrize("name", manifest.PAYLOAD_FILES)
def test_an_image_that_one_mirror_has_wrong_comes_from_the_next(
    machine: Machine, network: Network, pair: Pair, name: str
) -> None:
    release = also_at(only(serve(network, pair)), network, "http://two/")
    spoil(network, name, 5000)
    said: list[str] = []
    assert put(machine, release, said).way == "the images"
    assert any(f"http://one/{name}" in line for line in said)
    assert boots(machine, pair)
