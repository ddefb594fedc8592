"""Changes that wait for a later stage of the boot, kept in a file between two programs.

The file lies in a directory of /run that only root enters, and lives as long as the boot. It is
JSON: what JSON has no word for is a list that begins with a mark.

    ["b", "aGVsbG8="]          bytes, as base64
    ["t", […]]                 a tuple
    ["d", [[key, value], …]]   a mapping
    ["changes.WriteFile", {…}] one of the changes, or a part of one, by its class and fields
"""

from __future__ import annotations

import base64
import importlib
import json
import re
from collections.abc import Iterable, Mapping

from proa.machine import record
from proa.machine.cloudconfig.changes import Change
from proa.machine.hints import Any


class LaterError(ValueError):
    """The file is not one that :func:`dump` has written."""


def dump(waiting: Iterable[Change]) -> bytes:
    """The changes as bytes; they hold what the changes hold, passwords too."""
    return json.dumps([_encode(change) for change in waiting]).encode()


def load(data: bytes) -> tuple[Change, ...]:
    """The changes that were dumped, or :class:`LaterError`."""
    try:
        found = tuple(_decode(value) for value in json.loads(data))
        if not all(isinstance(item, Change) for item in found):
            raise ValueError("something else than changes is in it")
        return found
    except (ValueError, TypeError, ImportError, AttributeError, RecursionError) as error:
        raise LaterError(f"what waits for this stage cannot be read: {error}") from None


def _encode(value: Any) -> Any:
    if record.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name)) for f in record.fields(value)}
        return [_name(type(value)), fields]
    if isinstance(value, bytes):
        return ["b", base64.b64encode(value).decode()]
    if isinstance(value, tuple):
        return ["t", [_encode(item) for item in value]]
    if isinstance(value, Mapping):
        return ["d", [[_encode(key), _encode(item)] for key, item in value.items()]]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def _decode(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    mark, content = value
    if mark == "b":
        return base64.b64decode(content, validate=True)
    if mark == "t":
        return tuple(_decode(item) for item in content)
    if mark == "d":
        return {_decode(key): _decode(item) for key, item in content}
    return _kind(mark)(**{name: _decode(item) for name, item in content.items()})


# The classes of the changes and of what they are made of, each with its module, so that no other
# module has to be loaded to find it.

_HERE = f"{__package__}."


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}".removeprefix(_HERE)


def _kind(name: str) -> Any:
    module, _, word = name.rpartition(".")
    if module not in ("changes", "resource") and not re.fullmatch(r"keys\.[a-z_]+", module):
        raise ValueError("a mark that is not known")
    kind = getattr(importlib.import_module(_HERE + module), word)
    if not isinstance(kind, type) or not record.is_dataclass(kind) or _name(kind) != name:
        raise ValueError("a mark that is not known")
    return kind
