"""Settings of bonds and bridges: what each form calls them, and what systemd does.

The names on the left are the kernel's (Documentation/networking/bonding, bridge-utils), as in
version 1, in Debian's interfaces and in OpenStack's JSON; netplan has its own for some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.machine.cloudconfig.network import values
from proa.machine.record import dataclass

_MODES = (
    *("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad"),
    *("balance-tlb", "balance-alb"),
)
_HASHES = ("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")


@dataclass(frozen=True)
class Parameter:
    setting: str
    """Its name in systemd.netdev(5)."""
    read: Callable[[str], str]
    many: bool = False
    """It may be a list."""


def _numbered(*words: str) -> Callable[[str], str]:
    """One of ``words``, or its place in the kernel's order."""

    def read(text: str) -> str:
        return words[int(text)] if text in map(str, range(len(words))) else choose(text)

    choose = values.choice(*words)
    return read


def _number(low: int, high: int) -> Callable[[str], str]:
    read = values.number(low, high)
    return lambda text: str(read(text))


def _flag(text: str) -> str:
    return "yes" if values.flag({"delivered": "1", "dropped": "0"}.get(text, text)) else "no"


def _targets(text: str) -> str:
    return str(values.address4(text))


BOND: Mapping[str, Parameter] = {
    "mode": Parameter("Mode", _numbered(*_MODES)),
    "xmit_hash_policy": Parameter("TransmitHashPolicy", _numbered(*_HASHES)),
    "lacp_rate": Parameter("LACPTransmitRate", _numbered("slow", "fast")),
    "miimon": Parameter("MIIMonitorSec", values.span("ms")),
    "updelay": Parameter("UpDelaySec", values.span("ms")),
    "downdelay": Parameter("DownDelaySec", values.span("ms")),
    "peer_notif_delay": Parameter("PeerNotifyDelaySec", values.span("ms")),
    "lp_interval": Parameter("LearnPacketIntervalSec", values.span("s")),
    "ad_select": Parameter("AdSelect", _numbered("stable", "bandwidth", "count")),
    "ad_actor_sys_prio": Parameter("AdActorSystemPriority", _number(1, 65535)),
    "ad_user_port_key": Parameter("AdUserPortKey", _number(0, 1023)),
    "ad_actor_system": Parameter("AdActorSystem", values.mac),
    "fail_over_mac": Parameter("FailOverMACPolicy", _numbered("none", "active", "follow")),
    "arp_validate": Parameter("ARPValidate", _numbered("none", "active", "backup", "all")),
    "arp_interval": Parameter("ARPIntervalSec", values.span("ms")),
    "arp_ip_target": Parameter("ARPIPTargets", _targets, many=True),
    "arp_all_targets": Parameter("ARPAllTargets", _numbered("any", "all")),
    "primary_reselect": Parameter(
        "PrimaryReselectPolicy", _numbered("always", "better", "failure")
    ),
    "resend_igmp": Parameter("ResendIGMP", _number(0, 255)),
    "packets_per_slave": Parameter("PacketsPerSlave", _number(0, 65535)),
    "num_grat_arp": Parameter("GratuitousARP", _number(0, 255)),
    "all_slaves_active": Parameter("AllSlavesActive", _flag),
    "tlb_dynamic_lb": Parameter("DynamicTransmitLoadBalancing", _flag),
    "min_links": Parameter("MinLinks", _number(0, 2**31 - 1)),
}

NETPLAN_BOND: Mapping[str, str] = {
    "mode": "mode",
    "lacp_rate": "lacp_rate",
    "mii_monitor_interval": "miimon",
    "min_links": "min_links",
    "transmit_hash_policy": "xmit_hash_policy",
    "ad_select": "ad_select",
    "all_slaves_active": "all_slaves_active",
    "all_members_active": "all_slaves_active",
    "arp_interval": "arp_interval",
    "arp_ip_targets": "arp_ip_target",
    "arp_validate": "arp_validate",
    "arp_all_targets": "arp_all_targets",
    "up_delay": "updelay",
    "down_delay": "downdelay",
    "fail_over_mac_policy": "fail_over_mac",
    "gratuitous_arp": "num_grat_arp",
    "packets_per_slave": "packets_per_slave",
    "packets_per_member": "packets_per_slave",
    "primary_reselect_policy": "primary_reselect",
    "resend_igmp": "resend_igmp",
    "learn_packet_interval": "lp_interval",
}

BRIDGE: Mapping[str, Parameter] = {
    "ageing": Parameter("AgeingTimeSec", values.span("s")),
    "bridgeprio": Parameter("Priority", _number(0, 65535)),
    "fd": Parameter("ForwardDelaySec", values.span("s")),
    "hello": Parameter("HelloTimeSec", values.span("s")),
    "maxage": Parameter("MaxAgeSec", values.span("s")),
    "stp": Parameter("STP", _flag),
    "vlan_aware": Parameter("VLANFiltering", _flag),
}

NETPLAN_BRIDGE: Mapping[str, str] = {
    "ageing_time": "ageing",
    "priority": "bridgeprio",
    "forward_delay": "fd",
    "hello_time": "hello",
    "max_age": "maxage",
    "stp": "stp",
}

PORT: Mapping[str, Parameter] = {
    "pathcost": Parameter("Cost", _number(1, 65535)),
    "portprio": Parameter("Priority", _number(0, 63)),
}

NETPLAN_PORT: Mapping[str, str] = {"path_cost": "pathcost", "port_priority": "portprio"}

NOT_TAKEN_BOND: Mapping[str, str] = {
    **dict.fromkeys(
        ("active_slave", "ad_aggregator", "ad_num_ports", "ad_partner_key", "ad_partner_mac"),
        "is found out by the kernel; ignored",
    ),
    "ad_actor_key": "is found out by the kernel; ignored",
    "mii_status": "is found out by the kernel; ignored",
    "queue_id": "is not taken; ignored",
    "num_unsol_na": "is the same as num_grat_arp in the kernel; set that",
    "use_carrier": "is always on; ignored",
    "slaves": "stands elsewhere; ignored",
}

NOT_TAKEN_BRIDGE: Mapping[str, str] = {
    "maxwait": "means nothing here: nothing waits for a bridge; ignored",
    "waitport": "means nothing here: nothing waits for a port; ignored",
    "gcint": "is not taken; ignored",
}
