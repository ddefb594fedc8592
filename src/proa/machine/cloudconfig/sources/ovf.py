"""The OVF environment: an XML file that VMware, VirtualBox and Azure hand over on a disc.

Formats: DMTF DSP0243 (Open Virtualization Format), clause 11, for the properties; Azure's
``LinuxProvisioningConfigurationSet`` beside them. Only these two are read. A document type
definition is refused, and with it every entity: nothing in it can grow or read a file.
"""

from __future__ import annotations

from collections.abc import Callable

from proa.machine.cloudconfig.parse import MAX_BYTES, Refused
from proa.machine.record import dataclass, field

MAX_DEPTH = 32
MAX_PROPERTIES = 1000

_AZURE = "LinuxProvisioningConfigurationSet"


@dataclass(frozen=True)
class Environment:
    """``properties`` by key; ``azure`` by element name; ``keys`` are Azure's public ssh keys."""

    properties: dict[str, str] = field(default_factory=dict, repr=False)
    azure: dict[str, str] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] = field(default=(), repr=False)


def parse(data: bytes) -> Environment:
    """Raises :class:`Refused` for what is no XML, has a document type, or is too large or deep."""
    properties: dict[str, str] = {}
    azure: dict[str, str] = {}
    keys: list[str] = []

    def start(path: list[str], attributes: dict[str, str]) -> None:
        if path[-1] == "Property" and "key" in attributes and len(properties) < MAX_PROPERTIES:
            properties[attributes["key"]] = attributes.get("value", "")

    def end(path: list[str], content: str) -> None:
        if _AZURE not in path or not content:
            return
        if path[-2:] == ["PublicKey", "Value"] and len(keys) < MAX_PROPERTIES:
            keys.append(content)
        elif path[-2:-1] == [_AZURE] and len(azure) < MAX_PROPERTIES:
            azure[path[-1]] = content

    walk(data, start, end)
    return Environment(properties, azure, tuple(keys))


def walk(
    data: bytes,
    start: Callable[[list[str], dict[str, str]], None],
    end: Callable[[list[str], str], None] = lambda path, content: None,
) -> None:
    """Go through an XML document: ``start`` gets the path of local names of each element and its
    attributes, ``end`` the path and the text right before its end tag. Raises Refused."""
    from xml.parsers import expat  # only a machine with such a disc needs it

    if len(data) > MAX_BYTES:
        raise Refused(f"larger than {MAX_BYTES // 1024} KiB")
    path: list[str] = []
    words: list[str] = []

    def local(name: str) -> str:
        return name.rpartition(" ")[2]

    def started(name: str, attributes: dict[str, str]) -> None:
        path.append(local(name))
        words.clear()
        if len(path) > MAX_DEPTH:
            raise Refused(f"nested deeper than {MAX_DEPTH} levels", reader.CurrentLineNumber)
        start(path, {local(key): value for key, value in attributes.items()})

    def ended(_: str) -> None:
        end(path, "".join(words).strip())
        words.clear()
        path.pop()

    def doctype(*_: object) -> None:
        raise Refused("a document type (DTD) is not taken", reader.CurrentLineNumber)

    reader = expat.ParserCreate(namespace_separator=" ")
    reader.buffer_text = True
    reader.StartElementHandler = started
    reader.EndElementHandler = ended
    reader.CharacterDataHandler = words.append
    reader.StartDoctypeDeclHandler = doctype
    try:
        reader.Parse(data, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise Refused(f"not XML: {reason}", error.lineno, error.offset + 1) from None
    except (ValueError, LookupError, MemoryError):
        raise Refused("not XML: the encoding is not known") from None
