"""A real systemd-networkd, the machine's own, makes of our files what they mean.

It comes from the SDK (the same Debian as the machine) and runs in network and mount namespaces of
its own, with virtual cables: ``eth0`` is plugged into ``far0``, and so on. Virtual cables have no
permanent MAC address, so interfaces are found by name here.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proa import paths
from proa.factory import build, recipe
from proa.machine.cloudconfig.network.forms import Form, read
from proa.machine.cloudconfig.network.render import NetworkFile, render
from support.network_examples import examples, form_of

NETWORKD = "usr/lib/systemd/systemd-networkd"


@functools.cache
def sdk_tree() -> Path:
    """The newest SDK in the cache; made if there is none."""
    trees = [path.parents[3] for path in paths.cache_dir().glob(f"sdk/*/{NETWORKD}")]
    if trees:
        return max(trees, key=lambda tree: tree.stat().st_mtime)
    _, tools, _ = build.prepare(recipe.load(recipe.DEFAULT).packages, paths.cache_dir(), print)
    return tools.path


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))),
    reason="needs root, ip and unshare",
)

# A root for networkd to run in, with the files of the directory $1.
_ROOT = r"""
set -e
root() {
    mount --bind "$SDK" "$SDK"
    mount -o remount,bind,ro "$SDK"
    mount --rbind /dev "$SDK/dev"
    mount -t proc proc "$SDK/proc"
    mount -t sysfs -o ro sysfs "$SDK/sys"  # read-only: networkd does not wait for udev then
    mount -t tmpfs -o mode=0755 tmpfs "$SDK/run"
    mkdir -p "$SDK/run/systemd/network" "$SDK/run/systemd/netif"
    find "$1" -maxdepth 1 -type f -exec cp -t "$SDK/run/systemd/network" {} +
    chmod -R a+rX "$SDK/run"
    chroot "$SDK" chown -R systemd-network:systemd-network /run/systemd/netif
    echo "$2" > "$SDK/run/machine-id"
    mount --bind "$SDK/run/machine-id" "$SDK/etc/machine-id"
    ip link set lo up
}
"""

# The other end of the cables, if there are files for it.
_FAR = r"""
root "$1/far" fedcba9876543210fedcba9876543210
until ip link show far2 > /dev/null 2>&1; do sleep 0.1; done
exec chroot "$SDK" /usr/lib/systemd/systemd-networkd
"""

# The words after the directory are interfaces with the state to wait for.
_NEAR = r"""
files=$1; shift
far=1
if [ -d "$files/far" ]; then
    unshare --net --mount --propagation=private bash -c "$FAR" far "$files" &> "$files.far.log" &
    far=$!
fi
root "$files" 0123456789abcdef0123456789abcdef
for n in 0 1 2; do
    ip link add eth$n type veth peer name far$n
    if [ $far = 1 ]; then ip link set far$n up; else ip link set far$n netns $far; fi
done
chroot "$SDK" udevadm test-builtin net_setup_link /sys/class/net/eth0 &> "$files.log"
chroot "$SDK" /usr/lib/systemd/systemd-networkd &>> "$files.log" &
for word; do
    chroot "$SDK" /usr/lib/systemd/systemd-networkd-wait-online --timeout=60 \
        --interface="$word" &>> "$files.log" || true
done
[ $# -gt 0 ] || sleep 3
for what in "addr" "-d link" "route show table all" "-6 route show table all" "rule" "-6 rule"; do
    ip -j $what
done
"""


@dataclass(frozen=True)
class Host:
    """How the kernel's network was in the end, as ``ip -j`` tells it, and what was logged."""

    links: dict[str, dict[str, Any]]
    addresses: dict[str, set[str]]
    routes: list[dict[str, Any]]
    rules: list[dict[str, Any]]
    log: str

    @property
    def complaints(self) -> list[str]:
        """What networkd or udev says of a line of a file."""
        return re.findall(r"^.*/run/systemd/network/\S+:.*$", self.log, re.MULTILINE)

    def route(self, dst: str, dev: str) -> dict[str, Any]:
        found = [r for r in self.routes if r.get("dst") == dst and r.get("dev") == dev]
        assert len(found) == 1, (found, self.log)
        return found[0]


def run(work: Path, files: Sequence[NetworkFile], *wait: str) -> Host:
    """Start networkd on ``files``; look when the interfaces ``wait`` (``eth0:routable``) are so."""
    folder = work / "files"
    folder.mkdir()
    for file in files:
        if file.path.startswith("systemd/network/"):
            path = folder / file.path.removeprefix("systemd/network/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(file.content)
    command = ["unshare", "--net", "--mount", "--propagation=private", "--pid", "--mount-proc"]
    command += ["--fork", "--kill-child", "bash", "-c", _ROOT + _NEAR, "networkd", str(folder)]
    result = subprocess.run(
        [*command, *wait],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SDK": str(sdk_tree()), "FAR": _ROOT + _FAR},
        capture_output=True,
        text=True,
        check=True,
    )
    log = (work / "files.log").read_text()
    answers = _answers(result.stdout)
    addresses = {
        link["ifname"]: {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]}
        for link in answers[0]
    }
    links = {link["ifname"]: link for link in answers[1]}
    return Host(links, addresses, answers[2] + answers[3], answers[4] + answers[5], log)


def _answers(text: str) -> list[list[dict[str, Any]]]:
    decoder = json.JSONDecoder()
    answers: list[list[dict[str, Any]]] = []
    while text := text.strip():
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:]
    return answers


def files_for(form: Form, text: str) -> list[NetworkFile]:
    network, problems = read(form, text.encode())
    assert [str(problem) for problem in problems] == []
    return list(render(network))


def needs(kind: str) -> None:
    """Skip the test if this kernel cannot make links of ``kind``: its module is not there."""
    make = f"ip link add e0 type veth peer e1 && ip link add link e0 m type {kind} || exit 9"
    make = make.replace("link e0 m type bond", "m type bond").replace("vlan", "vlan id 5")
    done = subprocess.run(["unshare", "--net", "sh", "-c", make], capture_output=True, check=False)
    if done.returncode == 9:
        pytest.skip(f"the kernel of this host cannot make a {kind}")


def by_hand(name: str, content: str) -> NetworkFile:
    return NetworkFile(f"systemd/network/{name}", content)


def test_every_line_that_we_write_is_one_that_systemd_knows(tmp_path: Path) -> None:
    files: list[NetworkFile] = []
    for number, example in enumerate(examples()):
        network, _ = read(form_of(example), example.read_bytes())
        for file in render(network):
            stem = Path(file.path).name
            files.append(by_hand(f"{number}-{stem}", file.content))
    assert any(file.path.endswith(".link") for file in files)
    assert run(tmp_path, files).complaints == []


def test_a_line_that_systemd_does_not_know_would_be_seen(tmp_path: Path) -> None:
    files = [
        by_hand("10-a.network", "[Match]\nName=eth0\n\n[Network]\nBogus=1\n"),
        by_hand("10-a.link", "[Match]\nOriginalName=eth0\n\n[Link]\nBogus=1\n"),
        by_hand("10-a.netdev", "[NetDev]\nName=b0\nKind=bridge\n\n[Bridge]\nBogus=1\n"),
    ]
    assert len(run(tmp_path, files).complaints) == 3


def test_static_addresses_routes_and_rules_of_version_2(tmp_path: Path) -> None:
    files = files_for(
        "v2",
        """
version: 2
ethernets:
  eth0:
    mtu: 1400
    macaddress: 52:54:00:12:34:56
    addresses: [192.0.2.10/24, "2001:db8::10/64", {192.0.2.11/24: {label: "eth0:1"}}]
    routes:
      - {to: default, via: 192.0.2.1, metric: 50}
      - {to: default, via: "2001:db8::1"}
      - {to: 198.51.100.0/24, via: 192.0.2.2, table: 7, from: 192.0.2.10, mtu: 1300}
      - {to: 203.0.113.0/24, scope: link}
    routing-policy:
      - {from: 192.0.2.0/24, table: 7, priority: 100}
      - {mark: 9, table: 9, priority: 101}
""",
    )
    host = run(tmp_path, files, "eth0:routable")
    assert host.complaints == []
    assert {"192.0.2.10/24", "192.0.2.11/24", "2001:db8::10/64"} <= host.addresses["eth0"]
    assert host.links["eth0"]["mtu"] == 1400
    assert host.links["eth0"]["address"] == "52:54:00:12:34:56"
    defaults = {r["gateway"]: r for r in host.routes if r.get("dst") == "default"}
    assert defaults["192.0.2.1"]["metric"] == 50
    assert defaults["2001:db8::1"]["dev"] == "eth0"
    special = host.route("198.51.100.0/24", "eth0")
    assert (special["table"], special["prefsrc"]) == ("7", "192.0.2.10")
    assert host.route("203.0.113.0/24", "eth0")["scope"] == "link"
    assert {"priority": 100, "src": "192.0.2.0", "srclen": 24, "table": "7"}.items() <= next(
        rule for rule in host.rules if rule["priority"] == 100
    ).items()
    assert len([rule for rule in host.rules if rule["priority"] == 101]) == 2  # IPv4 and IPv6


def test_a_gateway_beyond_the_only_address_of_its_network(tmp_path: Path) -> None:
    files = files_for(
        "v1",
        """
version: 1
config:
  - {type: physical, name: eth0, subnets: [
      {type: static, address: 198.51.100.7/32, gateway: 172.31.1.1}]}
""",
    )
    host = run(tmp_path, files, "eth0:routable")
    assert host.addresses["eth0"] >= {"198.51.100.7/32"}
    route = host.route("default", "eth0")
    assert (route["gateway"], route["flags"]) == ("172.31.1.1", ["onlink"])


def test_a_bridge_takes_its_ports_and_has_the_address(tmp_path: Path) -> None:
    files = files_for(
        "v2",
        """
version: 2
ethernets: {eth0: {}, eth1: {}}
bridges:
  br0:
    interfaces: [eth0, eth1]
    addresses: [10.7.0.2/16]
    gateway4: 10.7.0.1
    parameters: {priority: 100, forward-delay: 4, stp: true, path-cost: {eth1: 50}}
""",
    )
    host = run(tmp_path, files, "br0:routable", "eth0:enslaved", "eth1:enslaved")
    assert host.complaints == []
    assert [host.links[name]["master"] for name in ("eth0", "eth1")] == ["br0", "br0"]
    assert host.addresses["br0"] >= {"10.7.0.2/16"}
    assert host.addresses["eth0"] == set()
    assert host.route("default", "br0")["gateway"] == "10.7.0.1"
    info = host.links["br0"]["linkinfo"]["info_data"]
    assert (info["stp_state"], info["priority"], info["forward_delay"]) == (1, 100, 400)
    assert host.links["eth1"]["linkinfo"]["info_slave_data"]["cost"] == 50


def test_a_bridge_without_ports_has_its_address_at_once(tmp_path: Path) -> None:
    files = files_for("v2", "{version: 2, bridges: {br0: {addresses: [10.7.0.2/16]}}}")
    host = run(tmp_path, files, "br0:no-carrier:routable")
    assert host.addresses["br0"] == {"10.7.0.2/16"}


def test_an_address_by_dhcp(tmp_path: Path) -> None:
    server = by_hand(
        "far/10-far0.network",
        "[Match]\nName=far0\n\n[Network]\nAddress=10.5.0.1/24\nDHCPServer=yes\n"
        "\n[DHCPServer]\nPersistLeases=no\n",
    )
    files = files_for(
        "v2",
        """
version: 2
ethernets:
  eth0: {dhcp4: true, dhcp4-overrides: {route-metric: 77, use-routes: true}}
""",
    )
    host = run(tmp_path, [server, *files], "eth0:routable")
    assert any(address.startswith("10.5.0.") for address in host.addresses["eth0"]), host.log
    assert host.route("10.5.0.0/24", "eth0")["metric"] == 77


def test_addresses_by_router_advertisement(tmp_path: Path) -> None:
    router = by_hand(
        "far/10-far1.network",
        "[Match]\nName=far1\n\n[Network]\nIPv6SendRA=yes\nAddress=2001:db8:5::1/64\n"
        "\n[IPv6Prefix]\nPrefix=2001:db8:5::/64\n",
    )
    files = files_for(
        "v1",
        "{version: 1, config: [{type: physical, name: eth1, subnets: [{type: ipv6_slaac}]}]}",
    )
    host = run(tmp_path, [router, *files], "eth1:routable")
    assert any(address.startswith("2001:db8:5:") for address in host.addresses["eth1"]), host.log


def test_debian_interfaces_as_rackspace_wrote_them(tmp_path: Path) -> None:
    text = next(path for path in examples() if path.name == "rackspace.interfaces").read_text()
    host = run(tmp_path, files_for("eni", text), "eth0:routable", "eth1:routable")
    assert host.addresses["eth0"] >= {"23.253.1.2/24", "2001:4801:7818:6::2/64"}
    assert host.addresses["eth1"] >= {"10.208.0.2/19"}
    assert host.links["eth0"]["address"] == "bc:76:4e:04:7a:0e"
    gateways = {r.get("gateway") for r in host.routes if r.get("dst") == "default"}
    assert gateways == {"23.253.1.1", "fe80::def"}
    assert host.route("10.176.0.0/12", "eth1")["gateway"] == "10.208.0.1"


def test_a_vlan_on_a_card(tmp_path: Path) -> None:
    needs("vlan")
    files = files_for("eni", "iface eth0.5 inet static\n address 10.5.0.2/24\n gateway 10.5.0.1\n")
    host = run(tmp_path, files, "eth0.5:routable")
    assert host.addresses["eth0.5"] >= {"10.5.0.2/24"}
    assert host.links["eth0.5"]["linkinfo"]["info_data"]["id"] == 5


def test_a_bond_of_two_cards(tmp_path: Path) -> None:
    needs("bond")
    files = files_for(
        "v2",
        """
version: 2
ethernets: {eth0: {}, eth1: {}}
bonds:
  bond0:
    interfaces: [eth0, eth1]
    addresses: [10.6.0.2/24]
    parameters: {mode: active-backup, mii-monitor-interval: 100, primary: eth1}
""",
    )
    host = run(tmp_path, files, "bond0:routable", "eth0:enslaved", "eth1:enslaved")
    assert host.addresses["bond0"] >= {"10.6.0.2/24"}
    assert [host.links[name]["master"] for name in ("eth0", "eth1")] == ["bond0", "bond0"]
    assert host.links["bond0"]["linkinfo"]["info_data"]["mode"] == "active-backup"
