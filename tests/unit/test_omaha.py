"""Omaha messages: what real clients send is understood, and nothing else does harm."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.wire import omaha
from proa.wire.omaha import (
    AppRequest,
    AppResponse,
    ErrorCode,
    Event,
    OmahaError,
    Package,
    Request,
    Response,
    UpdateCheck,
)

# As update_engine sends it (reference/coreos/update-engine.md 1.1): braces, flags in the code.
UPDATE_ENGINE = b"""<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="update_engine-0.4.10" updaterversion="update_engine-0.4.10" \
installsource="scheduler" ismachine="1">
  <os version="Chateau" platform="CoreOS" sp="3510.2.0_x86_64"></os>
  <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" version="3510.2.0" track="stable" \
bootid="{8e2b0b13-1a3e-4a3c-9d27-2f9a6b8ad111}" oem="qemu" oemversion="1" alephversion="3374.2.0" \
machineid="0123456789abcdef0123456789abcdef" machinealias="web-1" lang="en-US" board="amd64-usr" \
hardware_class="" delta_okay="false" >
    <ping active="1"></ping>
    <updatecheck></updatecheck>
    <event eventtype="3" eventresult="0" errorcode="268435500"></event>
  </app>
</request>
"""

# As `updateservicectl instance fake` sends it (recorded-behaviour.md A.4): no braces, no ping.
UPDATESERVICECTL = b"""<request protocol="3.0" installsource="scheduler">\
<os platform="CoreOS" version="lsb"></os>\
<app appid="e96281a6-d1af-4bde-9a0a-97b76e56dc57" version="1.0.0" track="alpha" \
bootid="0b0b0b0b-0000-4000-8000-000000000000" machineid="deadbeefdeadbeefdeadbeefdeadbeef" \
oem="fakeclient"><updatecheck></updatecheck>\
<event eventtype="3" eventresult="2"></event></app></request>"""

# As go-omaha's serve-package answers (recorded-behaviour.md A.4).
GO_OMAHA = b"""<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="go-omaha">
 <daystart elapsed_seconds="0"></daystart>
 <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok">
  <ping status="ok"></ping>
  <updatecheck status="ok">
   <urls><url codebase="http://host/packages"></url></urls>
   <manifest version="2.0.0">
    <packages><package name="update.gz" hash="2jmj7l5rSw0yVb/vlWAYkK/YBwk=" \
hash_sha256="47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" size="100000" required="false">\
</package></packages>
    <actions><action event="postinstall" \
sha256="47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" DisablePayloadBackoff="true"></action>\
</actions>
   </manifest>
  </updatecheck>
  <event status="ok"></event>
 </app>
</response>
"""

# Text that XML can carry; everything else is replaced, which has a test of its own.
_text = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r<>&\"'"),
    max_size=40,
)
_needed = _text.filter(bool)
_number = st.integers(-(1 << 31), 1 << 32)
_events = st.builds(
    Event,
    type=_number,
    result=_number,
    errorcode=st.none() | _number,
    previous_version=st.none() | _text,
    reason=st.none() | _text,
    error_version=st.none() | _text,
)
_requests = st.builds(
    Request,
    apps=st.lists(
        st.builds(
            AppRequest,
            app_id=_needed,
            version=_text,
            track=_text,
            boot_id=_text,
            machine_id=_text,
            machine_alias=_text,
            oem=_text,
            oem_version=_text,
            aleph_version=_text,
            board=_text,
            delta_okay=st.booleans(),
            ping=st.booleans(),
            update_check=st.booleans(),
            events=st.lists(_events, max_size=3).map(tuple),
            next_version=_text,
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    os_platform=_text,
    os_version=_text,
    os_sp=_text,
    updater=_text,
    install_source=_text,
)
_poll = st.none() | st.integers(0, 1 << 31)
_packages = st.builds(
    Package,
    name=_needed.filter(lambda n: "/" not in n and "\\" not in n and n not in (".", "..")),
    size=st.integers(1, 1 << 40),
    sha256_b64=_text,
    sha1_b64=_text,
    required=st.booleans(),
)
_checks = st.builds(UpdateCheck, status=st.just("noupdate"), poll_interval=_poll) | st.builds(
    UpdateCheck,
    status=st.just("ok"),
    codebases=st.lists(_text.map(lambda t: t + "/"), min_size=1, max_size=3).map(tuple),
    version=_needed,
    packages=st.lists(_packages, min_size=1, max_size=3).map(tuple),
    poll_interval=_poll,
    sha256_b64=_needed,
    disable_payload_backoff=st.booleans(),
)
_responses = st.builds(
    Response,
    server=_text,
    apps=st.lists(
        st.builds(
            AppResponse,
            app_id=_needed,
            status=_text,
            ping=st.booleans(),
            update_check=st.none() | _checks,
            events=st.integers(0, 3),
        ),
        max_size=3,
    ).map(tuple),
)


@given(_requests)
def test_a_request_survives_the_wire(request: Request) -> None:
    assert omaha.load_request(omaha.dump_request(request)) == request


@given(_responses)
def test_a_response_survives_the_wire(response: Response) -> None:
    assert omaha.load_response(omaha.dump_response(response)) == response


@given(st.text(st.characters(), max_size=60))
def test_any_reason_makes_well_formed_xml(reason: str) -> None:
    app = AppRequest("a", "1.0.0", "g", "b", "m", events=(Event(3, 0, reason=reason),))
    data = omaha.dump_request(Request((app,)))
    ElementTree.fromstring(data)  # noqa: S314 - our own bytes, read by a second parser
    assert len(omaha.load_request(data).apps[0].events[0].reason or "") == len(reason)


def test_a_long_reason_is_cut_on_both_sides() -> None:
    app = AppRequest("a", "1", "g", "b", "m", events=(Event(3, 0, reason="x" * 9999),))
    data = omaha.dump_request(Request((app,)))
    assert omaha.load_request(data).apps[0].events[0].reason == "x" * omaha.MAX_REASON
    long = data.replace(b"x" * omaha.MAX_REASON, b"x" * 9999)
    assert omaha.load_request(long).apps[0].events[0].reason == "x" * omaha.MAX_REASON


def test_the_request_of_update_engine_is_understood() -> None:
    request = omaha.load_request(UPDATE_ENGINE)
    (app,) = request.apps
    assert request.install_source == "scheduler"
    assert omaha.bare_app_id(app.app_id) == omaha.bare_app_id(omaha.DEFAULT_APP_ID)
    assert (app.version, app.track, app.machine_alias) == ("3510.2.0", "stable", "web-1")
    assert app.ping and app.update_check and not app.delta_okay
    (event,) = app.events
    assert event.errorcode == 0x1000002C
    assert omaha.mask_error(event.errorcode) == ErrorCode.ROLLBACK


def test_the_request_of_updateservicectl_is_understood() -> None:
    (app,) = omaha.load_request(UPDATESERVICECTL).apps
    assert omaha.bare_app_id(app.app_id) == omaha.bare_app_id(omaha.DEFAULT_APP_ID)
    assert app.machine_id == "deadbeef" * 4
    assert app.update_check and not app.ping
    assert app.events == (Event(3, 2),)


def test_the_answer_of_go_omaha_is_understood() -> None:
    (app,) = omaha.load_response(GO_OMAHA).apps
    check = app.update_check
    assert check is not None
    assert check.codebases == ("http://host/packages/",), "a missing slash is added"
    assert check.version == "2.0.0"
    assert check.packages[0].name == "update.gz"
    assert check.packages[0].size == 100000
    assert check.sha256_b64 == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_attributes_are_in_the_order_that_update_engine_sends() -> None:
    app = AppRequest("{id}", "1.0.0", "web", "{boot}", "m", ping=True, update_check=True)
    assert omaha.dump_request(Request((app,), os_sp="1.0.0_x86_64")) == (
        b'<?xml version="1.0" encoding="UTF-8"?>\n'
        b'<request protocol="3.0" version="proa-0.1.0" updaterversion="proa-0.1.0" '
        b'installsource="scheduler" ismachine="1">'
        b'<os version="" platform="Proa" sp="1.0.0_x86_64"></os>'
        b'<app appid="{id}" version="1.0.0" track="web" bootid="{boot}" oem="" oemversion="" '
        b'alephversion="" machineid="m" machinealias="" lang="en-US" board="amd64-usr" '
        b'hardware_class="" delta_okay="false">'
        b'<ping active="1"></ping><updatecheck></updatecheck></app></request>\n'
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_an_omaha_error_or_a_message(data: bytes) -> None:
    for load in (omaha.load_request, omaha.load_response):
        try:
            load(data)
        except OmahaError as error:
            assert error.message


@given(
    st.sampled_from([UPDATE_ENGINE, UPDATESERVICECTL, GO_OMAHA]),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), max_size=4),
)
def test_a_damaged_message_is_an_omaha_error_or_a_message(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) // 2 :]
    for load in (omaha.load_request, omaha.load_response):
        try:
            load(data)
        except OmahaError as error:
            assert error.message


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaaaaaaaa">'
    b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b'<request protocol="3.0"><app appid="&b;"/></request>'
)
FILE_BY_REFERENCE = (
    b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<request protocol="3.0"><app appid="a">&x;</app></request>'
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"hello", "not well-formed"),
        (b"<request", "not well-formed"),
        (BOMB, "document type"),
        (FILE_BY_REFERENCE, "document type"),
        (b"<!DOCTYPE request><request/>", "document type"),
        (b"<request>" + b" " * omaha.MAX_BYTES + b"</request>", "at most"),
        (b"<request>" * 50, "too many elements"),
        (b"<request>" + b"<a/>" * 5000 + b"</request>", "too many elements"),
        (b'<?xml version="1.0"?><response protocol="3.0"/>', "not a <request>"),
        (b'<request protocol="3.0"/>', "no <app>"),
        (b'<request protocol="2.0"><app appid="a"/></request>', "protocol '2.0'"),
        (b'<request protocol="3.0"><app/></request>', "no appid"),
        (b'<request><app appid="a"><event eventresult="1"/></app></request>', "no eventtype"),
        (b'<request><app appid="a"><event eventtype="x"/></app></request>', "not a number"),
        (b'<request><app appid="a" version="' + b"1" * 600 + b'"/></request>', "at most 512"),
    ],
)
def test_a_bad_request_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(OmahaError, match=words):
        omaha.load_request(data)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'updatecheck status="ok"', b'updatecheck status="error-internal"', "error-internal"),
        (b'updatecheck status="ok"', b"updatecheck", "status ''"),
        (b'updatecheck status="ok"', b'updatecheck status="ok" PollInterval="-1"', "negative"),
        (b'codebase="http://host/packages"', b'codebase=""', "no codebase"),
        (b'<url codebase="http://host/packages"></url>', b"", "no <url>"),
        (b'name="update.gz"', b'name=""', "no name"),
        (b'name="update.gz"', b'name="../update.gz"', "plain file name"),
        (b'size="100000"', b'size="0"', "size 0"),
        (b'size="100000"', b'size="many"', "not a number"),
        (b'event="postinstall"', b'event="preinstall"', "postinstall"),
        (b'manifest version="2.0.0"', b"manifest", "no version"),
    ],
)
def test_an_incomplete_offer_is_refused_in_words(old: bytes, new: bytes, words: str) -> None:
    assert old in GO_OMAHA
    with pytest.raises(OmahaError, match=words) as caught:
        omaha.load_response(GO_OMAHA.replace(old, new))
    assert caught.value.code is ErrorCode.OMAHA_RESPONSE_INVALID


def test_an_empty_answer_has_its_own_code() -> None:
    with pytest.raises(OmahaError) as caught:
        omaha.load_response(b"")
    assert caught.value.code is ErrorCode.OMAHA_EMPTY_RESPONSE


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (44, "rolled back"),
        (0x1000002C, "rolled back"),
        (0xF000002C, "rolled back"),
        (-1879048148, "rolled back"),  # The same four flags, printed as a signed 32-bit number.
        (2404, "HTTP status 404"),
        (39, "metadata signature missing"),
        (777, "error 777"),
    ],
)
def test_an_error_code_is_told_in_words(code: int, words: str) -> None:
    assert words in omaha.describe(code)


def test_every_error_code_has_words() -> None:
    for code in ErrorCode:
        assert omaha.describe(code) and not omaha.describe(code).startswith("error ")
