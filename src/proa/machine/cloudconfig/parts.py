"""What a cloud hands over, taken apart: from its bytes to a list of parts in their order.

One document, by its first line, as coreos-cloudinit knew it:

    #cloud-config     exactly this word, white space behind it         a cloud-config
    #!…                                                                a script
    {"ignition": …}   JSON with ignition.version or ignitionVersion    an Ignition config
    (nothing)                                                          nothing

what cloud-init added:

    Content-Type: …, MIME-Version: …    a MIME message, each part by its type or its first line
    #include, #include-once             addresses; what they answer is a document again
    #cloud-config-archive               a list of documents in YAML
    #cloud-boothook                     a script that runs early on every boot
    ## template: jinja                  a cloud-config or script with {{ … }} to fill in

and ``variant: …`` on a line of its own, a Butane config. Any of them may be gzipped.

Further than CoreOS went, as cloud-init does: white space before the first line (a heredoc often
brings some), and base64 round a whole document, which no known first line can be mistaken for.
Not as cloud-init does: ``#cloud-config v2`` or ``#Cloud-Config`` is not a cloud-config, as it was
none to CoreOS; a document that is none of these is an error and not left out; a script that has no
``#!`` line gets ``#!/bin/sh`` and a warning, where cloud-init fails when it would run; a template
is one by its first line even where its type says cloud-config. For the rest, the kinds of parts
are those that cloud-init 22.4 finds, compared on 3,000 messages made at random.

Everything is bounded: bytes, parts, how deep they are wrapped, addresses that are fetched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from proa.machine.cloudconfig.parse import (
    MAX_BYTES,
    Items,
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    decode,
    gunzip,
    load,
    printable,
    unbase64,
)
from proa.machine.hints import Literal
from proa.machine.record import dataclass, field, replace

MAX_TOTAL = 4 * MAX_BYTES
"""Most bytes of all documents together, each counted in every wrapping that it comes in."""
MAX_PARTS = 100
MAX_WRAPPINGS = 6
"""How deep a document may be wrapped: gzip, MIME, archive, include, each one in another."""
MAX_FETCHES = 32

Kind = Literal["cloud-config", "template", "script", "boothook", "ignition", "butane"]
Wrapping = Literal["mime", "archive", "include", "include-once"]
Frequency = Literal["per-boot", "per-instance", "per-once"]

Fetch = Callable[[str], bytes]
"""Fetches one http or https address, with bounds of its own; raises OSError or :class:`Refused`,
whose message holds no secret of the address."""


@dataclass(frozen=True)
class Place:
    """Where a text stands, so that a problem in it can be told.

    ``name`` is "" for the owner's document itself. ``before`` is how many lines of that document
    stand before the text; ``None`` if the lines of the text are not lines of the document. ``at``
    is the line of the document that the text as a whole is told to be on.
    """

    name: str = ""
    before: int | None = 0
    at: int = 0

    def inside(self, name: str, before: int | None, at: int) -> Place:
        """The place of a text that begins on line ``at`` of this one, after ``before`` lines."""
        name = f"{self.name}, {name}" if self.name else name
        if self.before is None:
            return Place(name, None, self.at)
        return Place(name, None if before is None else self.before + before, self.before + at)

    def tell(self, problem: Problem) -> Problem:
        """A problem whose line is a line of this text, as one of the whole document."""
        name, line, column = self.name, problem.line, problem.column
        if not line or self.before is None:
            name = f"{name}, line {line}" if line else name
            line, column = self.at, 0
        else:
            line += self.before
        message = f"{name}: {problem.message}" if name else problem.message
        return replace(problem, message=message, line=line, column=column)


@dataclass(frozen=True)
class Part:
    """One document that holds no others. Its content begins with the line that names its kind,
    unless a MIME head or an archive named it."""

    kind: Kind
    content: bytes = field(repr=False)
    place: Place = Place()
    name: str = ""
    """A name that is fit for a file, "" if the part brought none."""
    frequency: Frequency = "per-instance"
    """Of a script. A boothook runs on every boot."""
    merge_type: str = ""
    """``Merge-Type`` of a MIME head, see :mod:`proa.machine.cloudconfig.merge`."""
    whole: bool = False
    """The part is all that there is, not wrapped in MIME, an archive or an include."""


@dataclass(frozen=True)
class Parts:
    parts: tuple[Part, ...] = ()
    problems: tuple[Problem, ...] = ()
    needs_network: bool = False
    """An address was not fetched because ``fetch`` is ``None``; its parts are missing here."""
    once: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What the addresses of ``#include-once`` answered, if it was good: to be kept, for this
    instance, and given to the next call as ``kept``."""


def take_apart(
    data: bytes,
    fetch: Fetch | None = None,
    *,
    name: str = "",
    kept: Mapping[str, bytes] = MappingProxyType({}),
) -> Parts:
    """The parts in ``data``. Never raises, whatever the bytes are: what is bad is a problem.

    ``name`` is put before each problem ("vendor-data"); ``kept`` is :attr:`Parts.once` of before.
    """
    taking = _Taking(fetch, kept)
    taking.document(data, _Wrapped(Place(name), whole=True))
    return Parts(
        tuple(taking.parts), tuple(taking.problems), taking.needs_network, dict(taking.once)
    )


# What a document is.

_COMMENTS: Mapping[str, Kind | Wrapping] = {
    "#cloud-config": "cloud-config",
    "#cloud-config-archive": "archive",
    "#cloud-boothook": "boothook",
}
_REFUSED_WORDS = {
    "#part-handler": "a part-handler: Python code for cloud-init itself, which is not here",
    "#upstart-job": "a job for upstart, which is not here; write a systemd unit",
    "#cloud-config-jsonp": "a JSON patch for a cloud-config, which is not taken; merge_how may do",
}
_HEAD = rb"(?m)^#cloud-config[ \t\r]*$"  # this one and the next: only where a document is refused
_LIKE_BUTANE = rb"(?m)^(?:passwd|storage|systemd)[ \t]*:"
_TEMPLATE = re.compile(rb"##[ \t]*template:[ \t]*(\S*)[ \t\r]*$", re.IGNORECASE)
_BUTANE = re.compile(rb"^variant[ \t]*:", re.MULTILINE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\r\n]{16,}")
_IGNITION = re.compile(rb'"ignition(?:Version)?"\s*:')
_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?\s*")


def _first_line(data: bytes) -> bytes:
    return data[:1000].split(b"\n", 1)[0]


def recognise(data: bytes) -> Kind | Wrapping | None:
    """What the first line says; ``None`` if it says nothing, :class:`Refused` if it says what is
    not taken. ``data`` begins with no white space."""
    first = _first_line(data)
    words = first.decode("utf-8", "replace").split()
    word = words[0] if words else ""
    if first.startswith(b"#!"):
        return "script"
    if word in ("#include", "#include-once"):
        return "include-once" if word == "#include-once" else "include"
    if word in _COMMENTS and len(words) == 1:
        return _COMMENTS[word]
    if word in _REFUSED_WORDS:
        raise Refused(f"this is {_REFUSED_WORDS[word]}", 1, 1)
    if template := _TEMPLATE.match(first):
        if template[1].lower() != b"jinja":
            raise Refused("of templates only jinja is known", 1, 1)
        return "template"
    if first.startswith(b"{"):  # whether it is a good one, its own reader says
        return "ignition" if _IGNITION.search(data) else None
    from proa.machine.cloudconfig import mime  # a rare form

    if mime.is_mime(data):
        return "mime"
    return "butane" if _BUTANE.search(data) and word.lower() not in _COMMENTS else None


def unknown(data: bytes) -> Refused:
    """Why a document is none that is known."""
    first = _first_line(data)
    word = first.split(maxsplit=1)[0].decode("utf-8", "replace").lower() if first.split() else ""
    if first[:14].lower().startswith((b"<!doctype html", b"<html")):
        return Refused("this is a web page (HTML), not user-data", 1, 1)
    if word in _COMMENTS:
        return Refused(f'the first line must be "{word}" and nothing else', 1, 1)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Refused("this is UTF-16, as some editors of Windows save it; save it as UTF-8", 1, 1)
    if first.startswith(b"{"):
        message = 'this begins like JSON, but has no "ignition" as an Ignition config has'
        return Refused(message, 1, 1)
    if later := re.search(_HEAD, data[:10_000]):
        line = data.count(b"\n", 0, later.start()) + 1
        message = f'"#cloud-config" must be the first line of all; it stands on line {line}'
        return Refused(message, 1, 1)
    message = 'the first line is not "#cloud-config", nor that of another known form'
    if re.search(_LIKE_BUTANE, data[:10_000]):
        message += '; for Butane, which Container Linux Config became: "variant: flatcar"'
    return Refused(message, 1, 1)


# What a head says that a part is; the types of cloud-init's documentation.

_TYPES: Mapping[str, Kind | Wrapping] = {
    "text/cloud-config": "cloud-config",
    "text/cloud-config-archive": "archive",
    "text/cloud-boothook": "boothook",
    "text/jinja2": "template",
    "text/x-include-url": "include",
    "text/x-include-once-url": "include-once",
    "text/x-shellscript": "script",
    "text/x-shellscript-per-boot": "script",
    "text/x-shellscript-per-instance": "script",
    "text/x-shellscript-per-once": "script",
}
_FREQUENCIES: Mapping[str, Frequency] = {
    "text/x-shellscript-per-boot": "per-boot",
    "text/x-shellscript-per-once": "per-once",
}
_REFUSED_TYPES = {
    "text/part-handler": _REFUSED_WORDS["#part-handler"],
    "text/upstart-job": _REFUSED_WORDS["#upstart-job"],
    "text/cloud-config-jsonp": _REFUSED_WORDS["#cloud-config-jsonp"],
}
# Types that say nothing of what a part is for.
_GENERAL_TYPE = re.compile(
    r"(text/(plain|x-not-multipart)|application/(octet-stream|([a-z.]+\+)?json"
    r"|(x-)?(gzip|gunzip|gzipped|compress|compressed)(-compressed)?))?"
)


@dataclass(frozen=True)
class _Wrapped:
    """A document that is still to be opened: where it is, and what was said about it outside."""

    place: Place
    content_type: str = ""
    otherwise: Kind | None = None
    """What it is if neither its type nor its first line says anything."""
    name: str = ""
    merge_type: str = ""
    wrappings: int = 0
    addresses: tuple[str, ...] = ()
    """Those that led here."""
    whole: bool = False

    def inside(self, name: str, before: int | None, at: int) -> _Wrapped:
        """What is wrapped in it, with nothing said about it yet."""
        place = self.place.inside(name, before, at)
        return _Wrapped(place, wrappings=self.wrappings + 1, addresses=self.addresses)


class _Taking:
    """What has been found so far, and what it cost."""

    def __init__(self, fetch: Fetch | None, kept: Mapping[str, bytes]) -> None:
        self.fetch = fetch
        self.kept = kept
        self.parts: list[Part] = []
        self.problems: list[Problem] = []
        self.needs_network = False
        self.once: dict[str, bytes] = {}
        self.total = 0
        self.fetches = 0

    def document(self, data: bytes, wrapped: _Wrapped) -> None:
        """Open one document; what is wrong with it becomes a problem, and the others go on."""
        with self._telling(wrapped):
            self._open(data, wrapped)

    @contextlib.contextmanager
    def _telling(self, wrapped: _Wrapped) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            self.problems.append(wrapped.place.tell(refused.problem))

    def warn(self, wrapped: _Wrapped, message: str, line: int = 0) -> None:
        self.problems.append(wrapped.place.tell(Problem("warning", message, line)))

    def _open(self, data: bytes, wrapped: _Wrapped) -> None:
        if wrapped.wrappings > MAX_WRAPPINGS:
            raise Refused(f"this is wrapped deeper than {MAX_WRAPPINGS} times; is it in itself?")
        self.total += len(data)
        if len(data) > MAX_BYTES:
            raise Refused(f"the document is larger than {MAX_BYTES // 1024} KiB")
        if self.total > MAX_TOTAL:
            raise Refused(f"all documents together are larger than {MAX_TOTAL // 1024} KiB")
        if data[:2] == b"\x1f\x8b":
            inner = replace(wrapped, wrappings=wrapped.wrappings + 1)
            if not wrapped.whole:
                inner = replace(inner, place=replace(wrapped.place, before=None))
            self.document(gunzip(data, MAX_BYTES), inner)
            return
        if wrapped.content_type in _REFUSED_TYPES:
            raise Refused(f"this is {_REFUSED_TYPES[wrapped.content_type]}", 1)
        blank = _BLANK.match(data)
        skipped = blank.end() if blank else 0
        if skipped == len(data):
            return
        before = wrapped.place.before
        if skipped and before is not None:
            lines = data.count(b"\n", 0, skipped)
            wrapped = replace(wrapped, place=replace(wrapped.place, before=before + lines))
        with self._telling(wrapped):
            self._recognised(data[skipped:], wrapped)

    def _recognised(self, data: bytes, wrapped: _Wrapped) -> None:
        general = _GENERAL_TYPE.fullmatch(wrapped.content_type)
        kind = _kind(data, wrapped.content_type) or (wrapped.otherwise if general else None)
        match kind:
            case None if general:
                raise unknown(data)
            case None:
                shown = printable(wrapped.content_type)
                self.warn(wrapped, f"the type {shown} is not known; this part is left out")
            case "base64":
                inner = unbase64(data.decode("ascii")) or b""
                self.document(inner, replace(wrapped, wrappings=wrapped.wrappings + 1))
            case "mime":
                self._message(data, wrapped)
            case "archive":
                self._archive(data, wrapped)
            case "include" | "include-once":
                self._include(data, wrapped, kind == "include-once")
            case _:
                self._part(kind, data, wrapped)

    def _part(self, kind: Kind, data: bytes, wrapped: _Wrapped) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise Refused(f"more than {MAX_PARTS} parts")
        if kind in ("script", "boothook"):
            data, complaint = runnable(kind, data)
            if complaint:
                self.warn(wrapped, complaint, 1)
        frequency = _FREQUENCIES.get(wrapped.content_type, "per-instance")
        part = Part(
            kind,
            data,
            wrapped.place,
            wrapped.name,
            "per-boot" if kind == "boothook" else frequency,
            wrapped.merge_type,
            wrapped.whole,
        )
        self.parts.append(part)

    def _message(self, data: bytes, wrapped: _Wrapped) -> None:
        from proa.machine.cloudconfig import mime

        for number, leaf in enumerate(mime.split(data), 1):
            shown = f"part {number} ({leaf.name})" if leaf.name else f"part {number}"
            inner = replace(
                wrapped.inside(shown, leaf.lines_before, leaf.head_line),
                content_type=leaf.content_type,
                name=file_name(leaf.name),
                merge_type=leaf.merge_type,
            )
            if leaf.launch_index:
                self.warn(inner, "Launch-Index is not taken: every machine gets this part")
            self.document(leaf.content, inner)

    def _archive(self, data: bytes, wrapped: _Wrapped) -> None:
        root = load(decode(data))
        if root is None:
            return
        if not isinstance(root, Items):
            raise Refused("an archive wants a list", root.line, root.column)
        if len(root.items) > MAX_PARTS:
            raise Refused(f"more than {MAX_PARTS} parts in an archive", root.line)
        for number, item in enumerate(root.items, 1):
            # The lines of a text in YAML are its own: it may be folded, or hold \n.
            inner = wrapped.inside(f"item {number} of the archive", None, item.line)
            entries: dict[str, Node] = {"content": item}
            if isinstance(item, Table):
                entries = {canonical(key.text): value for key, value in item.entries}
            content = entries.get("content")
            if not isinstance(content, Text):
                message = f"item {number} of the archive has no text as its content"
                raise Refused(message, item.line, item.column)
            said = {name: node.text for name, node in entries.items() if isinstance(node, Text)}
            if "launch_index" in said:
                self.warn(inner, "launch-index is not taken: every machine gets this part")
            inner = replace(
                inner,
                content_type=said.get("type", "").strip().lower(),
                name=file_name(said.get("filename", "")),
                merge_type=said.get("merge_type", ""),
                otherwise="cloud-config",  # as in cloud-init
            )
            data = content.binary if content.binary is not None else content.text.encode()
            self.document(data, inner)

    def _include(self, data: bytes, wrapped: _Wrapped, once: bool) -> None:
        for number, line in enumerate(decode(data).split("\n"), 1):
            if line.startswith("#include"):
                once = line.startswith("#include-once")
                line = line.removeprefix("#include").removeprefix("-once")
            url = line.strip()
            if not url or url.startswith("#"):
                continue
            self.fetches += 1
            if self.fetches > MAX_FETCHES:
                raise Refused(f"more than {MAX_FETCHES} addresses to include", number)
            try:
                self._fetched(url, wrapped, once, number)
            except Refused as refused:
                self.problems.append(
                    wrapped.place.tell(Problem("error", refused.problem.message, number))
                )

    def _fetched(self, url: str, wrapped: _Wrapped, once: bool, line: int) -> None:
        if not _ADDRESS.fullmatch(url):
            raise Refused("an #include wants addresses that begin with http:// or https://")
        if url in wrapped.addresses:
            raise Refused(f"{without_secrets(url)} includes itself")
        if once and url in self.kept:
            answer = self.kept[url]
        elif self.fetch is None:
            self.needs_network = True
            return
        else:
            answer = _answer(self.fetch, url)
        inner = wrapped.inside(without_secrets(url), None, line)
        problems = len(self.problems)
        self.document(answer, replace(inner, addresses=(*wrapped.addresses, url)))
        good = all(problem.level != "error" for problem in self.problems[problems:])
        if once and good and answer:
            self.once[url] = answer


def _kind(data: bytes, content_type: str) -> Kind | Wrapping | Literal["base64"] | None:
    """By the type that was said, else by the first line; ``None`` if neither is known."""
    said = _TYPES.get(content_type)
    if content_type == "text/x-shellscript":  # tools call all kinds of things a shell script
        return recognise(data) or said
    if said in ("script", "cloud-config") and _TEMPLATE.match(_first_line(data)):
        return recognise(data)
    if said is not None:
        return said
    if not _GENERAL_TYPE.fullmatch(content_type):
        return None
    kind = recognise(data)
    if kind is None and _BASE64.fullmatch(data):
        inner = unbase64(data.decode("ascii"))
        if inner is not None and (inner[:2] == b"\x1f\x8b" or recognise(inner) is not None):
            return "base64"
    return kind


_ADDRESS = re.compile(r"https?://[!-~]{1,2000}")


def _answer(fetch: Fetch, url: str) -> bytes:
    shown = without_secrets(url)
    try:
        return fetch(url)
    except Refused as refused:
        raise Refused(f"{shown}: {refused.problem.message}") from None
    except OSError as error:
        reason = error.strerror or printable(str(error), 200) or type(error).__name__
        if shown in reason:
            raise Refused(reason) from None
        raise Refused(f"{shown} could not be fetched: {reason}") from None


def without_secrets(url: str) -> str:
    """An address without user, password, query and fragment: any of them may be a secret."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return printable(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}", 100)


def file_name(text: str) -> str:
    """The last component of ``text`` as a name that is safe for a file, at most 64 characters."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[/\\]", text)[-1])
    return name.lstrip(".-")[:64]


def runnable(kind: Kind, data: bytes) -> tuple[bytes, str]:
    """A script or boothook as a file that the kernel can run, and what was not as it should be.

    Windows' line ends become those of Linux if the first line has one.
    """
    if kind == "boothook" and data.startswith(b"#cloud-boothook"):
        data = data.removeprefix(b"#cloud-boothook").lstrip()
    first, end, _ = data.partition(b"\n")
    if end and first.endswith(b"\r"):
        data = data.replace(b"\r\n", b"\n")
    if data.startswith(b"#!"):
        return data, ""
    return b"#!/bin/sh\n" + data, f'the {kind} does not begin with "#!"; /bin/sh runs it'
