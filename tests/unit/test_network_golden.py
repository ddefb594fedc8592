"""Each form, with all that it can say, becomes exactly these files.

A change of ``data/network/*.files`` is a change of what machines do: look at it, then write them
anew with ``PYTHONPATH=src:tests python -m support.network_examples``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest

from proa.machine.cloudconfig.network.forms import FORMS, Form
from proa.machine.cloudconfig.network.render import render
from support.network_examples import examples, files_of
from support.networks import said


@pytest.mark.parametrize("example", examples(), ids=lambda path: path.name)
def test_an_example_becomes_these_files(example: Path) -> None:
    assert files_of(example) == example.with_suffix(".files").read_text()


PAGE = Path(__file__).parents[2] / "docs/network.md"
# Each example of the page is a block of code with the name of its form, and after it one block for
# each file that it becomes, with the file's name.
BLOCK = re.compile(r"^```[a-z]+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown() -> list[tuple[Form, str, dict[str, str]]]:
    found: list[tuple[Form, str, dict[str, str]]] = []
    for name, content in BLOCK.findall(PAGE.read_text()):
        if name in FORMS:
            found.append((cast(Form, name), content, {}))
        else:
            found[-1][2][name] = content
    return found


@pytest.mark.parametrize(("form", "text", "files"), shown())
def test_an_example_of_the_page_becomes_what_the_page_says(
    form: Form, text: str, files: dict[str, str]
) -> None:
    made = {file.path.rpartition("/")[2]: file.content for file in render(said(form, text))}
    assert {name: content.partition("\n")[2] for name, content in made.items()} == files


def test_the_page_has_examples_of_the_forms() -> None:
    assert {form for form, _, _ in shown()} == {"v1", "v2", "eni", "openstack", "vmware"}
