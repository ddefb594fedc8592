"""``coreos.etcd`` and ``coreos.etcd2``: options of the etcd of 2014 and of 2015 for today's 3.5.

An option that 3.5 has under the same name passes; a renamed one is renamed; one that has no
counterpart is told by name with what to do instead. Where leaving it out would make another
cluster than the one that was asked for, the document is refused.

Options of etcd 3.5: ``etcd --help`` of Debian 13 (3.5.16). Each is also a variable ``ETCD_…``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proa.machine.cloudconfig.keys.options import Option, Variables, read_options
from proa.machine.cloudconfig.parse import Node, Table, canonical, printable
from proa.machine.cloudconfig.reader import Reader
from proa.machine.cloudconfig.values import clean_path
from proa.machine.record import dataclass

_TEXT, _FLAG, _NUMBER, _REAL = Option(), Option("flag"), Option("number"), Option("real")
# Whoever knows the token in it can join the cluster: it is not repeated in a message.
_DISCOVERY = Option(words=(r"https?://[!-~]+", "an http or https address"), secret=True)

ETCD2: Mapping[str, Option] = {
    "advertise_client_urls": _TEXT,
    "ca_file": _TEXT,
    "cert_file": _TEXT,
    "client_cert_auth": _FLAG,
    "cors": _TEXT,
    "data_dir": _TEXT,
    "debug": _FLAG,
    "discovery": _DISCOVERY,
    "discovery_fallback": Option(words=("exit|proxy", "exit or proxy")),
    "discovery_srv": _TEXT,
    "discovery_proxy": _TEXT,
    "election_timeout": _NUMBER,
    "enable_pprof": _FLAG,
    "force_new_cluster": _FLAG,
    "heartbeat_interval": _NUMBER,
    "initial_advertise_peer_urls": _TEXT,
    "initial_cluster": _TEXT,
    "initial_cluster_state": Option(words=("new|existing", "new or existing")),
    "initial_cluster_token": _TEXT,
    "key_file": _TEXT,
    "listen_client_urls": _TEXT,
    "listen_peer_urls": _TEXT,
    "log_package_levels": _TEXT,
    "max_snapshots": _NUMBER,
    "max_wals": _NUMBER,
    "name": _TEXT,
    "peer_ca_file": _TEXT,
    "peer_cert_file": _TEXT,
    "peer_key_file": _TEXT,
    "peer_client_cert_auth": _FLAG,
    "peer_trusted_ca_file": _TEXT,
    "proxy": Option(words=("on|off|readonly", "on, off or readonly")),
    "proxy_dial_timeout": _NUMBER,
    "proxy_failure_wait": _NUMBER,
    "proxy_read_timeout": _NUMBER,
    "proxy_refresh_interval": _NUMBER,
    "proxy_write_timeout": _NUMBER,
    "snapshot_count": _NUMBER,
    "strict_reconfig_check": _FLAG,
    "trusted_ca_file": _TEXT,
    "wal_dir": _TEXT,
}
_ADDRESS = Option(
    words=(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{0,253}):[0-9]{1,5}",
        'an address like "10.0.0.1:4001"',
    )
)
_BIND = Option(
    words=(r"\[?[0-9A-Fa-f:.]+\]?(:[0-9]{1,5})?", 'an IP address like "0.0.0.0" or "10.0.0.1:4001"')
)
ETCD: Mapping[str, Option] = {
    "addr": _ADDRESS,
    "bind_addr": _BIND,
    "ca_file": _TEXT,
    "cert_file": _TEXT,
    "cluster_active_size": _NUMBER,
    "cluster_remove_delay": _REAL,
    "cluster_sync_interval": _REAL,
    "cors": _TEXT,
    "data_dir": _TEXT,
    "discovery": _DISCOVERY,
    "graphite_host": _TEXT,
    "http_read_timeout": _REAL,
    "http_write_timeout": _REAL,
    "key_file": _TEXT,
    "max_result_buffer": _NUMBER,
    "max_retry_attempts": _NUMBER,
    "name": _TEXT,
    "peer_addr": _ADDRESS,
    "peer_bind_addr": _BIND,
    "peer_ca_file": _TEXT,
    "peer_cert_file": _TEXT,
    "peer_election_timeout": _NUMBER,
    "peer_heartbeat_interval": _NUMBER,
    "peer_key_file": _TEXT,
    "peers": _TEXT,
    "peers_file": _TEXT,
    "retry_interval": _REAL,
    "snapshot": _FLAG,
    "snapshot_count": _NUMBER,
    "trace": _TEXT,
    "verbose": _FLAG,
    "very_verbose": _FLAG,
    "very_very_verbose": _FLAG,
}

# What etcd 3.5 does not have. A text that begins with "!" refuses the document: without the option
# the machine would make a cluster of its own.
_MEMBERS = "members are added and removed by hand now: etcdctl member add, remove"
_BY_ITSELF = "etcd 3.5 sees to it by itself"
_WITHOUT: Mapping[str, str] = {
    "etcd.cluster_active_size": f"has no counterpart in etcd 3.5 and is ignored: {_MEMBERS}",
    "etcd.cluster_remove_delay": f"has no counterpart in etcd 3.5 and is ignored: {_MEMBERS}",
    "etcd.cluster_sync_interval": f"is ignored: {_BY_ITSELF}",
    "etcd.graphite_host": "is ignored: etcd 3.5 gives its figures at /metrics, for Prometheus",
    "etcd.http_read_timeout": "is ignored: etcd 3.5 has no such limit",
    "etcd.http_write_timeout": "is ignored: etcd 3.5 has no such limit",
    "etcd.max_result_buffer": f"is ignored: {_BY_ITSELF}",
    "etcd.max_retry_attempts": f"is ignored: {_BY_ITSELF}",
    "etcd.retry_interval": f"is ignored: {_BY_ITSELF}",
    "etcd.snapshot": "is ignored: etcd 3.5 always makes snapshots",
    "etcd.trace": "is ignored: etcd 3.5 has coreos.etcd2.enable_pprof for this",
    "etcd.peers": "!names peers without their names, which etcd 3.5 needs: give a discovery "
    "address, or coreos.etcd2.initial_cluster (name=http://host:2380,...)",
    "etcd.peers_file": "!names a file that etcd 3.5 does not read: give a discovery address, or "
    "coreos.etcd2.initial_cluster (name=http://host:2380,...)",
    "etcd2.log_package_levels": "has no counterpart in etcd 3.5 and is ignored: set debug: true",
}
_TOLD: Mapping[str, str] = {
    "etcd2.proxy": "speaks only etcd's old v2 keys in etcd 3.5; for v3 run `etcd grpc-proxy`",
    "etcd2.force_new_cluster": "makes a new cluster of one at every start of etcd while it is set",
}

_HOME = "/var/lib/etcd"
"""The one place that belongs to the user etcd from the start (Debian's package)."""


@dataclass(frozen=True)
class Etcd:
    """Variables for etcd.service, and directories that must be made for it."""

    variables: Variables = ()
    directories: tuple[str, ...] = ()


def read_etcd(r: Reader, old: Node | None, new: Node | None) -> Etcd:
    """The two sections as one; where both set the same thing, ``etcd2`` wins."""
    first = read_options(r, old, "coreos.etcd", ETCD)
    second = read_options(r, new, "coreos.etcd2", ETCD2)
    for section, node, values in (("etcd", old, first), ("etcd2", new, second)):
        _tell(r, section, node, values)
    for name in ("addr", "peer_addr"):
        if first.get(name, "").startswith(":") and old is not None:
            # What is left of "$public_ipv4:4001" on a machine that has no such address.
            r.warn(old, f"coreos.etcd.{name}", f"coreos.etcd.{name} has no address; left out")
            del first[name]
    if first and second and old is not None:
        message = "coreos.etcd and coreos.etcd2 set up the same etcd 3.5; coreos.etcd2 wins"
        r.warn(old, "coreos.etcd", message)
    variables = _from_etcd(first) | _from_etcd2(second)
    if isinstance(new, Table) and any(
        _is(word.text, "strict_reconfig_check") for word, _ in new.entries
    ):
        # On by default now, off then: "false" says something.
        variables["ETCD_STRICT_RECONFIG_CHECK"] = second.get("strict_reconfig_check", "false")
    if not variables:
        return Etcd()
    # The simple interface that curl speaks, which every document of that time relies on.
    variables["ETCD_ENABLE_V2"] = "true"
    return Etcd(tuple(variables.items()), _directories(r, variables, old, new))


def _is(word: str, name: str) -> bool:
    return canonical(word) == name


def _tell(r: Reader, section: str, node: Node | None, values: Mapping[str, str]) -> None:
    if not isinstance(node, Table):
        return
    for word, _ in node.entries:
        name = canonical(word.text)
        full, key = f"{section}.{name}", f"coreos.{section}.{name}"
        if name not in values or (name == "proxy" and values[name] == "off"):
            continue
        if (reason := _WITHOUT.get(full)) and reason.startswith("!"):
            r.error(word, key, f"{key} {reason[1:]}")
        elif reason := reason or _TOLD.get(full):
            r.warn(word, key, f"{key} {reason}")


def _from_etcd2(values: Mapping[str, str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for name, value in values.items():
        if f"etcd2.{name}" in _WITHOUT:
            continue
        if name == "debug":
            variables["ETCD_LOG_LEVEL"] = "debug"
        elif name in ("ca_file", "peer_ca_file"):
            variables |= _certificates(name, value)
        else:
            variables[f"ETCD_{name.upper()}"] = value
    return variables


_SAME = {
    **{name: name for name in ("cert_file", "cors", "data_dir", "discovery", "key_file", "name")},
    **{name: name for name in ("peer_cert_file", "peer_key_file", "snapshot_count")},
    "peer_election_timeout": "election_timeout",
    "peer_heartbeat_interval": "heartbeat_interval",
}
# By how much is said; what came last in this order wins.
_LEVELS = {"verbose": "info", "very_verbose": "debug", "very_very_verbose": "debug"}


def _from_etcd(values: Mapping[str, str]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for name, value in values.items():
        if name in _SAME:
            variables[f"ETCD_{_SAME[name].upper()}"] = value
        elif name in ("ca_file", "peer_ca_file"):
            variables |= _certificates(name, value)
        elif name in _LEVELS:
            variables["ETCD_LOG_LEVEL"] = _LEVELS[name]
    clients = _listening(values.get("addr"), values.get("bind_addr"), "cert_file" in values, 4001)
    if clients:
        advertised, listening = clients
        if not listening.endswith(":2379"):
            # Where etcdctl and the reboot manager look without being told.
            listening += f",{listening.partition(':')[0]}://127.0.0.1:2379"
        variables["ETCD_ADVERTISE_CLIENT_URLS"] = advertised
        variables["ETCD_LISTEN_CLIENT_URLS"] = listening
    peer_tls = "peer_cert_file" in values
    peers = _listening(values.get("peer_addr"), values.get("peer_bind_addr"), peer_tls, 7001)
    if peers:
        variables["ETCD_INITIAL_ADVERTISE_PEER_URLS"], variables["ETCD_LISTEN_PEER_URLS"] = peers
    return variables


def _certificates(name: str, value: str) -> dict[str, str]:
    """A CA for clients (or peers) also asked them for a certificate of it."""
    prefix = "ETCD_PEER_" if name.startswith("peer_") else "ETCD_"
    return {f"{prefix}TRUSTED_CA_FILE": value, f"{prefix}CLIENT_CERT_AUTH": "true"}


def _listening(
    address: str | None, bind: str | None, tls: bool, port: int
) -> tuple[str, str] | None:
    """The URL that others are told and the one to listen on, as etcd 0.4 made them: all addresses
    unless one is given, on the port that is advertised."""
    if not address and not bind:
        return None
    scheme = "https" if tls else "http"
    own_port = (address or f":{port}").rpartition(":")[2]
    host = bind or "0.0.0.0"  # noqa: S104 (what etcd 0.4 did)
    if not re.search(r"(^[0-9.]+|\]):[0-9]+$", host):
        host = f"[{host.strip('[]')}]" if host.count(":") > 1 else host
        host = f"{host}:{own_port}"
    return f"{scheme}://{address or f'127.0.0.1:{own_port}'}", f"{scheme}://{host}"


def _directories(
    r: Reader, variables: Mapping[str, str], old: Node | None, new: Node | None
) -> tuple[str, ...]:
    wanted = [variables.get("ETCD_DATA_DIR", ""), variables.get("ETCD_WAL_DIR", "")]
    made: list[str] = []
    for text in wanted:
        if not text:
            continue
        try:
            path = clean_path(text)
        except ValueError as error:
            message = f'the data directory of etcd "{printable(text)}" {error}'
            r.error(new or old or _nowhere(), "coreos.etcd2.data_dir", message)
            continue
        if path != _HOME and not path.startswith(f"{_HOME}/"):
            made.append(path)
    return tuple(made)


def _nowhere() -> Node:
    return Table((), 0, 0)
