"""Whatever a disk, a hypervisor or a service says, it becomes metadata or a clear refusal."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.lab import metadata as lab
from proa.machine.cloudconfig.parse import Problem, Refused
from proa.machine.cloudconfig.plan import plan
from proa.machine.cloudconfig.sources import azure, nocloud, openstack, ovf, vmware, xen
from proa.machine.cloudconfig.sources.detect import SERVICES, Candidate
from proa.machine.cloudconfig.sources.digitalocean import metadata as droplet
from proa.machine.cloudconfig.sources.gce import metadata as gce_metadata
from proa.machine.cloudconfig.sources.http import Answer, Client, Failed, Patience, pauses, shown
from proa.machine.cloudconfig.sources.http import _check as check_status
from proa.machine.cloudconfig.sources.http import _is_offline as is_offline
from proa.machine.cloudconfig.sources.race import winner
from proa.machine.cloudconfig.sources.reading import addresses, keys, text, unpack
from proa.machine.cloudconfig.sources.services import racer
from proa.machine.cloudconfig.sources.source import Edge, Source

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"

# Texts and trees such as metadata is made of, and such as it is not.

_TEXTS = st.one_of(
    st.sampled_from(
        [
            *("i-1", "web-1", KEY, "10.0.0.5", "2001:db8::7", "255.255.0.0", "x\n- y", "true", ""),
            *(
                "52:54:00:12:34:56",
                "../../etc/shadow",
                "http://a/b",
                "Zm9v",
                "gzip+base64",
                "\x1b[2J",
            ),
            *(
                f"me:{KEY} google-ssh " + '{"expireOn":"2018-12-04T20:12:00+0000"}',
                "a.b.c",
                "\ud800",
            ),
        ]
    ),
    st.text(max_size=8),
)
_NAMES = st.sampled_from(
    [
        *("instance-id", "local-hostname", "public-keys", "network-config", "seedfrom", "network"),
        *("uuid", "hostname", "public_keys", "network_config", "content_path", "cloud-init"),
        *("instance", "attributes", "ssh-keys", "user-data", "zone", "networkInterfaces", "id"),
        *("compute", "vmId", "osProfile", "publicKeys", "keyData", "userData", "interface"),
        *("droplet_id", "interfaces", "public", "private", "ipv4", "ip_address", "netmask", "mac"),
        *(
            "cidr",
            "gateway",
            "dns",
            "nameservers",
            "addresses",
            "address_family",
            "address",
            "plan",
        ),
        *("metadata", "user_data", "ssh_authorized_keys", "vendor_data", "project", "ipv6", "id"),
    ]
)
_TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**300), st.floats(), _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=6)
    ),
    max_leaves=25,
)
_BYTES = st.one_of(
    st.binary(max_size=80),
    _TREES.map(lambda tree: json.dumps(tree).encode()),
    st.just(b"[" * 100_000),
    st.just(b'{"a":' * 100_000),
)


def check(source: Source) -> None:
    """What holds for every source, whatever it was made of."""
    said = source.metadata
    for value in (said.instance_id, said.region, said.zone, said.instance_type, source.name):
        assert value.isprintable()
        assert len(value) <= 300
    for name, address in said.addresses.items():
        family = socket.AF_INET6 if name.endswith("ipv6") else socket.AF_INET
        socket.inet_pton(family, address)
    for problem in source.problems:
        assert str(problem).isprintable()
    json.dumps(said.raw)
    plan(source.user_data, said, unread=source.unread)
    assert repr(source).isprintable()


@given(meta=_BYTES, network=_BYTES, seed=st.dictionaries(_NAMES, _TEXTS, max_size=3))
def test_any_nocloud_files_are_read_or_told(
    meta: bytes, network: bytes, seed: dict[str, str]
) -> None:
    check(nocloud.source("disk", nocloud.Content(meta, b"", None, network), seed, []))


@given(documents=st.tuples(_BYTES, _BYTES, _BYTES, _BYTES, _BYTES))
def test_any_config_drive_is_read_or_told(documents: tuple[bytes, ...]) -> None:
    meta, network, vendor, vendor2, ec2 = documents
    asked: list[str] = []

    def interfaces(path: str) -> bytes:
        asked.append(path)
        return b""

    content = openstack.Content(meta, network, (vendor, vendor2), ec2, interfaces)
    problems: list[Problem] = []
    metadata, vendor_data = openstack.understand(content, problems)
    check(Source("drive", metadata, b"", tuple(problems), vendor_data))
    assert not any(".." in path or path.startswith("/") for path in asked)


_XML = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("<a>", "</a>", "<Property key='userdata' value='x'/>", "<!DOCTYPE a>", "&lt;"),
                *("<LinuxProvisioningConfigurationSet>", "</LinuxProvisioningConfigurationSet>"),
                *("<CustomData>", "Zm9v", "</CustomData>", "<HostName>", "web", "</HostName>"),
                *("<PublicKeys><PublicKey><Value>", "</Value></PublicKey></PublicKeys>", "<!--"),
                *("<?xml version='1.0' encoding='utf-16'?>", "<![CDATA[", "]]>", "&#x41;", "&x;"),
                *("<GoalState><Incarnation>1</Incarnation>", "<InstanceId>", "</InstanceId>"),
                *("<Container><ContainerId>c</ContainerId>", "<RoleInstance>", "</GoalState>"),
                *("<a xmlns='b'>", "<b:a>", "-->", "<?a b?>", "\0"),
            ]
        ),
        st.text(max_size=5),
    ),
    max_size=15,
)


@given(st.one_of(_XML.map(lambda parts: "".join(parts).encode()), st.binary(max_size=60)))
def test_any_xml_is_read_or_refused(data: bytes) -> None:
    source = vmware.from_environment("disc", data, [])
    if source is not None:
        check(source)


def test_azures_set_may_be_the_whole_document() -> None:
    found = ovf.parse(b"<LinuxProvisioningConfigurationSet>x</LinuxProvisioningConfigurationSet>")
    assert found == ovf.Environment()


def test_an_xml_bomb_is_refused_before_it_grows() -> None:
    lines = ["<!DOCTYPE a [", '<!ENTITY e0 "boom">']
    lines += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12)]
    data = "\n".join([*lines, "]><a>&e11;</a>"]).encode()
    with pytest.raises(Refused, match="document type"):
        ovf.parse(data)


@given(
    st.dictionaries(st.sampled_from(["userdata", "metadata", "coreos.config.data"]), _BYTES),
    st.dictionaries(
        st.sampled_from(["userdata.encoding", "metadata.encoding", "hostname", "seedfrom"]), _TEXTS
    ),
)
def test_any_guestinfo_is_read_or_told(packed: dict[str, bytes], words: dict[str, str]) -> None:
    values = {name: value.decode("utf-8", "replace") for name, value in packed.items()}
    values |= {name: value.encode("utf-8", "replace").decode() for name, value in words.items()}
    source = vmware.understand("guestinfo", lambda name: values.get(name, ""))
    if source is not None:
        check(source)


@given(st.dictionaries(st.sampled_from(["user-data", "meta-data", "hostname", "userdata"]), _BYTES))
def test_any_xenstore_is_read_or_told(values: dict[str, bytes]) -> None:
    source = xen.understand("xen", lambda path: values.get(path.removeprefix("vm-data/")))
    if source is not None:
        check(source)


class Scripted(Client):
    """A client whose requests bring what a test wants, in turn."""

    def __init__(self, answers: list[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(Patience(deadline=0.01), lambda: 0.0, threading.Event())
        self._answers = itertools.cycle(answers)
        self._headers = headers
        self._lock = threading.Lock()

    def once(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        limit: int = 0,
        content: bytes | None = None,
    ) -> Answer:
        with self._lock:
            return Answer(200, self._headers, next(self._answers))


@settings(max_examples=60)
@given(answers=st.lists(_BYTES, min_size=1, max_size=4))
@pytest.mark.parametrize("kind", [*SERVICES, "nocloud", "url"])
def test_any_answers_of_a_service_are_metadata_or_a_failure(
    kind: str, answers: list[bytes]
) -> None:
    edge = Edge(Path("/nonexistent"), lambda *_: None, lambda _: None, {})
    client = Scripted(answers, {"metadata-flavor": "Google"})
    try:
        source = racer(Candidate(kind, "http://192.0.2.1"), edge).fetch(client)
    except Failed as failed:
        assert str(failed).isprintable()
        return
    check(source)


@given(_XML.map(lambda parts: "".join(parts).encode()))
def test_any_goal_state_of_azure_is_answered_or_a_failure(answer: bytes) -> None:
    with contextlib.suppress(Failed):
        azure.report_ready(Scripted([answer], {}), "http://192.0.2.1")


# Single rules.


def test_only_an_address_of_its_family_stands_in_for_an_address() -> None:
    given = {
        "private_ipv4": "10.0.0.5\n10.0.0.6",
        "public_ipv4": "10.0.0.5; reboot",
        "public_ipv6": "10.0.0.5",
        "private_ipv6": None,
    }
    # A list, one a line, has the machine's own first; a word that is no address is none.
    assert addresses({"private_ipv4": given["private_ipv4"]}) == {"private_ipv4": "10.0.0.5"}
    assert addresses(given) == {"private_ipv4": "10.0.0.5"}
    assert addresses({"public_ipv4": "\ud800"}) == {}


def test_a_number_is_a_text_but_a_truth_is_none() -> None:
    assert text(4520031799277581759) == "4520031799277581759"
    assert text(True) == text(1.5) == text(None) == text([]) == ""
    assert text(10**5000) == ""
    assert text("a\nb") == "a\ufffdb"


def test_keys_come_from_lists_objects_and_lines() -> None:
    assert keys([KEY, 1, ""]) == (KEY,)
    assert keys({"a": KEY, "b": None}) == (KEY,)
    assert keys(f"{KEY}\n\n{KEY}\n") == (KEY, KEY)
    assert keys([{"keyData": KEY}, "x"], inside="keyData") == (KEY,)
    assert len(keys([KEY] * 5000)) == 256


def test_an_encoding_that_is_not_known_is_told() -> None:
    problems: list[Problem] = []
    assert unpack(b"x", "rot13", "value", problems) is None
    assert "value: the encoding rot13 is not known" in problems[0].message
    bomb = __import__("gzip").compress(b"\0" * (3 << 20))
    assert unpack(bomb, "gzip", "value", problems) is None
    assert "larger than" in problems[1].message


def gce_with(own: dict[str, object], shared: dict[str, object]) -> tuple[str, ...]:
    raw = {"instance": {"attributes": own}, "project": {"attributes": shared}}
    return gce_metadata(raw, now=1_700_000_000.0).ssh_keys


def test_googles_keys_lose_their_user_and_expire() -> None:
    expired = f'me:{KEY} google-ssh {{"userName":"me","expireOn":"2018-12-04T20:12:00+0000"}}'
    valid = f'me:{KEY} google-ssh {{"userName":"me","expireOn":"2099-12-04T20:12:00+0000"}}'
    assert gce_with({"ssh-keys": f"{expired}\n{valid}\nme:{KEY}-2"}, {}) == (KEY, f"{KEY}-2")


def test_an_instance_of_google_can_block_the_keys_of_its_project() -> None:
    project: dict[str, object] = {"ssh-keys": f"me:{KEY}"}
    assert gce_with({}, project) == (KEY,)
    assert gce_with({"block-project-ssh-keys": "TRUE"}, project) == ()
    assert gce_with({"sshKeys": f"me:{KEY}-old"}, project) == (f"{KEY}-old",)


def test_a_droplet_gets_addresses_of_both_families_by_mac() -> None:
    reply = lab.digitalocean(lab.Instance(), lab.Request("GET", "/metadata/v1.json", {}, {}))
    network = droplet(json.loads(reply.body)).network
    assert network is not None
    assert json.loads(network[1]) == {
        "version": 2,
        "ethernets": {
            "public": {
                "match": {"macaddress": "52:54:00:12:34:56"},
                "addresses": ["203.0.113.7/24", "2001:db8::7/64"],
                "routes": [
                    {"to": "default", "via": "203.0.113.1"},
                    {"to": "default", "via": "2001:db8::1"},
                ],
                "nameservers": {"addresses": ["192.0.2.53"]},
            },
            "private": {
                "match": {"macaddress": "52:54:00:12:34:57"},
                "addresses": ["10.0.0.5/16"],
            },
        },
    }


# Waiting and choosing.


@given(vary=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_their_limit_and_differ_between_machines(vary: float) -> None:
    patience = Patience(first_pause=0.1, longest_pause=5)
    found = list(itertools.islice(pauses(patience, lambda: vary), 12))
    for number, pause in enumerate(found):
        most = min(0.1 * 2**number, 5)
        assert most / 2 <= pause < most or pause == pytest.approx(most)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:swordfish@a/b?swordfish#swordfish", "http://a/b"),
        ("https://me@a:8443/", "https://a:8443/"),
        ("http://[fd00:ec2::254]/latest", "http://[fd00:ec2::254]/latest"),
        ("http://[swordfish", "an address that is none"),
        ("http://a:swordfish/", "an address that is none"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, words: str) -> None:
    assert shown(url) == words


@pytest.mark.parametrize(
    "url",
    [
        *("", "a", "ftp://a/b", "file:///etc/shadow", "http://", "http://a:99999999/", "http://[a"),
        *("http://a/\nHost: b", "http://a/ b", "http://\u00e4/", "http://a\0b/"),
    ],
)
def test_what_is_no_address_fails_at_once(url: str) -> None:
    client = Client(Patience(), lambda: 0.0, threading.Event())
    with pytest.raises(Failed) as failed:
        client.get(url)
    assert failed.value.final


def test_the_first_in_the_order_wins_and_gets_a_little_time_for_it() -> None:
    assert winner({}, [(0, False)], 1) is None
    assert winner({0: 10.0}, [(1, True)], 1) == (0, 0.0)
    assert winner({1: 10.0}, [(0, False)], 1) == (1, 11.0)
    assert winner({1: 10.0, 2: 9.5}, [(0, False)], 1) == (1, 10.5)
    assert winner({1: 10.0}, [], 1) == (1, 0.0)
    assert winner({1: 10.0}, [(0, True)], 1) == (1, float("inf"))


def test_a_machine_whose_network_is_not_up_yet_does_not_sit_out_long_pauses() -> None:
    client = Client(Patience(first_pause=3600, longest_pause=3600, deadline=7200), lambda: 0.0)
    failures = [OSError(errno.ENETUNREACH, "x"), socket.gaierror(socket.EAI_AGAIN, "x")]

    def call() -> str:
        if failures:
            raise Failed("no way", offline=is_offline(failures.pop()))
        return "yes"

    assert client.until(call) == "yes"
    assert not is_offline(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    assert not is_offline(socket.gaierror(socket.EAI_NONAME, "x"))


def test_a_server_may_ask_for_a_pause_but_not_for_a_long_one() -> None:
    for after, expected in (("7", 7.0), ("3600", 30.0), ("999", 30.0), ("x", 0.0), ("-1", 0.0)):
        with pytest.raises(Failed) as failed:
            check_status(Answer(503, {"retry-after": after}, b""), "http://a/")
        assert failed.value.after == expected
        assert not failed.value.final
