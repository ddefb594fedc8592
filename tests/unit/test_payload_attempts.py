"""A way to a release at which the updater dies again and again is not tried for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proa.machine import attempts, fetch, stage, status
from proa.machine import payload as machine_payload
from proa.machine.attempts import MOST_DEATHS
from proa.machine.errors import MachineError
from proa.machine.state import Attempt, Download, Store
from proa.wire.unpack import Stored, Workshop, unpack
from support import payload_machine
from support.machine import Machine, make_release
from support.payload_machine import Network, Pair, Stop, only, put, serve


@pytest.fixture
def machine(tmp_path: Path, pair: Pair) -> Machine:
    return payload_machine.make_machine(tmp_path / "machine", pair)


def begun(machine: Machine) -> dict[str, Attempt]:
    """Return what is noted of the ways, by their words."""
    download = Store(machine.system()).load().download
    return {a.way: a for a in download.attempts.values()} if download else {}


class Trap:
    """Springs when a group is taken apart; ``groups`` counts those taken apart before."""

    def __init__(self, spring: Callable[[], object], at: int) -> None:
        self.spring, self.at, self.groups = spring, at, 0

    def __call__(self, blob: Stored, shop: Workshop) -> Iterator[bytes]:
        self.groups += 1
        if self.groups > self.at:
            self.spring()
        return unpack(blob, shop)


def trap(
    monkeypatch: pytest.MonkeyPatch, spring: Callable[[], object], at: int
) -> Callable[[], None]:
    """Let each run come to grief at a group; returns what begins a new run."""
    trap = Trap(spring, at)
    monkeypatch.setattr(machine_payload, "unpack", trap)

    def again() -> None:
        trap.groups = 0

    return again


def die() -> None:
    raise Stop


def dies(act: Callable[[], object]) -> None:
    with pytest.raises((Stop, IndexError)):
        act()


def die_at_the_delta(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, release: stage.Release, deaths: int
) -> None:
    """Let so many runs die at the first group that they take apart."""
    with monkeypatch.context() as patch:
        trap(patch, die, 0)
        for _ in range(deaths):
            dies(lambda: put(machine, release))


def test_where_runs_die_at_the_delta_the_full_payload_is_taken_and_the_reason_said(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third group of the delta is more than this machine can take."""
    release = serve(network, pair)
    start, end = pair.delta.blob(2)
    deadly, taken = pair.delta.data[start:end], []

    def unpacked(blob: Stored, shop: Workshop) -> Iterator[bytes]:
        taken.append(blob.read(0, blob.size))
        if taken[-1] == deadly:
            raise Stop
        return unpack(blob, shop)

    with monkeypatch.context() as patch:
        patch.setattr(machine_payload, "unpack", unpacked)
        for _ in range(MOST_DEATHS):
            dies(lambda: put(machine, release))
    assert taken.count(deadly) == MOST_DEATHS
    said: list[str] = []
    done = put(machine, release, said)
    assert done.way == "the full payload"
    (line,) = (line for line in said if "the delta from 1.0.0 could not be used" in line)
    assert f"{MOST_DEATHS} runs of the updater died at it" in line
    (instead,) = done.instead
    assert instead.startswith(f"the delta from 1.0.0: {MOST_DEATHS} runs of the updater died")
    assert machine.boot().version == pair.new.version


def test_a_run_that_is_really_killed_counts(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does it for want of memory: by SIGKILL, in the middle of a group."""
    release = serve(network, pair)
    for death in range(1, MOST_DEATHS + 1):
        child = os.fork()
        if child == 0:
            try:
                trap(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL), 0)
                put(machine, release)
            finally:
                os._exit(0)
        _, ended = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended) == -signal.SIGKILL
        attempt = begun(machine)["the delta from 1.0.0"]
        assert (attempt.at_work, attempt.deaths) == (True, death - 1)
    assert put(machine, release).way == "the full payload"
    assert machine.boot().version == pair.new.version


def test_a_fault_of_the_program_itself_counts_as_a_death(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serve(network, pair)
    with monkeypatch.context() as patch:
        again = trap(patch, lambda: [][0], 0)
        for _ in range(MOST_DEATHS):
            again()
            dies(lambda: put(machine, release))
    assert put(machine, release).way == "the full payload"


def test_where_runs_die_at_both_payloads_the_images_are_taken(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serve(network, pair)
    trap(monkeypatch, die, 0)
    for _ in range(2 * MOST_DEATHS):
        dies(lambda: put(machine, release))
    done = put(machine, release)
    assert (done.way, len(done.instead)) == ("the images", 2)
    assert machine.boot().version == pair.new.version


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("way", [0, 1])
def test_runs_that_come_further_each_time_bring_the_payload_to_its_end(
    machine: Machine, network: Network, pair: Pair, way: int, chunks: int
) -> None:
    """Killed, or without power, after each few pieces of the network: none of it is for nothing."""
    release = serve(network, pair)
    release = only(release, *range(way, 2))
    run = 0
    while True:
        run += 1
        left = chunks

        def chunk(_url: str, _offset: int) -> None:
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1

        network.chunk = chunk
        try:
            done = put(machine, release)
            break
        except Stop:
            pass
    assert run > MOST_DEATHS
    assert done.way == ("the delta from 1.0.0", "the full payload")[way]
    assert done.instead == ()
    assert machine.boot().version == pair.new.version


@pytest.mark.parametrize("why", ["interrupted", "the network fails"])
def test_stops_that_were_asked_for_and_errors_never_count(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """SIGTERM, by `systemctl stop` or a restart of the machine, and Ctrl-C; a network that ends."""

    def stop() -> None:
        raise KeyboardInterrupt if why == "interrupted" else fetch.FetchError("no route")

    release = serve(network, pair)
    with monkeypatch.context() as patch:
        again = trap(patch, stop, 1)
        for _ in range(10):
            again()
            with pytest.raises((KeyboardInterrupt, MachineError)):
                put(machine, release)
    attempt = begun(machine)["the delta from 1.0.0"]
    assert (attempt.at_work, attempt.deaths) == (False, 0)
    assert put(machine, release).way == "the delta from 1.0.0"


def test_a_stop_that_was_asked_for_does_not_make_good_for_a_death(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serve(network, pair)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for _ in range(MOST_DEATHS):
            trap(patch, die, 0)
            dies(lambda: put(machine, release))
            trap(patch, interrupted, 0)
            with pytest.raises(KeyboardInterrupt):
                put(machine, release)
    assert put(machine, release).way == "the full payload"


def test_deaths_are_remembered_where_not_even_the_images_come(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused may have been the network's fault; that the updater died was not."""
    release = serve(network, pair)
    die_at_the_delta(monkeypatch, machine, release, MOST_DEATHS)
    files = dict(network.files)
    network.files.clear()
    with pytest.raises(MachineError):
        put(machine, release)
    assert begun(machine)["the full payload"].refused == ""
    network.files.update(files)
    done = put(machine, release)
    assert done.way == "the full payload"


def test_another_release_begins_anew(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serve(network, pair)
    die_at_the_delta(monkeypatch, machine, release, MOST_DEATHS)
    other = make_release("1.0.5")
    machine.releases[other.root_hash] = other
    for name, data in other.content.items():
        network.files[f"http://other/{name}"] = data
    urls = {name: [f"http://other/{name}"] for name in other.content}
    assert list(machine.system().state_dir.glob("partial-*"))
    put(machine, stage.Release(other.manifest, urls))
    assert not list(machine.system().state_dir.glob("partial-*"))
    assert put(machine, release).way == "the delta from 1.0.0"


def test_status_says_what_was_given_up_and_why(
    machine: Machine, network: Network, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serve(network, pair)
    die_at_the_delta(monkeypatch, machine, release, MOST_DEATHS + 1)
    found = status.gather(machine.system())
    words = f"the delta from 1.0.0: {MOST_DEATHS} runs of the updater died at it"
    assert f"Given up  {words}" in status.as_text(found)
    given_up = status.as_json(found)["given_up"]
    assert isinstance(given_up, list)
    assert [line.startswith(words) for line in given_up] == [True]


# --- Counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "here", "deaths"),
    [
        (Attempt("a"), (0, 0), 0),
        (Attempt("a", at_work=True), (0, 0), 1),
        (Attempt("a", at_work=True, deaths=1, done=(0, 0)), (0, 0), 2),
        (Attempt("a", at_work=True, deaths=1, done=(0, 0)), (0, 1), 1),
        (Attempt("a", at_work=True, deaths=1, done=(0, 9)), (5, 0), 1),
        (Attempt("a", at_work=True, deaths=1, done=(5, 0)), (4, 9), 2),
        (Attempt("a", at_work=False, deaths=1, done=(5, 0)), (9, 9), 1),
    ],
)
def test_a_death_counts_with_those_before_it_unless_more_was_done_between(
    attempt: Attempt, here: tuple[int, int], deaths: int
) -> None:
    download = Download("1.1.0", "b", {"usr": here[0]}, {"head": attempt})
    counted = attempts.counted(download, here[1])["head"]
    assert (counted.at_work, counted.deaths) == (False, deaths)
    assert counted.done >= attempt.done
