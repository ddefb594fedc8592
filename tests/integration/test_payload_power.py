"""The power goes at any step of an update by payloads: the old version boots or the new, whole.

Every write, flush, rename and unlink of the update is a step. The power is cut before each of
them, and of what was not flushed the disk has nothing, all, some, or parts of single writes. Then
the machine is started through the models of both boot loaders, which check every byte of what they
start (``support/machine.py``), and the update is run again and must come to its end.

``PROA_POWER_CUTS`` says how many times each step is cut, with another fate each time; without it,
once. ``-s`` shows the counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from proa.machine import health
from proa.machine.attempts import MOST_DEATHS
from proa.machine.state import Store
from support.machine import Firmware, Machine, PowerCut
from support.payload_machine import Network, Pair, only, put, serve

FIRMWARES: tuple[Firmware, ...] = ("uefi", "bios")
FATES = ("lost", "kept", "some", "torn")
TURNS = int(os.environ.get("PROA_POWER_CUTS", "1"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory in memory: a case makes and removes a whole machine."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="proa-power-", dir=where) as path:
        yield Path(path)


def live(machine: Machine) -> None:
    """Boot and judge until the machine comes to rest."""
    for _ in range(12):
        machine.boot()
        health.at_boot(machine.system(), lambda line: None)
        if not machine.restarting:
            return
    raise AssertionError("the machine restarts for ever")


def cut(machine: Machine, fate: str, dice: random.Random) -> None:
    """Take the power away."""
    some = {
        "lost": lambda: False,
        "kept": lambda: True,
        "some": lambda: dice.random() < 0.5,
        "torn": lambda: dice.random() < 0.3,
    }
    machine.power_cut(some[fate], (lambda: dice.random() < 0.5) if fate == "torn" else None)
    # What was kept of a blob is not flushed at all: anything may be left of it.
    for partial in (machine.root / "var/lib/proa/update").glob("partial*"):
        if partial.is_file() and fate != "kept":
            data = partial.read_bytes()
            length = dice.randrange(len(data) + 1)
            partial.write_bytes(data[:length] + bytes(dice.choice((0, len(data) - length))))


def test_the_power_goes_twice_at_the_same_step(
    in_memory: Path, pair: Pair, network: Network
) -> None:
    """Then the delta may be given up for the next way, and the update must still end."""
    release = serve(network, pair)
    machine = Machine(in_memory / "machine", "uefi", pair.old)
    machine.releases[pair.new.root_hash] = pair.new
    restore = machine.save(in_memory / "kept")
    put(machine, release)
    ways: Counter[str] = Counter()
    steps = machine.files.steps
    for number in range(1, steps + 1):
        fate, dice = FATES[number % 4], random.Random(number)
        restore()
        for _ in range(MOST_DEATHS):
            machine.files.cut_at = number
            with contextlib.suppress(PowerCut):
                put(machine, release)
            cut(machine, fate, dice)
            live(machine)
            if machine.running.version == pair.new.version:
                break
        else:
            ways[put(machine, release).way] += 1
            live(machine)
        assert machine.running.version == pair.new.version, (number, fate)
        assert not Store(machine.system()).load().failed
    assert ways["the delta from 1.0.0"]
    print(f"twice: {steps} steps; the third run took {dict(ways)}")


@pytest.mark.parametrize("firmware", FIRMWARES)
@pytest.mark.parametrize("way", ["delta", "full", "refused delta, then full"])
def test_a_power_cut_at_any_step_of_a_payload(
    in_memory: Path,
    pair: Pair,
    network: Network,
    way: str,
    firmware: Firmware,
) -> None:
    release = serve(network, pair)
    if way == "refused delta, then full":
        # The blob of its second group is spoilt: what the first gave is in the slot by then.
        data = bytearray(pair.delta.data)
        data[pair.delta.blob(1)[0]] ^= 1
        network.files["http://one/delta"] = bytes(data)
    else:
        release = only(release, ("delta", "full").index(way))
    machine = Machine(in_memory / "machine", firmware, pair.old)
    machine.releases[pair.new.root_hash] = pair.new
    machine.files.written.clear()
    restore = machine.save(in_memory / "kept")
    put(machine, release)
    steps = machine.files.steps
    running = {(machine.dev / name).resolve() for name in ("vda3", "vda4")}
    before = machine.slot_bytes("a")
    outcomes: Counter[str] = Counter()
    for number in range(TURNS * steps):
        turn, cut_at = number // steps, number % steps + 1
        fate = FATES[(2 * turn + turn // 2 + cut_at) % 4]  # after four turns, each at each step
        dice = random.Random(f"{way} {firmware} {number}")
        restore()
        machine.files.cut_at = cut_at
        with pytest.raises(PowerCut):
            put(machine, release)
        cut(machine, fate, dice)
        live(machine)
        version = machine.running.version
        assert version in (pair.old.version, pair.new.version), (number, fate)
        outcomes[version] += 1
        assert not Store(machine.system()).load().failed
        if version == pair.old.version:
            put(machine, release)
            live(machine)
        assert machine.running.version == pair.new.version
        assert machine.slot_bytes("a") == before
        assert not {path.resolve() for path in machine.files.written} & running
    assert outcomes[pair.old.version] and outcomes[pair.new.version]
    print(f"{way}, {firmware}: {steps} steps, {outcomes.total()} cuts")
