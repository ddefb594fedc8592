"""Configs in other languages than cloud-config, with the configs that they point to."""

from __future__ import annotations

from proa.machine.cloudconfig.butane import read_butane
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.ignition import read_ignition
from proa.machine.cloudconfig.jsontext import load_json
from proa.machine.cloudconfig.parse import Problem, Refused, load
from proa.machine.cloudconfig.parts import Fetch
from proa.machine.cloudconfig.resource import Resource
from proa.machine.record import dataclass


@dataclass(frozen=True)
class Said:
    config: Config
    problems: tuple[Problem, ...] = ()
    needs_network: bool = False
    """It points to configs that could not be fetched yet: this is not all that it says, and the
    problems are those of the config itself."""


def read_other(text: str, *, butane: bool, fetch: Fetch | None) -> Said:
    """What an Ignition or Butane config says. ``fetch`` is ``None`` while there is no network."""
    try:
        root = load(text) if butane else load_json(text)
    except Refused as refused:
        return Said(Config(), (refused.problem,))
    read = read_butane if butane else read_ignition
    fetched: dict[str, bytes | str] = {}
    while True:  # it ends: a config may point to MAX_CHILDREN, and none is fetched twice
        missing: list[Resource] = []
        config, problems = read(root, fetched, missing)
        if not missing:
            return Said(config, problems)
        if fetch is None:
            return Said(Config(), problems, needs_network=True)
        for url in {resource.url: None for resource in missing}:
            fetched[url] = _answer(fetch, url)


def _answer(fetch: Fetch, url: str) -> bytes | str:
    """The answer, or why there is none."""
    try:
        return fetch(url)
    except Refused as refused:
        return refused.problem.message
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
