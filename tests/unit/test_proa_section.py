"""Proa's own section: checks that run, containers whose texts stay in their place, settings."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine import checks, config
from proa.machine.cloudconfig.apply import apply
from proa.machine.cloudconfig.changes import (
    Change,
    EnableUnit,
    SetUpdateSettings,
    StartUnit,
    WriteFile,
    describe,
)
from proa.machine.cloudconfig.keys.proa import CHECK_SECONDS, Container, HealthCheck
from proa.machine.cloudconfig.machine import Machine
from proa.machine.cloudconfig.own import unit_file
from proa.machine.cloudconfig.plan import plan
from proa.machine.system import System

LINES = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1)


def changes(body: str) -> tuple[Change, ...]:
    found = plan(f"#cloud-config\nproa:\n{body}".encode())
    assert not found.refused, found.problems
    return found.changes


def files(body: str) -> dict[str, WriteFile]:
    return {change.path: change for change in changes(body) if isinstance(change, WriteFile)}


def problems(body: str) -> list[str]:
    return [str(problem) for problem in plan(f"#cloud-config\nproa:\n{body}".encode()).problems]


def run_check(tmp_path: Path, command: tuple[str, ...] | str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "check"
    script.write_text(HealthCheck("check", command).script)
    script.chmod(0o755)
    return subprocess.run([script], capture_output=True, text=True)


# Health checks.


def test_a_check_becomes_a_program_where_the_health_check_looks() -> None:
    found = files("  health_checks: [{name: web, command: [curl, -f, http://a/], timeout: 5}]\n")
    check = found["/etc/proa/health.d/web"]
    assert (check.mode, check.owner) == (0o755, "root:root")
    assert check.content.decode().splitlines()[-1] == "exec timeout 5 curl -f http://a/"
    assert any(path.startswith(f"{place}/") for place in checks.DIRECTORIES for path in found)
    assert CHECK_SECONDS <= checks.CHECK_TIMEOUT


def test_words_are_run_as_they_are_and_a_text_by_a_shell(tmp_path: Path) -> None:
    assert run_check(tmp_path, ("printf", "%s", "$(id) 'x'")).stdout == "$(id) 'x'"
    assert run_check(tmp_path, "x=a\necho \"$x 'b'\" | tr a c").stdout == "c 'b'\n"
    assert run_check(tmp_path, "exit 3").returncode == 3


@given(st.lists(LINES, min_size=1, max_size=4))
def test_no_word_of_a_command_becomes_another(words: list[str]) -> None:
    last = HealthCheck("a", tuple(words)).script.split("\n", 2)[2]
    assert shlex.split(last) == ["exec", "timeout", "10", *words]


def test_an_empty_word_is_a_word() -> None:
    body = "  health_checks: [{name: a, command: [printf, '[%s]', '', b]}]\n"
    script = files(body)["/etc/proa/health.d/a"].content.decode()
    assert script.splitlines()[-1] == "exec timeout 10 printf '[%s]' '' b"


def test_a_failing_check_of_the_document_is_a_reason_not_to_commit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    body = "  health_checks: [{name: web, command: echo the web is down; false}]\n"
    machine = Machine(root, lambda command, stdin: None, lambda name: None)
    root.mkdir()
    apply(changes(body), machine, {})
    assert checks.scripts(System(root=root)) == ("/etc/proa/health.d/web: the web is down",)


# Containers.

WEB = """
  containers:
  - name: web
    image: registry.example/web:1
    ports: ["80:8080", "127.0.0.1:53:53/udp"]
    volumes: ["/srv/web:/data:ro"]
    env: {GREETING: hello, PASSWORD: hunter2}
    options: [--network=host]
    command: serve --name 'a b'
"""


def test_a_container_is_a_unit_that_is_enabled_and_started() -> None:
    found = changes(WEB)
    unit = files(WEB)["/etc/systemd/system/container-web.service"].content.decode()
    assert (
        'ExecStart=/usr/bin/docker run --rm --name "web" '
        '--env-file "/etc/proa/containers/web.env" '
        '--publish "80:8080" --publish "127.0.0.1:53:53/udp" --volume "/srv/web:/data:ro" '
        '"--network=host" "registry.example/web:1" "serve" "--name" "a b"\n'
    ) in unit
    assert unit.index("ExecStartPre=-/usr/bin/docker rm") < unit.index("docker pull --quiet")
    assert "Restart=always\n" in unit and "WantedBy=multi-user.target\n" in unit
    assert EnableUnit("container-web.service") in found
    assert [describe(change) for change in found[-4:]] == [
        "enabled container-web.service",
        "systemd's units read again",
        "network files read again",
        "start container-web.service",
    ]


def test_its_variables_are_only_for_root_and_in_no_unit_and_no_log() -> None:
    env = files(WEB)["/etc/proa/containers/web.env"]
    assert (env.content, env.mode) == (b"GREETING=hello\nPASSWORD=hunter2\n", 0o600)
    unit = files(WEB)["/etc/systemd/system/container-web.service"]
    assert b"hunter2" not in unit.content
    assert "hunter2" not in repr(plan(f"#cloud-config\nproa:\n{WEB}".encode()))


def test_pulling_and_restarting_are_the_owners_choice() -> None:
    def unit(more: str) -> str:
        body = f"  containers: [{{name: web, image: a, {more}}}]\n"
        return files(body)["/etc/systemd/system/container-web.service"].content.decode()

    assert "docker pull" not in unit("pull: missing")
    assert "docker run --pull=never --rm" in unit("pull: never")
    assert "Restart=no\n" in unit("restart: no")
    assert "Restart=on-failure\n" in unit("restart: on-failure")
    assert "--env-file" not in unit("restart: always")


@given(st.lists(LINES, min_size=1, max_size=4))
def test_no_text_leaves_its_word_of_the_unit(words: list[str]) -> None:
    """Read back as systemd does: quotes and backslashes, then ``%%`` and ``$$``."""
    unit = unit_file(Container("web", "a", command=tuple(words)))
    (line,) = [line for line in unit.split("\n") if line.startswith("ExecStart=")]
    found = shlex.split(line)[5:]
    for text in found:
        assert text.replace("%%", "").count("%") == text.replace("$$", "").count("$") == 0
    assert [text.replace("%%", "%").replace("$$", "$") for text in found] == ["a", *words]


def test_a_running_container_is_started_anew_only_if_something_of_it_changed(
    tmp_path: Path,
) -> None:
    commands: list[str] = []

    def run(command: Sequence[str], stdin: bytes) -> None:
        commands.append(" ".join(command))

    machine = Machine(tmp_path, run, lambda name: None)
    memory: dict[str, str] = {}

    def boot(body: str) -> str:
        nonlocal memory
        memory = apply(changes(body), machine, memory).remembered
        return commands[-1]

    assert boot(WEB) == "systemctl --no-block restart -- container-web.service"
    assert boot(WEB) == "systemctl --no-block start -- container-web.service"
    assert " restart " in boot(WEB.replace("hunter2", "hunter3"))
    assert " restart " in boot(WEB.replace("web:1", "web:2"))


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("{image: a}", "has no name"),
        ("{name: web}", "has no image"),
        ("{name: ../x, image: a}", "is not a name of letters"),
        ("{name: w, image: a}", "is not a name of letters"),
        ("{name: web, image: --privileged}", "is not the name of an image"),
        ("{name: web, image: 'a b'}", "is not the name of an image"),
        ("{name: web, image: a, ports: ['80:80 --privileged']}", "ports[0] is not like"),
        ("{name: web, image: a, volumes: ['relative:x']}", "volumes[0] is not like"),
        ("{name: web, image: a, options: [busybox]}", "options[0] is not like"),
        ("{name: web, image: a, options: [-it]}", "options[0] is not like"),
        ("{name: web, image: a, env: {A B: c}}", "is not the name of a variable"),
        ('{name: web, image: a, env: {A: "b\\nC=d"}}', "must be one line"),
        ("{name: web, image: a, env: [A=b]}", "wants a mapping"),
        ('{name: web, image: a, command: ["a\\nb"]}', "may not contain line ends"),
        ("{name: web, image: a, command: 'a \"b'}", "a quote that is not closed"),
        ("{name: web, image: a, restart: sometimes}", "is not one of always"),
        ("{name: web, image: a, pull: perhaps}", "is not one of always"),
        ("{name: web, image: a}, {name: web, image: b}", "two items of the same name"),
    ],
)
def test_a_container_that_makes_no_sense_refuses_the_document(item: str, complaint: str) -> None:
    body = f"  containers: [{item}]\n"
    assert plan(f"#cloud-config\nproa:\n{body}".encode()).refused
    assert complaint in problems(body)[0]


# Settings.


def test_settings_reach_update_conf_and_the_updater_understands_them(tmp_path: Path) -> None:
    body = """
  update:
    payload: full
    download-rate: 2M
    health_timeout: 300
    reboot_delay: 60
    machine_alias: web-1
coreos: {update: {group: beta}}
"""
    machine = Machine(tmp_path, lambda command, stdin: None, lambda name: None)
    apply(changes(body), machine, {})
    found = config.read(System(root=tmp_path))
    assert found.warnings == ()
    assert (found.group, found.payload, found.download_rate) == ("beta", "full", 2 << 20)
    assert (found.health_timeout, found.reboot_delay) == (300, 60)
    assert found.machine_alias == "web-1"


def test_a_window_is_written_down_and_it_is_said_that_nothing_waits_for_it_yet() -> None:
    body = "  reboot_window: {start: Sun 4:00, length: 2h}\n"
    (only,) = changes(body)
    settings = (("REBOOT_WINDOW_LENGTH", "2h"), ("REBOOT_WINDOW_START", "Sun 4:00"))
    assert only == SetUpdateSettings(settings)
    assert "does not wait for it yet" in problems(body)[0]


@pytest.mark.parametrize(
    "body",
    [
        "  update: {payload: fast}\n",
        "  update: {download_rate: quick}\n",
        "  update: {health_timeout: 86401}\n",
        "  update: {machine_alias: 'a b'}\n",
        "  reboot_window: {start: 4:00}\n",
        "  reboot_window: {start: '24:00', length: 1h}\n",
        "  health_checks: [{name: a, command: x, timeout: 61}]\n",
        "  health_checks: [{name: ../a, command: x}]\n",
        "  health_checks: [{name: a}]\n",
        "  health_checks: [{name: a, command: x}, {name: a, command: y}]\n",
    ],
)
def test_a_setting_that_makes_no_sense_refuses_the_document(body: str) -> None:
    assert plan(f"#cloud-config\nproa:\n{body}".encode()).refused


def test_an_unknown_key_is_told_with_the_likely_right_one() -> None:
    assert 'did you mean "health_checks"?' in problems("  health_check: []\n")[0]


def test_nothing_is_asked_for_by_an_empty_section() -> None:
    assert changes("  update: {}\n  containers: []\n  health_checks:\n") == ()
    assert not any(isinstance(change, StartUnit) for change in changes("  update:\n"))


def test_the_guide_is_taken_with_the_one_word_about_the_window() -> None:
    guide = (Path(__file__).parents[2] / "docs/proa-section.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    found = plan(example.encode())
    assert not found.refused
    assert ["reboot_window" in str(problem) for problem in found.problems] == [True]
