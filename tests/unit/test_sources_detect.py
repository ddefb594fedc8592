"""A machine knows from what it shows of itself where its configuration is, and asks nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.sources import wants_network
from proa.machine.cloudconfig.sources.detect import EC2_IPV6, KINDS, SERVICES, deadline, detect
from proa.machine.cloudconfig.sources.facts import LABELS, Facts, gather, value_of, words
from proa.machine.cloudconfig.sources.source import Edge

HERE = "http://169.254.169.254"


def facts(cmdline: str = "", **dmi: str) -> Facts:
    return Facts(cmdline=words(cmdline), dmi=dmi)


def network(found: Facts) -> list[tuple[str, str]]:
    return [(candidate.kind, candidate.at) for candidate in detect(found).network]


def local(found: Facts) -> list[str]:
    return [candidate.kind for candidate in detect(found).local]


# Which cloud this is.


@pytest.mark.parametrize(
    "dmi",
    [
        {},
        {"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"},
        {"sys_vendor": "Dell Inc.", "product_name": "PowerEdge R640", "product_serial": "EC2X9"},
        {"product_serial": "ec2aaaa", "product_uuid": "ec2bbbb"},
        {"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-78"},
    ],
)
def test_a_machine_without_a_mark_of_a_cloud_asks_nobody(dmi: dict[str, str]) -> None:
    assert network(facts(**dmi)) == []


@pytest.mark.parametrize(
    ("dmi", "kind"),
    [
        ({"sys_vendor": "Amazon EC2"}, "ec2"),
        ({"bios_vendor": "Amazon EC2"}, "ec2"),
        ({"product_serial": "EC2ab-1", "product_uuid": "ec2AB-1"}, "ec2"),
        ({"product_serial": "x.brightbox.com"}, "ec2"),
        ({"chassis_asset_tag": "x.zstack.io"}, "ec2"),
        ({"sys_vendor": "e24cloud"}, "ec2"),
        ({"product_name": "Google Compute Engine"}, "gce"),
        ({"product_serial": "GoogleCloud-1F"}, "gce"),
        ({"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}, "azure"),
        ({"product_name": "OpenStack Nova"}, "openstack"),
        ({"chassis_asset_tag": "OpenTelekomCloud"}, "openstack"),
        ({"sys_vendor": "DigitalOcean"}, "digitalocean"),
        ({"sys_vendor": "Hetzner"}, "hetzner"),
        ({"chassis_asset_tag": "OracleCloud.com"}, "oracle"),
        ({"product_name": "Alibaba Cloud ECS"}, "aliyun"),
    ],
)
def test_the_marks_of_each_cloud_are_known(dmi: dict[str, str], kind: str) -> None:
    expected = [(kind, SERVICES[kind])]
    if kind == "ec2":
        expected.append(("ec2", EC2_IPV6))
    assert network(facts(**dmi)) == expected


def test_an_older_ec2_machine_is_known_by_xen() -> None:
    assert network(Facts(hypervisor="xen", hypervisor_uuid="EC2e1916"))[0] == ("ec2", HERE)


@pytest.mark.parametrize(
    "word", ["coreos.oem.id=ec2", "flatcar.oem.id=EC2", "ignition.platform.id=aws"]
)
def test_the_words_of_coreos_and_its_children_name_a_platform(word: str) -> None:
    assert network(facts(word))[0] == ("ec2", HERE)
    assert network(facts("coreos.oem.id=packet"))[0][0] == "packet"
    assert network(facts("coreos.oem.id=unheard-of")) == []


# What the owner says on the kernel command line.


def test_an_address_on_the_kernel_command_line_goes_before_the_cloud() -> None:
    found = facts("cloud-config-url=http://a/b", sys_vendor="Hetzner")
    assert network(found) == [("url", "http://a/b"), ("hetzner", HERE)]
    assert [candidate.explicit for candidate in detect(found).network] == [True, False]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("cloud-config-url=http://a", "http://a"),
        ("cloud_config_url=http://a", "http://a"),
        ("cloud-config-url=http://b cloud_config_url=http://a", "http://a"),
        ('quiet "cloud-config-url=http://a?b c"', "http://a?b c"),
        ('cloud-config-url="http://a" quiet', "http://a"),
    ],
)
def test_the_last_address_counts_and_quotes_hold_it_together(line: str, address: str) -> None:
    assert network(facts(line)) == [("url", address)]


def test_nocloud_takes_an_address_or_a_directory() -> None:
    assert network(facts("ds=nocloud;s=http://a/b/")) == [("nocloud", "http://a/b/")]
    assert network(facts("ds=nocloud-net;s=http://a/b/")) == [("nocloud", "http://a/b/")]
    for line in ("ds=nocloud;s=file:///seed/", "ds=nocloud;seedfrom=/seed/"):
        assert network(facts(line)) == []
        assert [c.at for c in detect(facts(line)).local] == ["/seed/"]


def test_nocloud_may_say_name_and_id_itself_or_with_a_disk() -> None:
    found = detect(facts("ds=nocloud;h=web-1;i=i-1")).local
    assert found[0].seed == {"local-hostname": "web-1", "instance-id": "i-1"}
    with_disk = Facts(cmdline=("ds=nocloud;h=web-1",), labels={"cidata": "cidata"})
    (disk,) = detect(with_disk).local
    assert (disk.at, disk.seed) == ("/dev/disk/by-label/cidata", {"local-hostname": "web-1"})


def test_nocloud_is_read_from_the_serial_number_too() -> None:
    assert network(facts(product_serial="ds=nocloud;s=http://a/")) == [("nocloud", "http://a/")]
    assert network(facts(product_serial="x ds=nocloud;s=http://a/"))[0][0] == "nocloud"
    assert network(facts("ds=nocloud;s=http://b/", product_serial="ds=nocloud;s=http://a/")) == [
        ("nocloud", "http://b/")
    ]


def test_an_address_can_hold_what_identifies_the_machine_and_nothing_else_gets_in() -> None:
    line = "ds=nocloud;s=http://a/__dmi.chassis-serial-number__/__dmi.nonsense__/"
    assert network(facts(line, chassis_serial="S1")) == [
        ("nocloud", "http://a/S1/__dmi.nonsense__/")
    ]
    assert network(facts(line, chassis_serial="../?x=#")) == [
        ("nocloud", "http://a/..%2F%3Fx%3D%23/__dmi.nonsense__/")
    ]


def test_another_datasource_of_cloud_init_is_not_nocloud() -> None:
    assert detect(facts("ds=ec2;s=http://a")).network == ()


# What is in the machine.


def test_the_order_of_the_local_sources_is_fixed() -> None:
    found = Facts(
        cmdline=("ds=nocloud;s=/seed/",),
        dmi={"sys_vendor": "VMware, Inc."},
        labels={label: label for label in (*LABELS, "OEM")},
        credentials="cloud-config",
        fw_cfg="opt/org.proa/user-data",
        files=("/var/lib/coreos-install/user_data", "/usr/share/oem/cloud-config.yml"),
        hypervisor="xen",
        share="9p",
    )
    assert list(dict.fromkeys(local(found))) == [
        *("nocloud", "credentials", "fw-cfg", "config-drive", "ovf", "vmware", "xen"),
        *("file", "oem"),
    ]


def test_a_disk_is_known_by_its_label_whatever_its_case() -> None:
    for label in ("config-2", "CONFIG-2"):
        assert local(Facts(labels={label: label})) == ["config-drive"]
    for label in ("cidata", "CIDATA"):
        assert local(Facts(labels={label: label})) == ["nocloud"]
    assert local(Facts(labels={"ROOT": "ROOT", "OVFX": "OVFX"})) == []


def test_the_disc_of_azure_is_left_to_its_metadata_service() -> None:
    tag = "7783-7084-3265-9085-8269-3286-77"
    labels = {"OVF ENV": "OVF\\x20ENV"}
    assert local(Facts(labels=labels)) == ["ovf"]
    assert local(Facts(labels=labels, dmi={"chassis_asset_tag": tag})) == []


def test_a_9p_share_that_this_kernel_cannot_mount_is_told() -> None:
    (problem,) = detect(Facts(share="no driver")).problems
    assert "no driver for 9p" in problem.message


# What the owner restricts.


def test_only_the_sources_that_the_owner_names_are_looked_at() -> None:
    dmi = {"sys_vendor": "Hetzner"}
    found = Facts(dmi=dmi, labels={"cidata": "cidata"}, cmdline=("proa.datasource=nocloud",))
    assert local(found) == ["nocloud"]
    assert network(found) == []
    hetzner = Facts(dmi=dmi, labels={"cidata": "cidata"}, cmdline=("proa.datasource=hetzner",))
    assert local(hetzner) == []
    assert network(hetzner) == [("hetzner", HERE)]


def test_a_service_that_the_owner_names_is_asked_without_any_mark_of_it() -> None:
    assert network(facts("proa.datasource=gce,openstack")) == [("gce", HERE), ("openstack", HERE)]
    assert network(facts("proa.datasource=gce@http://10.0.2.2:80")) == [
        ("gce", "http://10.0.2.2:80")
    ]
    # Also where it is marked.
    marked = facts("proa.datasource=ec2@http://10.0.2.2:80", sys_vendor="Amazon EC2")
    assert network(marked) == [("ec2", "http://10.0.2.2:80")]


def test_none_looks_nowhere() -> None:
    found = Facts(labels={"cidata": "cidata"}, cmdline=("proa.datasource=none",))
    assert (local(found), network(found)) == ([], [])


def test_the_setting_restricts_too_and_the_command_line_goes_before_it() -> None:
    settings = {"DATASOURCE": "gce azure"}
    assert [kind for kind, _ in network(Facts(settings=settings))] == ["gce", "azure"]
    both = Facts(settings=settings, cmdline=("proa.datasource=ec2",))
    assert network(both) == [("ec2", HERE)]


def test_a_misspelt_kind_is_told_with_the_right_one() -> None:
    found = detect(facts("proa.datasource=openstak"))
    assert found.network == ()
    assert 'openstak is no kind of source; ignored; did you mean "openstack"?' in str(
        found.problems[0]
    )


def test_a_setting_that_is_not_known_or_not_usable_is_told() -> None:
    found = detect(Facts(settings={"DATASOURCES": "gce", "DEADLINE": "9" * 5000}))
    assert [problem.message for problem in found.problems] == [
        "/etc/proa/datasource.conf: DATASOURCES is no setting (DATASOURCE, DEADLINE); ignored",
        "/etc/proa/datasource.conf: DEADLINE is a number of seconds up to 600; ignored",
    ]
    assert deadline(Facts(settings={"DEADLINE": "60"})) == 60
    assert deadline(Facts(settings={"DEADLINE": "0"})) is None


# How the facts are read.


def root_with(root: Path, files: dict[str, str]) -> Edge:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Edge(root, lambda *_: None, lambda _: None, {})


def test_facts_are_read_from_the_files_of_the_kernel_and_udev(tmp_path: Path) -> None:
    edge = root_with(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
            "sys/class/dmi/id/product_name": "\n",
            "proc/cmdline": "quiet cloud-config-url=http://a\n",
            "dev/disk/by-label/OVF\\x20ENV": "",
            "run/credentials/@system/cloud-config": "#cloud-config\n",
            "sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw": "{}",
            "var/lib/coreos-install/user_data": "",
            "sys/hypervisor/type": "xen\n",
            "dev/xen/xenbus": "",
            "sys/bus/virtio/devices/virtio3/device": "0x0009\n",
            "sys/bus/virtio/devices/virtio3/mount_tag": "config-2\0",
            "etc/proa/datasource.conf": "# words\nDATASOURCE='gce azure' # more\nbroken='\n",
            "usr/share/proa/datasource.conf": "DATASOURCE=ec2\nDEADLINE=60\n",
        },
    )
    found = gather(edge)
    assert found.dmi == {"sys_vendor": "Amazon EC2"}
    assert value_of(found.cmdline, "cloud-config-url") == "http://a"
    assert found.labels == {"OVF ENV": "OVF\\x20ENV"}
    assert found.credentials == "cloud-config"
    assert found.fw_cfg == "opt/com.coreos/config"
    assert found.files == ("/var/lib/coreos-install/user_data",)
    assert (found.hypervisor, found.xenbus, found.share) == ("xen", "/dev/xen/xenbus", "9p")
    assert found.settings == {"DATASOURCE": "gce azure", "broken='": "", "DEADLINE": "60"}


def test_an_empty_root_has_no_facts(tmp_path: Path) -> None:
    assert gather(Edge(tmp_path, lambda *_: None, lambda _: None, {})) == Facts()
    assert not wants_network(tmp_path, environ={})


def test_a_9p_device_without_a_driver_is_seen(tmp_path: Path) -> None:
    edge = root_with(tmp_path, {"sys/bus/virtio/devices/virtio3/device": "0x0009\n"})
    assert gather(edge).share == "no driver"
    edge = root_with(tmp_path, {"sys/bus/virtio/devices/virtio3/mount_tag": "files\0"})
    assert gather(edge).share == ""


# Whatever the facts are.

_WORDS = st.sampled_from(
    [
        *("proa.datasource=", "cloud-config-url=", "ds=nocloud", ";s=", ";h=", ";i=", "http://a"),
        *("file://", "/", "@", ",", "__dmi.system-uuid__", " ", '"', "=", ";", "ec2", "none"),
    ]
)
_LINES = st.lists(st.one_of(_WORDS, st.text(max_size=5)), max_size=12).map("".join)


@given(line=_LINES, serial=_LINES, setting=st.one_of(st.none(), _LINES))
def test_any_command_line_and_serial_number_give_candidates_of_known_kinds(
    line: str, serial: str, setting: str | None
) -> None:
    settings = {} if setting is None else {"DATASOURCE": setting}
    dmi = {"product_serial": serial, "product_uuid": serial}
    found = detect(Facts(cmdline=words(line), dmi=dmi, settings=settings))
    for candidate in (*found.local, *found.network):
        assert candidate.kind in KINDS
    assert all(str(problem).isprintable() for problem in found.problems)
