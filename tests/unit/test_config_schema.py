"""What an editor is told of the keys is what the reader knows, no more and no less."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.cli import main as cli
from proa.machine.cloudconfig import schema
from proa.machine.cloudconfig.changes import WriteFile, describe
from proa.machine.cloudconfig.document import read
from proa.machine.cloudconfig.keys.etcd import ETCD, ETCD2
from proa.machine.cloudconfig.parse import Items, Node, Table, Text
from proa.machine.cloudconfig.plan import plan
from proa.machine.cloudconfig.values import clean_path

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = schema.schema()
KINDS, KNOWN = schema.observe()


def faults(document: str) -> list[str]:
    checker = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in checker.iter_errors(yaml.safe_load(document))]


def test_the_schema_in_the_docs_is_the_one_of_this_version() -> None:
    written = (DOCS / "cloud-config.schema.json").read_text()
    assert written == schema.text(), (
        "make it anew: ./proa config schema > docs/cloud-config.schema.json"
    )


def test_it_is_a_schema_and_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def _document(path: str, key: str) -> Node:
    """A document that has this key, and nothing else, at this path."""
    node: Node = Table(((Text(key, 1, 1), Text("x", 1, 1)),), 1, 1)
    for part in reversed(re.findall(r"[^.\[\]]+|\[\]", path)):
        inside = Table(((Text(part, 1, 1), node),), 1, 1)
        node = Items((node,), 1, 1) if part == "[]" else inside
    return node


@pytest.mark.parametrize(("path", "key"), [(path, key) for path in KNOWN for key in KNOWN[path]])
def test_the_reader_knows_every_key_of_the_schema(path: str, key: str) -> None:
    _, problems = read(_document(path, key))
    assert not [problem for problem in problems if "is not a known key" in problem.message]


SCALARS = st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_stands_at_a_key_is_taken_or_told(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(KNOWN)))
    value: Any = {
        key: data.draw(VALUES)
        for key in data.draw(st.lists(st.sampled_from(KNOWN[path]), min_size=1, max_size=4))
    }
    for part in reversed(re.findall(r"[^.\[\]]+|\[\]", path)):
        value = [value] if part == "[]" else {part: value}
    planned = plan(f"#cloud-config\n{json.dumps(value)}\n".encode())
    assert all(str(problem).isprintable() for problem in planned.problems)
    for change in planned.changes:
        assert describe(change).isprintable()
        if isinstance(change, WriteFile):
            assert clean_path(change.path) == change.path


def _properties(node: Any) -> set[str]:
    """The names of all keys in a schema, at whatever depth."""
    if isinstance(node, list):
        return {name for item in node for name in _properties(item)}
    if not isinstance(node, dict):
        return set()
    own = set(node.get("properties", {}))
    return own.union(*(_properties(value) for value in node.values()))


def test_the_schema_has_every_key_that_the_reader_looks_for() -> None:
    assert {key for keys in KNOWN.values() for key in keys} == _properties(SCHEMA)
    coreos = SCHEMA["properties"]["coreos"]["properties"]
    assert list(coreos["etcd"]["properties"]) == list(ETCD)
    assert list(coreos["etcd2"]["properties"]) == list(ETCD2)


def test_every_key_has_a_kind_of_value() -> None:
    paths = [f"{path}.{key}".lstrip(".") for path, keys in KNOWN.items() for key in keys]
    free = {path.removesuffix(f".{schema.ANY_NAME}") for path in KINDS}
    # One that is refused whatever stands there has none; nor has one that is only looked at beside
    # others.
    none = {"write_files[].source", "fs_setup[].cmd", f"disk_setup.{schema.ANY_NAME}.overwrite"}
    assert {path for path in paths if path not in KINDS and path not in free} <= none


def test_what_is_described_is_there() -> None:
    free = {path.removesuffix(f".{schema.ANY_NAME}") for path in KINDS}
    for path in (*schema.DESCRIPTIONS, *schema.VALUES):
        assert path in free, path


@pytest.mark.parametrize("guide", ["cloud-config.md", "cloud-config-keys.md", "proa-section.md"])
def test_the_examples_of_the_guides_are_good_by_the_schema(guide: str) -> None:
    examples = re.findall(
        r"```yaml\n(#cloud-config\n.*?)```", (DOCS / guide).read_text(), re.DOTALL
    )
    assert examples
    assert [faults(example) for example in examples] == [[]] * len(examples)


@pytest.mark.parametrize(
    "document",
    [
        "hostnam: a",
        "coreos: {etcd2: {nam: a}}",
        "write_files: {path: /a}",
        "coreos: {units: [{name: a.service, enable: maybe}]}",
        "proa: {containers: [{name: web, image: a, env: [A]}]}",
    ],
)
def test_an_editor_marks_what_the_reader_would_not_take(document: str) -> None:
    assert faults(document)


@pytest.mark.parametrize(
    "document",
    [
        "groups: [a, {b: [core]}]",
        "groups: {a: [core], b: []}",
        "groups: a, b",
        "chpasswd: {list: [a:b]}",
        "users: {a: {gecos: x}}",
        "users: [default, bob]",
        "users: [{name: a, groups: {b: }}]",
        "user: bob",
        "ssh_import_id: gh:a",
    ],
)
def test_a_form_that_only_cloud_init_had_is_good(document: str) -> None:
    assert faults(document) == []
    assert not plan(f"#cloud-config\n{document}\n".encode()).refused


def test_dashes_quotes_and_numbers_are_as_free_as_for_the_reader() -> None:
    assert faults("ssh-authorized-keys: []\nwrite-files: [{path: /a, permissions: 0644}]") == []
    assert (
        faults("users: [{name: 7, groups: 'a, b'}, {name: a, groups: [a], no-create-home: yes}]")
        == []
    )
    assert faults("hostname:\nusers:\ncoreos: {update: {reboot-strategy: off}, units: }") == []
    assert faults("proa: {containers: [{name: web, image: a, env: {A: 1}, command: a b}]}") == []
