"""Settings, state, plans and health checks: what the programs know and make of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import checks, config, health, plan
from proa.machine.boot import Entry
from proa.machine.errors import Code
from proa.machine.state import (
    Attempt,
    Avoided,
    Boot,
    Candidate,
    Check,
    Download,
    Event,
    Health,
    State,
    Store,
    decode,
)
from proa.machine.system import Completed, System, run_command
from proa.wire.version import parse

# --- Settings -----------------------------------------------------------------------------------


def settings(root: Path, **files: str) -> config.Config:
    for name, text in files.items():
        path = root / {"own": "etc/proa", "old": "etc/coreos", "usr": "usr/share/proa"}[name]
        path.mkdir(parents=True, exist_ok=True)
        (path / "update.conf").write_text(text)
    return config.read(System(root=root))


def test_the_first_file_that_has_a_key_wins_key_by_key(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        own="GROUP=web\n",
        old="GROUP=beta\nREBOOT_STRATEGY=off\n",
        usr="GROUP=stable\nSERVER=http://update.example/v1/update/\nREBOOT_STRATEGY=reboot\n",
    )
    assert (found.group, found.reboot_strategy) == ("web", "off")
    assert found.server == "http://update.example/v1/update/"


def test_without_any_file_updates_are_off(tmp_path: Path) -> None:
    assert settings(tmp_path).server == config.DISABLED


def test_shell_like_lines_are_understood(tmp_path: Path) -> None:
    text = "# a comment\n\nexport GROUP=\"my group\"\nMACHINE_ALIAS='x' # why\nnot a line\nBAD='\n"
    found = settings(tmp_path, own=text)
    assert (found.group, found.machine_alias) == ("my group", "x")


def test_a_setting_that_makes_no_sense_is_named_and_does_not_stop_updates(tmp_path: Path) -> None:
    found = settings(tmp_path, own="REBOOT_DELAY=soon\nREBOOT_STRATEGY=etcd-lock\n")
    assert found.reboot_delay == 300
    assert not found.reboots
    assert len(found.warnings) == 2
    assert all("/etc/proa/update.conf" in warning for warning in found.warnings)
    assert "treated as off" in " ".join(found.warnings)


def test_a_reboot_window_that_nothing_waits_for_yet_is_named(tmp_path: Path) -> None:
    text = "REBOOT_WINDOW_START=Sun 4:00\nREBOOT_WINDOW_LENGTH=\n"
    (warning,) = settings(tmp_path, old=text).warnings
    assert warning.startswith("/etc/coreos/update.conf: REBOOT_WINDOW_START")
    assert "does not wait" in warning


# --- The unit ------------------------------------------------------------------------------------

UNIT = Path(__file__).parents[2] / "os/rootfs/usr/lib/systemd/system/proa-update.service"


def test_an_update_is_never_in_the_way_of_the_machines_work() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if not line.startswith("#")]
    held = dict(line.split("=", 1) for line in lines if "=" in line)
    # 100 is what everything else has.
    assert int(held["CPUWeight"]) < 100
    assert int(held["IOWeight"]) < 100
    assert held["IOSchedulingClass"] == "idle"
    assert held["MemoryMax"] == "64M"


def test_what_the_next_check_may_mend_is_no_failed_unit() -> None:
    (line,) = re.findall(r"^SuccessExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)
    good = {Code(int(code)) for code in line.split() if code != "130"}
    assert {Code.SERVER_UNREACHABLE, Code.NO_ROOM, Code.DOWNLOAD_FAILED} < good
    assert not good & {Code.OK, Code.UNEXPECTED, Code.SLOT_FAILED, Code.METADATA_UNTRUSTED}


# --- State --------------------------------------------------------------------------------------

FULL = State(
    aleph_version="1.0.0",
    previous_version="1.0.0",
    check=Check(5.0, 10, "nobody there"),
    download=Download("1.1.0", "b", {"00": 7}, {"11": Attempt("a way", True, 1, (7, 5), "why")}),
    candidate=Candidate("1.1.0", "b", "1.0.0", 6.0, boots=(Boot("id", "why"),)),
    health=Health(7.0, "id", "1.0.0", ("a", "b")),
    failed={"1.0.9": Avoided(8.0, "broken")},
    held={"1.0.8": Avoided(9.0, "by hand")},
    events=(Event(3, 0, 44, reason="why", error_version="1.0.9"),),
)


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(System(root=tmp_path))
    store.change(lambda _: FULL)
    assert Store(System(root=tmp_path)).load() == FULL


def test_a_newer_programs_state_is_understood() -> None:
    document = dataclasses.asdict(FULL) | {"invented_later": 1}
    document["candidate"]["also_later"] = {}
    assert decode(json.loads(json.dumps(document))) == FULL


@pytest.mark.parametrize("text", ["", "{", "[]", '{"check": 5}', '{"events": [{}]}', "null"])
def test_an_unreadable_state_is_put_aside(tmp_path: Path, text: str) -> None:
    store = Store(System(root=tmp_path))
    store.path.parent.mkdir(parents=True)
    store.path.write_text(text)
    assert store.load() == State()
    assert store.path.with_suffix(".unreadable").read_text() == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(st.sampled_from(sorted(f.name for f in dataclasses.fields(State))), s)
        ),
    )
)
def test_any_document_is_a_state_or_refused(document: object) -> None:
    with contextlib.suppress(TypeError, ValueError):
        assert isinstance(decode(document), State)


def test_messages_to_the_server_do_not_pile_up_for_ever() -> None:
    state = State()
    for number in range(200):
        state = state.with_event(Event(3, number))
    assert len(state.events) == 50
    assert state.events[-1].result == 199


# --- Plans --------------------------------------------------------------------------------------

USUAL = plan.Situation(running=parse("1.1.0"), offered=parse("1.2.0"))


@pytest.mark.parametrize(
    ("situation", "outcome"),
    [
        (USUAL, plan.Install),
        (replace(USUAL, offered=parse("1.1.0")), plan.Nothing),
        (replace(USUAL, staged="1.2.0"), plan.Nothing),
        (replace(USUAL, staged="1.2.0", force=True), plan.Install),
        (replace(USUAL, on_trial=True), Code.ON_TRIAL),
        (replace(USUAL, on_trial=True, force=True), Code.ON_TRIAL),
        (replace(USUAL, offered=parse("1.0.0")), Code.OLDER_VERSION),
        (replace(USUAL, offered=parse("1.0.0"), force=True), Code.OLDER_VERSION),
        (replace(USUAL, offered=parse("1.0.0"), allow_downgrade=True), plan.Install),
        (replace(USUAL, offered=parse("1.1.0-rc.1")), Code.OLDER_VERSION),
        (replace(USUAL, avoided={"1.2.0": "it failed"}), Code.FAILED_BEFORE),
        (replace(USUAL, avoided={"1.2.0": "it failed"}, force=True), plan.Install),
        (replace(USUAL, avoided={"1.1.9": "it failed"}), plan.Install),
    ],
)
def test_what_is_done_about_an_offer(situation: plan.Situation, outcome: object) -> None:
    decision = plan.decide(situation)
    if isinstance(decision, plan.Refusal):
        assert decision.code == outcome
        assert str(situation.offered) in decision.message
    else:
        assert type(decision) is outcome


# --- Health -------------------------------------------------------------------------------------

CANDIDATE = Candidate("1.1.0", "b", "1.0.0", 0)


@pytest.mark.parametrize(
    ("candidate", "slot", "entries", "situation"),
    [
        (None, "a", {"a": Entry(None, 0)}, health.Situation.SETTLED),
        (None, "a", {"a": Entry(2, 1)}, health.Situation.ON_TRIAL),
        (CANDIDATE, "b", {"b": Entry(0, 3)}, health.Situation.ON_TRIAL),
        (CANDIDATE, "a", {"b": Entry(3, 0)}, health.Situation.STAGED),
        (CANDIDATE, "a", {"b": Entry(0, 3)}, health.Situation.FELL_BACK),
        (CANDIDATE, "a", {}, health.Situation.CUT_OFF),
        (CANDIDATE, "a", {"b": Entry(None, 0)}, health.Situation.CUT_OFF),
    ],
)
def test_what_a_boot_finds(
    candidate: Candidate | None,
    slot: str,
    entries: dict[str, Entry],
    situation: health.Situation,
) -> None:
    assert health.situation(candidate, slot, entries, "this boot") is situation


def test_reasons_are_told_once_and_silent_boots_are_counted() -> None:
    boots = (Boot("1", "unit x failed"), Boot("2"), Boot("3", "unit x failed"))
    assert health.failure_reason(replace(CANDIDATE, boots=boots)) == (
        "unit x failed (and 1 of 3 boots did not get as far as the health check)"
    )


def test_the_first_reason_of_a_boot_stays() -> None:
    state = health.with_boot(State(candidate=CANDIDATE), "1", "unit x failed")
    state = health.with_boot(state, "1", "no answer in time")
    assert state.candidate is not None
    assert state.candidate.boots == (Boot("1", "unit x failed"),)


class Fake:
    """Answers of systemctl; real scripts are run for real."""

    def __init__(self, root: Path) -> None:
        self.root, self.failed, self.shown, self.uptime = root, "", "", 100.0
        (root / "proc").mkdir()
        self.sleep(0)

    def system(self) -> System:
        return System(root=self.root, run=self.run, sleep=self.sleep)

    def run(self, command: object, timeout: float) -> Completed:
        words = list(command)  # type: ignore[call-overload]
        if words[0] != "systemctl":
            return run_command(words, timeout)
        return Completed(0, self.failed if "--failed" in words else self.shown)

    def sleep(self, seconds: float) -> None:
        self.uptime += seconds
        (self.root / "proc/uptime").write_text(f"{self.uptime} 1\n")


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_a_failed_unit_is_a_reason_but_not_our_own(fake: Fake) -> None:
    fake.failed = "web.service loaded failed failed Web\nproa-health.service loaded failed failed\n"
    assert checks.once(fake.system()) == ("unit web.service failed",)


def test_a_command_of_the_owners_cloud_config_that_failed_is_not_the_releases_fault(
    fake: Fake,
) -> None:
    fake.failed = "proa-script@runcmd.service loaded failed failed The owner's script\n"
    assert checks.once(fake.system()) == ()


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ([], None),
        (["ADMIN_STATE=unmanaged\nOPER_STATE=off\n"], None),
        (["ADMIN_STATE=configured\nOPER_STATE=routable\n"], None),
        (["ADMIN_STATE=configuring\nOPER_STATE=carrier\n"], "carrier"),
        (["ADMIN_STATE=configured\nOPER_STATE=no-carrier\nREQUIRED_FOR_ONLINE=no\n"], None),
        (
            [
                "ADMIN_STATE=configured\nOPER_STATE=off\n",
                "ADMIN_STATE=configured\nOPER_STATE=routable\n",
            ],
            None,
        ),
    ],
)
def test_a_configured_network_must_be_there(
    fake: Fake, links: list[str], reason: str | None
) -> None:
    directory = fake.root / "run/systemd/netif/links"
    directory.mkdir(parents=True)
    for number, text in enumerate(links):
        (directory / str(number)).write_text(text)
    found = checks.network(fake.system())
    assert (reason in found[0]) if reason else found == ()


def unit(name: str, active: str, **properties: str) -> str:
    shown = {"UnitFileState": "enabled", "WantedBy": "multi-user.target", "RequiredBy": ""}
    shown |= {"Id": name, "ActiveState": active} | properties
    return "".join(f"{key}={value}\n" for key, value in shown.items())


def test_an_enabled_engine_must_run_and_another_need_not(fake: Fake) -> None:
    fake.shown = "\n".join(
        (
            unit("docker.socket", "failed"),
            unit("docker.service", "inactive", UnitFileState="disabled", WantedBy=""),
            unit("etcd.service", "active"),
        )
    )
    assert checks.engines(fake.system()) == ("docker.socket is enabled, but failed",)
    assert checks.settle(fake.system(), 60, lambda line: None) == (
        "docker.socket is enabled, but failed",
    )


@pytest.mark.parametrize(
    "properties",
    [
        # Only a link for an alias of it: `systemctl` calls that enabled too.
        {"WantedBy": ""},
        {"ConditionResult": "no", "ConditionTimestampMonotonic": "77"},
    ],
)
def test_an_engine_that_nothing_starts_is_not_waited_for(
    fake: Fake, properties: dict[str, str]
) -> None:
    fake.shown = unit("etcd.service", "inactive", **properties)
    assert checks.settle(fake.system(), 60, pytest.fail) == ()


def script(fake: Fake, path: str, text: str, mode: int = 0o755) -> None:
    file = fake.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def test_the_last_line_of_an_owners_check_is_the_reason(fake: Fake) -> None:
    script(fake, "etc/proa/health.d/10-good", "#!/bin/sh\necho fine\n")
    script(fake, "etc/proa/health.d/20-bad", "#!/bin/sh\necho hm\necho db is down >&2\nexit 3\n")
    script(fake, "usr/lib/proa/health.d/30-silent", "#!/bin/sh\nexit 4\n")
    assert checks.scripts(fake.system()) == (
        "/etc/proa/health.d/20-bad: db is down",
        "/usr/lib/proa/health.d/30-silent: exit status 4",
    )


def test_an_owner_can_replace_or_switch_off_a_check(fake: Fake) -> None:
    for name in ("10-replaced", "20-off"):
        script(fake, f"usr/lib/proa/health.d/{name}", "#!/bin/sh\nexit 1\n")
    script(fake, "etc/proa/health.d/10-replaced", "#!/bin/sh\nexit 0\n")
    script(fake, "etc/proa/health.d/20-off", "")
    assert checks.scripts(fake.system()) == ()


def test_what_needs_time_gets_it(fake: Fake) -> None:
    fake.shown = unit("docker.socket", "activating")
    said: list[str] = []

    def sleep(seconds: float) -> None:
        Fake.sleep(fake, seconds)
        if fake.uptime > 120:
            fake.shown = unit("docker.socket", "active")

    assert checks.settle(replace(fake.system(), sleep=sleep), 60, said.append) == ()
    assert said == ["waiting: docker.socket is enabled, but activating"]


def test_but_not_for_ever(fake: Fake) -> None:
    fake.shown = unit("docker.socket", "activating")
    reasons = checks.settle(fake.system(), 60, lambda line: None)
    assert reasons == ("docker.socket is enabled, but activating",)


def test_a_command_that_hangs_is_ended_and_says_so() -> None:
    done = run_command(["sh", "-c", "echo before; sleep 60"], 1)
    assert done.code == 124
    assert done.output.startswith("before")
    assert run_command(["/no/such/program"], 1).code == 127
