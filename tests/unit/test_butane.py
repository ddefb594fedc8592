"""A Butane config says what the Ignition config says that is made of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig.butane import read_butane
from proa.machine.cloudconfig.changes import (
    AuthorizeKeys,
    CommandUnitOnce,
    CreateFile,
    DownloadFile,
    EnableUnit,
    EnsureUser,
    MakeDirectory,
    MakeLink,
    ReloadUnits,
    RestartNetwork,
    SetHostname,
    WriteFile,
    describe,
)
from proa.machine.cloudconfig.keys.storage import Directory, Link
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.parse import load
from proa.machine.cloudconfig.plan import Plan, plan
from proa.machine.cloudconfig.resource import Resource

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HEAD = "variant: flatcar\nversion: 1.1.0\n"


def changes(body: str, head: str = HEAD) -> list[Any]:
    """The changes for a config without any problem, but for the reading of systemd's units."""
    result = plan(f"{head}{body}".encode())
    assert [str(problem) for problem in result.problems] == []
    return [c for c in result.changes if not isinstance(c, ReloadUnits | RestartNetwork)]


def problems(body: str, head: str = HEAD) -> list[str]:
    return [str(problem) for problem in plan(f"{head}{body}".encode()).problems]


def one_file(keys: str) -> Any:
    (change,) = changes(f"storage: {{files: [{{path: /srv/a, {keys}}}]}}\n")
    return change


# Which configs are taken.


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_the_versions_of_flatcar_are_taken(version: str) -> None:
    assert plan(f"variant: flatcar\nversion: {version}\n".encode()) == Plan((), (), False)


@pytest.mark.parametrize("minor", range(7))
def test_the_versions_of_fcos_are_taken(minor: int) -> None:
    assert plan(f"# made by hand\nversion: 1.{minor}.0\nvariant: fcos\n".encode()) == Plan(
        (), (), False
    )


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("variant: openshift\nversion: 4.14.0\n", '1: error: variant "openshift" is not taken'),
        ("variant: fcos\nversion: 1.7.0\n", '2: error: version "1.7.0" of fcos is not known: take'),
        (
            "variant: flatcar\nversion: 1.2.0-experimental\n",
            "is not known: take one of 1.0.0, 1.1.",
        ),
        ("variant: flatcar\n", "is no Butane config: it has no variant and version"),
    ],
)
def test_any_other_variant_or_version_is_refused_with_those_that_are_taken(
    head: str, expected: str
) -> None:
    (problem,) = problems(
        f"passwd: {{users: [{{name: core, ssh_authorized_keys: ['{KEY}']}}]}}", head
    )
    assert expected in problem


def test_a_cloud_config_with_such_a_key_stays_a_cloud_config() -> None:
    (problem,) = plan(b"#cloud-config\nvariant: x\n").problems
    assert problem.message == "variant is not a known key; ignored"


# What is written otherwise than in Ignition.


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("0644", 0o644),
        ("0o644", 0o644),
        ("420", 0o644),
        ("0x1a4", 0o644),
        ("0b110100100", 0o644),
        ("0_644", 0o644),
        ("04755", 0o4755),
        ("00", 0),
    ],
)
def test_a_mode_is_the_number_that_yaml_makes_of_it(written: str, mode: int) -> None:
    assert one_file(f"mode: {written}, contents: {{inline: x}}") == CreateFile("/srv/a", b"x", mode)


def test_a_mode_without_its_zero_is_decimal_and_doubted() -> None:
    assert problems("storage: {directories: [{path: /srv/a, mode: 755}]}\n") == [
        "line 3: warning: storage.directories[0].mode 755 is a decimal number and makes 01363; for "
        "0755 write 0755"
    ]


@pytest.mark.parametrize("written", ["'0644'", "0888", "rw", "6.5", "-1", "0x", "0o", "[1]"])
def test_a_mode_that_is_no_number_is_an_error(written: str) -> None:
    (problem,) = problems(f"storage: {{files: [{{path: /srv/a, mode: {written}}}]}}\n")
    assert problem.startswith("line 3: error: storage.files[0].mode wants a whole number")


@pytest.mark.parametrize("word", ["true", "True", "yes", "on"])
def test_a_flag_may_be_any_of_yamls_words(word: str) -> None:
    assert one_file(f"overwrite: {word}, contents: {{inline: x}}") == WriteFile("/srv/a", b"x")


def test_content_may_stand_in_the_document() -> None:
    assert one_file("contents: {inline: 'a: b'}").content == b"a: b"
    assert one_file(
        "contents: {inline: a}, append: [{inline: b}, {source: 'data:,c'}]"
    ).content == (b"abc")


def test_content_may_be_binary() -> None:
    assert one_file("contents: {inline: !!binary aGVsbG8=}").content == b"hello"


def test_content_in_two_ways_is_an_error() -> None:
    (problem,) = problems("storage: {files: [{path: /a, contents: {inline: x, source: 'data:,'}}]}")
    assert problem.endswith("contents wants one of source and inline, not both")


@pytest.mark.parametrize(
    "body",
    [
        "storage: {files: [{path: /srv/a, contents: {local: x}}]}",
        "storage: {files: [{path: /srv/a, append: [{local: x}]}]}",
        "storage: {trees: [{local: x}]}",
        "systemd: {units: [{name: a.service, contents_local: x}]}",
        "systemd: {units: [{name: a.service, dropins: [{name: a.conf, contents_local: x}]}]}",
        "passwd: {users: [{name: core, ssh_authorized_keys_local: [x]}]}",
        "ignition: {config: {merge: [{local: x}]}}",
    ],
)
def test_what_lies_beside_the_document_is_refused_with_what_to_do(body: str) -> None:
    (problem,) = problems(body)
    assert problem.startswith("line 3: error: ")
    assert "which the machine does not have" in problem
    assert "butane --files-dir" in problem


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ("boot_device: {luks: {tpm2: true}}", "boot_device"),
        ("grub: {users: [{name: root, password_hash: secret}]}", "grub"),
        ("kernel_arguments: {should_exist: [flatcar.autologin]}", "kernel_arguments"),
        ("storage: {luks: [{name: root}]}", "storage.luks"),
        ("storage: {disks: [{device: /dev/vdb}]}", "storage.disks"),
        ("storage: {raid: [{name: md0}]}", "storage.raid"),
        ("passwd: {users: [{name: core, should_exist: false}]}", "passwd.users[0].should_exist"),
    ],
)
def test_what_is_not_taken_is_refused_by_the_name_that_butane_has_for_it(
    body: str, key: str
) -> None:
    result = plan(f"{HEAD}{body}\n".encode())
    assert result.refused
    assert [(problem.line, problem.key) for problem in result.problems] == [(3, key)]
    assert "secret" not in str(result)


def test_ignitions_names_are_not_butanes() -> None:
    assert problems(f"passwd: {{users: [{{name: core, sshAuthorizedKeys: ['{KEY}']}}]}}\n") == [
        "line 3: warning: passwd.users[0].sshAuthorizedKeys is not a known key; ignored; did you "
        'mean "ssh_authorized_keys"?'
    ]


def test_an_ignition_config_in_the_document_is_merged_in() -> None:
    body = """
ignition:
  config:
    merge:
      - inline: |
          {"ignition": {"version": "3.3.0"},
           "passwd": {"users": [{"name": "core", "homeDir": "/srv/core", "noCreateHome": true}]}}
passwd:
  users:
    - name: core
      groups: [docker]
"""
    user = User(
        "core",
        groups=("docker",),
        homedir="/srv/core",
        no_create_home=True,
        create_groups=False,
    )
    assert changes(body) == [EnsureUser(user)]


# Documents in the manner of those that people have.


def test_a_web_server_on_flatcar() -> None:
    body = f"""
passwd:
  users:
    - name: core
      ssh_authorized_keys:
        - {KEY}
storage:
  files:
    - path: /etc/hostname
      mode: 0644
      contents:
        inline: web-1
    - path: /etc/coreos/update.conf
      overwrite: true
      mode: 0420
      contents:
        inline: |
          REBOOT_STRATEGY=off
    - path: /opt/extensions/tool.raw
      mode: 0644
      contents:
        source: https://example.com/tool.raw
        verification:
          hash: sha256-{"0a" * 32}
  directories:
    - path: /srv/www
      mode: 0755
      user: {{name: core}}
      group: {{name: core}}
  links:
    - path: /etc/extensions/tool.raw
      target: /opt/extensions/tool.raw
      hard: false
systemd:
  units:
    - name: nginx.service
      enabled: true
      contents: |
        [Unit]
        Description=NGINX example
        After=docker.service
        Requires=docker.service
        [Service]
        ExecStart=/usr/bin/docker run --rm --name nginx1 -p 80:80 nginx
        [Install]
        WantedBy=multi-user.target
    - name: docker.service
      enabled: true
      dropins:
        - name: 10-proxy.conf
          contents: |
            [Service]
            Environment=HTTP_PROXY=http://proxy.example.com:3128
"""
    *before, unit, enabled, drop_in, enabled_docker, start, start_docker = changes(body)
    assert before == [
        SetHostname("web-1"),
        EnsureUser(User("core", create_groups=False)),
        AuthorizeKeys("core", (KEY,)),
        MakeDirectory(Directory("/srv/www", 0o755, "core:core")),
        WriteFile("/etc/coreos/update.conf", b"REBOOT_STRATEGY=off\n", 0o420),
        DownloadFile(
            "/opt/extensions/tool.raw",
            Resource("https://example.com/tool.raw", verification="sha256-" + "0a" * 32),
        ),
        MakeLink(Link("/etc/extensions/tool.raw", "/opt/extensions/tool.raw")),
    ]
    assert isinstance(unit, WriteFile)
    assert unit.path == "/etc/systemd/system/nginx.service"
    assert unit.content.startswith(b"[Unit]\nDescription=NGINX example\n")
    assert unit.content.endswith(b"\n[Install]\nWantedBy=multi-user.target\n")
    proxy = b"[Service]\nEnvironment=HTTP_PROXY=http://proxy.example.com:3128\n"
    assert [enabled, drop_in, enabled_docker, start, start_docker] == [
        EnableUnit("nginx.service"),
        WriteFile("/etc/systemd/system/docker.service.d/10-proxy.conf", proxy),
        EnableUnit("docker.service"),
        CommandUnitOnce("nginx.service", "start", "network"),  # it may need what is downloaded
        CommandUnitOnce("docker.service", "start", "network"),
    ]


def test_the_first_examples_of_fedora_coreos() -> None:
    body = """
passwd:
  users:
    - name: user1
      password_hash: $y$j9T$aUmgEDoFIDPhGxEe2FUjc/$C5A
      home_dir: /home/user1
      no_create_home: true
      groups:
        - sudo
        - plugdev
      shell: /bin/bash
storage:
  files:
    - path: /opt/file
      contents:
        inline: Hello, world!
      mode: 0644
      user:
        id: 500
      group:
        id: 501
systemd:
  units:
    - name: serial-getty@ttyS0.service
      dropins:
        - name: autologin.conf
          contents: |
            [Service]
            TTYVTDisallocate=no
"""
    assert changes(body, "variant: fcos\nversion: 1.1.0\n") == [
        EnsureUser(
            User(  # noqa: S604 (the login shell of a user)
                "user1",
                passwd="$y$j9T$aUmgEDoFIDPhGxEe2FUjc/$C5A",
                homedir="/home/user1",
                no_create_home=True,
                groups=("sudo", "plugdev"),
                shell="/bin/bash",
                create_groups=False,
            )
        ),
        CreateFile("/opt/file", b"Hello, world!", 0o644, "500:501"),
        WriteFile(
            "/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
            b"[Service]\nTTYVTDisallocate=no\n",
        ),
    ]


DOCS = Path(__file__).parents[2] / "docs/ignition.md"


def test_the_examples_of_the_guide_are_taken_without_a_word() -> None:
    blocks = re.findall(r"```(yaml|json)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["yaml", "json"]
    butane, ignition = (plan(text.encode()) for _, text in blocks)
    assert butane.problems == ignition.problems == ()
    both = {describe(change) for change in butane.changes} & {describe(c) for c in ignition.changes}
    assert {"host name web-1", "user core", "ssh keys of core (1)", "link /etc/localtime"} <= both
    assert "file /opt/bin/kubectl from https://example.com" in map(describe, butane.changes)
    assert "end of the file /etc/motd" in map(describe, ignition.changes)


# Any text at all.

WORDS = (
    *("ignition:", "storage:", "files:", "- path: /srv/a", "mode: 0644", "contents:", "inline: x"),
    *("passwd:", "users:", "- name: core", "systemd:", "units:", "- name: a.service", "[", "{}"),
    *("enabled: yes", "config: {merge: [{inline: '{}'}]}", "links:", "trees: [1]", "grub: {a: b}"),
)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(WORDS) | st.text(max_size=9))))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_text_is_a_config_or_problems(lines: list[tuple[int, str]]) -> None:
    body = "".join(f"{'  ' * indent}{text}\n" for indent, text in lines)
    result = plan(f"{HEAD}{body}".encode("utf-8", "surrogatepass"))
    assert result.refused == any(problem.level == "error" for problem in result.problems)
    for change in result.changes:
        assert describe(change).isprintable()


def test_nothing_at_all_is_no_config_and_no_problem() -> None:
    config, told = read_butane(load(""))
    assert (config.users, told) == ((), ())
