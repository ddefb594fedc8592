"""Cards by their addresses, new names, a bond, a VLAN and a bridge: a release's kernel makes them.

tests/integration/test_networkd.py has every form of a network description with virtual cables. What
those lack is here, on QEMU's cards: permanent MAC addresses, udev that gives names, and the kernel
modules of a release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proa import paths
from proa.lab import accelerator, configdrive
from support import guest

pytestmark = pytest.mark.machine

META_DATA = "instance-id: i-1\nlocal-hostname: web-1\n"
NETWORK = """\
version: 2
ethernets:
  front:
    match: {macaddress: "52:54:00:00:00:01"}
    set-name: front
    addresses: [10.7.0.2/24]
    mtu: 1400
  one:
    match: {macaddress: "52:54:00:00:00:02"}
    set-name: one
  two:
    match: {macaddress: "52:54:00:00:00:03"}
    set-name: two
  nobody:
    match: {macaddress: "52:54:00:00:00:99"}
    set-name: nobody
    optional: true
bonds:
  bond0:
    interfaces: [one, two]
    addresses: [10.6.0.2/24]
    parameters: {mode: active-backup, mii-monitor-interval: 100, primary: two}
vlans:
  storage:
    id: 5
    link: front
bridges:
  br0:
    interfaces: [storage]
    addresses: [10.5.0.2/24]
    routes: [{to: 192.0.2.0/24, via: 10.5.0.1}]
"""

# What systemd does on a machine: the first stage, then networkd.
COMMANDS = {
    "local": "/usr/lib/proa/cloudinit",
    "status": "cat /run/proa/cloudinit.json",
    "online": f"echo {'5a' * 16} > /etc/machine-id; mkdir -p /run/systemd/netif;"
    " modprobe -a bonding 8021q bridge;"
    " chown -R systemd-network: /run/systemd/netif;"
    " /usr/lib/systemd/systemd-networkd > /run/networkd.log 2>&1 &"
    " /usr/lib/systemd/systemd-networkd-wait-online --timeout=120"
    " -i front:routable -i bond0:routable -i br0:routable -i one:enslaved -i two:enslaved",
    "links": "ip -j -d addr",
    "routes": "ip -j route",
    "log": "cat /run/networkd.log",
    "files": "head -n 99 /run/systemd/network/* /etc/systemd/network/*",
}


@pytest.fixture(scope="module")
def answers(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, guest.Answer]:
    work = tmp_path_factory.mktemp("network")
    files = {"meta-data": META_DATA, "user-data": "#cloud-config\n", "network-config": NETWORK}
    configdrive.write_iso(work / "seed.iso", "cidata", files)
    options = ["-drive", f"if=none,id=seed,file={work / 'seed.iso'},format=raw,readonly=on"]
    options += ["-device", "virtio-blk-pci,drive=seed"]
    for number in (1, 2, 3):
        card = f"netdev=card{number},mac=52:54:00:00:00:0{number},romfile="
        options += ["-netdev", f"user,id=card{number}", "-device", f"virtio-net-pci,{card}"]
    chosen = accelerator.choose(release / "vmlinuz", paths.cache_dir())
    found = guest.run(release, work, COMMANDS, options=options, accelerator=chosen)
    said = "\n".join(found[name].text for name in ("local", "log", "files"))
    assert found["online"].status == 0, f"{found['online'].text}\n{said}"
    return found


@pytest.fixture(scope="module")
def links(answers: Mapping[str, guest.Answer]) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(answers["links"].text)}


def addresses(link: dict[str, Any]) -> set[str]:
    return {f"{known['local']}/{known['prefixlen']}" for known in link["addr_info"]}


def test_the_description_is_taken_and_its_cards_have_their_names(
    answers: Mapping[str, guest.Answer], links: dict[str, dict[str, Any]]
) -> None:
    status = json.loads(answers["status"].text)
    assert status["state"] == "applied", status
    assert status["problems"] == []
    assert links["front"]["address"] == "52:54:00:00:00:01"
    assert addresses(links["front"]) >= {"10.7.0.2/24"}
    assert links["front"]["mtu"] == 1400
    assert "nobody" not in links


def test_two_cards_make_a_bond(links: dict[str, dict[str, Any]]) -> None:
    assert addresses(links["bond0"]) >= {"10.6.0.2/24"}
    bond = links["bond0"]["linkinfo"]["info_data"]
    assert (bond["mode"], bond["miimon"], bond["primary"]) == ("active-backup", 100, "two")
    assert [links[name]["master"] for name in ("one", "two")] == ["bond0", "bond0"]
    # Cards of a bond bear its address; ip tells the one that they came with where it differs.
    own = [links[name].get("permaddr", links[name]["address"]) for name in ("one", "two")]
    assert own == ["52:54:00:00:00:02", "52:54:00:00:00:03"]


def test_a_vlan_is_the_port_of_a_bridge(
    answers: Mapping[str, guest.Answer], links: dict[str, dict[str, Any]]
) -> None:
    vlan = links["storage"]
    assert (vlan["link"], vlan["linkinfo"]["info_data"]["id"]) == ("front", 5)
    assert vlan["master"] == "br0"
    assert addresses(links["br0"]) >= {"10.5.0.2/24"}
    (route,) = [r for r in json.loads(answers["routes"].text) if r["dst"] == "192.0.2.0/24"]
    assert (route["gateway"], route["dev"]) == ("10.5.0.1", "br0")
