"""A template is filled in with what the cloud says; what it does beyond that is cut off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig import template
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import MAX_BYTES, Refused
from proa.machine.cloudconfig.template import instance_data, render

METADATA = Metadata(
    instance_id="i-1",
    hostname="web-1",
    ssh_keys=("ssh-ed25519 AAAA a",),
    cloud="ec2",
    region="eu-west-1",
    zone="eu-west-1a",
    raw={"tags": {"role-name": "db"}, "local-ipv4": "10.0.0.1", "count": 3, "list": ["a"]},
)


def filled(source: str) -> str:
    text, problems = render(source, instance_data(METADATA, "0.4.0"))
    assert problems == ()
    return text


def refusal(source: str) -> str:
    with pytest.raises(Refused) as refused:
        render(source, instance_data(METADATA))
    return str(refused.value.problem)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ v1.instance_id }}", "i-1"),
        ("{{ v1.local_hostname }} {{ local_hostname }}", "web-1 web-1"),
        ("{{ v1['local-hostname'] }}", "web-1"),
        ("{{ v1.region }}/{{ v1.availability_zone }}", "eu-west-1/eu-west-1a"),
        ("{{ cloud_name }} {{ v1.platform }} {{ v1.cloud_id }}", "ec2 ec2 ec2"),
        ("{{ v1.distro }} {{ v1.distro_version }}", "proa 0.4.0"),
        ("{{ v1.machine }}", os.uname().machine),
        ("{% for key in public_ssh_keys %}- {{ key }}{% endfor %}", "- ssh-ed25519 AAAA a"),
        ("{{ ds.meta_data.tags['role-name'] }}", "db"),
        ("{{ ds.meta_data.tags.role_name }} {{ ds.meta_data.local_ipv4 }}", "db 10.0.0.1"),
        ("{{ ds.meta_data.count + 1 }}", "4"),
    ],
)
def test_the_variables_are_those_of_cloud_inits_instance_data(source: str, text: str) -> None:
    assert filled(source) == text


def test_the_text_keeps_its_last_line_end_and_loses_the_lines_of_blocks() -> None:
    assert filled("\n{% if region %}\na\n{% endif %}\nb\n") == "\na\nb\n"


def test_a_name_that_is_not_known_shows_in_the_text_and_is_told_with_its_line() -> None:
    text, problems = render("a: {{ v1.nothing }}\nb: {{ other }}\n", instance_data(METADATA))
    assert text == "a: CI_MISSING_JINJA_VAR/nothing\nb: CI_MISSING_JINJA_VAR/other\n"
    assert [str(problem) for problem in problems] == [
        'line 1: warning: template: "nothing" is not known on this machine',
        'line 2: warning: template: "other" is not known on this machine',
    ]


def test_a_default_or_a_test_for_a_name_works_without_a_word() -> None:
    assert filled("{{ v1.nothing | default('x') }}{% if other is defined %}y{% endif %}") == "x"
    assert filled("{% if nothing %}x{% endif %}") == ""


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("a\n{{ ", "line 2: error: template: unexpected 'end of template'"),
        ("a\n{% for %}", "line 2: error: template: "),
        ("a\n{% nothing %}", "line 2: error: template: Encountered unknown tag 'nothing'"),
        ("a\n\n{{ nothing.more }}", "line 3: error: template: 'nothing' is undefined"),
        ("a\n{{ local-hostname }}", 'line 2: error: template: "-" takes one away from another'),
        ("a\n{{ 'a' + 1 }}", "line 2: error: template: "),
        ("a\n{{ 1 / 0 }}", "line 2: error: template: ZeroDivisionError"),
        ("{% include '/etc/shadow' %}", "error: template: no loader"),
    ],
)
def test_a_bad_template_is_refused_with_its_line_and_the_reason(
    source: str, complaint: str
) -> None:
    assert refusal(source).removeprefix("line 1: ").startswith(complaint)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{% do public_ssh_keys.append('x') %}",
        "{{ '{0.__class__}'.format('') }}",
    ],
)
def test_a_template_gets_at_nothing_beyond_its_variables(source: str) -> None:
    try:
        text, _ = render(source, instance_data(METADATA))
    except Refused as refused:
        assert "a template may not" in str(refused) or "undefined" in str(refused)
    else:
        assert "<class" not in text and "uid=" not in text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ 'a' * 1000000000 }}", "too much memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "makes more than 2048 KiB"),
        ("{{ range(999999999) }}", "OverflowError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "nested too deep"),
        ("{{ 9 ** 99999 }}", "ValueError"),
        ("{{ " + "(" * 100_000, "nested too deep"),
    ],
)
def test_a_template_that_takes_too_much_is_refused(source: str, complaint: str) -> None:
    assert complaint in refusal(source)


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(template, "MAX_CPU_SECONDS", 1)
    assert "too long" in refusal(endless)
    monkeypatch.setattr(template, "MAX_CPU_SECONDS", 100)
    monkeypatch.setattr(template, "MAX_SECONDS", 0.5)
    assert "too long" in refusal(endless)


def test_a_cloud_that_says_deep_or_strange_things_breaks_no_template() -> None:
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"a": deep}
    metadata = Metadata(raw={"deep": deep, "bytes": b"a", "": None, "\ud800": "\ud800"})
    assert render("{{ ds.meta_data.bytes }}", instance_data(metadata))[0] == "b'a'"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "{{",
                    "}}",
                    "{%",
                    "%}",
                    "{#",
                    "#}",
                    " region ",
                    " v1",
                    ".x",
                    "|",
                    "join",
                    "(",
                    ")",
                ),
                *(" for a in ", " endfor ", " if ", " endif ", "'", "-", "~", "1", "[", "\n", "\0"),
                *("\ud800", " set ", " macro ", " do ", " import ", "=", "range"),
            ]
        )
    ).map("".join)
)
def test_any_text_is_filled_in_or_refused(source: str) -> None:
    try:
        text, problems = render(source, instance_data(METADATA))
    except Refused as refused:
        assert refused.problem.message.startswith("template: ")
    else:
        assert isinstance(text, str)
        assert all(problem.message.isprintable() for problem in problems)


def test_the_largest_text_comes_back_whole() -> None:
    assert len(filled(f"{{{{ 'ä' * {MAX_BYTES} }}}}")) == MAX_BYTES


def children() -> set[str]:
    """Process ids of this process's children, ended and not waited for among them.

    Another test of the same run may have one of its own, so a test looks at
    what it added. proc(5), /proc/pid/task/tid/children.
    """
    return set(Path("/proc/thread-self/children").read_text(encoding="ascii").split())


def test_no_child_is_left_behind() -> None:
    before = children()
    filled("a")
    assert children() <= before


def test_jinja_is_not_loaded_by_the_run_itself() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from proa.machine.cloudconfig.template import *;"
        "from proa.machine.cloudconfig.metadata import Metadata;"
        "assert render('a', instance_data(Metadata()))[0] == 'a';"
        "sys.exit('jinja2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
