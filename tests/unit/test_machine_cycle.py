"""Stage, boot, judge, commit, fall back, go back: whatever happens, something whole boots.

The machine is made of files and started by models of both boot loaders, which check on each boot
that what they start is whole (``support/machine.py``).
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proa.machine import fetch, health, slot, stage
from proa.machine.boot import Loaders
from proa.machine.errors import Code, MachineError
from proa.machine.rollback import rollback
from proa.machine.state import Store
from support.machine import Firmware, Machine, Nature, PowerCut, Release, make_release

FIRMWARES: tuple[Firmware, ...] = ("uefi", "bios")
NATURES: tuple[Nature, ...] = ("good", "good", "unhealthy", "dies")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "download", _download)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory: these tests make and remove some 100,000 small files."""
    with tempfile.TemporaryDirectory(prefix="proa-cycle-", dir=_memory()) as path:
        yield Path(path)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_SERVED: dict[str, bytes] = {}


def _download(
    url: str, start: int, size: int, patience: fetch.Patience, pause: Callable[[float], None]
) -> Iterator[bytes]:
    data = _SERVED[url]
    for offset in range(start, size, 100_000):
        yield data[offset : min(offset + 100_000, size)]


def put(machine: Machine, release: Release) -> None:
    """Stage a release as the updater does once it trusts it."""
    machine.releases[release.root_hash] = release
    urls = {}
    for name, data in release.content.items():
        urls[name] = [f"http://server/{release.version}/{name}"]
        _SERVED[urls[name][0]] = data
    system = machine.system()
    work = stage.Staging(
        system=system,
        disk=slot.find(system),
        store=Store(system),
        patience=fetch.PATIENCE,
        progress=lambda done, size: None,
        report=lambda line: None,
    )
    stage.stage(work, stage.Release(release.manifest, urls), machine.running.version)


def judge(machine: Machine) -> health.Verdict:
    return health.at_boot(machine.system(), lambda line: None)


def live(machine: Machine) -> None:
    """Boot and judge until the machine comes to rest."""
    for _ in range(12):
        machine.boot()
        judge(machine)
        if not machine.restarting:
            return
    raise AssertionError("the machine restarts for ever")


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_good_version_is_committed_and_the_old_one_kept(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0"))
    live(machine)
    assert (machine.running.version, machine.slot) == ("1.1.0", "b")
    entries = Loaders(machine.system()).entries()
    assert {s: e.left for s, e in entries.items()} == {"a": None, "b": None}
    state = Store(machine.system()).load()
    assert state.candidate is None
    assert [(e.type, e.result, e.previous_version) for e in state.events] == [(3, 2, "1.0.0")]
    live(machine)
    assert machine.running.version == "1.1.0"


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_an_unhealthy_version_has_three_tries_and_the_server_hears_why(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", "unhealthy"))
    before = machine.boots
    live(machine)
    assert machine.boots - before == 4
    assert machine.running.version == "1.0.0"
    state = Store(machine.system()).load()
    assert "web.service failed (in 3 of 3 boots)" in state.failed["1.1.0"].reason
    event = state.events[-1]
    assert (event.type, event.result, event.errorcode) == (3, 0, 44)
    assert event.error_version == "1.1.0"
    assert event.reason == state.failed["1.1.0"].reason


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_version_that_dies_early_is_told_apart_from_an_unhealthy_one(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", "dies"))
    live(machine)
    assert machine.running.version == "1.0.0"
    reason = Store(machine.system()).load().failed["1.1.0"].reason
    assert reason == "it did not get as far as the health check in 3 boots"


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_what_failed_under_one_firmware_is_not_booted_under_the_other(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", "dies"))
    live(machine)
    machine.firmware = "bios" if firmware == "uefi" else "uefi"
    before = machine.boots
    assert machine.boot().version == "1.0.0"
    assert machine.boots == before + 1


@pytest.mark.parametrize("firmware", FIRMWARES)
@pytest.mark.parametrize("nature", ["good", "unhealthy", "dies"])
def test_an_older_version_is_tried_and_falls_back_like_any_other(
    tmp_path: Path, firmware: Firmware, nature: Nature
) -> None:
    machine = Machine(tmp_path, firmware, make_release("2.0.0"))
    put(machine, make_release("1.0.0", nature))
    live(machine)
    live(machine)
    assert machine.running.version == ("1.0.0" if nature == "good" else "2.0.0")


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_going_back_and_forth_by_hand(tmp_path: Path, firmware: Firmware) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    system = machine.system()
    with pytest.raises(MachineError) as nothing:
        rollback(system)
    assert nothing.value.code == Code.NOTHING_TO_GO_BACK_TO
    put(machine, make_release("1.1.0"))
    live(machine)
    assert rollback(system) == "1.0.0"
    assert "1.1.0" in Store(system).load().held
    live(machine)
    assert machine.running.version == "1.0.0"
    live(machine)
    assert machine.running.version == "1.0.0"
    assert rollback(system) == "1.1.0"
    assert list(Store(system).load().held) == ["1.0.0"]
    live(machine)
    assert machine.running.version == "1.1.0"


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_version_that_failed_is_gone_back_to_only_by_force(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", "unhealthy"))
    live(machine)
    with pytest.raises(MachineError) as refused:
        rollback(machine.system())
    assert refused.value.code == Code.FAILED_BEFORE
    assert rollback(machine.system(), force=True) == "1.1.0"
    assert machine.boot().version == "1.1.0"
    judge(machine)
    live(machine)
    assert machine.running.version == "1.0.0"


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_an_owners_restart_before_the_verdict_costs_no_try_but_not_for_ever(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0"))
    versions = []
    for _ in range(7):
        versions.append(machine.boot().version)
        health.at_shutdown(machine.system(), lambda line: None)
    assert versions == ["1.1.0"] * 6 + ["1.0.0"]


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_restart_after_a_bad_verdict_does_cost_the_try(
    tmp_path: Path, firmware: Firmware
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", "unhealthy"))
    versions = []
    for _ in range(4):
        versions.append(machine.boot().version)
        judge(machine)
        health.at_shutdown(machine.system(), lambda line: None)
    assert versions == ["1.1.0"] * 3 + ["1.0.0"]


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_no_verdict_in_time_ends_the_boot(tmp_path: Path, firmware: Firmware) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0"))
    for _ in range(3):
        assert machine.boot().version == "1.1.0"
        assert health.at_deadline(machine.system(), lambda line: None).action == "restarting"
    live(machine)
    assert machine.running.version == "1.0.0"
    reason = Store(machine.system()).load().failed["1.1.0"].reason
    assert "no answer from the health check" in reason
    assert health.at_deadline(machine.system(), lambda line: None).action == ""


@pytest.mark.parametrize("firmware", FIRMWARES)
@pytest.mark.parametrize("nature", ["good", "unhealthy"])
def test_a_full_disk_is_in_the_way_of_no_verdict(
    tmp_path: Path, firmware: Firmware, nature: Nature
) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0", nature))
    machine.boot()
    state, remember = Store(machine.system()).path, machine.files.rename

    def full(source: Path, target: Path) -> None:
        if target == state:
            raise OSError(errno.ENOSPC, "No space left on device")
        remember(source, target)

    machine.files.rename = full  # type: ignore[method-assign]
    verdict = judge(machine)
    assert verdict.action == ("committed" if nature == "good" else "restarting")
    live(machine)
    assert machine.running.version == ("1.1.0" if nature == "good" else "1.0.0")


# --- The power goes -----------------------------------------------------------------------------


def _prepared(root: Path, firmware: Firmware) -> Machine:
    """A machine at 2.0.0 in slot b with 1.0.0, committed, in slot a."""
    machine = Machine(root, firmware, make_release("1.0.0"))
    put(machine, make_release("2.0.0"))
    live(machine)
    machine.files.settle()
    return machine


@pytest.mark.parametrize("fate", ["lost", "kept"])
@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_power_cut_never_hides_that_a_version_failed(
    tmp_path: Path, firmware: Firmware, fate: str
) -> None:
    """Whatever could boot was noted before, so that it is not taken again by itself."""
    machine = _prepared(tmp_path / "machine", firmware)
    restore = machine.save(tmp_path / "kept")
    put(machine, make_release("3.0.0", "dies"))
    tried = 0
    for cut_at in range(1, machine.files.steps + 1):
        restore()
        boots, machine.files.cut_at = machine.boots, cut_at
        with pytest.raises(PowerCut):
            put(machine, make_release("3.0.0", "dies"))
        machine.power_cut(_fate(fate, cut_at))
        live(machine)
        assert machine.running.version == "2.0.0"
        if machine.boots > boots + 1:
            tried += 1
            assert "3.0.0" in Store(machine.system()).load().failed, cut_at
    assert tried or fate == "lost"


def _fate(name: str, seed: int) -> Callable[[], bool]:
    """Say of each change that was not flushed whether it reached the disk all the same."""
    dice = random.Random(seed)
    fates = {"lost": lambda: False, "kept": lambda: True, "some": lambda: dice.random() < 0.5}
    return fates[name]


ACTS: dict[str, tuple[Callable[[Machine], object], str]] = {
    "update": (lambda m: put(m, make_release("3.0.0")), "3.0.0"),
    "downgrade": (lambda m: put(m, make_release("1.5.0")), "1.5.0"),
    "rollback": (lambda m: rollback(m.system()), "1.0.0"),
}


@pytest.mark.parametrize("firmware", FIRMWARES)
@pytest.mark.parametrize("act", ACTS)
def test_a_power_cut_at_any_step_leaves_the_old_or_the_new_whole(
    tmp_path: Path, firmware: Firmware, act: str
) -> None:
    do, new = ACTS[act]
    machine = _prepared(tmp_path / "machine", firmware)
    restore = machine.save(tmp_path / "kept")
    do(machine)
    steps = machine.files.steps
    assert steps > 5
    outcomes = set()
    for cut_at in range(1, steps + 1):
        for fate in ("lost", "kept" if cut_at % 2 else "some"):
            restore()
            machine.files.cut_at = cut_at
            with pytest.raises(PowerCut):
                do(machine)
            machine.power_cut(_fate(fate, cut_at))
            live(machine)
            assert machine.running.version in ("2.0.0", new)
            assert not Store(machine.system()).load().failed
            outcomes.add(machine.running.version)
            # And nothing is in the way of going on.
            if machine.running.version == "2.0.0" and act != "rollback":
                do(machine)
                live(machine)
                assert machine.running.version == new
    assert outcomes == {"2.0.0", new}


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_power_cut_while_going_back_from_a_trial_never_settles_it(
    tmp_path: Path, firmware: Firmware
) -> None:
    """Found by `TestLife`: the record of the trial was gone before the loader was armed."""
    outcomes = set()
    for cut_at in range(1, 40):
        for fate in ("lost", "kept", "some"):
            machine = Machine(tmp_path / f"{cut_at}{fate}", firmware, make_release("1.0.0"))
            put(machine, make_release("1.1.0", "unhealthy"))
            assert machine.boot().version == "1.1.0"
            machine.files.settle()
            machine.files.cut_at = cut_at
            try:
                rollback(machine.system())
            except PowerCut:
                machine.power_cut(_fate(fate, cut_at))
                outcomes.add(machine.boot().version)
                judge(machine)
                live(machine)
                assert machine.running.version == "1.0.0"
                state = Store(machine.system()).load()
                assert "1.1.0" in {**state.failed, **state.held}
                continue
            assert cut_at > 3
            assert outcomes == {"1.0.0", "1.1.0"}
            return
    raise AssertionError("never ended")


@pytest.mark.parametrize("firmware", FIRMWARES)
@pytest.mark.parametrize("judged", [False, True])
def test_going_back_from_a_trial_ends_it(tmp_path: Path, firmware: Firmware, judged: bool) -> None:
    machine = Machine(tmp_path, firmware, make_release("1.0.0"))
    put(machine, make_release("1.1.0"))
    assert machine.boot().version == "1.1.0"
    assert rollback(machine.system()) == "1.0.0"
    if judged:
        assert judge(machine).action == ""
        assert health.at_deadline(machine.system(), lambda line: None).action == ""
    health.at_shutdown(machine.system(), lambda line: None)
    live(machine)
    assert machine.running.version == "1.0.0"
    state = Store(machine.system()).load()
    assert "went back" in state.held["1.1.0"].reason
    assert not state.failed
    # The owner may change their mind: it is on trial again, and this time it is judged.
    assert rollback(machine.system()) == "1.1.0"
    live(machine)
    assert machine.running.version == "1.1.0"
    assert Store(machine.system()).load().candidate is None


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_a_power_cut_while_a_good_version_is_committed(tmp_path: Path, firmware: Firmware) -> None:
    for cut_at in range(1, 40):
        root = tmp_path / str(cut_at)
        machine = Machine(root, firmware, make_release("1.0.0"))
        put(machine, make_release("1.1.0"))
        machine.boot()
        machine.files.cut_at = cut_at
        try:
            judge(machine)
        except PowerCut:
            machine.power_cut()
            live(machine)
            assert machine.running.version == "1.1.0"
        else:
            assert cut_at > 5
            return
    raise AssertionError("never ended")


class Life(RuleBasedStateMachine):
    """Anything in any order. The loaders' models assert that what boots is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="proa-life-", dir=_memory()))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(fetch, "download", _download)
        self.count = 0
        self.good: set[str] = set()

    def teardown(self) -> None:
        self.machine.files.settle()
        self.patch.undo()
        shutil.rmtree(self.root)

    @initialize(firmware=st.sampled_from(FIRMWARES))
    def install(self, firmware: Firmware) -> None:
        self.machine = Machine(self.root / "machine", firmware, make_release("5.0.0"))
        self.good = {"5.0.0"}

    def _do(self, act: Callable[[], object], cut_at: int, seed: int) -> None:
        files, dice = self.machine.files, random.Random(seed)
        files.steps, files.cut_at = 0, cut_at
        try:
            act()
        except PowerCut:
            self.machine.power_cut(lambda: dice.random() < 0.5)
            self.machine.boot()
        except MachineError as error:
            assert error.code in (Code.NOTHING_TO_GO_BACK_TO, Code.FAILED_BEFORE, Code.BUSY)
        files.cut_at = 0

    @rule(
        nature=st.sampled_from(NATURES),
        major=st.integers(1, 9),
        cut_at=st.integers(0, 90),
        seed=st.integers(0, 99),
    )
    def update(self, nature: Nature, major: int, cut_at: int, seed: int) -> None:
        system = self.machine.system()
        entries, candidate = Loaders(system).entries(), Store(system).load().candidate
        found = health.situation(candidate, self.machine.slot, entries, system.boot_id)
        if found in (health.Situation.ON_TRIAL, health.Situation.LEFT):
            return  # `plan` refuses
        self.count += 1
        release = make_release(f"{major}.0.{self.count}", nature)
        if nature == "good":
            self.good.add(release.version)
        self._do(lambda: put(self.machine, release), cut_at, seed)

    @rule(cut_at=st.integers(0, 20), seed=st.integers(0, 99), force=st.booleans())
    def go_back(self, cut_at: int, seed: int, force: bool) -> None:
        self._do(lambda: rollback(self.machine.system(), force=force), cut_at, seed)

    @rule()
    def restart(self) -> None:
        health.at_shutdown(self.machine.system(), lambda line: None)
        self.machine.boot()

    @rule()
    def lose_power(self) -> None:
        self.machine.power_cut()
        self.machine.boot()

    @rule(cut_at=st.integers(0, 25), seed=st.integers(0, 99))
    def judge(self, cut_at: int, seed: int) -> None:
        self._do(lambda: judge(self.machine), cut_at, seed)
        if self.machine.restarting:
            self.machine.boot()

    @rule()
    @precondition(lambda self: hasattr(self, "machine"))
    def come_to_rest(self) -> None:
        live(self.machine)
        # What stays is a version that is well.
        assert self.machine.running.version in self.good

    @invariant()
    def the_running_slot_is_whole(self) -> None:
        if hasattr(self, "machine"):
            usr, verity = self.machine.slot_bytes(self.machine.slot)
            content = self.machine.running.content
            assert usr.startswith(content["usr.erofs"])
            assert verity.startswith(content["usr.verity"])


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    # A failing life is short and readable as it is; shrinking one takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
