"""Omaha v3, the XML that a machine and an update server speak (``POST /v1/update/``).

Source of the format: what update_engine really sends and reads, and the recorded answers of
go-omaha (``reference/coreos/update-engine.md`` 1.1-1.3, ``recorded-behaviour.md`` A.4). Dumping
writes those attributes in that order, so that recorded messages and ours can be compared; loading
takes what other clients and servers really send and ignores what it does not know.

Proa adds four attributes that others ignore. In a request, ``nextversion`` of ``<app>`` (a
version that is staged, waiting for a reboot), and of ``<event>`` ``errorversion`` (the version
that failed) and ``reason`` (why, in words, at most :data:`MAX_REASON` characters).

Nothing here is trusted input: a message is bounded in bytes, depth and elements, and a document
type declaration, the source of entity bombs and of files read by reference, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from xml.parsers import expat

DEFAULT_APP_ID = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"
PROTOCOL = "3.0"
CONTENT_TYPE = "text/xml; charset=utf-8"

# A request is about 1 kB and an answer about 2 kB.
MAX_BYTES = 1 << 20
MAX_REASON = 500
_MAX_TEXT = 512
_MAX_DEPTH = 16
_MAX_ELEMENTS = 4096

# update_engine ORs flags into an error code: bit 31 developer mode, 30 resumed download, 29 test
# image, 28 server that is not the vendor's. Every machine with its own server has bit 28 set.
_ERROR_CODE_MASK = 0x0FFFFFFF


class EventType(IntEnum):
    """What an event is about (``eventtype``)."""

    UNKNOWN = 0
    DOWNLOAD_COMPLETE = 1
    INSTALL_COMPLETE = 2
    UPDATE_COMPLETE = 3
    DOWNLOAD_STARTED = 13
    DOWNLOAD_FINISHED = 14
    INSTALLED = 800  # Nebraska's own.


class EventResult(IntEnum):
    """How it ended (``eventresult``)."""

    ERROR = 0
    SUCCESS = 1
    SUCCESS_REBOOT = 2
    SUCCESS_RESTART_BROWSER = 3
    CANCELLED = 4
    NO_UPDATE = 7
    DEFERRED = 9


class ErrorCode(IntEnum):
    """Why it failed (``errorcode``); the numbers are update_engine's."""

    SUCCESS = 0
    ERROR = 1
    OMAHA_REQUEST = 2
    OMAHA_RESPONSE_HANDLER = 3
    FILESYSTEM_COPIER = 4
    POSTINSTALL = 5
    INSTALL_DEVICE_OPEN = 7
    KERNEL_DEVICE_OPEN = 8
    DOWNLOAD_TRANSFER = 9
    PAYLOAD_HASH_MISMATCH = 10
    PAYLOAD_SIZE_MISMATCH = 11
    PAYLOAD_VERIFICATION = 12
    NEW_PARTITION_INFO = 13
    DOWNLOAD_WRITE = 14
    NEW_ROOTFS_VERIFICATION = 15
    NEW_KERNEL_VERIFICATION = 16
    SIGNED_DELTA_PAYLOAD_EXPECTED = 17
    PAYLOAD_PUB_KEY_VERIFICATION = 18
    POSTINSTALL_BOOTED_FROM_FIRMWARE_B = 19
    STATE_INITIALIZATION = 20
    INVALID_METADATA_MAGIC = 21
    SIGNATURE_MISSING_IN_MANIFEST = 22
    MANIFEST_PARSE = 23
    METADATA_SIGNATURE = 24
    METADATA_SIGNATURE_VERIFICATION = 25
    METADATA_SIGNATURE_MISMATCH = 26
    OPERATION_HASH_VERIFICATION = 27
    OPERATION_EXECUTION = 28
    OPERATION_HASH_MISMATCH = 29
    OMAHA_EMPTY_RESPONSE = 30
    OMAHA_XML_PARSE = 31
    INVALID_METADATA_SIZE = 32
    INVALID_METADATA_SIGNATURE = 33
    OMAHA_RESPONSE_INVALID = 34
    UPDATE_IGNORED_PER_POLICY = 35
    UPDATE_DEFERRED_PER_POLICY = 36
    OMAHA_ERROR_IN_HTTP_RESPONSE = 37
    OPERATION_HASH_MISSING = 38
    METADATA_SIGNATURE_MISSING = 39
    UPDATE_DEFERRED_FOR_BACKOFF = 40
    POWERWASH = 41
    NEW_PCR_POLICY_VERIFICATION = 42
    NEW_PCR_POLICY_HTTP = 43
    ROLLBACK = 44
    DOWNLOAD_INCOMPLETE = 100


_WORDS = {
    ErrorCode.SUCCESS: "no error",
    ErrorCode.ERROR: "failed, without saying why",
    ErrorCode.OMAHA_REQUEST: "could not ask the update server",
    ErrorCode.OMAHA_RESPONSE_HANDLER: "could not use the server's answer",
    ErrorCode.FILESYSTEM_COPIER: "could not copy the running system",
    ErrorCode.POSTINSTALL: "the step after installing failed",
    ErrorCode.INSTALL_DEVICE_OPEN: "could not open the slot's partition",
    ErrorCode.KERNEL_DEVICE_OPEN: "could not open the place of the kernel",
    ErrorCode.DOWNLOAD_TRANSFER: "the download failed",
    ErrorCode.PAYLOAD_HASH_MISMATCH: "a downloaded file is not the one that was signed",
    ErrorCode.PAYLOAD_SIZE_MISMATCH: "a downloaded file has the wrong size",
    ErrorCode.PAYLOAD_VERIFICATION: "the release did not verify",
    ErrorCode.NEW_PARTITION_INFO: "the release does not fit the machine's partitions",
    ErrorCode.DOWNLOAD_WRITE: "could not write what was downloaded",
    ErrorCode.NEW_ROOTFS_VERIFICATION: "the written slot did not verify",
    ErrorCode.NEW_KERNEL_VERIFICATION: "the written kernel did not verify",
    ErrorCode.SIGNED_DELTA_PAYLOAD_EXPECTED: "the payload is not signed",
    ErrorCode.PAYLOAD_PUB_KEY_VERIFICATION: "not signed by a key that the machine trusts",
    ErrorCode.POSTINSTALL_BOOTED_FROM_FIRMWARE_B: "booted from the second firmware",
    ErrorCode.STATE_INITIALIZATION: "could not start: the updater's state is unusable",
    ErrorCode.MANIFEST_PARSE: "the release's manifest is not readable",
    ErrorCode.OPERATION_EXECUTION: "could not apply the payload",
    ErrorCode.OMAHA_EMPTY_RESPONSE: "the server's answer was empty",
    ErrorCode.OMAHA_XML_PARSE: "the server's answer was not readable",
    ErrorCode.OMAHA_RESPONSE_INVALID: "the server's answer lacked something or was wrong",
    ErrorCode.UPDATE_IGNORED_PER_POLICY: "ignored: the machine's policy says no",
    ErrorCode.UPDATE_DEFERRED_PER_POLICY: "put off by the machine's policy",
    ErrorCode.OMAHA_ERROR_IN_HTTP_RESPONSE: "the server answered with an HTTP error",
    ErrorCode.UPDATE_DEFERRED_FOR_BACKOFF: "put off after earlier failures",
    ErrorCode.ROLLBACK: "booted, was not healthy, and was rolled back",
    ErrorCode.DOWNLOAD_INCOMPLETE: "the download was cut short",
}


def mask_error(code: int) -> int:
    """Return ``code`` without the flags that clients OR into its upper four bits."""
    return code & _ERROR_CODE_MASK


def describe(code: int) -> str:
    """Say in words what an error code means; flags are ignored, unknown codes are numbered."""
    code = mask_error(code)
    if 2000 <= code <= 2999:
        return f"the server answered with HTTP status {code - 2000}"
    try:
        known = ErrorCode(code)
    except ValueError:
        return f"error {code}"
    return _WORDS.get(known, known.name.lower().replace("_", " "))


class OmahaError(ValueError):
    """A message cannot be used. ``code`` is the :class:`ErrorCode` that a client reports for it."""

    def __init__(self, message: str, code: ErrorCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Event:
    """Something that happened on a machine. ``errorcode`` may carry flags: :func:`mask_error`.

    ``previous_version`` is the version that ran before an update; ``error_version`` the version
    that failed and ``reason`` why, in words (both Proa's own).
    """

    type: int
    result: int
    errorcode: int | None = None
    previous_version: str | None = None
    reason: str | None = None
    error_version: str | None = None


@dataclass(frozen=True)
class AppRequest:
    """What a machine says about the system that it runs. ``track`` is its group."""

    app_id: str
    version: str
    track: str
    boot_id: str
    machine_id: str
    machine_alias: str = ""
    oem: str = ""
    oem_version: str = ""
    aleph_version: str = ""
    board: str = "amd64-usr"
    delta_okay: bool = False
    ping: bool = False
    update_check: bool = False
    events: tuple[Event, ...] = ()
    next_version: str = ""


@dataclass(frozen=True)
class Request:
    """A whole request; ``install_source`` is ``scheduler`` or ``ondemandupdate``."""

    apps: tuple[AppRequest, ...]
    os_platform: str = "Proa"
    os_version: str = ""
    os_sp: str = ""
    updater: str = "proa-0.1.0"
    install_source: str = "scheduler"


@dataclass(frozen=True)
class Package:
    """A file of an offered release: ``size`` in bytes, hashes in base64 of the raw digest."""

    name: str
    size: int
    sha256_b64: str = ""
    sha1_b64: str = ""
    required: bool = True


@dataclass(frozen=True)
class UpdateCheck:
    """The answer to "is there something for me?".

    ``status`` is ``ok`` or ``noupdate``. With ``ok``, a package's URL is a codebase plus the
    package's name, and ``sha256_b64`` is that of the first package (the ``postinstall`` action).
    ``poll_interval`` is in seconds, or None where the server leaves it to the machine.
    """

    status: str
    codebases: tuple[str, ...] = ()
    version: str = ""
    packages: tuple[Package, ...] = ()
    poll_interval: int | None = None
    sha256_b64: str = ""
    disable_payload_backoff: bool = True


@dataclass(frozen=True)
class AppResponse:
    """The answer for one app. ``events`` counts the events that the server acknowledged."""

    app_id: str
    status: str = "ok"
    ping: bool = False
    update_check: UpdateCheck | None = None
    events: int = 0


@dataclass(frozen=True)
class Response:
    """A whole answer. ``server`` names the program that gave it."""

    server: str
    apps: tuple[AppResponse, ...]


def bare_app_id(app_id: str) -> str:
    """Return an app id in the one form to compare: no braces, lower case."""
    return app_id.strip().removeprefix("{").removesuffix("}").lower()


# --- Requests -----------------------------------------------------------------------------------


def dump_request(request: Request) -> bytes:
    """Return the XML of a request. Characters that XML cannot carry become U+FFFD."""
    attributes = {
        "protocol": PROTOCOL,
        "version": request.updater,
        "updaterversion": request.updater,
        "installsource": request.install_source,
        "ismachine": "1",
    }
    system = {
        "version": request.os_version,
        "platform": request.os_platform,
        "sp": request.os_sp,
    }
    apps = "".join(_dump_app_request(app) for app in request.apps)
    return _document("request", attributes, _xml("os", system) + apps)


def _dump_app_request(app: AppRequest) -> str:
    attributes = {
        "appid": app.app_id,
        "version": app.version,
        "track": app.track,
        "bootid": app.boot_id,
        "oem": app.oem,
        "oemversion": app.oem_version,
        "alephversion": app.aleph_version,
        "machineid": app.machine_id,
        "machinealias": app.machine_alias,
        "lang": "en-US",
        "board": app.board,
        "hardware_class": "",
        "delta_okay": _bool(app.delta_okay),
    }
    if app.next_version:
        attributes["nextversion"] = app.next_version
    body = ""
    if app.ping:
        body += _xml("ping", {"active": "1"})
    if app.update_check:
        body += _xml("updatecheck", {})
    body += "".join(_dump_event(event) for event in app.events)
    return _xml("app", attributes, body)


def _dump_event(event: Event) -> str:
    attributes = {"eventtype": str(int(event.type)), "eventresult": str(int(event.result))}
    if event.previous_version is not None:
        attributes["previousversion"] = event.previous_version
    if event.errorcode is not None:
        attributes["errorcode"] = str(int(event.errorcode))
    if event.error_version is not None:
        attributes["errorversion"] = event.error_version
    if event.reason is not None:
        attributes["reason"] = event.reason[:MAX_REASON]
    return _xml("event", attributes)


def load_request(data: bytes) -> Request:
    """Parse a request, or raise :class:`OmahaError` with a message for its sender."""
    root = _parse(data, "request")
    protocol = root.text("protocol", PROTOCOL)
    if protocol.partition(".")[0] != "3":
        raise _invalid(f"the request speaks Omaha protocol {protocol!r}; this server speaks 3.0")
    apps = tuple(_load_app_request(app) for app in root.all("app"))
    if not apps:
        raise _invalid("the request has no <app>")
    system = root.first("os") or _Element("os", {})
    return Request(
        apps=apps,
        os_platform=system.text("platform"),
        os_version=system.text("version"),
        os_sp=system.text("sp"),
        updater=root.text("updaterversion") or root.text("version"),
        install_source=root.text("installsource"),
    )


def _load_app_request(app: _Element) -> AppRequest:
    return AppRequest(
        app_id=app.required("appid"),
        version=app.text("version"),
        track=app.text("track"),
        boot_id=app.text("bootid"),
        machine_id=app.text("machineid"),
        machine_alias=app.text("machinealias"),
        oem=app.text("oem"),
        oem_version=app.text("oemversion"),
        aleph_version=app.text("alephversion"),
        board=app.text("board"),
        delta_okay=app.boolean("delta_okay"),
        ping=app.first("ping") is not None,
        update_check=app.first("updatecheck") is not None,
        events=tuple(_load_event(event) for event in app.all("event")),
        next_version=app.text("nextversion"),
    )


def _load_event(event: _Element) -> Event:
    reason = event.attributes.get("reason")
    return Event(
        type=event.number("eventtype"),
        result=event.number("eventresult"),
        errorcode=event.number("errorcode") if "errorcode" in event.attributes else None,
        previous_version=event.optional("previousversion"),
        reason=None if reason is None else reason[:MAX_REASON],
        error_version=event.optional("errorversion"),
    )


# --- Responses ----------------------------------------------------------------------------------


def dump_response(response: Response) -> bytes:
    """Return the XML of an answer. Characters that XML cannot carry become U+FFFD."""
    body = _xml("daystart", {"elapsed_seconds": "0"})
    body += "".join(_dump_app_response(app) for app in response.apps)
    return _document("response", {"protocol": PROTOCOL, "server": response.server}, body)


def _dump_app_response(app: AppResponse) -> str:
    body = ""
    if app.ping:
        body += _xml("ping", {"status": "ok"})
    if app.update_check is not None:
        body += _dump_update_check(app.update_check)
    body += _xml("event", {"status": "ok"}) * app.events
    return _xml("app", {"appid": app.app_id, "status": app.status}, body)


def _dump_update_check(check: UpdateCheck) -> str:
    attributes = {"status": check.status}
    if check.poll_interval is not None:
        attributes["PollInterval"] = str(check.poll_interval)
    if check.status != "ok":
        return _xml("updatecheck", attributes)
    urls = "".join(_xml("url", {"codebase": codebase}) for codebase in check.codebases)
    packages = "".join(_dump_package(package) for package in check.packages)
    action = {
        "event": "postinstall",
        "sha256": check.sha256_b64,
        "DisablePayloadBackoff": _bool(check.disable_payload_backoff),
    }
    manifest = _xml("packages", {}, packages) + _xml("actions", {}, _xml("action", action))
    body = _xml("urls", {}, urls) + _xml("manifest", {"version": check.version}, manifest)
    return _xml("updatecheck", attributes, body)


def _dump_package(package: Package) -> str:
    attributes = {
        "name": package.name,
        "hash": package.sha1_b64,
        "hash_sha256": package.sha256_b64,
        "size": str(package.size),
        "required": _bool(package.required),
    }
    return _xml("package", attributes)


def load_response(data: bytes) -> Response:
    """Parse an answer, or raise :class:`OmahaError` with the code that update_engine would report.

    An update check is either ``noupdate`` or a complete offer: a codebase, a version, a first
    package with name and size, and the ``postinstall`` action with its sha256.
    """
    root = _parse(data, "response")
    return Response(
        server=root.text("server"),
        apps=tuple(_load_app_response(app) for app in root.all("app")),
    )


def _load_app_response(app: _Element) -> AppResponse:
    check = app.first("updatecheck")
    return AppResponse(
        app_id=app.required("appid"),
        status=app.text("status"),
        ping=app.first("ping") is not None,
        update_check=None if check is None else _load_update_check(check),
        events=len(app.all("event")),
    )


def _load_update_check(check: _Element) -> UpdateCheck:
    status = check.text("status")
    poll = check.number("PollInterval") if "PollInterval" in check.attributes else None
    if poll is not None and poll < 0:
        raise _invalid("<updatecheck> has a negative PollInterval")
    if status == "noupdate":
        return UpdateCheck(status, poll_interval=poll)
    if status != "ok":
        raise _invalid(f"the server answered the update check with status {status!r}")
    manifest = check.only("manifest")
    packages = tuple(_load_package(p) for p in manifest.only("packages").all("package"))
    if not packages:
        raise _invalid("the server offers a release without packages")
    codebases = tuple(_codebase(url.required("codebase")) for url in check.only("urls").all("url"))
    if not codebases:
        raise _invalid("the server offers a release without saying where it lies (no <url>)")
    actions = manifest.first("actions")
    for action in actions.all("action") if actions else ():
        if action.text("event") == "postinstall":
            return UpdateCheck(
                status,
                codebases=codebases,
                version=manifest.required("version"),
                packages=packages,
                poll_interval=poll,
                sha256_b64=action.required("sha256"),
                disable_payload_backoff=action.boolean("DisablePayloadBackoff"),
            )
    raise _invalid("the server offers a release without a postinstall action")


def _load_package(package: _Element) -> Package:
    name, size = package.required("name"), package.number("size")
    # The name is joined to a URL, and by some clients to a directory.
    if "/" in name or "\\" in name or name in (".", ".."):
        raise _invalid(f"the package name {name!r} is not a plain file name")
    if size <= 0:
        raise _invalid(f"the package {name!r} has size {size}")
    return Package(
        name=name,
        size=size,
        sha256_b64=package.text("hash_sha256"),
        sha1_b64=package.text("hash"),
        required=package.boolean("required"),
    )


def _codebase(url: str) -> str:
    return url if url.endswith("/") else url + "/"


# --- XML ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Element:
    """An XML element without its text (Omaha keeps everything in attributes)."""

    name: str
    attributes: Mapping[str, str]
    children: list[_Element] = field(default_factory=list)

    def all(self, name: str) -> list[_Element]:
        return [child for child in self.children if child.name == name]

    def first(self, name: str) -> _Element | None:
        return next(iter(self.all(name)), None)

    def only(self, name: str) -> _Element:
        if (child := self.first(name)) is None:
            raise _invalid(f"<{self.name}> has no <{name}>")
        return child

    def text(self, attribute: str, default: str = "") -> str:
        value = self.attributes.get(attribute, default)
        if len(value) > _MAX_TEXT:
            raise _invalid(
                f"{attribute} of <{self.name}> has {len(value)} characters; "
                f"at most {_MAX_TEXT} are allowed"
            )
        return value

    def optional(self, attribute: str) -> str | None:
        return self.text(attribute) if attribute in self.attributes else None

    def required(self, attribute: str) -> str:
        if not (value := self.text(attribute)):
            raise _invalid(f"<{self.name}> has no {attribute}")
        return value

    def boolean(self, attribute: str) -> bool:
        return self.text(attribute).lower() in ("true", "1")

    def number(self, attribute: str) -> int:
        value = self.required(attribute)
        if not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise _invalid(f"{attribute} of <{self.name}> is {value!r}, not a number")
        return int(value)


def _parse(data: bytes, root_name: str) -> _Element:
    """Read the element tree of ``data``; no DTD, bounded in every direction."""
    if not data.strip():
        raise OmahaError("the message is empty", ErrorCode.OMAHA_EMPTY_RESPONSE)
    if len(data) > MAX_BYTES:
        raise _unreadable(f"the message has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    holder = _Element("", {})
    path = [holder]
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MAX_ELEMENTS or len(path) > _MAX_DEPTH:
            raise _unreadable("the message has too many elements")
        element = _Element(name, attributes)
        path[-1].children.append(element)
        path.append(element)

    def end(_name: str) -> None:
        path.pop()

    def doctype(*_: object) -> None:
        raise _unreadable("the message has a document type declaration, which Omaha does not use")

    # Naming the encoding overrides the document's own, so it cannot ask for one of Python's codecs.
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise _unreadable(f"the message is not well-formed XML: {error}") from None
    root = holder.children[0]
    if root.name != root_name:
        raise _invalid(f"the message is a <{root.name}>, not a <{root_name}>")
    return root


def _unreadable(message: str) -> OmahaError:
    return OmahaError(message, ErrorCode.OMAHA_XML_PARSE)


def _invalid(message: str) -> OmahaError:
    return OmahaError(message, ErrorCode.OMAHA_RESPONSE_INVALID)


# XML 1.0 §2.2: everything but these characters may stand in a document.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Whitespace in an attribute must be written as a reference, or readers turn it into a blank.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    | {char: f"&#{ord(char)};" for char in "\t\n\r"}
)


def _attributes(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f' {name}="{_NOT_XML.sub(chr(0xFFFD), value).translate(_ESCAPES)}"' for name, value in pairs
    )


def _xml(name: str, attributes: Mapping[str, str], body: str = "") -> str:
    return f"<{name}{_attributes(attributes.items())}>{body}</{name}>"


def _document(name: str, attributes: Mapping[str, str], body: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_xml(name, attributes, body)}\n'.encode()


def _bool(value: bool) -> str:
    return "true" if value else "false"
