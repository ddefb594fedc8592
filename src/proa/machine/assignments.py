"""Files of ``KEY=value`` lines as a shell reads them: settings, os-release(5), /etc/environment.

For programs that run at every boot: it imports little, and ``shlex`` only for an odd value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_KEY = re.compile(r"\w+")
# What shlex would make of it is what the one group holds that matched.
_PLAIN = re.compile(r"""[ \t]*(?:"([^"\\]*)"|'([^']*)'|([^ \t"'\\#]*))[ \t]*""")


def assignments(text: str) -> dict[str, str]:
    """The values by key; the last line of a key counts. Other lines are skipped."""
    return {key: value for key, value in lines(text) if value is not None}


def lines(text: str) -> Iterator[tuple[str, str | None]]:
    """Key and value of each line; an unreadable one is a key without a value. Comments and blank
    lines are left out."""
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, rest = line.removeprefix("export ").partition("=")
        value = _value(rest) if equals and _KEY.fullmatch(key) else None
        yield (line, None) if value is None else (key, value)


def _value(text: str) -> str | None:
    if plain := _PLAIN.fullmatch(text):
        return next((group for group in plain.groups() if group is not None), "")
    import shlex

    try:
        return " ".join(shlex.split(text, comments=True))
    except ValueError:  # a quote that is not closed
        return None
