"""Files, directories and links as Ignition has them.

Unlike ``write_files``, they spare what is there already unless ``overwrite`` says otherwise, and a
``mode`` or ``owner`` of ``None`` is that of what is there. An owner is ``user:group``, each a name
or a number.
"""

from __future__ import annotations

from proa.machine.cloudconfig.resource import Resource
from proa.machine.record import dataclass, field


@dataclass(frozen=True)
class StoredFile:
    path: str
    content: bytes | None = field(default=None, repr=False)
    """The whole content, what is appended with it; ``None`` if the document says none."""
    source: Resource | None = None
    """Where the content is to be fetched from, if it is not known yet."""
    appended: bytes = field(default=b"", repr=False)
    """Where there is no content: what is to stand at the end of the file."""
    mode: int | None = None
    owner: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Directory:
    path: str
    mode: int | None = None
    owner: str | None = None
    overwrite: bool = False
    """A file or link may be replaced by it. A directory that is there is never emptied."""


@dataclass(frozen=True)
class Link:
    path: str
    target: str
    hard: bool = False
    owner: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Storage:
    directories: tuple[Directory, ...] = ()
    """Each after those that it is in."""
    files: tuple[StoredFile, ...] = ()
    links: tuple[Link, ...] = ()


NO_STORAGE = Storage()
