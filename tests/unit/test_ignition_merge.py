"""Configs that point to others become one, by Ignition's rules and with an end."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest

from proa.machine.cloudconfig.changes import EnsureUser
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.ignition import read_ignition
from proa.machine.cloudconfig.jsontext import load_json
from proa.machine.cloudconfig.keys.storage import Directory, Link, StoredFile
from proa.machine.cloudconfig.keys.units import DropIn
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.plan import Given, plan, plan_for
from proa.machine.cloudconfig.resource import Resource


def config(version: str = "3.4.0", **sections: Any) -> dict[str, Any]:
    return {"ignition": {"version": version}, **sections}


def address(document: Any) -> dict[str, str]:
    packed = base64.b64encode(json.dumps(document).encode()).decode()
    return {"source": f"data:;base64,{packed}"}


def with_children(parent: dict[str, Any], *children: Any) -> dict[str, Any]:
    about = {**parent["ignition"], "config": {"merge": [address(child) for child in children]}}
    return {**parent, "ignition": about}


def said(document: Any) -> Config:
    result, problems = read_ignition(load_json(json.dumps(document)))
    assert [str(problem) for problem in problems] == []
    return result


def problems(document: Any) -> list[str]:
    return [problem.message for problem in plan(json.dumps(document).encode()).problems]


def file(path: str, content: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "contents": {"source": f"data:,{content}"}, **more}


def test_a_child_adds_to_its_parent_and_wins_where_both_say_something() -> None:
    parent = config(
        passwd={"users": [{"name": "core", "uid": 500, "groups": ["sudo"], "shell": "/bin/sh"}]},
        storage={"files": [file("/srv/a", "old", mode=384), file("/srv/b", "b")]},
        systemd={
            "units": [{"name": "x.service", "dropins": [{"name": "1.conf", "contents": "1"}]}]
        },
    )
    child = config(
        passwd={"users": [{"name": "core", "groups": ["docker", "sudo"], "shell": "/bin/bash"}]},
        storage={"files": [file("/srv/a", "new"), file("/srv/c", "c")]},
        systemd={
            "units": [{"name": "x.service", "dropins": [{"name": "2.conf", "contents": "2"}]}]
        },
    )
    both = said(with_children(parent, child))
    (user,) = both.users
    assert (user.uid, user.groups, user.shell) == (500, ("sudo", "docker"), "/bin/bash")
    assert both.storage.files == (
        StoredFile("/srv/a", b"new", mode=0o600),
        StoredFile("/srv/b", b"b"),
        StoredFile("/srv/c", b"c"),
    )
    (unit,) = both.units
    assert unit.drop_ins == (DropIn("1.conf", "1"), DropIn("2.conf", "2"))


def test_a_later_child_wins_over_an_earlier_one_and_over_its_own_children() -> None:
    grandchild = config(storage={"files": [file("/srv/a", "grandchild"), file("/srv/g", "g")]})
    first = with_children(config(storage={"files": [file("/srv/a", "first")]}), grandchild)
    second = config(storage={"files": [file("/srv/b", "second")]})
    both = said(with_children(config(storage={"files": [file("/srv/b", "parent")]}), first, second))
    assert {f.path: f.content for f in both.storage.files} == {
        "/srv/b": b"second",
        "/srv/a": b"grandchild",
        "/srv/g": b"g",
    }


def test_a_child_can_make_something_else_of_a_path() -> None:
    parent = config(
        storage={
            "files": [file("/srv/a", "x"), file("/srv/b", "x")],
            "links": [{"path": "/srv/c", "target": "a"}],
        }
    )
    child = config(
        storage={
            "files": [file("/srv/c", "x")],
            "directories": [{"path": "/srv/a"}],
            "links": [{"path": "/srv/b", "target": "a"}],
        }
    )
    both = said(with_children(parent, child)).storage
    assert [f.path for f in both.files] == ["/srv/c"]
    assert both.directories == (Directory("/srv/a"),)
    assert both.links == (Link("/srv/b", "a"),)


def test_content_is_taken_whole_and_what_is_appended_too() -> None:
    digest = {"hash": f"sha256-{hashlib.sha256(b'old').hexdigest()}"}
    old = {"path": "/srv/a", "contents": {"source": "data:,old", "verification": digest}}
    parent = config(storage={"files": [old, {"path": "/srv/b", "append": [{"source": "data:,1"}]}]})
    new = [file("/srv/a", "new"), {"path": "/srv/b", "append": [{"source": "data:,2"}]}]
    both = said(with_children(parent, config(storage={"files": new})))
    assert both.storage.files == (
        StoredFile("/srv/a", b"new"),
        StoredFile("/srv/b", appended=b"2"),
    )


def test_a_config_can_be_replaced_altogether() -> None:
    parent = config(storage={"files": [file("/srv/a", "x")], "disks": [{"device": "/dev/vda"}]})
    parent["ignition"]["config"] = {
        "replace": address(config(passwd={"users": [{"name": "core"}]}))
    }
    replaced = said(parent)
    assert replaced.storage.files == ()
    assert [user.name for user in replaced.users] == ["core"]


def test_nothing_is_replaced_by_what_is_not_named() -> None:
    child = config(passwd={"users": [{"name": "core"}]})
    parent = with_children(config(), child)
    parent["ignition"]["config"]["replace"] = {"verification": {}}
    assert [user.name for user in said(parent).users] == ["core"]


def test_what_is_wrong_in_a_child_has_the_line_that_names_it() -> None:
    child = address(config(storage={"luks": [{"name": "x"}], "files": [{"path": "/usr/x"}]}))
    text = json.dumps(config())[:-2] + f', "config": {{"merge": [\n{json.dumps(child)}]}}}}}}'
    assert [(problem.line, problem.key) for problem in plan(text.encode()).problems] == [
        (2, "storage.luks"),
        (2, "storage.files[0].path"),
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("data:,", "cannot be read: line 1 of it: JSON: a value should stand here"),
        ("data:,%FF", "cannot be read: line 1 of it: this is not UTF-8 text"),
        ("data:,%5B%5D", "wants a JSON object"),
        ("data:,%7B%7D", " ignition.version is missing: this is no Ignition config of version 3"),
        ("data:;base64,?", "does not hold base64"),
    ],
)
def test_a_child_that_cannot_be_read_refuses_the_whole(source: str, expected: str) -> None:
    parent = config()
    parent["ignition"]["config"] = {"merge": [{"source": source}]}
    (problem,) = problems(parent)
    assert problem.startswith("ignition.config.merge[0]")
    assert problem.endswith(expected)


def test_a_child_of_another_version_refuses_the_whole() -> None:
    (problem,) = problems(with_children(config(), config("2.2.0")))
    assert problem.startswith('ignition.config.merge[0] ignition.version "2.2.0" is another format')


def test_children_of_children_have_an_end() -> None:
    nested = config()
    for _ in range(6):
        nested = with_children(config(), nested)
    assert "is one config too many" in problems(nested)[0]
    many = with_children(config(), *(config() for _ in range(33)))
    assert "ignition.config.merge[32] is one config too many" in problems(many)[0]


def test_children_that_unpack_to_too_much_are_refused() -> None:
    big = config(passwd={"groups": [{} for _ in range(60_000)]})
    packed = base64.b64encode(gzip.compress(json.dumps(big).encode())).decode()
    child = {"source": f"data:;base64,{packed}", "compression": "gzip"}
    parent = config()
    parent["ignition"]["config"] = {"merge": [child, child]}
    assert "ignition.config.merge[1] brings too much content" in problems(parent)


# Children on the network.

URL = "https://user:secret@example.com/child.ign"


def remote(document: Any) -> dict[str, Any]:
    digest = hashlib.sha512(json.dumps(document).encode()).hexdigest()
    parent = config()
    child = {"source": URL, "verification": {"hash": f"sha512-{digest}"}}
    parent["ignition"]["config"] = {"merge": [child]}
    return parent


def test_a_child_on_the_network_is_named_so_that_it_can_be_fetched_and_the_config_read() -> None:
    grandchild = "https://example.com/grandchild.ign"
    child = config(storage={"files": [file("/srv/a", "x")]})
    child["ignition"]["config"] = {"merge": [{"source": grandchild}]}
    fetched: dict[str, bytes | str] = {}

    def read() -> tuple[Config, list[str]]:
        missing: list[Resource] = []
        whole, _ = read_ignition(load_json(json.dumps(remote(child))), fetched, missing)
        return whole, [resource.url for resource in missing]

    assert read()[1] == [URL]
    fetched[URL] = json.dumps(child).encode()
    assert read()[1] == [grandchild]
    fetched[grandchild] = json.dumps(config(storage={"files": [file("/srv/b", "y")]})).encode()
    whole, missing = read()
    assert missing == []
    assert [f.path for f in whole.storage.files] == ["/srv/a", "/srv/b"]


def test_a_config_waits_for_the_network_and_is_then_planned_as_a_whole() -> None:
    child = config(passwd={"users": [{"name": "core"}]})
    document = json.dumps(remote(child)).encode()
    waiting = plan_for(Given(document))
    assert (waiting.changes, waiting.problems, waiting.needs_network) == ((), (), True)
    whole = plan_for(Given(document, fetch={URL: json.dumps(child).encode()}.__getitem__))
    assert whole.changes == (EnsureUser(User("core", create_groups=False)),)
    assert not (whole.refused or whole.needs_network)


def test_what_is_wrong_with_a_config_is_told_before_what_it_points_to_is_fetched() -> None:
    document = remote(config())
    document["systemd"] = {"units": [{"name": "a.service", "enable": True}]}
    waiting = plan_for(Given(json.dumps(document).encode()))
    assert waiting.needs_network
    assert [str(p) for p in waiting.problems] == [
        "line 1: warning: systemd.units[0].enable is not a known key; ignored;"
        ' did you mean "enabled"?'
    ]


def test_a_config_that_takes_the_place_of_another_is_waited_for_before_anything_is_told() -> None:
    document = config(systemd={"units": [{"name": "a"}]})
    document["ignition"]["config"] = {"replace": {"source": URL}}
    waiting = plan_for(Given(json.dumps(document).encode()))
    assert (waiting.needs_network, waiting.problems) == (True, ())


def test_a_child_that_cannot_be_fetched_or_is_another_refuses_the_whole() -> None:
    def fails(url: str) -> bytes:
        raise OSError(None, "example.com does not answer")

    document = json.dumps(remote(config())).encode()
    for fetch, expected in (
        (fails, "could not be fetched: example.com does not answer"),
        (lambda url: b"{}", "is not good: its sha512 is not the one that verification names"),
    ):
        result = plan_for(Given(document, fetch=fetch))
        assert result.refused
        (problem,) = result.problems
        assert problem.message == f"ignition.config.merge[0] {expected}"
        assert "secret" not in repr(result)


def test_configs_that_point_to_one_another_for_ever_have_an_end() -> None:
    calls: list[str] = []

    def fetch(url: str) -> bytes:
        calls.append(url)
        answer = config()
        answer["ignition"]["config"] = {"merge": [{"source": f"{url}x"}, {"source": url}]}
        return json.dumps(answer).encode()

    first = config()
    first["ignition"]["config"] = {"merge": [{"source": "https://example.com/"}]}
    result = plan_for(Given(json.dumps(first).encode(), fetch=fetch))
    assert result.refused
    assert "is one config too many" in str(result.problems)
    assert len(calls) == len(set(calls)) <= 32


def test_a_config_to_merge_is_asked_for_without_headers() -> None:
    parent = config()
    header = {"name": "X-Token", "value": "secret"}
    parent["ignition"]["config"] = {"merge": [{"source": URL, "httpHeaders": [header]}]}
    (problem,) = problems(parent)
    assert problem == (
        "ignition.config.merge[0] is not taken: a config is fetched without headers of its own"
    )
