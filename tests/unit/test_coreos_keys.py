"""What coreos-cloudinit took, Proa takes: the same files, or a word on each option that cannot."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.changes import (
    Change,
    CommandUnit,
    EnableUnit,
    MaskUnit,
    ReloadUnits,
    SetEnvironment,
    SetUpdateSettings,
    UnmaskUnit,
    WriteFile,
    describe,
)
from proa.machine.cloudconfig.keys.etcd import ETCD, ETCD2
from proa.machine.cloudconfig.keys.options import environment_drop_in
from proa.machine.cloudconfig.keys.services import FLANNEL, FLEET, LOCKSMITH
from proa.machine.cloudconfig.metadata import NO_METADATA, Metadata
from proa.machine.cloudconfig.plan import Plan, plan

ETCD_DROP_IN = "/run/systemd/system/etcd.service.d/20-cloudinit.conf"


def planned(body: str, metadata: Metadata = NO_METADATA) -> Plan:
    found = plan(f"#cloud-config\n{body}".encode(), metadata)
    assert not found.refused, found.problems
    return found


def changes(body: str, metadata: Metadata = NO_METADATA) -> tuple[Change, ...]:
    return planned(body, metadata).changes


def files(body: str) -> dict[str, str]:
    return {c.path: c.content.decode() for c in changes(body) if isinstance(c, WriteFile)}


def etcd(body: str) -> dict[str, str]:
    """The variables that etcd.service gets."""
    lines = files(body)[ETCD_DROP_IN].splitlines()
    assert lines[0] == "[Service]"
    pairs = [re.fullmatch(r'Environment="([A-Z_0-9]+)=(.*)"', line) for line in lines[1:]]
    return {pair[1]: pair[2] for pair in pairs if pair}


def problems(body: str) -> list[str]:
    return [str(problem) for problem in plan(f"#cloud-config\n{body}".encode()).problems]


def wishes(names: object) -> str:
    return ", ".join(str(name) for name in names)  # type: ignore[attr-defined]


# etcd.


def test_an_option_that_etcd_still_has_reaches_it_under_its_name() -> None:
    body = """
coreos:
  etcd2:
    name: n1
    advertise-client-urls: http://10.0.0.1:2379
    initial_cluster: n1=http://10.0.0.1:2380
    initial-cluster-state: new
    heartbeat_interval: 300
    client_cert_auth: true
"""
    assert etcd(body) == {
        "ETCD_ADVERTISE_CLIENT_URLS": "http://10.0.0.1:2379",
        "ETCD_CLIENT_CERT_AUTH": "true",
        "ETCD_HEARTBEAT_INTERVAL": "300",
        "ETCD_INITIAL_CLUSTER": "n1=http://10.0.0.1:2380",
        "ETCD_INITIAL_CLUSTER_STATE": "new",
        "ETCD_NAME": "n1",
        "ETCD_ENABLE_V2": "true",
    }
    assert problems(body) == []


def test_the_etcd_of_2014_becomes_the_etcd_of_today() -> None:
    body = """
coreos:
  etcd:
    discovery: https://discovery.example/0123
    addr: 10.0.0.1:4001
    peer-addr: 10.0.0.1:7001
    peer_election_timeout: 1200
    peer_heartbeat_interval: 50
    very_verbose: true
"""
    assert etcd(body) == {
        "ETCD_DISCOVERY": "https://discovery.example/0123",
        "ETCD_ELECTION_TIMEOUT": "1200",
        "ETCD_HEARTBEAT_INTERVAL": "50",
        "ETCD_LOG_LEVEL": "debug",
        "ETCD_ADVERTISE_CLIENT_URLS": "http://10.0.0.1:4001",
        "ETCD_LISTEN_CLIENT_URLS": "http://0.0.0.0:4001,http://127.0.0.1:2379",
        "ETCD_INITIAL_ADVERTISE_PEER_URLS": "http://10.0.0.1:7001",
        "ETCD_LISTEN_PEER_URLS": "http://0.0.0.0:7001",
        "ETCD_ENABLE_V2": "true",
        "ETCD_NAME": "%m",
    }
    assert problems(body) == []


@pytest.mark.parametrize(
    ("bind", "listening"),
    [
        ("10.0.0.1", "http://10.0.0.1:4001"),
        ("10.0.0.1:5001", "http://10.0.0.1:5001"),
        ("'::'", "http://[::]:4001"),
        ("'[::1]:5001'", "http://[::1]:5001"),
    ],
)
def test_an_address_to_listen_on_is_taken_with_or_without_a_port(bind: str, listening: str) -> None:
    body = f"coreos: {{etcd: {{addr: '10.0.0.1:4001', bind_addr: {bind}}}}}\n"
    assert etcd(body)["ETCD_LISTEN_CLIENT_URLS"] == f"{listening},http://127.0.0.1:2379"


def test_a_certificate_makes_the_addresses_https_and_a_ca_asks_clients_for_theirs() -> None:
    found = etcd(
        "coreos: {etcd: {addr: 'a:4001', cert_file: /c, key_file: /k, ca_file: /ca,"
        " peer_addr: 'a:7001', peer_cert_file: /pc, peer_key_file: /pk, peer_ca_file: /pca}}\n"
    )
    assert found["ETCD_ADVERTISE_CLIENT_URLS"] == "https://a:4001"
    assert found["ETCD_LISTEN_PEER_URLS"] == "https://0.0.0.0:7001"
    assert (found["ETCD_TRUSTED_CA_FILE"], found["ETCD_CLIENT_CERT_AUTH"]) == ("/ca", "true")
    assert (found["ETCD_PEER_TRUSTED_CA_FILE"], found["ETCD_PEER_CERT_FILE"]) == ("/pca", "/pc")
    assert "ETCD_CA_FILE" not in found


def _sample(name: str) -> str:
    samples = {
        **dict.fromkeys(("addr", "peer_addr"), "10.0.0.1:4001"),
        **dict.fromkeys(("bind_addr", "peer_bind_addr"), "10.0.0.1"),
        **dict.fromkeys(("data_dir", "wal_dir"), "/var/lib/etcd/x"),
        "discovery": "https://discovery.example/0123",
        "discovery_fallback": "exit",
        "initial_cluster_state": "new",
        "proxy": "on",
    }
    return samples.get(name, "7")


@pytest.mark.parametrize(
    ("section", "name"),
    [*(("etcd", name) for name in ETCD), *(("etcd2", name) for name in ETCD2)],
)
def test_no_option_of_etcd_is_dropped_without_a_word(section: str, name: str) -> None:
    kind = {"etcd": ETCD, "etcd2": ETCD2}[section][name].kind
    value = "true" if kind == "flag" else f"'{_sample(name)}'"
    document = f"#cloud-config\ncoreos:\n  {section}:\n    {name}: {value}\n".encode()
    found = plan(document)
    written = any(isinstance(c, WriteFile) and c.path == ETCD_DROP_IN for c in found.changes)
    told = [p for p in found.problems if f"coreos.{section}.{name}" in p.message and p.line == 4]
    assert written or told
    assert not found.refused or told


def test_peers_without_names_would_make_another_cluster_so_the_document_is_refused() -> None:
    found = plan(b"#cloud-config\ncoreos: {etcd: {peers: 'a:7001,b:7001', addr: 'a:4001'}}\n")
    assert found.refused
    assert "coreos.etcd2.initial_cluster" in found.problems[0].message


def test_a_discovery_address_that_is_none_is_refused_without_telling_its_token() -> None:
    found = plan(b"#cloud-config\ncoreos: {etcd2: {discovery: discovery.example/s3cret}}\n")
    assert found.refused
    assert "is not an http or https address" in found.problems[0].message
    assert "s3cret" not in repr(found)


def test_an_address_that_the_machine_does_not_have_costs_only_itself() -> None:
    """On a machine without a cloud, nothing is left of ``$public_ipv4``; its owner's keys are."""
    body = "hostname: a\ncoreos:\n  etcd:\n    name: n\n    addr: $public_ipv4:4001\n"
    assert etcd(body) == {"ETCD_NAME": "n", "ETCD_ENABLE_V2": "true"}
    assert any("coreos.etcd.addr has no address; left out" in text for text in problems(body))


def test_what_etcd_does_by_itself_now_is_told_and_the_rest_applied() -> None:
    body = "coreos: {etcd: {addr: 'a:4001', cluster_active_size: 5, snapshot: true}}\n"
    assert [p.partition(": ")[2] for p in problems(body)] == [
        "warning: coreos.etcd.cluster_active_size has no counterpart in etcd 3.5 and is ignored: "
        "members are added and removed by hand now: etcdctl member add, remove",
        "warning: coreos.etcd.snapshot is ignored: etcd 3.5 always makes snapshots",
    ]
    assert set(etcd(body)) >= {"ETCD_ADVERTISE_CLIENT_URLS"}


def test_both_sections_set_up_one_etcd_and_the_newer_wins() -> None:
    body = "coreos: {etcd: {name: a, cors: x}, etcd2: {name: b}}\n"
    assert etcd(body) == {"ETCD_NAME": "b", "ETCD_CORS": "x", "ETCD_ENABLE_V2": "true"}
    assert "coreos.etcd2 wins" in problems(body)[0]


def test_false_is_passed_on_where_todays_default_is_true() -> None:
    body = "coreos: {etcd2: {strict-reconfig-check: false, name: a, debug: false}}\n"
    assert etcd(body) == {
        "ETCD_NAME": "a",
        "ETCD_STRICT_RECONFIG_CHECK": "false",
        "ETCD_ENABLE_V2": "true",
    }


def test_a_data_directory_elsewhere_is_made_for_the_user_etcd() -> None:
    content = files("coreos: {etcd2: {data_dir: '/srv/a %n $x'}}\n")[ETCD_DROP_IN]
    assert (
        'ExecStartPre=+/usr/bin/install -d -o etcd -g etcd -m 0700 -- "/srv/a %%n $$x"' in content
    )
    assert (
        "ExecStartPre" not in files("coreos: {etcd2: {data_dir: /var/lib/etcd/b}}\n")[ETCD_DROP_IN]
    )
    found = plan(b"#cloud-config\ncoreos: {etcd2: {data_dir: /usr/lib/etcd}}\n")
    assert found.refused


def test_etcd2_is_another_name_of_etcd() -> None:
    body = (
        "coreos: {etcd2: {name: a}, units: [{name: etcd2.service, command: start, enable: true}]}"
    )
    found = changes(f"{body}\n")
    assert found[-1] == CommandUnit("etcd.service", "start")
    assert EnableUnit("etcd.service") in found
    own = changes(
        "coreos: {units: [{name: etcd2.service, content: '[Service]', command: start}]}\n"
    )
    assert own[-1] == CommandUnit("etcd2.service", "start")


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40))
def test_no_value_leaves_its_line_of_the_unit_file(value: str) -> None:
    content = environment_drop_in((("ETCD_NAME", value),)).decode()
    header, line, rest = content.split("\n")
    assert (header, rest) == ("[Service]", "")
    inner = re.fullmatch(r'Environment="ETCD_NAME=((?:[^"\\%]|\\["\\]|%%)*)"', line)
    assert inner is not None
    assert re.sub(r'\\(["\\])', r"\1", inner[1].replace("%%", "%")) == value


def test_a_value_of_more_than_one_line_is_refused() -> None:
    found = plan(b'#cloud-config\ncoreos: {etcd2: {name: "a\\nExecStart=/bin/sh"}}\n')
    assert found.refused
    assert "must be one line" in found.problems[0].message


# locksmith, fleet, flannel.


def test_locksmiths_options_reach_its_unit_and_its_window_update_conf_too() -> None:
    body = """
coreos:
  update: {reboot-strategy: etcd-lock}
  locksmith:
    endpoint: http://10.0.0.1:2379
    group: web
    window-start: Sun 1:00
    window-length: 2h
"""
    assert files(body)["/run/systemd/system/locksmithd.service.d/20-cloudinit.conf"] == (
        "[Service]\n"
        'Environment="LOCKSMITHD_ENDPOINT=http://10.0.0.1:2379"\n'
        'Environment="LOCKSMITHD_GROUP=web"\n'
        'Environment="REBOOT_WINDOW_START=Sun 1:00"\n'
        'Environment="REBOOT_WINDOW_LENGTH=2h"\n'
    )
    assert [c.settings for c in changes(body) if isinstance(c, SetUpdateSettings)] == [
        (
            ("REBOOT_STRATEGY", "etcd-lock"),
            ("REBOOT_WINDOW_LENGTH", "2h"),
            ("REBOOT_WINDOW_START", "Sun 1:00"),
        )
    ]
    assert "does not have yet" in problems(body)[1]


@pytest.mark.parametrize("strategy", ["etcd-lock", "best-effort"])
def test_a_strategy_that_nothing_carries_out_yet_is_said_by_name(strategy: str) -> None:
    (told,) = problems(f"coreos: {{update: {{reboot-strategy: {strategy}}}}}\n")
    assert f"coreos.update.reboot_strategy {strategy} counts as off" in told
    assert "does not restart by itself" in told


@pytest.mark.parametrize("strategy", ["reboot", "off"])
def test_a_strategy_that_is_carried_out_needs_no_word(strategy: str) -> None:
    assert problems(f"coreos: {{update: {{reboot-strategy: {strategy}}}}}\n") == []


@pytest.mark.parametrize(
    "window",
    [
        "window_start: 25:00, window_length: 1h",
        "window_start: Sonntag 1:00, window_length: 1h",
        "window_start: 1:00, window_length: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
        "window_start: 1:00",
    ],
)
def test_a_window_that_makes_no_sense_is_refused(window: str) -> None:
    assert plan(f"#cloud-config\ncoreos: {{locksmith: {{{window}}}}}\n".encode()).refused


def test_fleets_options_are_written_and_it_is_said_that_nothing_reads_them() -> None:
    body = "coreos: {fleet: {public-ip: 10.0.0.1, metadata: 'role=web', disable_engine: true}}\n"
    assert files(body)["/run/systemd/system/fleet.service.d/20-cloudinit.conf"] == (
        "[Service]\n"
        'Environment="FLEET_DISABLE_ENGINE=true"\n'
        'Environment="FLEET_METADATA=role=web"\n'
        'Environment="FLEET_PUBLIC_IP=10.0.0.1"\n'
    )
    assert "nothing reads it: there is no fleet" in problems(body)[0]


def test_flannels_options_are_a_file_without_a_line_end_as_ever() -> None:
    body = "coreos: {flannel: {etcd_prefix: /x, interface: eth1}}\n"
    assert files(body) == {
        "/run/flannel/options.env": "FLANNELD_ETCD_PREFIX=/x\nFLANNELD_IFACE=eth1"
    }


@pytest.mark.parametrize(
    ("section", "options"), [("locksmith", LOCKSMITH), ("fleet", FLEET), ("flannel", FLANNEL)]
)
def test_a_password_of_etcd_is_only_for_root_to_read_and_never_shown(
    section: str, options: object
) -> None:
    assert "etcd_password" in wishes(options)
    body = f"coreos: {{{section}: {{etcd_password: hunter2}}}}\n"
    found = planned(body)
    (file,) = [c for c in found.changes if isinstance(c, WriteFile)]
    assert (file.mode, b"hunter2" in file.content) == (0o600, True)
    said = [*map(str, found.problems), *map(describe, found.changes), repr(found)]
    assert not any("hunter2" in text for text in said)


@pytest.mark.parametrize(
    "section", ["etcd", "etcd2", "locksmith", "fleet", "flannel", "oem", "update"]
)
def test_an_empty_section_asks_for_nothing(section: str) -> None:
    assert changes(f"coreos: {{{section}: {{}}}}\n") == ()
    assert changes(f"coreos:\n  {section}:\n") == ()


# oem, environment.


def test_the_oem_file_is_the_recorded_one() -> None:
    body = """
coreos:
  oem:
    id: acme
    version-id: 1.2
    name: Acme
    home-url: http://h
    bug-report-url: http://b
"""
    assert files(body)["/etc/oem-release"] == (
        'ID=acme\nVERSION_ID=1.2\nNAME="Acme"\nHOME_URL="http://h"\nBUG_REPORT_URL="http://b"\n'
    )


def test_without_an_id_there_is_no_oem_file_and_it_is_said() -> None:
    body = "coreos: {oem: {name: Acme}}\n"
    assert changes(body) == ()
    assert "has no id" in problems(body)[0]


def test_an_oem_name_stays_inside_its_quotes() -> None:
    content = files("coreos: {oem: {id: a, name: 'a\"; $(reboot) `x`'}}\n")["/etc/oem-release"]
    assert 'NAME="a\\"; \\$(reboot) \\`x\\`"' in content


def test_the_clouds_addresses_go_into_the_environment() -> None:
    cloud = Metadata(addresses={"private_ipv4": "10.0.0.1", "public_ipv6": "2001:db8::1"})
    wanted = (("COREOS_PRIVATE_IPV4", "10.0.0.1"), ("COREOS_PUBLIC_IPV6", "2001:db8::1"))
    assert changes("hostname: a\n", cloud)[-1] == SetEnvironment(wanted)


@pytest.mark.parametrize("address", ["", "10.0.0.1\nLD_PRELOAD=/x", "fe80::1%$(x)", "a.example"])
def test_only_an_address_goes_into_the_environment(address: str) -> None:
    assert changes("", Metadata(addresses={"private_ipv4": address})) == ()


def test_a_document_that_writes_the_environment_itself_is_not_corrected() -> None:
    body = "write_files: [{path: //etc/environment, content: A=b}]\n"
    found = changes(body, Metadata(addresses={"private_ipv4": "10.0.0.1"}))
    assert [type(change) for change in found] == [WriteFile]


# The order of all of it, and what follows for units.

EVERYTHING = """
hostname: a
manage_etc_hosts: localhost
write_files: [{path: /srv/a, content: x}]
coreos:
  oem: {id: acme}
  update: {group: stable, reboot-strategy: 'off'}
  flannel: {etcd_prefix: /x}
  etcd2: {name: n}
  fleet: {verbosity: 1}
  locksmith: {group: web}
  units: [{name: b.service, content: '[Service]', command: restart}]
"""


def test_files_are_written_in_the_recorded_order_and_units_after_them() -> None:
    cloud = Metadata(addresses={"private_ipv4": "10.0.0.1"})
    assert [describe(change) for change in changes(EVERYTHING, cloud)] == [
        "host name a",
        "file /etc/hosts",
        "file /srv/a",
        "file /etc/oem-release",
        "update settings GROUP, REBOOT_STRATEGY",
        "file /run/flannel/options.env",
        "environment COREOS_PRIVATE_IPV4",
        "file /etc/systemd/system/b.service",
        "no mask of etcd.service",
        f"file {ETCD_DROP_IN}",
        "no mask of fleet.service",
        "file /run/systemd/system/fleet.service.d/20-cloudinit.conf",
        "no mask of locksmithd.service",
        "file /run/systemd/system/locksmithd.service.d/20-cloudinit.conf",
        "mask of locksmithd.service",
        "systemd's units read again",
        "network files read again",
        "restart b.service",
        "stop locksmithd.service",
    ]


def test_a_strategy_is_told_to_the_reboot_manager_and_off_masks_it() -> None:
    runtime = "/run/systemd/system/locksmithd.service"
    off = changes("coreos: {update: {reboot_strategy: off}}\n")
    assert off[1:3] == (MaskUnit(runtime), ReloadUnits())
    assert off[-1] == CommandUnit("locksmithd.service", "stop", if_there=True)
    on = changes("coreos: {update: {reboot_strategy: reboot}}\n")
    assert on[1:3] == (UnmaskUnit(runtime), ReloadUnits())
    assert on[-1] == CommandUnit("locksmithd.service", "restart", if_there=True)


def test_nothing_has_to_be_restarted_for_another_group_or_server() -> None:
    (only,) = changes("coreos: {update: {group: beta, server: disabled}}\n")
    assert isinstance(only, SetUpdateSettings)


def test_who_stops_the_update_engine_stops_proas_updater() -> None:
    found = changes("coreos: {units: [{name: update-engine.service, mask: true, command: stop}]}\n")
    assert found[0] == MaskUnit("/etc/systemd/system/proa-update.timer")
    assert found[-1] == CommandUnit("proa-update.timer", "stop")


@pytest.mark.parametrize("name", ["sshd.socket", "sshd.service"])
def test_who_moves_sshds_port_as_on_coreos_hears_that_port_22_stays_open(name: str) -> None:
    body = f"coreos: {{units: [{{name: {name}, command: restart, content: '[Socket]'}}]}}\n"
    (problem,) = problems(body)
    assert "port 22" in problem
    assert "write a Port line to /etc/ssh/sshd_config.d/port.conf instead" in problem
    assert problems(f"coreos: {{units: [{{name: {name}, mask: true}}]}}\n") == []


def test_who_masks_locksmithd_hears_that_the_machine_restarts_all_the_same() -> None:
    (problem,) = problems("coreos: {units: [{name: locksmithd.service, mask: true}]}\n")
    assert "whether the updater restarts the machine is said by coreos.update.reboot_st" in problem


def test_a_drop_in_that_asks_clients_of_etcd_for_certificates_in_the_old_way_is_told() -> None:
    unit = "{name: etcd2.service, drop-ins: [{name: a.conf, content: '%s'}]}"
    old = "[Service]\\nEnvironment=ETCD_CA_FILE=/x"
    (problem,) = problems(f"coreos: {{units: [{unit % old}]}}\n")
    assert "sets ETCD_CA_FILE, which etcd 3.5 does not read: say trusted_ca_file" in problem
    assert problems(f"coreos: {{units: [{unit % old.replace('_CA', '_TRUSTED_CA')}]}}\n") == []


def test_a_unit_of_coreos_that_is_not_here_is_told_and_passed_over() -> None:
    body = "coreos: {units: [{name: fleet.service, command: start, enable: true}]}\n"
    assert changes(body)[-1] == CommandUnit("fleet.service", "start", if_there=True)
    assert not any(isinstance(change, EnableUnit) for change in changes(body))
    assert "fleet.service is passed over: there is no fleet" in problems(body)[0]
