"""Where a machine finds its configuration: one real guest per source.

Each guest is the release's own kernel and /usr in QEMU (support/guest.py), with the SMBIOS strings,
disks and values that the platform shows, and where it is a service, with one on 169.254.169.254
that answers as the real one does. What was found is what the release's own program says.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proa import paths
from proa.factory import build, recipe
from proa.lab import accelerator, configdrive
from support import guest

pytestmark = pytest.mark.machine

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@lab"
USER_DATA = "#cloud-config\nwrite_files:\n- path: /etc/found\n  content: by $private_ipv4\n"
NAMESPACE = f"proa-metadata-{os.getpid()}"
WIRE_SERVER = "168.63.129.16"
"""Where Azure wants to hear that a machine is set up."""


@dataclass(frozen=True)
class Found:
    """What a guest says after its stages of cloud-config."""

    status: Mapping[str, Any]
    file: str
    hostname: str
    keys: str

    @property
    def source(self) -> str:
        return str(self.status["source"])


def look(
    release: Path,
    work: Path,
    options: Sequence[str] = (),
    *,
    before: str = "true",
    cmdline: str = "",
    namespace: str = "",
) -> Found:
    """Boot a guest that has ``options`` of QEMU's to show, and let it find its configuration.

    ``before`` is a command that puts what somebody else would have put.
    """
    commands = {
        "before": before,
        "local": "/usr/lib/proa/cloudinit",
        # In a whole system, systemd starts it when the first stage asks for it.
        "network": "! grep -q cloudinit-network /run/systemctl.log ||"
        " /usr/lib/proa/cloudinit --stage network",
        "status": "cat /run/proa/cloudinit.json",
        "file": "cat /etc/found",
        "hostname": "cat /etc/hostname",
        "keys": "cat /home/core/.ssh/authorized_keys",
    }
    chosen = accelerator.choose(release / "vmlinuz", paths.cache_dir())
    answers = guest.run(
        release,
        work,
        commands,
        options=options,
        cmdline=cmdline,
        namespace=namespace,
        accelerator=chosen,
    )
    assert answers["status"].status == 0, (work / "serial.log").read_text()[-3000:]
    return Found(
        json.loads(answers["status"].text),
        answers["file"].text.strip(),
        answers["hostname"].text.strip(),
        answers["keys"].text,
    )


def smbios(kind: int, **values: str) -> list[str]:
    words = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in values.items())
    return ["-smbios", f"type={kind},{words}"]


def disk(image: Path) -> list[str]:
    drive = f"if=none,id=seed,file={image},format=raw,readonly=on"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=seed"]


def iso(work: Path, label: str, files: Mapping[str, str]) -> list[str]:
    """Make an ISO 9660 disk with these files, and return how QEMU gets it."""
    configdrive.write_iso(work / "seed.iso", label, files)
    return disk(work / "seed.iso")


def vfat(work: Path, label: str, files: Mapping[str, str]) -> list[str]:
    """The same with FAT, made by the tools of the SDK."""
    for name, text in files.items():
        path = work / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    make = 'truncate -s 4M seed.img; mkfs.vfat -n "$1" seed.img; mcopy -s -i seed.img tree/* ::/'
    _, tools, _ = build.prepare(recipe.load(recipe.DEFAULT).packages, paths.cache_dir(), print)
    tools.run(["sh", "-ec", make, "sh", label], work=work)
    return disk(work / "seed.img")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


# --- In the machine or attached to it -----------------------------------------------------------

META_DATA = f"instance-id: i-1\nlocal-hostname: web-1\npublic-keys:\n- {KEY}\n"
DRIVE = {
    "openstack/latest/meta_data.json": json.dumps(
        {"uuid": "i-1", "hostname": "web-1", "public_keys": {"lab": KEY}}
    ),
    "openstack/latest/user_data": USER_DATA,
}


@pytest.mark.parametrize("make", [iso, vfat])
def test_a_config_drive(
    release: Path, tmp_path: Path, make: Callable[[Path, str, Mapping[str, str]], list[str]]
) -> None:
    found = look(release, tmp_path, make(tmp_path, "config-2", DRIVE))
    assert found.source.startswith("config drive")
    assert (found.hostname, found.file) == ("web-1", "by")
    assert KEY in found.keys


def test_a_nocloud_disk_with_a_network_description(release: Path, tmp_path: Path) -> None:
    network = "version: 2\nethernets:\n  a:\n    match: {name: 'eth*'}\n    dhcp4: true\n"
    seed = {"meta-data": META_DATA, "user-data": USER_DATA, "network-config": network}
    found = look(release, tmp_path, iso(tmp_path, "cidata", seed))
    assert found.source.startswith("NoCloud")
    assert (found.hostname, found.file) == ("web-1", "by")
    assert any("/run/systemd/network/" in c["what"] for c in found.status["changes"])


def test_nocloud_in_the_serial_number_alone(release: Path, tmp_path: Path) -> None:
    found = look(release, tmp_path, smbios(1, serial="ds=nocloud;h=web-1;i=i-1"))
    assert (found.hostname, found.status["instance_id"]) == ("web-1", "i-1")


def test_a_value_of_fw_cfg(release: Path, tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text(USER_DATA)
    options = ["-fw_cfg", f"name=opt/org.proa/user-data,file={user_data}"]
    found = look(release, tmp_path, options)
    assert "fw_cfg" in found.source
    assert found.file == "by"


FILES = {
    # systemd puts it there out of SMBIOS type 11, fw_cfg or the boot loader's files.
    "credential": "/run/credentials/@system/cloud-config",
    "vagrant": "/var/lib/coreos-vagrant/vagrantfile-user-data",
    "installed": "/var/lib/coreos-install/user_data",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_somebody_has_put(release: Path, tmp_path: Path, kind: str) -> None:
    path = FILES[kind]
    put = f"mkdir -p {path.rpartition('/')[0]}; cat > {path} <<'END'\n{USER_DATA}END"
    found = look(release, tmp_path, before=put)
    assert found.status["state"] == "applied"
    assert found.file == "by"


def test_the_oems_partition(release: Path, tmp_path: Path) -> None:
    found = look(release, tmp_path, vfat(tmp_path, "OEM", {"cloud-config.yml": USER_DATA}))
    assert found.status["state"] == "applied"
    assert found.file == "by"


BRACKETS = "#cloud-config\n" + "[" * (10 << 20)
# Each list is twice the one before it.
LISTS = ["a: &l0 [x, x]", *(f"a{n}: &l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 24))]
ALIASES = "#cloud-config\n" + "\n".join(LISTS)


@pytest.mark.parametrize("hostile", [BRACKETS, ALIASES], ids=["brackets", "aliases"])
def test_a_hostile_document_leaves_the_machine_reachable(
    release: Path, tmp_path: Path, hostile: str
) -> None:
    drive = {**DRIVE, "openstack/latest/user_data": hostile}
    found = look(release, tmp_path, iso(tmp_path, "config-2", drive))
    assert found.status["state"] == "refused"
    assert any(problem["level"] == "error" for problem in found.status["problems"])
    assert (found.hostname, KEY in found.keys) == ("web-1", True)
    assert found.status["seconds"] < 60


def test_an_ovf_environment_on_a_disk(release: Path, tmp_path: Path) -> None:
    ovf = (
        '<?xml version="1.0"?>\n<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" '
        'xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"><PropertySection>'
        '<Property oe:key="guestinfo.hostname" oe:value="web-1"/>'
        '<Property oe:key="guestinfo.coreos.config.data" '
        'oe:value="#cloud-config&#10;write_files:&#10;- path: /etc/found&#10;  content: by"/>'
        "</PropertySection></Environment>\n"
    )
    options = iso(tmp_path, "OVF ENV", {"ovf-env.xml": ovf})
    found = look(release, tmp_path, options)
    assert "OVF" in found.source
    assert (found.hostname, found.file) == ("web-1", "by")


# What the hypervisor would answer, by the program of open-vm-tools that asks it. The image has no
# such program; who needs it brings it.
RPCTOOL = f"""#!/bin/sh
case "$*" in
"info-get guestinfo.hostname") echo web-1 ;;
"info-get guestinfo.coreos.config.data") echo {base64.b64encode(USER_DATA.encode()).decode()} ;;
"info-get guestinfo.coreos.config.data.encoding") echo base64 ;;
"info-get guestinfo.interface.0.ip.0.address") echo 10.1.2.3/24 ;;
*) echo "No value found" >&2; exit 1 ;;
esac
"""


def test_guestinfo_of_vmware(release: Path, tmp_path: Path) -> None:
    put = (
        f"mkdir /run/tools; cat > /run/tools/vmware-rpctool <<'END'\n{RPCTOOL}END\n"
        "chmod 755 /run/tools/vmware-rpctool; modprobe overlay\n"
        "cp /run/fake-systemctl /run/tools/systemctl\n"
        "mount -t overlay -o lowerdir=/run/tools:/usr/bin overlay /usr/bin"
    )
    vmware = smbios(1, manufacturer="VMware, Inc.", product="VMware7,1")
    found = look(release, tmp_path, vmware, before=put)
    assert found.source == "VMware guestinfo"
    assert found.hostname == "web-1"
    assert found.file.startswith("by")


def test_a_vmware_machine_without_the_program_says_so(release: Path, tmp_path: Path) -> None:
    vmware = smbios(1, manufacturer="VMware, Inc.", product="VMware7,1")
    found = look(release, tmp_path, vmware)
    assert any("open-vm-tools" in problem["message"] for problem in found.status["problems"])


# The host's side of xenstore, behind a terminal in place of the kernel's device: xs_wire.h.
XENSTORE = f"""
import os, struct, tty
values = {{b"vm-data/user-data": {USER_DATA.encode()!r}, b"vm-data/hostname": b"web-1"}}
host, device = os.openpty()
tty.setraw(device)
os.makedirs("/dev/xen", exist_ok=True)
os.symlink(os.ttyname(device), "/dev/xen/xenbus")
if os.fork() == 0:
    while True:
        kind, request, transaction, length = struct.unpack("=IIII", os.read(host, 16))
        value = values.get(os.read(host, length).rstrip(b"\\0"))
        kind, value = (16, b"ENOENT\\0") if value is None else (kind, value)
        os.write(host, struct.pack("=IIII", kind, request, transaction, len(value)) + value)
"""


def test_xenstore(release: Path, tmp_path: Path) -> None:
    put = (
        "mkdir -p /dev/pts; mount -t devpts devpts /dev/pts\n"
        f"cat > /run/host.py <<'END'\n{XENSTORE}END\npython3 /run/host.py"
    )
    found = look(release, tmp_path, before=put)
    assert "xenstore" in found.source
    assert found.hostname == "web-1"
    assert found.file.startswith("by")


def test_a_machine_that_shows_nothing_waits_for_nothing(release: Path, tmp_path: Path) -> None:
    found = look(release, tmp_path)
    assert found.status["state"] == "nothing"
    assert found.status["waiting_for"] == []
    assert set(found.status["stages"]) == {"local"}


# --- Over the network ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A network namespace of ours, in which the address of metadata services is this host's."""
    run("ip", "netns", "add", NAMESPACE)
    try:
        inside = ("ip", "-n", NAMESPACE)
        run(*inside, "link", "set", "lo", "up")
        for address in ("169.254.169.254", WIRE_SERVER):
            run(*inside, "addr", "add", f"{address}/32", "dev", "lo")
        yield NAMESPACE
    finally:
        run("ip", "netns", "del", NAMESPACE)


@contextlib.contextmanager
def service(
    cloud: str, work: Path, *faults: str, at: str = "169.254.169.254", port: int = 80
) -> Iterator[None]:
    """The lab's metadata service of ``cloud``, in the namespace."""
    user_data = work / "user-data"
    user_data.write_text(USER_DATA)
    command = [
        *("ip", "netns", "exec", NAMESPACE, sys.executable, "-m", "proa.lab.metadata"),
        *("--cloud", cloud, "--listen", f"{at}:{port}"),
        *("--user-data", str(user_data), "--ssh-key", KEY),
        *(word for fault in faults for word in ("--fault", fault)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()  # it listens now
        yield
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


DMI: Mapping[str, list[str]] = {
    "ec2": smbios(1, manufacturer="Amazon EC2", product="t3.micro"),
    "ec2-v1": smbios(1, manufacturer="Amazon EC2", product="t3.micro"),
    "gce": smbios(1, manufacturer="Google", product="Google Compute Engine"),
    "openstack": smbios(1, manufacturer="OpenStack Foundation", product="OpenStack Nova"),
    "azure": smbios(3, asset="7783-7084-3265-9085-8269-3286-77"),
    "digitalocean": smbios(1, manufacturer="DigitalOcean", product="Droplet"),
    "hetzner": smbios(1, manufacturer="Hetzner", product="vServer"),
}


@pytest.mark.parametrize("cloud", DMI)
def test_a_metadata_service(release: Path, tmp_path: Path, namespace: str, cloud: str) -> None:
    with service(cloud, tmp_path), service("azure", tmp_path, at=WIRE_SERVER):
        found = look(release, tmp_path, DMI[cloud], namespace=namespace)
    assert found.status["state"] == "applied"
    assert found.hostname.startswith("web-1")
    assert found.file.startswith("by")
    assert KEY in found.keys
    assert set(found.status["stages"]) == {"local", "network"}
    assert "Azure" not in str(found.status["problems"])


def test_an_address_on_the_kernel_command_line(
    release: Path, tmp_path: Path, namespace: str
) -> None:
    with service("nocloud", tmp_path, port=8080):
        url = "http://169.254.169.254:8080/user-data"
        found = look(release, tmp_path, cmdline=f"cloud-config-url={url}", namespace=namespace)
    assert url in found.source
    assert found.file == "by"


def test_a_nocloud_seed_on_the_kernel_command_line(
    release: Path, tmp_path: Path, namespace: str
) -> None:
    with service("nocloud", tmp_path, port=8080):
        seed = "ds=nocloud;s=http://169.254.169.254:8080/"
        found = look(release, tmp_path, cmdline=f'"{seed}"', namespace=namespace)
    assert (found.hostname, found.file) == ("web-1", "by")
    assert KEY in found.keys


def test_a_service_that_fails_at_first_is_asked_again(
    release: Path, tmp_path: Path, namespace: str
) -> None:
    with service("ec2", tmp_path, "fail=3", "status=503", "slow=0.2"):
        found = look(release, tmp_path, DMI["ec2"], namespace=namespace)
    assert found.file == "by 10.0.0.5"
    assert KEY in found.keys
