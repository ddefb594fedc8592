"""A machine gets its configuration from a metadata service, whatever the service does to it.

The services are those of the lab, real HTTP servers on the loopback interface; the machine is a
root directory whose kernel command line names one.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proa.lab.metadata import EXAMPLE_KEY, PAGE, Faults, Instance, serve
from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.sources import (
    Source,
    check_in,
    find,
    find_named,
    find_online,
    wants_network,
)
from proa.machine.cloudconfig.sources.http import Client, Failed, Patience
from proa.machine.cloudconfig.sources.race import Racer, race
from proa.machine.record import replace

QUICK = Patience(request=1, deadline=20, first_pause=0.01, longest_pause=0.05, grace=0.2)
SHORT = replace(QUICK, request=0.2, deadline=0.5)

SECRET = b"#cloud-config\npassword: swordfish\n"


class Guest:
    """A machine as far as detection sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir()
        self.cmdline("")

    def cmdline(self, text: str) -> None:
        (self.root / "proc/cmdline").write_text(f"quiet {text}\n")

    def smbios(self, **names: str) -> None:
        folder = self.root / "sys/class/dmi/id"
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in names.items():
            (folder / name).write_text(f"{value}\n")

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        raise CommandFailed(f"{command[0]}: not here")

    def find(self) -> Source | None:
        return find(self.root, self.run, environ={})

    def ask(self, patience: Patience = QUICK, found: Source | None = None) -> Source:
        source = find_online(self.root, self.run, found=found, patience=patience, environ={})
        assert source is not None
        return source

    def boot(self, kind: str, url: str, patience: Patience = QUICK) -> Source:
        """Detection and both stages, with this one service."""
        self.cmdline(f"proa.datasource={kind}@{url}")
        assert self.find() is None
        assert wants_network(self.root, environ={})
        return self.ask(patience)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def errors(source: Source) -> list[str]:
    return [problem.message for problem in source.problems if problem.level == "error"]


# What each cloud says.

ADDRESSES = {"private_ipv4": "10.0.0.5", "public_ipv4": "203.0.113.7"}
ADDRESSES6 = {**ADDRESSES, "public_ipv6": "2001:db8::7"}


@pytest.mark.parametrize(
    ("cloud", "kind", "name", "addresses"),
    [
        ("ec2", "ec2", "EC2 metadata service, IMDSv2", ADDRESSES6),
        ("ec2-both", "ec2", "EC2 metadata service, IMDSv2", ADDRESSES6),
        ("ec2-v1", "ec2", "EC2 metadata service, IMDSv1", ADDRESSES6),
        ("ec2-old", "ec2", "EC2 metadata service, IMDSv1", ADDRESSES6),
        ("gce", "gce", "GCE metadata service", ADDRESSES6),
        ("openstack", "openstack", "OpenStack metadata service", ADDRESSES),
        ("azure", "azure", "Azure metadata service", ADDRESSES),
        ("digitalocean", "digitalocean", "DigitalOcean metadata service", ADDRESSES6),
        ("packet", "packet", "Equinix Metal metadata service", ADDRESSES6),
        ("hetzner", "hetzner", "Hetzner metadata service", {"public_ipv4": "203.0.113.7"}),
        ("oracle", "oracle", "Oracle metadata service", {}),
    ],
)
def test_each_cloud_names_the_machine_and_brings_keys_and_document(
    guest: Guest, cloud: str, kind: str, name: str, addresses: dict[str, str]
) -> None:
    with serve(cloud, Instance(user_data=SECRET)) as service:
        source = guest.boot(kind, service.url)
    assert source.problems == ()
    assert source.name.startswith(name)
    assert source.user_data == SECRET
    assert source.metadata.instance_id
    assert source.metadata.hostname.partition(".")[0] == "web-1"
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert dict(source.metadata.addresses) == addresses
    assert source.metadata.cloud == kind
    assert source.metadata.raw
    assert [tried.outcome for tried in source.tried] == ["taken"]


@pytest.mark.parametrize("cloud", ["ec2", "gce", "openstack", "azure", "digitalocean", "packet"])
def test_where_a_machine_stands_is_known(guest: Guest, cloud: str) -> None:
    with serve(cloud) as service:
        metadata = guest.boot(cloud, service.url).metadata
    if cloud != "openstack":
        assert metadata.region == ("north" if cloud == "gce" else "north-1")
    if cloud != "digitalocean":
        assert metadata.zone == "north-1a"
        assert metadata.instance_type == "small" or cloud == "openstack"


@pytest.mark.parametrize(
    ("cloud", "kind"),
    [("openstack", "openstack"), ("packet", "packet"), ("digitalocean", "v2"), ("hetzner", "v1")],
)
def test_the_network_that_a_cloud_describes_is_handed_on(
    guest: Guest, cloud: str, kind: str
) -> None:
    with serve(cloud) as service:
        network = guest.boot(cloud, service.url).metadata.network
    assert network is not None
    assert network[0] == kind
    assert b"52:54:00:12:34:56" in network[1]


@pytest.mark.parametrize("cloud", ["ec2", "gce", "openstack", "azure", "hetzner", "packet"])
def test_a_machine_without_user_data_still_has_its_name_and_keys(guest: Guest, cloud: str) -> None:
    with serve(cloud, Instance(user_data=None)) as service:
        source = guest.boot(cloud, service.url)
    assert not source.user_data
    assert not source.unread
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)


def test_vendor_data_comes_along(guest: Guest) -> None:
    instance = Instance(vendor_data="#cloud-config\nhostname: vendor\n")
    for cloud in ("openstack", "digitalocean"):
        with serve(cloud, instance) as service:
            source = guest.boot(cloud, service.url)
        assert source.vendor_data == b"#cloud-config\nhostname: vendor\n"


def test_many_ssh_keys_all_come(guest: Guest) -> None:
    keys = tuple(f"{EXAMPLE_KEY}-{number}" for number in range(20))
    with serve("ec2", Instance(ssh_keys=keys)) as service:
        assert guest.boot("ec2", service.url).metadata.ssh_keys == keys


def test_ec2_never_asks_without_a_token_where_tokens_are_given(guest: Guest) -> None:
    with serve("ec2") as service:
        guest.boot("ec2", service.url)
        first, *others = service.requests
    assert (first.method, first.path) == ("PUT", "/latest/api/token")
    assert all("x-aws-ec2-metadata-token" in request.headers for request in others)


def test_a_token_service_that_is_late_does_not_look_like_one_without_tokens(guest: Guest) -> None:
    # Version 1 is refused with 401 here, which would be final.
    with serve("ec2", faults=Faults(fail=3, only="token")) as service:
        source = guest.boot("ec2", service.url)
    assert source.name.startswith("EC2 metadata service, IMDSv2")
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)


def test_azure_is_told_that_the_machine_is_ready() -> None:
    source = Source("Azure", Metadata(cloud="azure"), None)
    with serve("azure", faults=Faults(fail=2)) as service:
        assert check_in(source, QUICK, service.url) is None
        health = service.requests[-1]
    assert (health.method, health.query) == ("POST", {"comp": "health"})
    for part in (b"<ContainerId>c-1<", b"<InstanceId>i-0123456789abcdef0<", b"<State>Ready<"):
        assert part in health.content


def test_an_azure_that_cannot_be_told_is_a_warning() -> None:
    source = Source("Azure", Metadata(cloud="azure"), None)
    for faults in (Faults(silent=True), Faults(wrong=True), Faults(html=True)):
        with serve("azure", faults=faults) as service:
            problem = check_in(source, SHORT, service.url)
        assert problem is not None
        assert problem.level == "warning"


def test_other_clouds_are_told_nothing() -> None:
    assert check_in(Source("EC2", Metadata(cloud="ec2"), None), SHORT) is None


# Addresses that the owner names.


def test_a_cloud_config_url_on_the_kernel_command_line_is_fetched(guest: Guest) -> None:
    with serve("nocloud", Instance(user_data=SECRET)) as service:
        guest.cmdline(f"cloud-config-url={service.url}/user-data")
        assert guest.find() is None
        source = guest.ask()
    assert source.user_data == SECRET
    assert source.metadata == Metadata()


def test_the_last_of_several_addresses_counts(guest: Guest) -> None:
    with serve("nocloud", Instance(user_data=SECRET)) as service:
        dead = "http://127.0.0.1:9/a"
        guest.cmdline(f"cloud-config-url={dead} cloud_config_url={service.url}/user-data")
        assert guest.ask().user_data == SECRET


@pytest.mark.parametrize("where", ["cmdline", "serial"])
def test_nocloud_reads_its_files_from_an_address(guest: Guest, where: str) -> None:
    with serve("nocloud", Instance(user_data=SECRET, vendor_data="#cloud-config\n")) as service:
        words = f"ds=nocloud;s={service.url}/;i=i-mine"
        if where == "cmdline":
            guest.cmdline(words)
        else:
            guest.smbios(product_serial=words)
        assert guest.find() is None
        source = guest.ask()
    assert source.user_data == SECRET
    assert source.vendor_data == b"#cloud-config\n"
    assert source.metadata.instance_id == "i-mine"  # what the line says goes before
    assert source.metadata.hostname == "web-1"
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)


def test_user_and_password_of_an_address_are_used_and_never_shown(guest: Guest) -> None:
    with serve("nocloud", Instance(user_data=SECRET)) as service:
        host = service.url.removeprefix("http://")
        guest.cmdline(f"cloud-config-url=http://me:sword%20fish@{host}/user-data?token=swordfish")
        source = guest.ask()
        request = service.requests[-1]
    assert source.user_data == SECRET
    assert request.headers["authorization"] == "Basic bWU6c3dvcmQgZmlzaA=="
    assert request.query == {"token": "swordfish"}
    assert "sword" not in f"{source!r} {source.name} {source.tried}"


def test_a_wrong_address_is_told_without_its_secrets(guest: Guest) -> None:
    with serve("nocloud") as service:
        host = service.url.removeprefix("http://")
        guest.cmdline(f"cloud-config-url=http://me:swordfish@{host}/none?swordfish")
        source = guest.ask()
    assert source.unread
    assert f"http://{host}/none: the server answers 404" in errors(source)[0]
    assert "swordfish" not in repr(source)


def test_a_disk_can_send_the_machine_on_to_an_address(guest: Guest) -> None:
    seed = guest.root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    with serve("nocloud", Instance(user_data=SECRET)) as service:
        found = Source("disk", Metadata(hostname="web-9"), None, follow=f"{service.url}/user-data")
        assert wants_network(guest.root, found, environ={})
        source = guest.ask(found=found)
    assert source.metadata.hostname == "web-9"
    assert source.user_data == SECRET
    assert not source.follow


def test_https_is_spoken_with_those_who_can_prove_their_name(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serve("nocloud", Instance(user_data=SECRET), tls=context) as service:
        address = service.url.replace("http://127.0.0.1", "https://localhost")
        guest.cmdline(f"cloud-config-url={address}/user-data")
        assert "certificate verify failed" in errors(guest.ask(SHORT))[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert guest.ask().user_data == SECRET


def self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(encoding)
    )
    return path


def test_the_oem_stands_behind_what_the_service_says(guest: Guest) -> None:
    oem = guest.root / "usr/share/oem/cloud-config.yml"
    oem.parent.mkdir(parents=True)
    oem.write_bytes(b"#cloud-config\nhostname: oem\n")
    with serve("gce", Instance(user_data=SECRET)) as service:
        guest.cmdline("")
        guest.smbios(product_name="Google")
        assert guest.find() is None
        guest.cmdline(f"proa.datasource=oem,gce@{service.url}")
        source = guest.ask()
    assert source.user_data == SECRET
    assert source.vendor_data == b"#cloud-config\nhostname: oem\n"


def test_a_bad_disk_is_told_beside_what_the_service_says(guest: Guest) -> None:
    seed = guest.root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    (seed / "user-data").write_bytes(SECRET)
    (seed / "meta-data").write_bytes(b"[")
    with serve("gce") as service:
        guest.cmdline(f"proa.datasource=nocloud,gce@{service.url}")
        assert guest.find() is None
        source = guest.ask()
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert [problem.level for problem in source.problems] == ["warning"]
    assert source.tried[0].name.startswith("NoCloud directory")


def test_a_bad_disk_is_all_there_is_where_the_service_does_not_answer(guest: Guest) -> None:
    seed = guest.root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    (seed / "user-data").write_bytes(b"\0" * (3 << 20))
    (seed / "meta-data").write_bytes(f"public-keys: [{EXAMPLE_KEY}]".encode())
    with serve("gce", faults=Faults(silent=True)) as service:
        guest.cmdline(f"proa.datasource=nocloud,gce@{service.url}")
        source = guest.ask(SHORT)
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert len(errors(source)) == 2


def test_a_disk_that_comes_late_is_taken(guest: Guest) -> None:
    with serve("gce") as service:
        guest.cmdline(f"proa.datasource=nocloud,gce@{service.url}")
        assert guest.find() is None
        seed = guest.root / "var/lib/cloud/seed/nocloud"
        seed.mkdir(parents=True)
        (seed / "user-data").write_bytes(SECRET)
        assert guest.ask().user_data == SECRET
        assert service.requests == ()


def test_a_service_can_be_named_with_its_address_as_coreos_cloudinit_does(guest: Guest) -> None:
    with serve("digitalocean", Instance(user_data=SECRET)) as service:
        args = ("digitalocean", f"{service.url}/", guest.root, guest.run)
        source = find_named(*args, patience=QUICK, environ={})
    assert source is not None
    assert source.user_data == SECRET
    with serve("nocloud") as service:
        args = ("url", f"{service.url}/none", guest.root, guest.run)
        source = find_named(*args, patience=QUICK, environ={})
    assert source is not None
    assert source.unread


# A service that fails.


def test_a_slow_service_is_asked_for_many_items_at_once(guest: Guest) -> None:
    with serve("ec2", faults=Faults(slow=0.3)) as service:
        source = guest.boot("ec2", service.url)
        assert service.most_at_once > 4
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert source.problems == ()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_that_fails_for_a_while_is_asked_again(guest: Guest, status: int) -> None:
    for kind in ("gce", "digitalocean", "openstack", "azure"):
        with serve(kind, faults=Faults(fail=4, status=status)) as service:
            source = guest.boot(kind, service.url)
        assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
        assert source.problems == ()


@pytest.mark.parametrize("status", [404, 410])
def test_azure_is_asked_again_while_it_does_not_know_the_machine_yet(
    guest: Guest, status: int
) -> None:
    with serve("azure", faults=Faults(fail=3, status=status)) as service:
        assert guest.boot("azure", service.url).metadata.ssh_keys == (EXAMPLE_KEY,)


def test_a_refusal_is_final(guest: Guest) -> None:
    with serve("gce", faults=Faults(fail=100, status=403)) as service:
        source = guest.boot("gce", service.url)
        assert len(service.requests) == 1
    assert "the server answers 403" in errors(source)[0]


def test_a_service_that_starts_late_is_waited_for(guest: Guest) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    came = []
    asking = threading.Thread(
        target=lambda: came.append(guest.boot("gce", f"http://127.0.0.1:{port}"))
    )
    asking.start()
    time.sleep(0.3)  # it is refused meanwhile
    with serve("gce", address=("127.0.0.1", port)):
        asking.join()
    assert came[0].metadata.ssh_keys == (EXAMPLE_KEY,)


def test_a_service_that_never_answers_ends_at_the_deadline_and_is_told(guest: Guest) -> None:
    with serve("gce", faults=Faults(silent=True)) as service:
        source = guest.boot("gce", service.url, SHORT)
    assert "no answer in time" in errors(source)[0]
    assert source.metadata == Metadata()
    assert source.tried[0].seconds < SHORT.deadline + SHORT.grace + 5


def test_an_answer_that_drips_does_not_hold_the_machine_up(guest: Guest) -> None:
    # Each byte comes well within a request's time, and all of them never would.
    with serve("gce", faults=Faults(drip=0.05)) as service:
        source = guest.boot("gce", service.url, SHORT)
    assert "no answer in time" in errors(source)[0]


def test_headers_that_drip_do_not_hold_the_machine_up(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        while connection.send(b"H"):
                            time.sleep(0.05)
                except OSError:
                    if server.fileno() < 0:
                        return

        thread = threading.Thread(target=answer)
        thread.start()
        source = guest.boot("gce", f"http://127.0.0.1:{server.getsockname()[1]}", SHORT)
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
    assert source.unread


def test_an_answer_that_breaks_off_is_asked_for_again_and_told(guest: Guest) -> None:
    with serve("gce", faults=Faults(cut=True)) as service:
        source = guest.boot("gce", service.url, SHORT)
        assert len(service.requests) > 1
    assert source.unread


def test_user_data_that_cannot_be_read_leaves_the_machine_reachable(guest: Guest) -> None:
    faults = Faults(fail=10_000, only="user-data")
    with serve("ec2", Instance(user_data=SECRET), faults) as service:
        source = guest.boot("ec2", service.url, replace(QUICK, deadline=1.5))
    assert source.unread
    assert "the user-data could not be read" in errors(source)[0]
    assert source.user_data is None
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)


def test_an_item_that_the_machine_can_do_without_is_given_up_soon(guest: Guest) -> None:
    with serve("ec2", faults=Faults(fail=10_000, only="ipv6")) as service:
        source = guest.boot("ec2", service.url)
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert "public_ipv6" not in source.metadata.addresses
    (problem,) = source.problems
    assert problem.level == "warning"
    assert problem.message.endswith("/latest/meta-data/ipv6: the server answers 503; left out")


# A service that lies.

KINDS = ["ec2", "gce", "openstack", "azure", "digitalocean", "packet", "hetzner", "oracle"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_web_page_is_not_metadata(guest: Guest, kind: str) -> None:
    with serve(kind, faults=Faults(html=True)) as service:
        source = guest.boot(kind, service.url)
        assert len(service.requests) <= 2
    assert "a web page" in errors(source)[0]
    assert source.metadata == Metadata()


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_the_wrong_type_is_not_metadata(guest: Guest, kind: str) -> None:
    with serve(kind, faults=Faults(wrong=True)) as service:
        source = guest.boot(kind, service.url)
    assert source.unread
    assert source.metadata == Metadata()


@pytest.mark.parametrize("kind", ["ec2", "gce", "openstack", "digitalocean"])
def test_an_endless_answer_is_cut_off(guest: Guest, kind: str) -> None:
    with serve(kind, faults=Faults(endless=True)) as service:
        source = guest.boot(kind, service.url)
    assert "longer than" in errors(source)[0]


def test_a_loop_of_redirects_ends(guest: Guest) -> None:
    with serve("gce", faults=Faults(redirects=True)) as service:
        source = guest.boot("gce", service.url)
        assert len(service.requests) == 6
    assert "redirects more than 5 times" in errors(source)[0]


def test_nobody_is_sent_to_another_server(guest: Guest) -> None:
    with serve("nocloud") as other:
        with serve("gce", faults=Faults(elsewhere=other.url)) as service:
            source = guest.boot("gce", service.url)
        assert other.requests == ()
    assert "another server" in errors(source)[0]


def test_no_proxy_is_asked(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("nocloud") as proxy, serve("gce") as service:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert guest.boot("gce", service.url).metadata.ssh_keys == (EXAMPLE_KEY,)
        assert proxy.requests == ()


def test_a_web_page_in_place_of_a_document_is_told(guest: Guest) -> None:
    with serve("nocloud", Instance(user_data=PAGE)) as service:
        guest.cmdline(f"cloud-config-url={service.url}/user-data")
        assert "a web page" in errors(guest.ask())[0]


def test_text_html_as_a_content_type_alone_is_no_web_page(guest: Guest) -> None:
    with serve("openstack", Instance(user_data=SECRET)) as service:  # as Nova does
        assert guest.boot("openstack", service.url).user_data == SECRET


def test_google_without_its_mark_is_not_google(guest: Guest) -> None:
    with serve("nocloud", Instance(user_data=b"{}")) as service:
        guest.cmdline(f"proa.datasource=gce@{service.url}/user-data")
        source = guest.ask()
    assert source.unread


# Several at once.


def test_of_two_the_one_that_answers_is_taken_and_the_other_told(guest: Guest) -> None:
    with serve("gce", faults=Faults(silent=True)) as dead, serve("openstack") as good:
        guest.cmdline(f"proa.datasource=gce@{dead.url},openstack@{good.url}")
        source = guest.ask()
    assert source.name.startswith("OpenStack")
    assert [tried.name.partition(" ")[0] for tried in source.tried] == ["GCE", "OpenStack"]
    assert source.tried[1].outcome == "taken"


def test_an_address_that_the_owner_names_is_not_overtaken(guest: Guest) -> None:
    with (
        serve("nocloud", Instance(user_data=SECRET), Faults(slow=0.6)) as slow,
        serve("gce") as quick,
    ):
        words = f"proa.datasource=url,gce@{quick.url} cloud-config-url={slow.url}/user-data"
        guest.cmdline(words)
        source = guest.ask()
    assert source.user_data == SECRET
    assert source.tried[1].outcome == "good, and another was taken"


def test_an_address_that_fails_leaves_the_machine_its_cloud(guest: Guest) -> None:
    with serve("nocloud") as wrong, serve("gce") as cloud:
        words = f"proa.datasource=url,gce@{cloud.url} cloud-config-url={wrong.url}/none"
        guest.cmdline(words)
        source = guest.ask()
    assert source.metadata.ssh_keys == (EXAMPLE_KEY,)
    assert "404" in source.tried[0].outcome


def test_a_fault_of_ours_in_one_source_does_not_hide_another() -> None:
    def bug(client: Client) -> Source:
        raise RuntimeError("swordfish")

    good = Source("good", Metadata(), b"")
    source, tried = race([Racer("bad", bug), Racer("good", lambda client: good)], QUICK)
    assert source is good
    assert tried[0].outcome == "unexpected: RuntimeError"


def test_of_two_that_are_good_at_the_same_time_the_order_decides() -> None:
    def after(seconds: float, name: str) -> Racer:
        def fetch(client: Client) -> Source:
            time.sleep(seconds)
            return Source(name, Metadata(), b"")

        return Racer(name, fetch)

    patience = replace(QUICK, grace=5)
    source, _ = race([after(0.1, "first"), after(0, "second")], patience)
    assert source is not None
    assert source.name == "first"


def test_those_who_lost_stop_asking() -> None:
    ended = threading.Event()

    def loser(client: Client) -> Source:
        def fail() -> Source:
            raise Failed("not now")

        try:
            return client.until(fail)
        finally:
            ended.set()

    patience = replace(QUICK, deadline=3600, first_pause=3600, longest_pause=3600)
    good = Source("good", Metadata(), b"")
    race([Racer("good", lambda client: good), Racer("loser", loser)], patience)
    assert ended.wait(10)
