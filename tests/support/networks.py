"""Reading descriptions of networks in tests."""

from __future__ import annotations

from proa.machine.cloudconfig.network.forms import Form, read
from proa.machine.cloudconfig.network.model import Description, Link
from proa.machine.cloudconfig.network.render import render


def said(form: Form, text: str) -> Description:
    """What a description without any problem says."""
    network, problems = read(form, text.encode())
    assert [str(problem) for problem in problems] == []
    return network


def problems_of(form: Form, text: str) -> list[str]:
    return [str(problem) for problem in read(form, text.encode())[1]]


def link(network: Description, id: str) -> Link:
    found = [one for one in network.links if one.id == id]
    assert len(found) == 1
    return found[0]


def file(network: Description, name: str) -> str:
    """The content of one file of networkd, without the comment in its first line."""
    found = [f.content for f in render(network) if f.path == f"systemd/network/{name}"]
    assert len(found) == 1, [f.path for f in render(network)]
    return found[0].partition("\n")[2]


def names(network: Description) -> list[str]:
    return [f.path.rpartition("/")[2] for f in render(network)]
