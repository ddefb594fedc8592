"""Lines of ``KEY=value`` are read as a shell would, whoever wrote them."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proa.machine.assignments import assignments, lines


def test_shell_like_lines_are_understood() -> None:
    text = "# a comment\n\nexport A=\"my group\"\nB='x' # why\nC=a b\nD=\nnot a line\nBAD='\n"
    assert assignments(text) == {"A": "my group", "B": "x", "C": "a b", "D": ""}


def test_the_last_line_of_a_key_counts() -> None:
    assert assignments("A=1\nA=2\n") == {"A": "2"}


def test_a_line_that_is_none_can_be_told() -> None:
    text = "# no\nA=1\n\nBAD='\nnot a line\nA-B=1\n=1\n"
    assert list(lines(text)) == [
        ("A", "1"),
        *((line, None) for line in ("BAD='", "not a line", "A-B=1", "=1")),
    ]


@given(st.text(alphabet="ab \t'\"\\#=$`é\u00a0", max_size=12).map(str.rstrip))
@example('"a b"')
@example("a#b")
@example("'a''b'")
@example('"a" b')
def test_a_value_is_what_the_shells_splitter_makes_of_it(value: str) -> None:
    try:
        wanted: dict[str, str] = {"A": " ".join(shlex.split(value, comments=True))}
    except ValueError:
        wanted = {}
    assert assignments(f"A={value}") == wanted


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(key, str) for key in assignments(text))


@pytest.mark.parametrize("module", ["shlex", "dataclasses", "inspect"])
def test_an_ordinary_file_costs_a_boot_no_large_module(module: str) -> None:
    program = (
        "import sys; from proa.machine.assignments import assignments;"
        "assignments('NAME=\"Proa 1\"\\nIMAGE_VERSION=1.0.0\\n');"
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
