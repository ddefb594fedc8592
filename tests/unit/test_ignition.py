"""What an Ignition config says, what is wrong with it, and that nothing is dropped in silence."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig import later
from proa.machine.cloudconfig.changes import (
    AppendFile,
    AuthorizeKeys,
    CommandUnitOnce,
    CreateFile,
    DisableUnit,
    DownloadFile,
    EnableUnit,
    EnsureGroup,
    EnsureUser,
    MakeDirectory,
    MakeLink,
    MaskUnit,
    ReloadUnits,
    RestartNetwork,
    SetHostname,
    UnmaskUnit,
    WriteFile,
    describe,
    stage,
    wish,
)
from proa.machine.cloudconfig.ignition import read_ignition
from proa.machine.cloudconfig.jsontext import load_json
from proa.machine.cloudconfig.keys.storage import Directory, Link
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.plan import Plan, plan
from proa.machine.cloudconfig.resource import Resource

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6EwYc1Vo8T0vPZbJ7Jv1"


def planned(version: str = "3.4.0", **sections: Any) -> Plan:
    return plan(json.dumps({"ignition": {"version": version}, **sections}).encode())


def changes(**sections: Any) -> list[Any]:
    """The changes for a config without any problem, but for the reading of systemd's units."""
    result = planned(**sections)
    assert [str(problem) for problem in result.problems] == []
    return [c for c in result.changes if not isinstance(c, ReloadUnits | RestartNetwork)]


def problems(**sections: Any) -> list[str]:
    return [str(problem).partition(": ")[2] for problem in planned(**sections).problems]


def one_file(**keys: Any) -> Any:
    (change,) = changes(storage={"files": [{"path": "/srv/a", **keys}]})
    return change


def file_problems(**keys: Any) -> list[str]:
    return problems(storage={"files": [{"path": "/srv/a", **keys}]})


# Which configs are taken.


@pytest.mark.parametrize("version", ["3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0"])
def test_every_stable_version_of_ignition_3_is_taken(version: str) -> None:
    assert planned(version) == Plan((), (), False)


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("2.3.0", "is another format than 3: convert it (ign-converter) or write it in Butane"),
        ("3.6.0", "is not known: take 3.5.0, if nothing newer is used"),
        ("3.5.0-experimental", "is not known: take 3.5.0"),
        ("4.0.0", "is not known"),
        ("three", 'is not a version like "3.4.0"'),
    ],
)
def test_any_other_version_is_refused_with_what_to_do(version: str, word: str) -> None:
    result = planned(version, passwd={"users": [{"name": "core", "sshAuthorizedKeys": [KEY]}]})
    assert result.refused
    assert result.changes == ()
    (problem,) = result.problems
    assert problem.message.startswith(f'ignition.version "{version}" ')
    assert word in problem.message


def test_json_that_is_no_ignition_config_is_refused() -> None:
    (problem,) = plan(b'{"ignition": {}}').problems
    assert "is missing: this is no Ignition config of version 3" in problem.message
    (problem,) = plan(b'{"ignitionVersion": 1}').problems
    assert "1 is another format" in problem.message


def test_a_config_may_begin_with_white_space_and_be_gzipped() -> None:
    document = b'\n\n  {"ignition": {"version": "3.0.0"}}\n'
    assert plan(document) == plan(gzip.compress(document)) == Plan((), (), False)


def test_a_refused_config_leaves_the_clouds_keys_and_name() -> None:
    document = b'{"ignition": {"version": "2.0.0"}}'
    result = plan(document, Metadata(hostname="cloud", ssh_keys=(KEY,)))
    assert result.changes == (SetHostname("cloud"), AuthorizeKeys("core", (KEY,), keep=True))


# passwd.


def test_a_user_with_everything() -> None:
    user = {
        "name": "alice",
        "passwordHash": HASH,
        "sshAuthorizedKeys": [KEY],
        "uid": 1500,
        "gecos": "Alice of the web",
        "homeDir": "/srv/alice",
        "noCreateHome": True,
        "primaryGroup": "web",
        "groups": ["sudo", "docker"],
        "noUserGroup": True,
        "noLogInit": True,
        "shell": "/bin/bash",
        "shouldExist": True,
        "system": False,
    }
    group = {"name": "web", "gid": 1501, "system": True}
    assert changes(passwd={"users": [user], "groups": [group]}) == [
        EnsureGroup("web", 1501, system=True),
        EnsureUser(
            User(  # noqa: S604 (the login shell of a user)
                name="alice",
                passwd=HASH,
                uid=1500,
                gecos="Alice of the web",
                homedir="/srv/alice",
                primary_group="web",
                groups=("sudo", "docker"),
                shell="/bin/bash",
                no_create_home=True,
                no_user_group=True,
                no_log_init=True,
                create_groups=False,
            )
        ),
        AuthorizeKeys("alice", (KEY,)),
    ]


def test_what_is_not_taken_of_users_and_groups_is_refused_by_name() -> None:
    passwd = {
        "users": [{"name": "core", "shouldExist": False}],
        "groups": [{"name": "web", "passwordHash": HASH}, {"name": "old", "shouldExist": False}],
    }
    assert problems(passwd=passwd) == [
        "error: passwd.users[0].shouldExist is refused where it is false: no user is ever deleted; "
        'lock it with passwordHash "!"',
        "error: passwd.groups[0].passwordHash is refused: a group has no password here",
        "error: passwd.groups[1].shouldExist is refused where it is false: no group is ever "
        "deleted",
    ]


def test_the_group_for_sudo_has_its_name_in_debian_told() -> None:
    assert problems(passwd={"users": [{"name": "a", "groups": ["wheel"]}]}) == [
        'warning: passwd.users[0].groups has "wheel", which Debian has not; for sudo, "sudo"'
    ]


def test_names_that_are_none_or_stand_twice_are_errors() -> None:
    users = [{"name": "a b"}, {"uid": 1}, {"name": "x"}, {"name": "x", "groups": ["a", "b:c"]}]
    assert problems(passwd={"users": users}) == [
        'error: passwd.users[0].name "a b" is not a valid name',
        "error: passwd.users[1] has no name",
        "error: passwd.users[3].name is that of passwd.users[2] already",
        'error: passwd.users[3].groups[1] "b:c" is not a valid name',
    ]


# Files.


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("", b""),
        ("data:,", b""),
        ("data:,hello%20world%0A", b"hello world\n"),
        ("data:,a+b%2Bc", b"a+b+c"),
        ("data:text/plain;charset=utf-8,%C3%A9", "é".encode()),
        ("data:;base64,aGVsbG8=", b"hello"),
        ("data:text/plain;charset=utf-8;base64,aGVsbG8%3D", b"hello"),
        ("DATA:;BASE64,aGVsbG8=", b"hello"),
        ("data:,aGVsbG8=;base64", b"aGVsbG8=;base64"),
    ],
)
def test_content_comes_out_of_a_data_address(source: str, content: bytes) -> None:
    assert one_file(contents={"source": source}) == CreateFile("/srv/a", content, 0o644)


def test_gzip_is_unpacked_and_the_hash_is_that_of_what_comes_out() -> None:
    packed = base64.b64encode(gzip.compress(b"hello")).decode()
    contents = {
        "source": f"data:;base64,{packed}",
        "compression": "gzip",
        "verification": {"hash": f"sha512-{hashlib.sha512(b'hello').hexdigest()}"},
    }
    assert one_file(contents=contents).content == b"hello"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"source": "data:;base64,!"}, "is not good: the data: address does not hold base64"),
        ({"source": "data:hello"}, "is not good: a data: address has a comma before its data"),
        ({"source": "data:,%zz"}, "is not good: in a data: address % is followed by two"),
        ({"source": "data:,hello", "compression": "gzip"}, "is not good: the gzip data"),
        ({"source": "data:,x", "compression": "xz"}, '"xz" is not known; take gzip'),
        (
            {"source": "data:,x", "verification": {"hash": "sha256-" + "0" * 64}},
            "is not good: its sha256 is not the one that verification names",
        ),
        (
            {"source": "data:,x", "verification": {"hash": "md5-" + "0" * 32}},
            "is not sha512- and 128, or sha256- and 64 hexadecimal digits",
        ),
        ({"source": "s3://bucket/x"}, 'is not taken: "s3" addresses are never fetched; use https'),
        ({"source": "HTTPS://u:secret@a.example/"}, "is not an address that begins with https:"),
        ({"source": "/etc/passwd"}, "is not an address that begins with https:, http: or data:"),
        ({"source": "https://a b/"}, "is not an address that begins with https:, http: or data:"),
        ({"source": 5}, "wants a text in quotes"),
    ],
)
def test_content_that_is_not_good_refuses_the_config(contents: Any, expected: str) -> None:
    (problem, *_) = file_problems(contents=contents)
    assert problem.startswith("error: storage.files[0].contents")
    assert expected in problem
    assert "secret" not in problem


def test_a_gzip_bomb_does_not_go_off() -> None:
    packed = base64.b64encode(gzip.compress(bytes(64 << 20))).decode()
    contents = {"source": f"data:;base64,{packed}", "compression": "gzip"}
    (problem,) = file_problems(contents=contents)
    assert "is not good: it is larger than 8192 KiB" in problem


def test_what_is_to_be_fetched_keeps_all_that_is_needed_to_trust_it() -> None:
    digest = "sha256-" + "ab" * 32
    contents = {
        "source": "https://user:secret@example.com/x.gz",
        "compression": "gzip",
        "httpHeaders": [{"name": "Authorization", "value": "Bearer secret"}, {"name": "Accept"}],
        "verification": {"hash": digest.upper().replace("SHA", "sha")},
    }
    change = one_file(contents=contents, mode=0o600, overwrite=True)
    headers = (("Authorization", "Bearer secret"),)
    source = Resource("https://user:secret@example.com/x.gz", headers, digest, "gzip")
    assert change == DownloadFile("/srv/a", source, 0o600, overwrite=True)
    assert "secret" not in repr(change) + describe(change)


def test_what_is_fetched_waits_for_the_network_and_what_may_need_it_too() -> None:
    files = [
        {"path": "/etc/systemd/system/x.service", "contents": {"source": "https://a.example/"}}
    ]
    units = [{"name": "web.service", "enabled": True}, {"name": "old.service", "enabled": False}]
    result = planned(storage={"files": files}, systemd={"units": units})
    assert [describe(c) for c in result.changes if stage(c) == "network"] == [
        "file /etc/systemd/system/x.service from https://a.example",
        "systemd's units read again",
        "start web.service",
    ]
    assert later.load(later.dump(result.changes)) == result.changes


def test_plain_http_without_a_hash_is_doubted() -> None:
    assert file_problems(contents={"source": "http://example.com/x"}) == [
        "warning: storage.files[0].contents.source can be changed on its way; add a verification "
        "or use https"
    ]


@pytest.mark.parametrize(
    ("mode", "expected"), [(420, 0o644), (384, 0o600), (493, 0o755), (2541, 0o4755), (0, 0)]
)
def test_a_mode_is_a_decimal_number(mode: int, expected: int) -> None:
    assert one_file(contents={"source": ""}, mode=mode).mode == expected


@pytest.mark.parametrize(("mode", "meant"), [(644, 420), (600, 384), (755, 493), (440, 288)])
def test_a_mode_that_was_meant_to_be_octal_is_doubted(mode: int, meant: int) -> None:
    (problem,) = file_problems(contents={"source": ""}, mode=mode)
    assert problem == (
        f"warning: storage.files[0].mode {mode} is a decimal number and makes 0{mode:o}; for "
        f"0{mode} write {meant}"
    )


@pytest.mark.parametrize("mode", ["0644", "420", 420.5, -1, True, [420]])
def test_a_mode_that_is_no_whole_number_is_an_error(mode: Any) -> None:
    (problem,) = file_problems(contents={"source": ""}, mode=mode)
    assert problem.startswith("error: storage.files[0].mode wants a whole number")


def test_a_mode_has_four_octal_digits_at_most_and_a_number_an_end() -> None:
    assert file_problems(mode=4096) == ["error: storage.files[0].mode is larger than 4095"]
    document = b'{"ignition":{"version":"3.0.0"},"passwd":{"users":[{"name":"a","uid":%s}]}}'
    (problem,) = plan(document % (b"9" * 10_000)).problems
    assert problem.message == "passwd.users[0].uid wants a whole number"


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        ({}, "root:root"),
        ({"user": {"name": "core"}}, "core:0"),
        ({"user": {"id": 500}, "group": {"id": 501}}, "500:501"),
        ({"group": {"name": "docker"}}, "0:docker"),
        ({"user": {"name": "root"}, "group": {"id": 0}}, "root:root"),
    ],
)
def test_an_owner_is_a_name_or_a_number_and_root_if_none(owner: Any, expected: str) -> None:
    assert one_file(contents={"source": ""}, **owner).owner == expected


def test_a_file_is_replaced_only_if_it_says_so() -> None:
    assert one_file(contents={"source": "data:,x"}) == CreateFile("/srv/a", b"x")
    assert one_file(contents={"source": "data:,x"}, overwrite=True) == WriteFile("/srv/a", b"x")
    assert file_problems(overwrite=True) == [
        "error: storage.files[0] wants contents, because overwrite is true"
    ]


def test_what_is_appended_comes_behind_the_content_or_behind_what_is_there() -> None:
    append = [{"source": "data:,b"}, {"source": "data:,c"}]
    assert one_file(contents={"source": "data:,a"}, append=append).content == b"abc"
    assert one_file(append=append, mode=384) == AppendFile("/srv/a", b"bc", 0o600, None)
    assert one_file() == AppendFile("/srv/a", b"", None, None)
    (problem,) = file_problems(append=[{"source": "https://example.com/x"}])
    assert "append is not taken where something is to be fetched" in problem


def test_the_file_of_the_host_name_sets_the_host_name_now() -> None:
    files = [{"path": "/etc/hostname", "mode": 420, "contents": {"source": "data:,web-1%0A"}}]
    document = {"ignition": {"version": "3.4.0"}, "storage": {"files": files}}
    result = plan(json.dumps(document).encode(), Metadata(hostname="cloud"))
    assert result == Plan((SetHostname("web-1"),), (), False)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/usr/bin/x", "is part of the read-only system; put it under /usr/local, /opt, /etc or"),
        ("/etc/../usr/x", 'must not contain ".."'),
        ("etc/x", "must begin with /"),
        ("/boot/x", "holds the boot images"),
    ],
)
def test_a_path_where_no_file_may_be_is_an_error(path: str, why: str) -> None:
    for kind, more in (("files", {}), ("directories", {}), ("links", {"target": "/a"})):
        (problem,) = problems(storage={kind: [{"path": path, **more}]})
        assert problem.startswith(f'error: storage.{kind}[0].path "{path}" {why}')


def test_a_place_is_taken_once_and_nothing_is_below_a_file_or_link() -> None:
    storage = {
        "directories": [{"path": "/srv/d"}],
        "files": [{"path": "/srv/d/"}, {"path": "/srv/f"}, {"path": "/srv/l/x"}],
        "links": [{"path": "/srv/l", "target": "/srv/d"}, {"path": "/srv/f/y", "target": "x"}],
    }
    assert problems(storage=storage) == [
        "error: storage.files[0].path is that of storage.directories[0].path already",
        "error: storage.files[2].path is below storage.links[0].path, which is no directory",
        "error: storage.links[1].path is below storage.files[1].path, which is no directory",
    ]


def test_a_file_that_nothing_reads_here_is_told_with_the_one_that_is_read() -> None:
    files = [{"path": "/etc/flatcar/update.conf", "contents": {"source": "data:,GROUP=beta"}}]
    assert problems(storage={"files": files}) == [
        "warning: storage.files[0].path is written, but nothing reads it: the same settings are "
        "read from /etc/coreos/update.conf"
    ]


# Directories and links.


def test_directories_come_before_what_is_in_them_and_before_files_and_links() -> None:
    storage = {
        "links": [
            {"path": "/etc/localtime", "target": "../usr/share/zoneinfo/Europe/Zurich"},
            {"path": "/srv/hard", "target": "/srv/d/f", "hard": True, "overwrite": True},
        ],
        "files": [{"path": "/srv/d/f"}],
        "directories": [
            {"path": "/srv/d/e", "mode": 448, "user": {"name": "core"}},
            {"path": "/srv/d", "overwrite": True},
        ],
    }
    assert changes(storage=storage) == [
        MakeDirectory(Directory("/srv/d", overwrite=True)),
        MakeDirectory(Directory("/srv/d/e", 0o700, "core:0")),
        AppendFile("/srv/d/f", b""),
        MakeLink(Link("/etc/localtime", "../usr/share/zoneinfo/Europe/Zurich")),
        MakeLink(Link("/srv/hard", "/srv/d/f", hard=True, overwrite=True)),
    ]


def test_a_link_has_a_target_that_it_can_have() -> None:
    links = [
        {"path": "/srv/a"},
        {"path": "/srv/b", "target": "x\ny"},
        {"path": "/srv/c", "target": "/usr/bin/env", "hard": True},
    ]
    assert problems(storage={"links": links}) == [
        "error: storage.links[0] has no target",
        'error: storage.links[1].target "x\ufffdy" is not a usable path',
        'error: storage.links[2].target "/usr/bin/env" is part of the read-only system; put it '
        "under /usr/local, /opt, /etc or /var, run it in a container, or bring it as a sysext",
    ]


# Units.

INSTALLED = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"


def one_unit(**keys: Any) -> list[Any]:
    return changes(systemd={"units": [{"name": "web.service", **keys}]})


def test_an_enabled_unit_runs_from_the_first_boot_on() -> None:
    assert one_unit(enabled=True, contents=INSTALLED) == [
        WriteFile("/etc/systemd/system/web.service", INSTALLED.encode()),
        EnableUnit("web.service"),
        CommandUnitOnce("web.service", "start"),
    ]


@pytest.mark.parametrize("installed", ["WantedBy=sleep.target", "Alias=www.service"])
def test_a_unit_that_the_boot_does_not_start_is_only_enabled(installed: str) -> None:
    contents = INSTALLED.replace("WantedBy=multi-user.target", installed)
    assert one_unit(enabled=True, contents=contents)[1:] == [EnableUnit("web.service")]


def test_a_template_is_enabled_and_not_started() -> None:
    units = [{"name": "web@.service", "enabled": True, "contents": INSTALLED}]
    assert changes(systemd={"units": units})[1:] == [EnableUnit("web@.service")]


def test_a_disabled_unit_of_the_image_does_not_run_even_at_the_first_boot() -> None:
    assert one_unit(enabled=False) == [
        DisableUnit("web.service"),
        CommandUnitOnce("web.service", "stop"),
    ]


def test_without_enabled_a_unit_is_neither() -> None:
    assert one_unit(contents=INSTALLED) == [
        WriteFile("/etc/systemd/system/web.service", INSTALLED.encode())
    ]


def test_a_unit_that_cannot_be_enabled_is_told() -> None:
    units = [{"name": "web.service", "enabled": True, "contents": "[Service]\nExecStart=/x\n"}]
    assert problems(systemd={"units": units}) == [
        "warning: systemd.units[0].enabled has no effect: the unit has no [Install] section"
    ]


def test_a_unit_of_coreos_that_is_not_here_is_passed_over_and_told() -> None:
    result = planned(systemd={"units": [{"name": "fleet.service", "enabled": True}]})
    (problem,) = result.problems
    assert problem.level == "warning"
    assert problem.message.startswith("systemd.units[0].name fleet.service is passed over: ")
    assert result.changes == (ReloadUnits(), RestartNetwork())


def test_who_masks_locksmithd_hears_that_the_machine_restarts_all_the_same() -> None:
    result = planned(systemd={"units": [{"name": "locksmithd.service", "mask": True}]})
    (problem,) = result.problems
    assert "is said by coreos.update.reboot_strategy" in problem.message


def test_masks_come_and_go_and_drop_ins_are_files() -> None:
    path = "/etc/systemd/system/web.service"
    assert one_unit(mask=True, enabled=True) == [MaskUnit(path)]
    dropins = [{"name": "10-a.conf", "contents": "[Unit]\n"}, {"name": "20-empty.conf"}]
    assert one_unit(mask=False, dropins=dropins) == [
        UnmaskUnit(path),
        WriteFile(f"{path}.d/10-a.conf", b"[Unit]\n"),
    ]


def test_units_with_a_bad_name_or_one_that_is_taken_are_errors() -> None:
    units = [
        {"name": "../../x.service"},
        {"name": "10-a.network"},
        {"name": "a.service", "dropins": [{"name": "../x.conf"}, {"name": "x"}]},
        {"name": "a.service"},
        {},
    ]
    assert problems(systemd={"units": units}) == [
        'error: systemd.units[0].name "../../x.service" is not the name of a unit like '
        '"web.service"',
        "error: systemd.units[1].name is a file of networkd: put it among storage.files, below "
        "/etc/systemd/network",
        'error: systemd.units[2].dropins[0].name "../x.conf" is not a file name like "10-web.conf"',
        'error: systemd.units[2].dropins[1].name "x" is not a file name like "10-web.conf"',
        "error: systemd.units[3].name is that of systemd.units[2] already",
        "error: systemd.units[4] has no name",
    ]


def test_units_and_networks_that_come_as_files_are_read_by_systemd() -> None:
    files = [{"path": "/etc/systemd/network/10-a.network", "contents": {"source": "data:,x"}}]
    assert planned(storage={"files": files}).changes[1:] == (ReloadUnits(), RestartNetwork())


# What is not taken.


@pytest.mark.parametrize("name", ["disks", "raid", "luks"])
def test_what_proa_does_not_do_to_disks_is_refused_before_anything_is_touched(name: str) -> None:
    files = [{"path": "/srv/a", "contents": {"source": "data:,x"}}]
    result = planned(storage={"files": files, name: [{"device": "/dev/vdb"}]})
    assert result.refused
    assert result.changes == ()
    (problem,) = result.problems
    assert problem.key == f"storage.{name}"
    assert planned(storage={name: []}) == Plan((), (), False)


def test_kernel_arguments_are_refused_with_what_to_do_instead() -> None:
    (problem,) = problems(kernelArguments={"shouldExist": ["quiet"]})
    assert problem.startswith("error: kernelArguments is refused: the kernel's command line")
    assert "/etc/sysctl.d" in problem
    assert problems(kernelArguments={"shouldExist": []}) == []


def test_how_things_are_fetched_matters_only_where_something_is() -> None:
    document = {
        "ignition": {
            "version": "3.4.0",
            "timeouts": {"httpTotal": 30},
            "proxy": {"httpsProxy": "http://user:secret@proxy.example.com"},
            "security": {"tls": {"certificateAuthorities": [{"source": "data:,x"}]}},
        }
    }
    result = plan(json.dumps(document).encode())
    assert [(p.level, p.key) for p in result.problems] == [
        ("warning", "ignition.timeouts"),
        ("warning", "ignition.proxy"),
        ("warning", "ignition.security.tls.certificateAuthorities"),
    ]
    files = [{"path": "/srv/a", "contents": {"source": "https://example.com/x"}}]
    result = plan(json.dumps({**document, "storage": {"files": files}}).encode())
    assert [p.level for p in result.problems] == ["warning", "error", "error"]
    assert "secret" not in str(result)


def test_an_unknown_key_is_told_by_name_and_line_with_the_likely_right_one() -> None:
    document = b"""{
  "ignition": {"version": "3.4.0"},
  "storage": {"files": [
    {"path": "/srv/a", "overwirte": true, "filesystem": "root"}
  ]},
  "networkd": {}
}"""
    assert [str(problem) for problem in plan(document).problems] == [
        "line 4: warning: storage.files[0].overwirte is not a known key; ignored; did you mean "
        '"overwrite"?',
        "line 4: warning: storage.files[0].filesystem is not a known key; ignored",
        "line 6: warning: networkd is not a known key; ignored",
    ]


def test_butanes_names_are_not_ignitions() -> None:
    assert problems(passwd={"users": [{"name": "core", "ssh_authorized_keys": [KEY]}]}) == [
        "warning: passwd.users[0].ssh_authorized_keys is not a known key; ignored; did you mean "
        '"sshAuthorizedKeys"?'
    ]


def test_what_is_there_and_says_nothing_is_as_if_it_were_not_there() -> None:
    """Some programs write every key, and an empty value where nothing was said."""
    child = {"source": "data:,%7B%22ignition%22:%7B%22version%22:%223.0.0%22%7D%7D"}
    document = {
        "ignition": {
            "config": {"replace": {"source": None, "verification": {}}, "merge": [child]},
            "proxy": {},
            "security": {"tls": {"certificateAuthorities": []}},
            "timeouts": {"httpTotal": None},
            "version": "3.4.0",
        },
        "kernelArguments": {},
        "passwd": {"users": [{"name": "a", "sshAuthorizedKeys": None, "groups": []}]},
        "storage": {
            "disks": [],
            "files": [
                {
                    "group": {},
                    "overwrite": False,
                    "path": "/srv/a",
                    "user": {"name": "root"},
                    "append": [],
                    "contents": {"compression": "", "source": "data:,x", "verification": {}},
                    "mode": 420,
                }
            ],
            "filesystems": [],
            "links": None,
        },
        "systemd": {},
    }
    assert plan(json.dumps(document).encode()) == Plan(
        (EnsureUser(User("a", create_groups=False)), CreateFile("/srv/a", b"x")), (), False
    )


def test_null_is_as_if_the_key_were_not_there() -> None:
    nulls: dict[str, Any] = dict.fromkeys(("contents", "mode", "user", "overwrite", "append"))
    assert one_file(**nulls) == AppendFile("/srv/a", b"")


def test_no_secret_is_ever_repeated() -> None:
    document = {
        "ignition": {"version": "3.4.0"},
        "passwd": {
            "users": [{"name": "a", "passwordHash": "secret", "sshAuthorizedKeys": ["sEcret"]}]
        },
        "storage": {
            "files": [
                {"path": "/srv/a", "contents": {"source": "ftp://u:secret@example.com"}},
                {"path": "/srv/b", "contents": {"source": "data:,secret"}},
                {"path": "/srv/c", "append": [{"source": "data:;base64,secret!"}]},
            ]
        },
        "systemd": {"units": [{"name": "x", "contents": "secret"}]},
    }
    text = json.dumps(document)
    result = plan(text.encode())
    assert result.refused
    assert "secret" not in str(result).lower()
    assert "secret" not in repr(read_ignition(load_json(text))).lower()


# Any tree at all.

KEYS = (
    *("ignition", "version", "config", "merge", "replace", "source", "passwd", "users", "groups"),
    *("name", "uid", "sshAuthorizedKeys", "passwordHash", "shouldExist", "storage", "files"),
    *("path", "contents", "append", "compression", "verification", "hash", "mode", "user", "id"),
    *("directories", "links", "target", "hard", "overwrite", "systemd", "units", "enabled"),
    *("mask", "dropins", "kernelArguments", "httpHeaders", "value", "disks", "gid"),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(
        ["3.4.0", "/srv/a", "/srv", "data:,x", "a.service", "gzip", "core", "10.conf"]
    )
    | st.sampled_from(["data:,%7B%22ignition%22:%7B%22version%22:%223.0.0%22%7D%7D", "https://a/"])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from((*KEYS[:7], "systemd")), trees, max_size=5), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_tree_is_a_config_or_problems_with_their_places(tree: Any, versioned: bool) -> None:
    if versioned:
        about = tree.get("ignition")
        tree["ignition"] = {**(about if isinstance(about, dict) else {}), "version": "3.4.0"}
    result = plan(json.dumps(tree, indent=1).encode())
    assert all(isinstance(problem, Problem) for problem in result.problems)
    assert result.refused == any(problem.level == "error" for problem in result.problems)
    for change in result.changes:
        assert describe(change).isprintable()
        assert len(wish(change)) == 64


def test_beside_a_cloud_config_both_are_done() -> None:
    boundary = "Content-Type: multipart/mixed; boundary=b\n\n"
    config = json.dumps({"ignition": {"version": "3.4.0"}, "passwd": {"users": [{"name": "a"}]}})
    message = (
        f"{boundary}--b\n\n#cloud-config\nhostname: web-1\nusers: [{{name: b}}]\n"
        f"--b\n\n{config}\n--b--\n"
    )
    result = plan(message.encode())
    assert result.problems == ()
    assert result.changes == (
        SetHostname("web-1"),
        EnsureUser(User("b")),
        EnsureUser(User("a", create_groups=False)),
    )
