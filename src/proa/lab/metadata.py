"""A metadata service for machines of the lab: what a cloud answers, and how clouds fail.

    python -m proa.lab.metadata --cloud ec2 --listen 169.254.169.254:80 --user-data FILE
    python -m proa.lab.metadata --cloud gce --fault slow=1 --fault fail=3

Clouds: docs.aws.amazon.com "Instance metadata and user data"; cloud.google.com "About VM metadata";
docs.openstack.org "Metadata service"; learn.microsoft.com "Azure Instance Metadata Service";
docs.digitalocean.com "Droplet metadata API"; deploy.equinix.com "Metadata"; docs.hetzner.cloud
"Server metadata"; docs.oracle.com "Instance metadata". Each refuses what the real one refuses.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

EXAMPLE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@lab"


@dataclass(frozen=True)
class Instance:
    """What the cloud knows of one machine."""

    instance_id: str = "i-0123456789abcdef0"
    hostname: str = "web-1"
    ssh_keys: tuple[str, ...] = (EXAMPLE_KEY,)
    user_data: bytes | None = b"#cloud-config\n"
    vendor_data: str = ""
    private_ipv4: str = "10.0.0.5"
    public_ipv4: str = "203.0.113.7"
    public_ipv6: str = "2001:db8::7"
    region: str = "north-1"
    zone: str = "north-1a"
    instance_type: str = "small"
    mac: str = "52:54:00:12:34:56"


@dataclass(frozen=True)
class Faults:
    """How the service fails. The first ``fail`` requests get the status ``status``."""

    slow: float = 0.0
    """Seconds before each answer."""
    fail: int = 0
    status: int = 503
    silent: bool = False
    """It takes the connection and never answers."""
    html: bool = False
    """A web page and status 200, as a captive portal or a lost error page."""
    wrong: bool = False
    """JSON that is not an object where one belongs, and text of no use elsewhere."""
    endless: bool = False
    drip: float = 0.0
    """Seconds between one byte of the answer and the next."""
    redirects: bool = False
    """Each answer sends to another address on this server."""
    elsewhere: str = ""
    """Each answer sends to this other server."""
    cut: bool = False
    """The answer ends in its middle."""
    only: str = ""
    """The faults befall only requests whose path ends so."""


_FAULT_NAMES = tuple(one.name for one in fields(Faults))


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes = b""


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hops: int = 0
    """The IP packets' time to live, where it is part of the protection."""


NOT_FOUND = Reply(404, b"not found\n")


def _text(value: str) -> Reply:
    return (
        Reply(body=value.encode(), headers={"Content-Type": "text/plain"}) if value else NOT_FOUND
    )


def _json(value: Any) -> Reply:
    return Reply(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _data(value: bytes | None) -> Reply:
    if value is None:
        return NOT_FOUND
    return Reply(body=value, headers={"Content-Type": "application/octet-stream"})


# The clouds. Each is a function from a machine and a request to an answer.


class Ec2:
    """``v2``: without a token nothing; ``both``: with or without; ``v1``: it knows no tokens;
    ``old``: neither tokens nor versions after 2009."""

    def __init__(self, mode: str = "v2") -> None:
        self.mode = mode
        self._tokens: dict[str, float] = {}

    def __call__(self, instance: Instance, request: Request) -> Reply:
        if request.path == "/latest/api/token" and self.mode in ("v2", "both"):
            return self._token(request)
        if request.method != "GET":
            return Reply(405)
        token = request.headers.get("x-aws-ec2-metadata-token")
        asked = self.mode == "v2" or (token is not None and self.mode == "both")
        if asked and self._tokens.get(token or "", 0.0) < time.monotonic():
            return Reply(401)
        versions = ("2009-04-04",) if self.mode == "old" else ("latest", "2009-04-04")
        _, version, path = (*request.path.split("/", 2), "")[:3]
        return _ec2_item(instance, path) if version in versions else NOT_FOUND

    def _token(self, request: Request) -> Reply:
        if request.method != "PUT":
            return Reply(405)
        if "x-forwarded-for" in request.headers:
            return Reply(403)
        seconds = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not seconds.isdigit() or not 1 <= int(seconds[:9]) <= 21600:
            return Reply(400)
        token = secrets.token_urlsafe(40)
        self._tokens[token] = time.monotonic() + int(seconds)
        headers = {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": seconds}
        return Reply(body=token.encode(), headers=headers, hops=1)


def _ec2_item(instance: Instance, path: str) -> Reply:
    if path == "user-data":
        return _data(instance.user_data)
    keys = {
        f"public-keys/{number}/openssh-key": key for number, key in enumerate(instance.ssh_keys)
    }
    listing = "\n".join(f"{number}=key-{number}" for number in range(len(instance.ssh_keys)))
    items = {
        "instance-id": instance.instance_id,
        "hostname": f"{instance.hostname}.internal",
        "local-hostname": f"{instance.hostname}.internal",
        "local-ipv4": instance.private_ipv4,
        "public-ipv4": instance.public_ipv4,
        "ipv6": instance.public_ipv6,
        "instance-type": instance.instance_type,
        "ami-id": "ami-1",
        "mac": instance.mac,
        "placement/region": instance.region,
        "placement/availability-zone": instance.zone,
        "public-keys/": listing,
        "public-keys": listing,
        **keys,
    }
    head, _, name = path.partition("/")
    if head == "meta-data" and not name:
        return _text("\n".join(sorted({item.partition("/")[0] for item in items})))
    return _text(items.get(name, "")) if head == "meta-data" else NOT_FOUND


def gce(instance: Instance, request: Request) -> Reply:
    if request.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in request.headers:
        return Reply(403, b"Missing Metadata-Flavor:Google header.\n")
    base = "/computeMetadata/v1/"
    if not request.path.startswith(base):
        return NOT_FOUND
    attributes = {"ssh-keys": "\n".join(f"me:{key}" for key in instance.ssh_keys)}
    if instance.user_data is not None:
        packed = base64.b64encode(instance.user_data).decode()
        attributes |= {"user-data": packed, "user-data-encoding": "base64"}
    tree: Any = {
        "instance": {
            # A number that is larger than a JavaScript program can hold.
            "id": 4520031799277581759,
            "hostname": f"{instance.hostname}.c.project.internal",
            "zone": f"projects/1/zones/{instance.zone}",
            "machineType": f"projects/1/machineTypes/{instance.instance_type}",
            "attributes": attributes,
            "networkInterfaces": [
                {
                    "ip": instance.private_ipv4,
                    "mac": instance.mac,
                    "accessConfigs": [{"externalIp": instance.public_ipv4}],
                    "ipv6s": [instance.public_ipv6],
                }
            ],
        },
        "project": {"projectId": "project", "attributes": {}},
    }
    for part in request.path.removeprefix(base).strip("/").split("/"):
        if part:
            tree = _gce_member(tree, part)
    if tree is None:
        return NOT_FOUND
    if request.query.get("recursive", "").lower() == "true":
        reply = _json(tree)
    elif isinstance(tree, dict | list):
        names = tree if isinstance(tree, dict) else range(len(tree))
        reply = _text("\n".join(f"{name}/" for name in names))
    else:
        reply = _text(str(tree))
    marks = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
    return Reply(reply.status, reply.body, {**reply.headers, **marks})


def _gce_member(tree: Any, part: str) -> Any:
    """What ``part`` of a path names: in paths, words are joined by hyphens, in JSON by case."""
    if isinstance(tree, list):
        return tree[int(part)] if part.isdigit() and int(part[:9]) < len(tree) else None
    first, *others = part.split("-")
    joined = first + "".join(word.capitalize() for word in others)
    return tree.get(part, tree.get(joined)) if isinstance(tree, dict) else None


def openstack(instance: Instance, request: Request) -> Reply:
    latest = "/openstack/latest"
    network = {
        "links": [{"id": "tap0", "type": "phy", "ethernet_mac_address": instance.mac}],
        "networks": [{"id": "network0", "link": "tap0", "type": "ipv4_dhcp"}],
        "services": [],
    }
    meta = {
        "uuid": instance.instance_id,
        "name": instance.hostname,
        "hostname": f"{instance.hostname}.novalocal",
        "availability_zone": instance.zone,
        "public_keys": {f"key-{n}": key for n, key in enumerate(instance.ssh_keys)},
    }
    if request.path == f"{latest}/user_data":
        # Nova says text/html of it, and that must not make it a web page.
        found = _data(instance.user_data)
        return Reply(found.status, found.body, {"Content-Type": "text/html; charset=UTF-8"})
    vendor = {"cloud-init": instance.vendor_data} if instance.vendor_data else {}
    documents = {"meta_data.json": meta, "network_data.json": network, "vendor_data.json": vendor}
    name = request.path.removeprefix(f"{latest}/")
    if name in documents:
        return _json(documents[name])
    ec2 = request.path.removeprefix("/latest/")
    return _ec2_item(instance, ec2) if ec2 != request.path else NOT_FOUND


def azure(instance: Instance, request: Request) -> Reply:
    if request.path.rstrip("/") == "/machine":
        return _azure_wire(instance, request)
    if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
        return Reply(400, b'{"error":"Bad request. Required metadata header not specified"}')
    if request.path != "/metadata/instance":
        return NOT_FOUND
    if request.query.get("api-version") not in ("2019-06-01", "2021-08-01"):
        return Reply(400, b'{"error":"Bad request. api-version was not specified"}')
    packed = base64.b64encode(instance.user_data or b"").decode()
    addresses = {
        "privateIpAddress": instance.private_ipv4,
        "publicIpAddress": instance.public_ipv4,
    }
    return _json(
        {
            "compute": {
                "vmId": instance.instance_id.upper(),
                "name": instance.hostname,
                "location": instance.region,
                "zone": instance.zone,
                "vmSize": instance.instance_type,
                "osProfile": {"computerName": instance.hostname, "adminUsername": "core"},
                "customData": "",
                "userData": packed,
                "publicKeys": [
                    # As it comes from some portals: with line ends inside.
                    {"keyData": f"{key}\r\n", "path": "/home/core/.ssh/authorized_keys"}
                    for key in instance.ssh_keys
                ],
            },
            "network": {
                "interface": [
                    {
                        "ipv4": {"ipAddress": [addresses]},
                        "ipv6": {"ipAddress": []},
                        "macAddress": instance.mac.replace(":", "").upper(),
                    }
                ]
            },
        }
    )


def _azure_wire(instance: Instance, request: Request) -> Reply:
    """Of the wire server, what a machine needs to say that it is ready."""
    if request.headers.get("x-ms-version") != "2012-11-30":
        return Reply(400)
    if request.query.get("comp") == "goalstate" and request.method == "GET":
        return _text(
            '<?xml version="1.0" encoding="utf-8"?><GoalState><Version>2012-11-30</Version>'
            "<Incarnation>1</Incarnation><Container><ContainerId>c-1</ContainerId>"
            "<RoleInstanceList><RoleInstance>"
            f"<InstanceId>{instance.instance_id}</InstanceId><State>Started</State>"
            "</RoleInstance></RoleInstanceList></Container></GoalState>"
        )
    health = request.query.get("comp") == "health" and request.method == "POST"
    if health and b"<State>Ready</State>" in request.content:
        return Reply(200)
    return Reply(400)


def digitalocean(instance: Instance, request: Request) -> Reply:
    if request.path == "/metadata/v1/user-data":
        return _data(instance.user_data)
    if request.path != "/metadata/v1.json":
        return NOT_FOUND
    document = {
        "droplet_id": 2756294,
        "hostname": instance.hostname,
        "vendor_data": instance.vendor_data,
        "public_keys": list(instance.ssh_keys),
        "region": instance.region,
        "interfaces": {
            "public": [
                {
                    "ipv4": {
                        "ip_address": instance.public_ipv4,
                        "netmask": "255.255.255.0",
                        "gateway": "203.0.113.1",
                    },
                    "ipv6": {
                        "ip_address": instance.public_ipv6,
                        "cidr": 64,
                        "gateway": "2001:db8::1",
                    },
                    "mac": instance.mac,
                    "type": "public",
                }
            ],
            "private": [
                {
                    "ipv4": {"ip_address": instance.private_ipv4, "netmask": "255.255.0.0"},
                    "mac": "52:54:00:12:34:57",
                    "type": "private",
                }
            ],
        },
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    if instance.user_data is not None:
        with contextlib.suppress(UnicodeDecodeError):
            document["user_data"] = instance.user_data.decode()
    return _json(document)


def packet(instance: Instance, request: Request) -> Reply:
    if request.path == "/userdata":
        return _data(instance.user_data)
    if request.path != "/metadata":
        return NOT_FOUND

    def address(family: int, public: bool, value: str) -> dict[str, object]:
        return {"address_family": family, "public": public, "address": value, "cidr": 31}

    return _json(
        {
            "id": instance.instance_id,
            "hostname": instance.hostname,
            "plan": instance.instance_type,
            "metro": instance.region,
            "facility": instance.zone,
            "ssh_keys": list(instance.ssh_keys),
            "network": {
                "bonding": {"mode": 4},
                "interfaces": [{"name": "eth0", "mac": instance.mac, "bond": "bond0"}],
                "addresses": [
                    address(4, True, instance.public_ipv4),
                    address(6, True, instance.public_ipv6),
                    address(4, False, instance.private_ipv4),
                ],
            },
        }
    )


def hetzner(instance: Instance, request: Request) -> Reply:
    if request.path == "/hetzner/v1/userdata":
        return _data(instance.user_data)
    if request.path != "/hetzner/v1/metadata":
        return NOT_FOUND
    keys = "".join(f"- {key}\n" for key in instance.ssh_keys)
    subnet = "{type: dhcp, ipv4: true}"
    return _text(
        f"instance-id: 42\nhostname: {instance.hostname}\nregion: {instance.region}\n"
        f"availability-zone: {instance.zone}\npublic-ipv4: {instance.public_ipv4}\n"
        f"public-keys:\n{keys}"
        "network-config:\n  version: 1\n  config:\n"
        f"  - {{type: physical, mac_address: '{instance.mac}', name: eth0, subnets: [{subnet}]}}\n"
    )


def oracle(instance: Instance, request: Request) -> Reply:
    if request.headers.get("authorization") != "Bearer Oracle":
        return Reply(403)
    if request.path != "/opc/v2/instance/":
        return NOT_FOUND
    metadata = {"ssh_authorized_keys": "\n".join(instance.ssh_keys)}
    if instance.user_data is not None:
        metadata["user_data"] = base64.b64encode(instance.user_data).decode()
    return _json(
        {
            "id": instance.instance_id,
            "displayName": instance.hostname,
            "hostname": instance.hostname,
            "shape": instance.instance_type,
            "canonicalRegionName": instance.region,
            "availabilityDomain": instance.zone,
            "metadata": metadata,
        }
    )


def nocloud(instance: Instance, request: Request) -> Reply:
    """The four files of a ``ds=nocloud;s=…`` address, and user-data for a ``cloud-config-url``."""
    keys = "".join(f"- {key}\n" for key in instance.ssh_keys)
    meta = f"instance-id: {instance.instance_id}\nlocal-hostname: {instance.hostname}\n"
    if request.path == "/meta-data":
        return _text(f"{meta}public-keys:\n{keys}")
    if request.path == "/vendor-data":
        return _text(instance.vendor_data)
    return _data(instance.user_data) if request.path == "/user-data" else NOT_FOUND


Cloud = Callable[[Instance, Request], Reply]

CLOUDS: Mapping[str, Callable[[], Cloud]] = {
    "ec2": lambda: Ec2("v2"),
    "ec2-both": lambda: Ec2("both"),
    "ec2-v1": lambda: Ec2("v1"),
    "ec2-old": lambda: Ec2("old"),
    "gce": lambda: gce,
    "openstack": lambda: openstack,
    "azure": lambda: azure,
    "digitalocean": lambda: digitalocean,
    "packet": lambda: packet,
    "hetzner": lambda: hetzner,
    "oracle": lambda: oracle,
    "nocloud": lambda: nocloud,
}

PAGE = b"<!DOCTYPE html>\n<html><body>Please log in to this network.</body></html>\n"


# Serving them.


class Service:
    """A running service; ``requests`` are those that came, in order."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        host, port = server.server_address[:2]
        self.url = f"http://{host!s}:{port}"

    @property
    def requests(self) -> Sequence[Request]:
        return tuple(self._server.requests)

    @property
    def most_at_once(self) -> int:
        """The largest number of requests that were being answered at the same time."""
        return self._server.most


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # A machine asks for all of its keys at once; what does not fit in here is dropped by the
    # kernel, and comes again a second later.
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], cloud: Cloud, instance: Instance, faults: Faults
    ) -> None:
        super().__init__(address, _Handler)
        self.cloud = cloud
        self.instance = instance
        self.faults = faults
        self.requests: list[Request] = []
        self.failures = faults.fail
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @contextlib.contextmanager
    def counted(self, request: Request) -> Iterator[None]:
        with self.lock:
            self.requests.append(request)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1

    def take_failure(self) -> bool:
        with self.lock:
            self.failures -= 1
            return self.failures >= 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some faults are for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = headers.get("content-length", "0")
        content = self.rfile.read(int(length)) if length.isdigit() else b""
        request = Request(self.command, parts.path, query, headers, content)
        with self.server.counted(request):
            self._answer(request)

    do_PUT = do_POST = do_GET

    def _answer(self, request: Request) -> None:
        faults = self.server.faults
        if request.path.endswith(faults.only):
            self._faulty(request, faults)
        else:
            self._send(self.server.cloud(self.server.instance, request))

    def _faulty(self, request: Request, faults: Faults) -> None:
        if faults.silent:
            self.server.closing.wait()
            return
        if faults.slow:
            self.server.closing.wait(faults.slow)
        if self.server.take_failure():
            self._send(Reply(faults.status, b"try later\n", {"Retry-After": "0"}))
        elif faults.html:
            self._send(Reply(200, PAGE, {"Content-Type": "text/html"}))
        elif faults.wrong:
            self._send(Reply(200, b"[1, 2]", {"Content-Type": "application/json"}))
        elif faults.redirects:
            there = f"/again/{secrets.token_hex(4)}"
            self._send(Reply(302, b"", {"Location": there}))
        elif faults.elsewhere:
            self._send(Reply(302, b"", {"Location": f"{faults.elsewhere}{self.path}"}))
        elif faults.endless:
            self._head(Reply(200), None)
            while not self.server.closing.is_set():
                self.wfile.write(b"#" * 65536)
        else:
            self._send(
                self.server.cloud(self.server.instance, request), drip=faults.drip, cut=faults.cut
            )

    def _head(self, reply: Reply, length: int | None) -> None:
        self.send_response(reply.status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, reply: Reply, drip: float = 0.0, cut: bool = False) -> None:
        if reply.hops:
            import socket

            self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, reply.hops)
        self._head(reply, len(reply.body))
        body = reply.body[: len(reply.body) // 2] if cut else reply.body
        if not drip:
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(drip):
                return

    def log_message(self, format: str, *args: object) -> None:
        """Who asked for what is in ``requests``."""


@contextlib.contextmanager
def serve(
    cloud: str,
    instance: Instance | None = None,
    faults: Faults | None = None,
    address: tuple[str, int] = ("127.0.0.1", 0),
    tls: ssl.SSLContext | None = None,
) -> Iterator[Service]:
    """Run the service of ``cloud`` (a key of :data:`CLOUDS`) for as long as the body runs."""
    server = _Server(address, CLOUDS[cloud](), instance or Instance(), faults or Faults())
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Service(server)
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def faults_of(words: Sequence[str]) -> Faults:
    """``name=value`` words, or a name alone for a fault that is or is not there.

    Raises :class:`ValueError` for what is none.
    """
    given: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in _FAULT_NAMES:
            raise ValueError(f"{name} is no fault: one of {', '.join(_FAULT_NAMES)}")
        kind = type(getattr(Faults(), name))
        given[name] = True if kind is bool else kind(value)
    return Faults(**given)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="proa.lab.metadata", description=__doc__.split("\n")[0])
    parser.add_argument("--cloud", choices=sorted(CLOUDS), required=True)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDRESS:PORT")
    parser.add_argument("--user-data", type=Path, metavar="FILE")
    parser.add_argument("--hostname", default=Instance.hostname)
    parser.add_argument("--ssh-key", action="append", default=[], metavar="KEY")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[=VALUE]")
    options = parser.parse_args(argv)
    host, _, port = options.listen.rpartition(":")
    try:
        faults = faults_of(options.fault)
    except ValueError as error:
        parser.error(str(error))
    instance = Instance(
        hostname=options.hostname,
        ssh_keys=tuple(options.ssh_key) or (EXAMPLE_KEY,),
        user_data=options.user_data.read_bytes() if options.user_data else b"#cloud-config\n",
    )
    with serve(options.cloud, instance, faults, (host, int(port))) as service:
        print(f"{options.cloud} on {service.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
