"""What is in the machine or attached to it is found before there is a network."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from proa.machine.cloudconfig.machine import CommandFailed
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.sources import (
    Source,
    azure,
    find,
    find_named,
    find_online,
    wants_network,
)
from proa.machine.cloudconfig.sources import source as edges
from proa.machine.cloudconfig.sources.source import Edge
from proa.machine.cloudconfig.sources.xen import read as xen_read

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
DOCUMENT = b"#cloud-config\npassword: swordfish\n"
VMWARE = {"sys/class/dmi/id/sys_vendor": b"VMware, Inc.\n"}
AZURE = {"sys/class/dmi/id/chassis_asset_tag": b"7783-7084-3265-9085-8269-3286-77\n"}


class Guest:
    """A root directory with disks that the fake mount copies into place, and programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disks: dict[str, dict[str, bytes]] = {}
        self.mounts: list[tuple[str, ...]] = []
        self.programs: dict[str, Callable[[str], bytes]] = {}

    def files(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def plug(self, label: str, files: dict[str, bytes], device: str = "") -> None:
        device = device or f"dev/disk/by-label/{label}"
        self.disks[Path(device).name] = files
        self.files({device: b""})

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "mount":
            self.mounts.append(tuple(command))
            place = Path(command[-1])
            for name, content in self.disks[Path(command[-2]).name].items():
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if command[0] == "umount":
            for path in sorted(Path(command[-1]).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()

    def capture(self, command: Sequence[str]) -> bytes | None:
        program = self.programs.get(command[0])
        return program(command[-1]) if program else None

    def find(self, **environ: str) -> Source | None:
        return find(self.root, self.run, capture=self.capture, environ=environ)

    def found(self, **environ: str) -> Source:
        source = self.find(**environ)
        assert source is not None
        return source


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


# Config drive.


def drive(prefix: str = "", **metadata: object) -> dict[str, bytes]:
    latest = "openstack/latest"
    return {
        f"{latest}/meta_data.json": json.dumps(metadata).encode(),
        f"{latest}/user_data": DOCUMENT,
    }


def test_a_config_drive_brings_all_that_openstack_puts_there(guest: Guest) -> None:
    guest.plug(
        "config-2",
        {
            **drive(uuid="i-1", hostname="web-1", public_keys={"a": KEY}, availability_zone="az-1"),
            "openstack/latest/network_data.json": b'{"links": []}',
            "openstack/latest/vendor_data.json": b'{"cloud-init": "#cloud-config\\n"}',
            "ec2/latest/meta-data.json": b'{"local-ipv4": "10.0.0.5", "public-ipv4": ""}',
        },
    )
    source = guest.found()
    assert source.user_data == DOCUMENT
    assert source.vendor_data == b"#cloud-config\n"
    assert source.problems == ()
    metadata = source.metadata
    assert (metadata.instance_id, metadata.hostname, metadata.zone) == ("i-1", "web-1", "az-1")
    assert metadata.ssh_keys == (KEY,)
    assert metadata.addresses == {"private_ipv4": "10.0.0.5"}
    assert metadata.network == ("openstack", b'{"links": []}')
    assert metadata.raw["uuid"] == "i-1"
    assert source.tried[0].outcome == "taken"


def test_a_config_drive_of_rackspace_brings_its_file_of_interfaces(guest: Guest) -> None:
    files = drive(network_config={"name": "network_config", "content_path": "/content/0000"})
    files["openstack/content/0000"] = b"auto lo\niface lo inet loopback\n"
    guest.plug("config-2", files)
    assert guest.found().metadata.network == ("eni", b"auto lo\niface lo inet loopback\n")


@pytest.mark.parametrize(
    "path", ["../../../etc/shadow", "/content/../../../../etc/shadow", "a\0b", "", 7, "/", "a b"]
)
def test_a_path_on_a_drive_cannot_lead_out_of_it(guest: Guest, path: object) -> None:
    guest.files({"etc/shadow": b"root:swordfish\n"})
    guest.plug("config-2", drive(network_config={"content_path": path}))
    source = guest.found()
    assert source.metadata.network is None
    assert source.user_data == DOCUMENT


def test_the_second_vendor_document_of_openstack_counts_where_the_first_has_nothing(
    guest: Guest,
) -> None:
    second = b'{"cloud-init": {"cloud-init": "#cloud-config\\n"}}'
    guest.plug("config-2", {**drive(), "openstack/latest/vendor_data2.json": second})
    assert guest.found().vendor_data == b"#cloud-config\n"


def test_vendor_data_that_is_damaged_does_not_refuse_the_owners_document(guest: Guest) -> None:
    guest.plug("config-2", {**drive(), "openstack/latest/vendor_data.json": b"["})
    source = guest.found()
    assert not source.unread
    assert source.vendor_data is None
    assert "vendor_data.json" in source.problems[0].message


def test_a_9p_share_is_mounted_as_one(guest: Guest) -> None:
    device = "sys/bus/virtio/devices/virtio0"
    guest.files({f"{device}/device": b"0x0009", f"{device}/mount_tag": b"config-2\0"})
    guest.disks["config-2"] = drive(uuid="i-9")
    assert guest.found().metadata.instance_id == "i-9"
    (command,) = guest.mounts
    assert command[:3] == ("mount", "-t", "9p")
    assert "trans=virtio,version=9p2000.L" in command[4]


# NoCloud.


def test_a_nocloud_disk_brings_its_four_files(guest: Guest) -> None:
    guest.plug(
        "cidata",
        {
            "meta-data": f"instance-id: i-1\npublic-keys:\n- {KEY}\n".encode(),
            "user-data": DOCUMENT,
            "vendor-data": b"#cloud-config\n",
            "network-config": b"version: 2\n",
        },
    )
    source = guest.found()
    assert (source.user_data, source.vendor_data) == (DOCUMENT, b"#cloud-config\n")
    assert source.metadata.network == ("cloud-init", b"version: 2\n")
    assert source.metadata.ssh_keys == (KEY,)
    assert source.problems == ()


def test_what_the_kernel_command_line_says_goes_before_the_disk(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"ds=nocloud;h=web-9;i=i-9\n"})
    guest.plug("CIDATA", {"meta-data": b"instance-id: i-1\nlocal-hostname: web-2\nregion: r\n"})
    metadata = guest.found().metadata
    assert (metadata.instance_id, metadata.hostname, metadata.region) == ("i-9", "web-9", "r")


def test_the_kernel_command_line_alone_can_name_the_machine(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"ds=nocloud;h=web-9;i=i-9\n"})
    source = guest.found()
    assert (source.metadata.instance_id, source.metadata.hostname) == ("i-9", "web-9")
    assert not source.user_data


def test_ds_nocloud_without_anything_is_nothing(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"ds=nocloud\n"})
    assert guest.find() is None


def test_a_seed_directory_on_the_kernel_command_line_is_read(guest: Guest) -> None:
    guest.files(
        {"proc/cmdline": b"ds=nocloud;s=file:///srv/seed/\n", "srv/seed/user-data": DOCUMENT}
    )
    guest.plug("config-2", drive())
    assert guest.found().name == "NoCloud directory /srv/seed/"


def test_the_seed_directory_of_cloud_init_is_read(guest: Guest) -> None:
    folder = "var/lib/cloud/seed/nocloud"
    guest.files({f"{folder}/user-data": DOCUMENT, f"{folder}/meta-data": b"instance-id: i-1\n"})
    source = guest.found()
    assert (source.user_data, source.metadata.instance_id) == (DOCUMENT, "i-1")


def test_debian_interfaces_in_the_meta_data_are_a_network_too(guest: Guest) -> None:
    guest.plug("cidata", {"meta-data": b"network-interfaces: |\n  auto lo\n"})
    assert guest.found().metadata.network == ("eni", b"auto lo\n")


def test_a_disk_that_names_an_address_is_completed_over_the_network(guest: Guest) -> None:
    guest.plug("cidata", {"meta-data": b"seedfrom: http://127.0.0.1:9/a/\ninstance-id: i-1\n"})
    source = guest.found()
    assert source.follow == "http://127.0.0.1:9/a/user-data"
    assert wants_network(guest.root, source, environ={})
    assert source.metadata.instance_id == "i-1"


# systemd credentials and QEMU's fw_cfg.


@pytest.mark.parametrize("name", ["proa.cloud-config", "cloud-config", "user-data"])
def test_a_system_credential_is_a_document(guest: Guest, name: str) -> None:
    folder = "run/credentials/@system"
    guest.files({f"{folder}/{name}": DOCUMENT, f"{folder}/meta-data": b"local-hostname: web-1\n"})
    source = guest.found()
    assert source.name == f'systemd credential "{name}"'
    assert (source.user_data, source.metadata.hostname) == (DOCUMENT, "web-1")


def test_the_services_own_credentials_go_before_the_systems(guest: Guest, tmp_path: Path) -> None:
    guest.files({"run/credentials/@system/user-data": b"", "own/user-data": DOCUMENT})
    assert guest.found(CREDENTIALS_DIRECTORY=str(tmp_path / "own")).user_data == DOCUMENT


def test_credentials_that_are_not_for_us_are_left_alone(guest: Guest) -> None:
    guest.files({"run/credentials/@system/tmpfiles.extra": b"x"})
    assert guest.find() is None


@pytest.mark.parametrize(
    "name",
    ["opt/org.proa/user-data", "opt/io.cloud-init/cloud-init/user-data", "opt/com.coreos/config"],
)
def test_qemu_can_hand_a_document_over(guest: Guest, name: str) -> None:
    # As in sysfs, where by_name holds links to by_key.
    guest.files({"sys/firmware/qemu_fw_cfg/by_key/42/raw": DOCUMENT})
    link = guest.root / "sys/firmware/qemu_fw_cfg/by_name" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(guest.root / "sys/firmware/qemu_fw_cfg/by_key/42")
    source = guest.found()
    assert source.name == f"QEMU fw_cfg {name}"
    assert source.user_data == DOCUMENT


def test_qemu_can_hand_metadata_over_beside_it(guest: Guest) -> None:
    folder = "sys/firmware/qemu_fw_cfg/by_name/opt/org.proa"
    meta = b"instance-id: i-1\n"
    guest.files({f"{folder}/user-data/raw": DOCUMENT, f"{folder}/meta-data/raw": meta})
    assert guest.found().metadata.instance_id == "i-1"


# VMware and OVF.

OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"
    xmlns:oe="http://schemas.dmtf.org/ovf/environment/1">
  <PropertySection>
    {}
  </PropertySection>
</Environment>
"""


def properties(**values: str) -> bytes:
    lines = (
        f'<Property oe:key="{name.replace("__", ".")}" oe:value="{value}"/>'
        for name, value in values.items()
    )
    return OVF.format("\n".join(lines)).encode()


PACKED = base64.b64encode(DOCUMENT).decode()


@pytest.mark.parametrize("label", ["OVF\\x20ENV", "OVF-TRANSPORT", "ovfenv"])
def test_an_ovf_environment_of_coreos_is_read(guest: Guest, label: str) -> None:
    values = {
        "guestinfo__coreos__config__data": PACKED,
        "guestinfo__coreos__config__data__encoding": "base64",
        "guestinfo__hostname": "web-1",
        "guestinfo__interface__0__name": "ens192",
        "guestinfo__interface__0__dhcp": "no",
        "guestinfo__interface__0__ip__0__address": "10.0.0.5/24",
        "guestinfo__interface__0__route__0__gateway": "10.0.0.1",
        "guestinfo__interface__0__route__0__destination": "0.0.0.0/0",
        "guestinfo__dns__server__0": "10.0.0.53",
    }
    guest.plug(label, {"ovf-env.xml": properties(**values)})
    source = guest.found()
    assert (source.user_data, source.metadata.hostname) == (DOCUMENT, "web-1")
    assert source.metadata.network is not None
    kind, data = source.metadata.network
    assert kind == "vmware"
    assert json.loads(data) == {
        "interface.0.name": "ens192",
        "interface.0.dhcp": "no",
        "interface.0.ip.0.address": "10.0.0.5/24",
        "interface.0.route.0.gateway": "10.0.0.1",
        "interface.0.route.0.destination": "0.0.0.0/0",
        "dns.server.0": "10.0.0.53",
    }


def test_an_ovf_environment_of_cloud_init_is_read(guest: Guest) -> None:
    values = {"user-data": PACKED, "instance-id": "i-1", "hostname": "web-1", "public-keys": KEY}
    guest.plug("OVFENV", {"ovf-env.xml": properties(**values)})
    source = guest.found()
    assert source.user_data == DOCUMENT
    assert source.metadata == Metadata("i-1", "web-1", (KEY,))


def test_an_ovf_environment_that_names_an_address_is_completed_later(guest: Guest) -> None:
    values = {"guestinfo__coreos__config__url": "http://a/b"}
    guest.plug("OVFENV", {"ovf-env.xml": properties(**values)})
    assert guest.found().follow == "http://a/b"


def test_an_ovf_environment_without_anything_for_us_is_passed_over(guest: Guest) -> None:
    guest.plug("OVFENV", {"ovf-env.xml": properties(other="x")})
    assert guest.find() is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<a", "not XML"),
        (b"", "not XML"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "a document type (DTD) is not taken"),
        (
            b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/shadow'>]><a>&b;</a>",
            "a document type (DTD) is not taken",
        ),
        (b"<a>" * 40 + b"</a>" * 40, "nested deeper"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "not XML"),
        (b"<a>&undefined;</a>", "not XML"),
    ],
)
def test_xml_that_is_bad_or_a_bomb_is_refused_with_a_reason(
    guest: Guest, data: bytes, reason: str
) -> None:
    guest.plug("OVFENV", {"ovf-env.xml": data})
    source = guest.found()
    assert source.unread
    assert reason in source.problems[0].message


def vmware_tool(values: dict[str, str]) -> Callable[[str], bytes]:
    def answer(question: str) -> bytes:
        name = question.removeprefix("info-get guestinfo.")
        if name not in values:
            raise CommandFailed("vmware-rpctool: failed (1)")  # No value found
        return f"{values[name]}\n".encode()

    return answer


@pytest.mark.parametrize("tool", ["vmware-rpctool", "vmtoolsd"])
def test_vmware_is_asked_for_the_values_of_cloud_init(guest: Guest, tool: str) -> None:
    metadata = (
        f"instance-id: i-1\nlocal-hostname: web-1\npublic-keys: [{KEY}]\n"
        "network: {version: 2, a: [x y, null]}\n"
    )
    guest.files(VMWARE)
    guest.programs[tool] = vmware_tool(
        {
            "userdata": base64.b64encode(gzip.compress(DOCUMENT)).decode(),
            "userdata.encoding": "gzip+base64",
            "metadata": base64.b64encode(metadata.encode()).decode(),
            "metadata.encoding": "base64",
            "vendordata": "#cloud-config",
        }
    )
    source = guest.found()
    assert source.problems == ()
    assert (source.user_data, source.vendor_data) == (DOCUMENT, b"#cloud-config")
    assert (source.metadata.instance_id, source.metadata.hostname) == ("i-1", "web-1")
    assert source.metadata.ssh_keys == (KEY,)
    assert source.metadata.network == (
        "cloud-init",
        b'{"version": 2, "a": ["x y", null]}',
    )


def test_a_network_that_is_packed_into_the_metadata_is_unpacked(guest: Guest) -> None:
    packed = base64.b64encode(b"version: 1\n").decode()
    metadata = f'{{"network": "{packed}", "network.encoding": "base64"}}'
    guest.files(VMWARE)
    guest.programs["vmware-rpctool"] = vmware_tool({"metadata": metadata})
    assert guest.found().metadata.network == ("cloud-init", b"version: 1\n")


def test_a_value_of_vmware_that_is_damaged_is_told_and_refused(guest: Guest) -> None:
    guest.files(VMWARE)
    guest.programs["vmware-rpctool"] = vmware_tool(
        {"userdata": "***", "userdata.encoding": "b64", "hostname": "web-1"}
    )
    source = guest.found()
    assert source.unread
    assert source.metadata.hostname == "web-1"
    assert "guestinfo.userdata is not base64" in source.problems[0].message


def test_a_vmware_guest_without_values_has_no_source(guest: Guest) -> None:
    guest.files(VMWARE)
    guest.programs["vmware-rpctool"] = vmware_tool({})
    assert guest.find() is None


def test_a_vmware_guest_without_the_tool_is_told_what_is_missing(guest: Guest) -> None:
    guest.files(VMWARE)
    source = guest.found()
    assert not source.unread
    assert "without vmware-rpctool (open-vm-tools)" in source.problems[0].message
    guest.plug("cidata", {"user-data": DOCUMENT})  # and nothing else is held up by that
    assert guest.found().user_data == DOCUMENT


# Azure.

AZURE_XML = """<?xml version="1.0" encoding="utf-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"
    xmlns:wa="http://schemas.microsoft.com/windowsazure">
  <wa:ProvisioningSection><wa:Version>1.0</wa:Version>
    <LinuxProvisioningConfigurationSet xmlns="http://schemas.microsoft.com/windowsazure">
      <ConfigurationSetType>LinuxProvisioningConfiguration</ConfigurationSetType>
      <HostName>web-1</HostName><UserName>core</UserName><UserPassword>swordfish</UserPassword>
      <SSH><PublicKeys><PublicKey><Fingerprint>F</Fingerprint><Path>/p</Path>
        <Value>{key}</Value></PublicKey></PublicKeys></SSH>
      <CustomData>{data}</CustomData>
    </LinuxProvisioningConfigurationSet>
  </wa:ProvisioningSection>
</Environment>
"""


def azure_xml() -> bytes:
    return AZURE_XML.format(key=KEY, data=PACKED).encode()


def test_the_provisioning_disc_of_azure_is_read_and_kept_without_the_password(
    guest: Guest,
) -> None:
    guest.plug("", {"ovf-env.xml": azure_xml()}, device="dev/sr0")
    edge = Edge(guest.root, guest.run, guest.capture, {})
    for disc_is_there in (True, False):
        if not disc_is_there:
            (guest.root / "dev/sr0").unlink()
        source = azure.provisioning_disc(edge)
        assert source is not None
        assert source.user_data == DOCUMENT
        assert (source.metadata.hostname, source.metadata.ssh_keys) == ("web-1", (KEY,))
    kept = guest.root / "var/lib/waagent/ovf-env.xml"
    assert b"swordfish" not in kept.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_disc_in_the_format_of_azure_counts_elsewhere_too(guest: Guest) -> None:
    guest.plug("OVFENV", {"ovf-env.xml": azure_xml()})
    assert guest.found().user_data == DOCUMENT


def test_on_azure_the_disc_waits_for_the_network(guest: Guest) -> None:
    guest.files(AZURE)
    guest.plug("OVFENV", {"ovf-env.xml": azure_xml()})
    assert guest.find() is None
    assert wants_network(guest.root, environ={})


SHARED = """<?xml version="1.0" encoding="utf-8"?>
<SharedConfig version="1.0.0.0">
  <Incarnation number="1" instance="web_IN_1" guid="{0}" />
  <Instances>
    <Instance id="web_IN_0" address="10.0.0.4"><InputEndpoints>
      <Endpoint name="ssh" loadBalancedPublicAddress="203.0.113.6:22" /></InputEndpoints></Instance>
    <Instance id="web_IN_1" address="10.0.0.5"><InputEndpoints>
      <Endpoint name="ssh" loadBalancedPublicAddress="203.0.113.7:22" /></InputEndpoints></Instance>
  </Instances>
</SharedConfig>
"""


def named(guest: Guest, kind: str, at: str) -> Source | None:
    return find_named(kind, at, guest.root, guest.run, capture=guest.capture, environ={})


def test_the_folder_of_azures_agent_is_read_once_it_is_complete(guest: Guest) -> None:
    folder = "var/lib/waagent"
    guest.files({f"{folder}/CustomData": DOCUMENT, f"{folder}/SharedConfig.xml": SHARED.encode()})
    assert named(guest, "waagent", f"/{folder}") is None
    guest.files({f"{folder}/provisioned": b""})
    source = named(guest, "waagent", f"/{folder}")
    assert source is not None
    assert source.user_data == DOCUMENT
    assert source.metadata.addresses == {
        "private_ipv4": "10.0.0.5",
        "public_ipv4": "203.0.113.7",
    }


def test_one_source_can_be_named_without_any_mark_of_it(guest: Guest) -> None:
    guest.files({f"srv/drive/{name}": content for name, content in drive(uuid="i-1").items()})
    guest.files({"srv/ovf-env.xml": properties(hostname="web-1"), "srv/user-data": DOCUMENT})
    source = named(guest, "config-drive", "/srv/drive")
    assert source is not None
    assert (source.user_data, source.metadata.instance_id) == (DOCUMENT, "i-1")
    source = named(guest, "ovf", "/srv/ovf-env.xml")
    assert source is not None
    assert source.metadata.hostname == "web-1"
    for kind, at in (("file", "/srv/user-data"), ("nocloud", "/srv/")):
        source = named(guest, kind, at)
        assert source is not None
        assert source.user_data == DOCUMENT
    for kind in ("config-drive", "ovf", "file"):
        assert named(guest, kind, "/srv/none") is None


# Xen.


def test_xenstore_is_asked_by_the_program_where_there_is_no_device(guest: Guest) -> None:
    values = {"vm-data/user-data": DOCUMENT, "vm-data/hostname": b"web-1"}

    def xenstore(path: str) -> bytes:
        if path not in values:
            raise CommandFailed("xenstore-read: failed (1)")
        return values[path]

    guest.files({"sys/hypervisor/type": b"xen\n"})
    guest.programs["xenstore-read"] = xenstore
    source = guest.found()
    assert (source.user_data, source.metadata.hostname) == (DOCUMENT, "web-1")


def test_a_xen_guest_without_vm_data_has_no_source(guest: Guest) -> None:
    guest.files({"sys/hypervisor/type": b"xen\n"})
    assert guest.find() is None


def test_xenstore_is_read_with_its_own_protocol() -> None:
    ours, theirs = socket.socketpair()
    header = struct.Struct("=IIII")

    def store() -> None:
        for _ in range(2):
            kind, request, _, length = header.unpack(theirs.recv(16))
            path = theirs.recv(length)
            if path == b"vm-data/user-data\0":
                # In two pieces, as a kernel may hand it over.
                theirs.sendall(header.pack(kind, request, 0, len(DOCUMENT)) + DOCUMENT[:3])
                theirs.sendall(DOCUMENT[3:])
            else:
                theirs.sendall(header.pack(16, request, 0, 7) + b"ENOENT\0")

    with ours, theirs:
        thread = threading.Thread(target=store)
        thread.start()
        assert xen_read(ours.fileno(), "vm-data/user-data") == DOCUMENT
        assert xen_read(ours.fileno(), "vm-data/none") is None
        thread.join()


@pytest.mark.parametrize(
    "answer", [struct.pack("=IIII", 2, 0, 0, 1 << 31), struct.pack("=IIII", 9, 0, 0, 0), b"abc"]
)
def test_a_xenstore_that_makes_no_sense_is_an_error(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="xenstore"):
            xen_read(ours.fileno(), "vm-data/user-data")


# Files.


@pytest.mark.parametrize(
    "path",
    ["var/lib/coreos-vagrant/vagrantfile-user-data", "var/lib/coreos-install/user_data"],
)
def test_the_files_of_vagrant_and_of_the_installer_are_read(guest: Guest, path: str) -> None:
    guest.files({path: DOCUMENT})
    source = guest.found()
    assert source.user_data == DOCUMENT
    assert source.name.endswith(path)


def test_what_the_oem_says_holds_where_the_owner_says_nothing(guest: Guest) -> None:
    guest.files({"usr/share/oem/cloud-config.yml": b"#cloud-config\nhostname: oem\n"})
    assert guest.found().user_data == b"#cloud-config\nhostname: oem\n"
    guest.plug("cidata", {"user-data": DOCUMENT})
    source = guest.found()
    assert source.user_data == DOCUMENT
    assert source.vendor_data == b"#cloud-config\nhostname: oem\n"


def test_the_oem_partition_is_mounted_and_read(guest: Guest) -> None:
    guest.plug("OEM", {"cloud-config.yml": DOCUMENT})
    assert guest.found().user_data == DOCUMENT
    assert guest.found().name.startswith("OEM partition")


def test_an_oem_alone_does_not_keep_a_machine_from_its_cloud(guest: Guest) -> None:
    guest.files({"usr/share/oem/cloud-config.yml": DOCUMENT})
    guest.files({"sys/class/dmi/id/sys_vendor": b"Hetzner\n"})
    assert guest.find() is None


# Which one, and what is said of the others.


def test_the_first_good_source_is_taken_and_a_bad_one_is_told(guest: Guest) -> None:
    guest.plug("config-2", {"openstack/latest/meta_data.json": b"["})
    guest.plug("cidata", {"user-data": DOCUMENT})
    source = guest.found()
    assert source.user_data == DOCUMENT
    assert [tried.outcome for tried in source.tried] == [
        "meta_data.json is not JSON; ignored",
        "taken",
    ]


def test_a_bad_source_alone_is_taken_with_its_fault(guest: Guest) -> None:
    guest.plug("config-2", {"openstack/latest/meta_data.json": b"["})
    source = guest.found()
    assert source.unread
    assert source.tried[0].outcome == "meta_data.json is not JSON; ignored"


def test_a_bad_disk_on_a_cloud_leaves_the_word_to_the_metadata_service(guest: Guest) -> None:
    guest.files({"sys/class/dmi/id/product_name": b"OpenStack Nova\n"})
    guest.plug("config-2", {"openstack/latest/meta_data.json": b"["})
    assert guest.find() is None
    assert wants_network(guest.root, environ={})


def test_what_is_wrong_with_a_setting_is_told_where_nothing_is_found(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"proa.datasource=nocluod\n"})
    assert 'did you mean "nocloud"' in str(guest.found().problems[0])


def test_an_oem_that_cannot_be_read_is_told_and_refuses_nothing(guest: Guest) -> None:
    oem = guest.root / "usr/share/oem/cloud-config.yml"
    oem.parent.mkdir(parents=True)
    oem.symlink_to(guest.root / "proc/cmdline")
    guest.files({"proc/cmdline": b"quiet\n"})
    guest.plug("cidata", {"user-data": DOCUMENT})
    source = guest.found()
    assert not source.unread
    assert "symbolic link" in source.problems[0].message


def test_an_address_on_the_kernel_command_line_goes_before_a_disk(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"cloud-config-url=http://a/b\n"})
    guest.plug("config-2", drive(hostname="web-1"))
    source = guest.found()
    assert (source.user_data, source.follow) == (None, "http://a/b")
    assert source.metadata.hostname == "web-1"
    assert "the kernel command line names another" in source.problems[0].message


def test_nocloud_over_the_network_goes_before_a_disk(guest: Guest) -> None:
    guest.files({"proc/cmdline": b"ds=nocloud;s=http://a/\n"})
    guest.plug("config-2", drive(hostname="web-1"))
    assert guest.find() is None


def test_a_machine_without_any_source_asks_nothing_of_the_network(guest: Guest) -> None:
    assert guest.find() is None
    assert not wants_network(guest.root, environ={})
    assert find_online(guest.root, guest.run, environ={}) is None


def test_what_is_found_and_complete_needs_no_network(guest: Guest) -> None:
    guest.plug("config-2", drive())
    source = guest.found()
    assert not wants_network(guest.root, source, environ={})
    assert find_online(guest.root, guest.run, found=source, environ={}) is source


def test_a_fault_of_a_disk_is_told_without_the_document(guest: Guest) -> None:
    guest.plug("config-2", drive(public_keys={"a": KEY}))
    source = guest.found()
    assert "swordfish" not in repr(source)
    assert KEY not in repr(source)


def test_a_program_is_run_at_the_edge_and_its_failure_says_nothing_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho swordfish >&2; [ $1 = good ] && echo yes\n")
    tool.chmod(0o755)
    assert edges.capture((str(tool), "good")) == b"yes\n"
    assert edges.capture((str(tmp_path / "none"),)) is None
    with pytest.raises(CommandFailed) as failed:
        edges.capture((str(tool), "bad"))
    assert "swordfish" not in str(failed.value)
    monkeypatch.setattr(edges, "PROGRAM_TIMEOUT", 0.05)
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(CommandFailed, match="took more than"):
        edges.capture((str(tool),))


def test_a_machine_without_a_source_loads_nothing_for_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from proa.machine.cloudconfig.sources import find, wants_network; "
        f"root = Path({str(tmp_path)!r}); "
        "find(root, lambda *_: None, environ={}); wants_network(root, environ={}); "
        "heavy = {'http.client', 'ssl', 'yaml', 'json', 'xml'}; "
        "print(*sorted(heavy & {*sys.modules}))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(edges.__file__).parents[4])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=True
    )
    assert done.stdout.decode().split() == []
