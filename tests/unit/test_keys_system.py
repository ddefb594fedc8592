"""What cloud-init's keys about the system say, and what is wrong with a value of theirs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig import later
from proa.machine.cloudconfig.changes import stage
from proa.machine.cloudconfig.document import Config
from proa.machine.cloudconfig.keys.commands import quote
from proa.machine.cloudconfig.keys.disks import Disk, FileSystem, MountLine, SwapFile
from proa.machine.cloudconfig.keys.elsewhere import ELSEWHERE
from proa.machine.cloudconfig.keys.ending import POSTS, Home, Power
from proa.machine.cloudconfig.keys.system import Clock, Resolver, System, certificates_in
from proa.machine.cloudconfig.plan import plan, understand
from support import cloudconfig
from support.cloudconfig import problems_of

PEM = """-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUZ7a0Xn1m0nC3QWxY1Q2xk5yQm8kwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKUHJvYSBUZXN0czAeFw0yNjAxMDEwMDAwMDBaFw0zNjAxMDEw
MDAwMDBaMBUxEzARBgNVBAMMClByb2EgVGVzdHMwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQ=
-----END CERTIFICATE-----
"""


def said(body: str) -> System:
    """What a document without any problem says of the system."""
    return cloudconfig.said(body).system or System()


def refused(body: str) -> bool:
    return plan(f"#cloud-config\n{body}".encode()).refused


# Commands.


def test_a_command_that_would_install_something_is_told_and_stays_a_command() -> None:
    body = """runcmd:
- apt-get update
- DEBIAN_FRONTEND=noninteractive apt-get install -y nginx
- [sudo, -E, /usr/bin/dnf, install, nginx]
- echo apt-get
- aptly
"""
    told = problems_of(body)
    assert [problem.split(",")[0] for problem in told] == [
        "line 3: warning: runcmd[0] calls apt-get",
        "line 4: warning: runcmd[1] calls apt-get",
        "line 5: warning: runcmd[2] calls dnf",
    ]


def test_a_list_is_quoted_word_by_word_and_a_text_is_a_line_of_shell() -> None:
    system = said('runcmd:\n- [echo, "it\'s $HOME", 0644]\n- echo a | tr a b\n-\n')
    assert system.runcmd == b"#!/bin/sh\n'echo' 'it'\\''s $HOME' '0644'\necho a | tr a b\n"


def test_no_commands_are_no_script() -> None:
    assert said("runcmd: []\nbootcmd:\n").runcmd is None
    assert problems_of("runcmd: echo hi\n") == [
        "line 2: error: runcmd wants a list (lines that begin with - )"
    ]
    told = problems_of("bootcmd:\n- echo done: all\n")[0]
    assert 'wants a text or a list of texts; a text with ": " in it wants quotes' in told


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_a_quoted_word_reaches_the_program_as_it_stands(word: str) -> None:
    script = f"printf %s {quote(word)}"
    output = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    assert output == word.encode()


# Disks.

BY_ID = "/dev/disk/by-id/virtio-data"


def test_a_table_of_one_partition_of_shares_and_of_types() -> None:
    system = said(
        f"""
device_aliases: {{data: {BY_ID}}}
disk_setup:
  data: {{table_type: gpt, layout: [25, [50, 82], 25], overwrite: true}}
  sdb: {{layout: true}}
  /dev/vdc: {{layout: false}}
  /dev/vdd: {{table_type: mbr, layout: [50.5, [49.5, 8e]]}}
"""
    )
    assert system.disks.tables == (
        Disk(BY_ID, "gpt", ((25_000, "L"), (50_000, "S"), (25_000, "L")), overwrite=True),
        Disk("/dev/sdb", "mbr", ((100_000, "83"),)),
        Disk("/dev/vdd", "mbr", ((50_500, "83"), (49_500, "8e"))),
    )


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("{/dev/vdb: {table_type: zfs, layout: true}}", "is not mbr or gpt"),
        ("{/dev/vdb: {layout: [60, 60]}}", "more than 100 percent"),
        ("{/dev/vdb: {layout: [100, 1]}}", "more than 100 percent"),
        ("{/dev/vdb: {layout: [0]}}", "a percentage from 1 to 100"),
        ("{/dev/vdb: {layout: [nan]}}", "a percentage from 1 to 100"),
        ("{/dev/vdb: {layout: []}}", "is empty"),
        ("{/dev/vdb: {layout: [10, 10, 10, 10, 10]}}", "has 5 partitions"),
        ("{/dev/vdb: {layout: [[50, 8300]]}}", "is not a type of mbr"),
        ("{/dev/vdb: {table_type: gpt, layout: [[50, 9999]]}}", "GUID"),
        ("{/dev/vdb: {layout: remove}}", 'wants "overwrite: true"'),
        ("{../etc/passwd: {layout: true}}", "is not a device"),
        ("{/dev/../etc/passwd: {layout: true}}", "is not a device"),
        ("{/etc/passwd: {layout: true}}", "is not a device"),
        ("{/dev/vdb: {layout: true}, vdb: {layout: true}}", "stands in disk_setup already"),
        ("[/dev/vdb]", "wants a mapping"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(body: str, wanted: str) -> None:
    found = problems_of(f"disk_setup: {body}\n")
    assert wanted in found[0]
    assert refused(f"disk_setup: {body}\n")


def test_overwrite_of_a_name_that_may_change_is_warned_of() -> None:
    body = "disk_setup: {/dev/vdb: {layout: true, overwrite: true}}\n"
    assert problems_of(body) == [
        "line 2: warning: disk_setup./dev/vdb.overwrite: /dev/vdb may be another disk at the next"
        " boot; /dev/disk/by-id/… names the same disk at every boot"
    ]


def test_a_name_that_only_the_cloud_knows_is_left_out_and_told() -> None:
    body = "disk_setup: {ephemeral0: {layout: true}}\nmounts: [[ephemeral0, /mnt]]\n"
    found = problems_of(body)
    assert len(found) == 2
    assert all("a name that a cloud gives to a disk" in problem for problem in found)
    assert not refused(body)


def test_a_file_system_with_everything() -> None:
    system = said(
        f"""
device_aliases: {{my-disk: {BY_ID}}}
fs_setup:
- {{label: data, filesystem: ext4, device: my-disk.1, overwrite: true, replace_fs: ntfs,
    extra_opts: [-m, "0"]}}
- {{filesystem: swap, device: /dev/vdb, partition: 2}}
- {{filesystem: vfat, device: vdc, partition: none}}
"""
    )
    assert system.disks.file_systems == (
        FileSystem(f"{BY_ID}.1", "ext4", "data", "any", True, "ntfs", ("-m", "0")),
        FileSystem("/dev/vdb", "swap", "", "2"),
        FileSystem("/dev/vdc", "vfat", "", "none"),
    )


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ("{filesystem: ext4}", "has no device"),
        ("{device: /dev/vdb}", "is not one of ext4"),
        (
            "{device: /dev/vdb, filesystem: xfs}",
            "is not taken: Proa has no program for it; take ext4",
        ),
        ("{device: /dev/vdb, filesystem: ext4, cmd: mkfs}", "cmd is not taken"),
        ("{device: /dev/vdb, filesystem: ext4, label: 12345678901234567}", "at most 16"),
        ("{device: /dev/vdb, filesystem: vfat, label: 123456789012}", "at most 11"),
        ("{device: /dev/vdb, filesystem: ext4, label: '-L x'}", "is not a label"),
        ("{device: /dev/vdb, filesystem: ext4, partition: last}", "is not a number"),
    ],
)
def test_a_file_system_that_cannot_be_is_refused(item: str, wanted: str) -> None:
    assert wanted in problems_of(f"fs_setup: [{item}]\n")[0]
    assert refused(f"fs_setup: [{item}]\n")


def test_mounts_are_filled_with_defaults_and_never_stop_a_boot() -> None:
    system = said(
        """
mounts:
- [sdb1, /data]
- [LABEL=logs, /srv/logs, ext4, "defaults,noatime", 0, 0]
- [/dev/vdc.2, none, swap, sw]
- [tmpfs, /scratch, tmpfs, "size=1G"]
- [/srv/a, /srv/b, none, bind]
- [ephemeral0, null]
- [swap, null]
"""
    )
    assert system.disks.mounts == (
        MountLine("/dev/sdb1", "/data", "auto", "defaults,nofail"),
        MountLine("LABEL=logs", "/srv/logs", "ext4", "defaults,noatime,nofail", "0", "0"),
        MountLine("/dev/vdc.2", "none", "swap", "sw,nofail"),
        MountLine("tmpfs", "/scratch", "tmpfs", "size=1G,nofail"),
        MountLine("/srv/a", "/srv/b", "none", "bind,nofail"),
    )


def test_the_defaults_of_the_fields_can_be_said() -> None:
    body = 'mount_default_fields: [null, null, ext4, "ro,nofail", "0", "0"]\nmounts: [[sdb, /data]]'
    line = MountLine("/dev/sdb", "/data", "ext4", "ro,nofail", "0", "0")
    assert said(body).disks.mounts == (line,)


def test_a_line_without_a_place_takes_the_lines_of_its_device_away() -> None:
    assert said("mounts: [[sdb, /data], [sdc, /b], [sdb, null]]").disks.mounts == (
        MountLine("/dev/sdc", "/b", "auto", "defaults,nofail"),
    )


def test_no_mounts_is_not_the_same_as_nothing_said_of_mounts() -> None:
    assert said("mounts: []\n").disks.mounts == ()
    assert said("hostname: web\n").disks.mounts is None


@pytest.mark.parametrize(
    "line",
    [
        "[sdb, /]",
        "[sdb, /var]",
        "[sdb, /usr/share]",
        "[sdb, ../x]",
        "[sdb, /data, 'ext4 x']",
        "[sdb, /data, ext4, 'rw 0 0']",
        "[sdb, /data, ext4, rw, 10]",
        "[sdb, /data, ext4, rw, 0, 0, 0]",
        "[]",
        "['sd b', /data]",
        "['a\\nb', /data]",
        "[sdb, /data], [sdc, /data]",
    ],
)
def test_a_mount_that_would_leave_its_line_or_its_place_is_refused(line: str) -> None:
    assert refused(f"mounts: [{line}]\n")


def test_lists_of_disks_are_bounded() -> None:
    assert refused("mounts: [" + "[sdb, /a], " * 40_000 + "]\n")
    item = "{device: sdb, filesystem: ext4}, "
    assert refused(f"fs_setup: [{item * 300}]\n")
    disks = ", ".join(f"/dev/disk/by-id/{i}: {{layout: true}}" for i in range(300))
    assert refused(f"disk_setup: {{{disks}}}\n")


def test_a_network_share_is_taken_and_what_is_missing_is_told() -> None:
    body = "mounts: [['files:/export', /data, nfs4]]\n"
    assert "Proa has no program that mounts nfs4" in problems_of(body)[0]
    assert not refused(body)


def test_swap_sizes_are_those_of_cloud_init() -> None:
    assert said("swap: {size: 512M}").disks.swap == SwapFile("/swap.img", 512 * 2**20)
    swap = said("swap: {filename: /var/swap, size: auto, maxsize: .5G}").disks.swap
    assert swap == SwapFile("/var/swap", None, 2**29)
    assert said("swap: {size: 0}").disks.swap is None
    assert said("swap: {filename: /swap.img}").disks.swap is None
    for size in ("1Z", "-1", "1e9", "9" * 30, "20T"):
        assert "is not a size" in problems_of(f"swap: {{size: {size}}}\n")[0]
    assert refused("swap: {filename: /usr/swap, size: 1G}\n")


# The clock, names, the resolver.


def test_servers_and_pools_are_asked_in_this_order() -> None:
    clock = said("ntp: {pools: [pool.example], servers: [10.0.0.1, '2001:db8::1']}").clock
    assert clock == Clock(("10.0.0.1", "2001:db8::1", "pool.example"))
    assert said("ntp: {enabled: false, servers: [10.0.0.1]}").clock is None
    assert said("ntp:\n").clock == Clock()
    assert said("ntp: {ntp_client: systemd-timesyncd}").clock == Clock()


def test_what_timesyncd_cannot_do_is_told() -> None:
    found = problems_of("ntp: {ntp_client: chrony, peers: [a], allow: [b], config: {}}\n")
    assert [problem.partition("ntp.")[2].split()[0] for problem in found] == [
        *("ntp_client", "peers", "allow", "config")
    ]


@pytest.mark.parametrize("server", ["'a b'", "'a\\nNTP=b'", "-x", "'%n '", "''"])
def test_a_server_that_would_leave_its_line_is_refused(server: str) -> None:
    assert refused(f"ntp: {{servers: [{server}]}}\n")
    assert refused(f"manage_resolv_conf: true\nresolv_conf: {{nameservers: [{server}]}}\n")


def test_a_time_zone_is_a_name_below_zoneinfo() -> None:
    assert said("timezone: Europe/Berlin").timezone == "Europe/Berlin"
    assert said("timezone: Etc/GMT+3").timezone == "Etc/GMT+3"
    for zone in ("../../etc/passwd", "/etc/passwd", "Europe/../x", "a b"):
        assert refused(f"timezone: {zone}\n")


def test_only_the_locale_that_is_there_is_taken() -> None:
    assert said("locale: C.UTF-8").locale == "C.UTF-8"
    assert said("locale: c.utf8").locale == "C.UTF-8"
    assert said("locale: false").locale is None
    (problem,) = problems_of("locale: de_DE.UTF-8\n")
    assert 'locale "de_DE.UTF-8" is not on Proa' in problem
    assert not refused("locale: de_DE.UTF-8\n")


def test_the_resolver_is_set_only_if_it_is_to_be_managed() -> None:
    body = "resolv_conf: {nameservers: [10.0.0.53], domain: a.example, searchdomains: [b.example]}"
    resolver = said(f"manage_resolv_conf: true\n{body}").resolver
    assert resolver == Resolver(("10.0.0.53",), ("a.example", "b.example"))
    assert "is ignored without" in problems_of(f"{body}\n")[0]


# Trust.


def test_certificates_are_taken_from_their_blocks_and_made_anew() -> None:
    trust = said(f"ca-certs:\n  remove-defaults: true\n  trusted:\n  - |\n{indent(PEM)}").trust
    assert trust is not None
    assert trust.remove_defaults
    assert trust.trusted == (PEM,)
    crlf = PEM.replace("\n", "\r\n")
    assert certificates_in(f"Subject: CN = x\n{crlf}") == ((PEM,), True)
    assert certificates_in(PEM + PEM)[0] == (PEM, PEM)


def indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        PEM.replace("-----END CERTIFICATE-----", ""),
        PEM.replace("MIIB", "M*IB"),
        PEM + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\n" + PEM,
    ],
)
def test_what_is_no_certificate_refuses_the_document_and_is_not_repeated(text: str) -> None:
    body = f"ca_certs:\n  trusted:\n  - |\n{indent(text)}"
    assert refused(body)
    assert all("AAAA" not in p and "hello" not in p for p in problems_of(body))


@given(st.lists(st.sampled_from([*PEM.splitlines(), "", "x", "-----", "-----BEGIN X-----"])))
def test_any_lines_give_certificates_or_a_doubt(lines: list[str]) -> None:
    good, _ = certificates_in("\n".join(lines))
    for certificate in good:
        assert certificates_in(certificate) == ((certificate,), True)


def test_many_beginnings_without_an_end_take_no_time() -> None:
    assert certificates_in("-----BEGIN CERTIFICATE-----\n" * 100_000) == ((), False)


# The end.


def test_power_state_as_cloud_init_takes_it() -> None:
    assert said("power_state: {mode: reboot}").ending.power == Power("reboot")
    power = said(
        "power_state: {mode: poweroff, delay: 5, timeout: 30, message: 'good\n bye',"
        " condition: [test, -f, /x]}"
    ).ending.power
    script = b"#!/bin/sh\nexec 'test' '-f' '/x'\n"
    assert power == Power("poweroff", "+5", "good bye", script)
    assert said("power_state: {mode: halt, delay: +1, condition: true}").ending.power == Power(
        "halt", "+1"
    )
    assert said("power_state: {mode: halt, condition: test -f /x}").ending.power == Power(
        "halt", condition=b"#!/bin/sh\ntest -f /x\n"
    )
    assert said("power_state: {mode: halt, condition: false}").ending.power is None


@pytest.mark.parametrize(
    "body",
    [
        "{mode: restart}",
        "{delay: now}",
        "{mode: halt, delay: -5}",
        "{mode: halt, delay: '12:00; rm'}",
        "{mode: halt, delay: 999999}",
        "{mode: halt, timeout: soon}",
        "{mode: halt, condition: {a: b}}",
    ],
)
def test_a_power_state_that_is_none_is_refused(body: str) -> None:
    assert refused(f"power_state: {body}\n")


def test_phone_home_tells_everything_unless_it_is_told_what() -> None:
    home = said("phone_home: {url: 'https://a.example/$INSTANCE_ID/'}").ending.home
    assert home == Home("https://a.example/$INSTANCE_ID/", POSTS, 10)
    home = said("phone_home: {url: 'http://a.example', post: [fqdn], tries: 3}").ending.home
    assert home == Home("http://a.example", ("fqdn",), 3)
    assert '"N/A" is sent' in problems_of("phone_home: {url: 'http://a', post: [pub_key_dsa]}")[0]


@pytest.mark.parametrize(
    "body", ["{url: 'file:///etc/shadow'}", "{url: 'ftp://s3cret@a'}", "{url: 'http://a b'}"]
)
def test_an_address_that_is_none_is_refused_and_not_repeated(body: str) -> None:
    (problem,) = problems_of(f"phone_home: {body}\n")
    assert "is not an http or https address" in problem
    assert "s3cret" not in problem


def test_tries_are_bounded() -> None:
    for tries in ("0", "101", "9" * 5000, "x"):
        assert refused(f"phone_home: {{url: 'http://a', tries: {tries}}}\n")


def test_the_example_of_the_docs_is_taken_as_it_stands() -> None:
    page = (Path(__file__).parents[2] / "docs/cloud-config-keys.md").read_text()
    document = page.split("```yaml\n")[1].split("```")[0]
    planned = plan(document.encode())
    assert planned.problems == ()
    assert {type(change).__name__ for change in planned.changes} >= {
        *("RunScript", "PartitionDisk", "MakeFileSystem", "Mount", "SetTimezone"),
        *("TrustCertificates", "PhoneHome", "SayFinal"),
    }


# What Proa does by itself, and what means nothing on it.


def test_the_root_grows_by_itself_and_only_a_wish_that_it_should_not_is_told() -> None:
    assert said("growpart: {mode: auto, devices: [/]}\nresize_rootfs: true\n") == System()
    for body in ("growpart: {mode: off}", "resize_rootfs: false", "growpart: {devices: [/, /x]}"):
        (problem,) = problems_of(f"{body}\n")
        assert "is ignored" in problem


def test_a_seed_is_taken_in_every_encoding_and_a_command_is_not() -> None:
    assert said("random_seed: {data: abc}").seed == b"abc"
    assert said("random_seed: {data: YWJj, encoding: b64}").seed == b"abc"
    assert said("random_seed: {file: /dev/urandom}").seed == b""
    assert "is ignored" in problems_of("random_seed: {command: [pollinate]}\n")[0]
    assert refused("random_seed: {data: '*', encoding: b64}\n")


@pytest.mark.parametrize("key", sorted(ELSEWHERE))
def test_a_key_that_means_nothing_on_proa_is_told_by_name_with_what_to_do(key: str) -> None:
    (problem,) = problems_of(f"{key}: x\n")
    assert problem.startswith(f"line 2: warning: {key} is ignored")
    assert not refused(f"{key}: x\n")


# All top-level keys of cloud-init's schema, without those of users, ssh and files.
SCHEMA = """
ansible apk_repos apt apt_pipelining apt_reboot_if_required apt_update apt_upgrade autoinstall
bootcmd byobu_by_default ca-certs ca_certs chef cloud_config_modules cloud_final_modules
cloud_init_modules device_aliases disable_ec2_metadata disable_piwiz disk_setup drivers
enable_rpi_connect fan final_message fs_setup growpart grub-dpkg grub_dpkg hostname keyboard
landscape launch-index locale locale_configfile lxd manage_resolv_conf mcollective migrate
mount_default_fields mounts ntp output package_reboot_if_required
package_update package_upgrade packages phone_home power_state puppet random_seed reporting
resize_rootfs resolv_conf rh_subscription rpi_interfaces rpi_userconf rsyslog runcmd salt_minion
snap spacewalk swap system_info timezone ubuntu_advantage ubuntu_pro updates users vendor_data
version wireguard write_files yum_repo_dir yum_repos zypper
"""


@pytest.mark.parametrize("key", SCHEMA.split())
def test_every_key_of_cloud_init_is_known_by_name(key: str) -> None:
    assert all("is not a known key" not in p for p in problems_of(f"{key}:\n"))


def test_a_misspelt_key_gets_a_suggestion() -> None:
    assert problems_of("runcmds: []\n") == [
        'line 2: warning: runcmds is not a known key; ignored; did you mean "runcmd"?'
    ]


# Secrets and stages.


def test_what_may_be_secret_is_in_no_repr() -> None:
    config, _ = understand(
        b"#cloud-config\nruncmd: [echo s3cret]\nbootcmd: [echo s3cret]\n"
        b"phone_home: {url: 'http://u:s3cret@a'}\nrandom_seed: {data: s3cret}\n"
        b"power_state: {mode: halt, condition: echo s3cret}\n"
    )
    assert config != Config()
    assert "s3cret" not in repr(config)
    assert "s3cret" not in repr(plan(b"#cloud-config\nruncmd: [echo s3cret]\n"))


def test_early_things_come_first_and_what_wants_a_machine_that_is_up_comes_last() -> None:
    body = b"""#cloud-config
final_message: up
power_state: {mode: reboot}
phone_home: {url: "http://a.example"}
runcmd: [echo]
users: [{name: alice, homedir: /data/alice}]
hostname: web
mounts: [[LABEL=data, /data]]
fs_setup: [{device: /dev/vdb, filesystem: ext4, label: data}]
disk_setup: {/dev/vdb: {layout: true}}
bootcmd: [echo]
"""
    planned = plan(body)
    assert [(type(change).__name__, stage(change)) for change in planned.changes] == [
        ("RunScript", "local"),
        ("PartitionDisk", "local"),
        ("MakeFileSystem", "local"),
        ("SetMounts", "local"),
        ("Mount", "local"),
        ("SetHostname", "local"),
        ("EnsureUser", "local"),
        ("RunScript", "final"),
        ("PhoneHome", "final"),
        ("SayFinal", "final"),
        ("ChangePower", "final"),
    ]
    assert later.load(later.dump(planned.changes)) == planned.changes
