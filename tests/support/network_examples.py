"""Descriptions of networks in each form, with all that it can say: ``unit/data/network``.

``NAME.files`` has the files that ``NAME.*`` becomes, one after another.
"""

from __future__ import annotations

from pathlib import Path

from proa.machine.cloudconfig.network.forms import Form, read
from proa.machine.cloudconfig.network.render import render

DATA = Path(__file__).parents[1] / "unit/data/network"


def examples() -> list[Path]:
    return sorted(path for path in DATA.iterdir() if path.suffix != ".files")


def form_of(example: Path) -> Form:
    if example.suffix == ".interfaces":
        return "eni"
    forms: dict[str, Form] = {"openstack": "openstack", "packet": "packet", "vmware": "vmware"}
    return forms.get(example.stem, "cloud-init")


def files_of(example: Path) -> str:
    """What is told of an example, then all files that it becomes, each after its path."""
    network, problems = read(form_of(example), example.read_bytes())
    told = "".join(f"! {problem}\n" for problem in problems)
    return told + "\n".join(f"=== {file.path}\n{file.content}" for file in render(network))


if __name__ == "__main__":
    for one in examples():
        one.with_suffix(".files").write_text(files_of(one))
