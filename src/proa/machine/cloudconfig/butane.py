"""Butane configs: the YAML from which people make Ignition configs, taken as it is.

The variants ``flatcar`` 1.0.0 to 1.1.0 and ``fcos`` 1.0.0 to 1.6.0 (coreos.github.io/butane,
"Configuration specifications"). They say what an Ignition config says, in snake_case, and have
some sugar. What needs files beside the document is refused: the machine has only the document.
"""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.dialect import Dialect
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.ignition import SECTIONS, read_sections
from proa.machine.cloudconfig.ignition_merge import NOTHING_FETCHED, Fetched, complete
from proa.machine.cloudconfig.parse import Node, Problem, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.resource import Resource

VERSIONS: Mapping[str, tuple[str, ...]] = {
    "flatcar": ("1.0.0", "1.1.0"),
    "fcos": ("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0"),
}

_NO_SUGAR = {
    "boot_device": "is refused: the disk that the machine starts from is laid out by Proa itself",
    "grub": "is refused: the boot loader takes no passwords from a document",
}


def read_butane(
    root: Node | None, fetched: Fetched = NOTHING_FETCHED, missing: list[Resource] | None = None
) -> tuple[Config, tuple[Problem, ...]]:
    """What the config says, and what is wrong with it. With an error, the config is void.

    ``fetched`` and ``missing``: see :func:`ignition_merge.complete`.
    """
    reader = Reader()
    dialect = Dialect(reader, butane=True)
    config = Config()
    if root is not None and _is_known(dialect, root):
        whole = complete(dialect, root, fetched, [] if missing is None else missing)
        if whole is not None:
            known = ("variant", "version", *SECTIONS, *_NO_SUGAR)
            config = read_sections(dialect, whole, known, _NO_SUGAR)
    return config, reader.told()


def _is_known(d: Dialect, root: Node) -> bool:
    variant, version = d.entry(root, "variant"), d.entry(root, "version")
    if variant is None or version is None:
        d.error(root, "the document", "is no Butane config: it has no variant and version")
        return False
    versions = VERSIONS.get(variant.text)
    if versions is None:
        known = " and ".join(VERSIONS)
        d.error(variant, "variant", f'"{printable(variant.text)}" is not taken: only {known} are')
        return False
    if version.text not in versions:
        shown = f'"{printable(version.text)}"'
        message = f"{shown} of {variant.text} is not known: take one of {', '.join(versions)}"
        d.error(version, "version", message)
        return False
    return True
