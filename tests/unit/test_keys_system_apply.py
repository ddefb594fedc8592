"""The owner's commands run as often as they should, whatever moment the power goes; the clock, the
names and the trust of the machine are what the document says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.machine import cloudinit
from proa.machine.cloudconfig import certificates
from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.changes import ChangePower, Frequency, RunScript
from proa.machine.cloudconfig.ending import fill
from proa.machine.cloudconfig.keys.ending import Power
from proa.machine.cloudconfig.machine import CommandFailed, exit_status, run_program
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.plan import plan
from proa.machine.record import replace
from support.cloudconfig import statuses
from support.cloudconfig_disks import FakeMachine, notes


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


# Commands.


def test_bootcmd_runs_at_every_boot_and_is_gone_afterwards(fake: FakeMachine) -> None:
    for _ in range(2):
        outcome = fake.boot("bootcmd: [echo hi]\n", Metadata(instance_id="i-1"))
        assert statuses(outcome) == {"script bootcmd": "done"}
        assert fake.scripts == {"bootcmd": "#!/bin/sh\necho hi\n"}
    assert fake.text("run/proa/scripts.env") == "INSTANCE_ID=i-1\n"
    assert list((fake.root / "run/proa/scripts").iterdir()) == []


def test_runcmd_runs_once_for_an_instance(fake: FakeMachine) -> None:
    assert statuses(fake.boot("runcmd: [echo hi]\n")) == {"script runcmd": "done"}
    assert statuses(fake.boot("runcmd: [echo hi]\n")) == {"script runcmd": "unchanged"}
    assert fake.scripts == {}


def test_a_runcmd_that_was_changed_later_does_not_run_and_that_is_told(fake: FakeMachine) -> None:
    fake.boot("runcmd: [echo hi]\n")
    outcome = fake.boot("runcmd: [echo ho]\n")
    assert statuses(outcome) == {"script runcmd": "kept"}
    assert "done already" in notes(outcome)["script runcmd"]
    assert fake.scripts == {}


def test_a_runcmd_that_failed_is_told_and_not_run_again(fake: FakeMachine) -> None:
    fake.exits["runcmd"] = 3
    outcome = fake.boot("runcmd: [exit 3]\nfinal_message: up\n")
    assert statuses(outcome) == {"script runcmd": "failed", "final message": "done"}
    assert notes(outcome)["script runcmd"].startswith("exit status 3; see journalctl")
    assert statuses(fake.boot("runcmd: [exit 3]\n")) == {"script runcmd": "unchanged"}


def test_a_runcmd_that_the_power_cut_runs_again(fake: FakeMachine) -> None:
    class Cut(BaseException):
        pass

    def cut(unit: str, timeout: float | None) -> int:
        raise Cut

    machine = replace(fake.machine(), start=cut)
    change = RunScript("runcmd", b"#!/bin/sh\n", "instance")
    with pytest.raises(Cut):
        apply((change,), machine, fake.remembered, lambda o: fake.saved.append(o.remembered))
    assert fake.saved == []
    assert apply((change,), fake.machine(), {}).results[0].status == "done"


def test_a_script_that_ended_is_remembered_at_once(fake: FakeMachine) -> None:
    fake.boot("runcmd: [echo]\nfinal_message: up\npower_state: {mode: reboot}\n")
    assert set(fake.saved[0]) == {"script:runcmd"}


def test_a_script_that_could_not_be_started_is_tried_again(fake: FakeMachine) -> None:
    def broken(unit: str, timeout: float | None) -> int:
        raise CommandFailed("could not be started")

    machine = replace(fake.machine(), start=broken)
    change = RunScript("runcmd", b"#!/bin/sh\n", "instance")
    outcome = apply((change,), machine, {})
    assert outcome.results[0].status == "failed"
    assert outcome.remembered == {}


def test_a_program_that_was_killed_ended_like_one_in_a_shell() -> None:
    assert exit_status("ExecMainCode=1\nExecMainStatus=3\n") == 3
    assert exit_status("ExecMainStatus=15\nExecMainCode=2\n") == 143
    assert exit_status("ExecMainCode=0\nExecMainStatus=0\n") == 0
    assert exit_status("") == 0


def test_an_early_script_may_hold_up_the_boot_only_so_long(fake: FakeMachine) -> None:
    fake.boot("bootcmd: [sleep 1000]\nruncmd: [sleep 1000]\n")
    assert fake.timeouts["bootcmd"] is not None
    assert fake.timeouts["runcmd"] is None


def test_an_instance_id_that_is_no_word_reaches_no_environment(fake: FakeMachine) -> None:
    fake.boot("bootcmd: [echo]\n", Metadata(instance_id="a\nPATH=/x"))
    assert fake.text("run/proa/scripts.env") == ""


@pytest.mark.parametrize(("frequency", "runs"), [("boot", 4), ("instance", 2), ("once", 1)])
def test_frequencies_are_those_of_cloud_init(
    fake: FakeMachine, frequency: Frequency, runs: int
) -> None:
    """Two boots of one instance, and two of a copy of its disk."""
    (fake.root / "var/lib/proa").mkdir(parents=True)
    ran = 0
    for instance in ("i-1", "i-1", "i-2", "i-2"):
        memory = cloudinit.remembered(fake.machine(), instance)
        change = RunScript("part-001", b"#!/bin/sh\n", frequency, "final", instance)
        outcome = apply((change,), fake.machine(), memory.wishes)
        cloudinit.remember(fake.machine(), memory, outcome)
        ran += outcome.results[0].status == "done"
    assert ran == runs


def test_a_name_that_is_none_for_a_unit_runs_nothing(fake: FakeMachine) -> None:
    for name in ("../x", "a b", "", "-x", "a" * 200):
        outcome = apply((RunScript(name, b"", "boot"),), fake.machine(), {})
        assert outcome.results[0].status == "failed"
    assert fake.scripts == {}


def test_a_script_may_not_be_put_through_a_link(fake: FakeMachine) -> None:
    (fake.root / "run/proa").mkdir(parents=True)
    (fake.root / "run/proa/scripts").symlink_to(fake.root / "etc")
    assert statuses(fake.boot("bootcmd: [echo]\n")) == {"script bootcmd": "failed"}


PER = Path(__file__).parents[2] / "os/rootfs/usr/bin/cloud-init-per"


@pytest.mark.parametrize(("often", "runs"), [("once", 1), ("instance", 2), ("always", 4)])
def test_cloud_init_per_is_there_for_documents_that_call_it(
    tmp_path: Path, often: str, runs: int
) -> None:
    log = tmp_path / "log"
    command = ["sh", str(PER), often, "my-name/x", "sh", "-c", f"echo ran >>{log}; exit 3"]
    for instance in ("i-1", "i-1", "i-2", "i-2"):
        environment = {"PROA_STATE": str(tmp_path), "INSTANCE_ID": instance, "PATH": os.defpath}
        done = subprocess.run(command, env=environment)
        assert done.returncode in (0, 3)
    assert log.read_text().count("ran") == runs


def test_cloud_init_per_tells_its_usage() -> None:
    for command in (["weekly", "a", "true"], ["once", "a"]):
        done = subprocess.run(["sh", str(PER), *command], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("usage: cloud-init-per")


# What is on disk when the boot is over.


class Disk:
    """A config drive whose mount the fake machine pretends."""

    def __init__(self, fake: FakeMachine, body: str, instance: str = "i-1") -> None:
        self.fake = fake
        (fake.root / "dev/disk/by-label").mkdir(exist_ok=True)
        (fake.root / "dev/disk/by-label/cidata").touch()
        self.files = {
            "meta-data": f"instance-id: {instance}\n",
            "user-data": f"#cloud-config\n{body}",
        }
        fake.react = self.mount

    def mount(self, command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "mount":
            for name, text in self.files.items():
                (Path(command[-1]) / name).write_text(text)
        if command[0] == "umount":
            for name in self.files:
                (Path(command[-1]) / name).unlink()


def test_a_power_state_that_failed_is_tried_again_on_the_next_boot(fake: FakeMachine) -> None:
    disk = Disk(fake, "power_state: {mode: reboot}\n")

    def broken(command: Sequence[str], stdin: bytes) -> None:
        disk.mount(command, stdin)
        if command[0] == "shutdown":
            raise CommandFailed("shutdown: no bus (1)")

    def boot() -> int:
        cloudinit.boot(fake.machine())
        return cloudinit.boot(fake.machine(), at="final")

    fake.react = broken
    assert boot() == cloudinit.FAILED
    fake.react = disk.mount
    assert boot() == cloudinit.OK
    assert fake.commands.count("shutdown --reboot -- now") == 2
    boot()
    assert fake.commands.count("shutdown --reboot -- now") == 2


# Power.


def test_a_reboot_is_remembered_before_it_is_made_so_that_it_cannot_go_round(
    fake: FakeMachine,
) -> None:
    def check(command: Sequence[str], stdin: bytes) -> None:
        if command[0] == "shutdown":
            assert "power_state" in fake.saved[-1]

    fake.react = check
    fake.boot("power_state: {mode: reboot, message: good bye, delay: 2}\n")
    assert fake.commands == ["shutdown --reboot -- +2 good bye"]
    fake.boot("power_state: {mode: reboot, message: good bye, delay: 2}\n")
    assert fake.commands == []


@pytest.mark.parametrize(("code", "status"), [(0, "done"), (1, "skipped"), (2, "kept")])
def test_a_condition_decides_by_its_exit_status(fake: FakeMachine, code: int, status: str) -> None:
    fake.exits["power-condition"] = code
    outcome = fake.boot("power_state: {mode: poweroff, condition: test -e /x}\n")
    assert list(statuses(outcome).values()) == [status]
    assert ("shutdown --poweroff -- now" in fake.commands) == (code == 0)


def test_power_is_not_changed_by_a_condition_that_was_not_met(fake: FakeMachine) -> None:
    change = ChangePower(Power("halt", condition=b"#!/bin/sh\nfalse\n"))
    fake.exits["power-condition"] = 1
    outcome = apply((change,), fake.machine(), {})
    assert "shutdown" not in " ".join(fake.commands)
    assert apply((change,), fake.machine(), outcome.remembered).results[0].status == "unchanged"


# Phone home and the final message.


def test_home_is_told_what_the_machine_is(fake: FakeMachine) -> None:
    (fake.root / "etc/hostname").write_text("web-1.example\n")
    (fake.root / "etc/ssh").mkdir()
    (fake.root / "etc/ssh/ssh_host_rsa_key.pub").write_text("ssh-rsa AAAA root@web\n")
    body = "phone_home: {url: 'http://a.example/$INSTANCE_ID/${INSTANCE_ID}?x=$Y', post: all}\n"
    outcome = fake.boot(body, Metadata(instance_id="i 1/x"))
    assert statuses(outcome) == {"phone home": "done"}
    ((url, form),) = fake.posts
    assert url == "http://a.example/i%201%2Fx/i%201%2Fx?x=$Y"
    assert parse_qs(form.decode()) == {
        "pub_key_rsa": ["ssh-rsa AAAA root@web"],
        "pub_key_ecdsa": ["N/A"],
        "pub_key_ed25519": ["N/A"],
        "instance_id": ["i 1/x"],
        "hostname": ["web-1"],
        "fqdn": ["web-1.example"],
    }
    assert list(statuses(fake.boot(body, Metadata(instance_id="i 1/x"))).values()) == ["unchanged"]


def test_home_is_tried_as_often_as_said_with_a_pause_and_no_secret_in_the_reason(
    fake: FakeMachine,
) -> None:
    fake.post_error = CommandFailed("the answer was 500")
    outcome = fake.boot("phone_home: {url: 'http://u:s3cret@a.example', tries: 3}\n")
    assert notes(outcome) == {"phone home": "the answer was 500, in 3 tries"}
    assert len(fake.posts) == 3
    assert fake.slept == [3.0, 3.0]
    assert "s3cret" not in repr(outcome)
    fake.post_error = None
    outcome = fake.boot("phone_home: {url: 'http://u:s3cret@a.example', tries: 3}\n")
    assert statuses(outcome) == {"phone home": "done"}


def test_the_final_message_is_said_at_every_boot_with_its_variables(fake: FakeMachine) -> None:
    (fake.root / "proc/uptime").write_text("12.34 20.00\n")
    (fake.root / "usr/lib").mkdir(parents=True)
    (fake.root / "usr/lib/os-release").write_text('NAME="Proa"\nIMAGE_VERSION="1.2.3"\n')
    (fake.root / "run/proa").mkdir(parents=True)
    (fake.root / "run/proa/cloudinit.json").write_text('{"source": "NoCloud disk /dev/sr0"}')
    body = "final_message: |\n  $version ${UPTIME} of $other\n  $datasource $TIMESTAMP\n"
    for _ in range(2):
        fake.boot(body)
        assert fake.said[0] == "1.2.3 12.34 of $other"
        assert re.fullmatch(
            r"NoCloud disk /dev/sr0 \w{3}, \d\d \w{3} \d{4} [\d:]{8} [+-]\d{4}", fake.said[1]
        )


def test_jinja_names_are_filled_in_and_nothing_else_of_jinja_is_run() -> None:
    assert fill("{{ a }} {{a}} {{ b }} {% if %}", {"a": "1"}) == "1 1 {{ b }} {% if %}"


def test_a_final_message_cannot_drive_the_terminal(fake: FakeMachine) -> None:
    fake.boot('final_message: "a\\tb"\n')
    assert fake.said == ["a\ufffdb"]


# The clock, names, the resolver, the seed.


def test_time_servers_become_a_drop_in_and_timesyncd_starts_anew(fake: FakeMachine) -> None:
    body = "ntp: {servers: [10.0.0.1], pools: [pool.example]}\n"
    fake.boot(body)
    path = "etc/systemd/timesyncd.conf.d/50-cloud-config.conf"
    assert fake.text(path) == "[Time]\nNTP=10.0.0.1 pool.example\n"
    assert fake.commands == [
        "systemctl enable --no-reload -- systemd-timesyncd.service",
        "systemctl --no-block try-restart -- systemd-timesyncd.service",
    ]
    fake.boot(body)
    assert fake.commands == []


def test_the_time_zone_is_a_link_that_the_owner_may_change(fake: FakeMachine) -> None:
    zones = fake.root / "usr/share/zoneinfo/Europe"
    zones.mkdir(parents=True)
    (zones / "Berlin").write_bytes(b"TZif")
    link = fake.root / "etc/localtime"
    link.symlink_to("/usr/share/zoneinfo/Etc/UTC")
    assert list(statuses(fake.boot("timezone: Europe/Berlin\n")).values()) == ["done"]
    assert str(link.readlink()) == "/usr/share/zoneinfo/Europe/Berlin"
    assert list(statuses(fake.boot("timezone: Europe/Berlin\n")).values()) == ["unchanged"]
    link.unlink()
    link.symlink_to("/usr/share/zoneinfo/Etc/UTC")
    assert list(statuses(fake.boot("timezone: Europe/Berlin\n")).values()) == ["kept"]
    assert notes(fake.boot("timezone: Mars/Base\n")) == {
        "time zone Mars/Base": "there is no time zone Mars/Base"
    }


def test_locale_and_resolver_become_files(fake: FakeMachine) -> None:
    fake.boot(
        "locale: C.UTF-8\nmanage_resolv_conf: true\n"
        "resolv_conf: {nameservers: [10.0.0.53, 10.0.0.54], searchdomains: [a.example]}\n"
    )
    assert fake.text("etc/locale.conf") == "LANG=C.UTF-8\n"
    assert fake.text("etc/systemd/resolved.conf.d/50-cloud-config.conf") == (
        "[Resolve]\nDNS=10.0.0.53 10.0.0.54\nDomains=a.example\n"
    )
    assert fake.commands == ["systemctl --no-block try-restart -- systemd-resolved.service"]


def test_a_seed_is_stirred_in_once(fake: FakeMachine) -> None:
    (fake.root / "dev/urandom").touch()
    fake.boot("random_seed: {data: abc}\n")
    fake.boot("random_seed: {data: abc}\n")
    assert fake.text("dev/urandom") == "abc"


# Trust, with the real openssl.


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three certificates; b and b2 have one name."""
    folder = tmp_path_factory.mktemp("pems")
    found = {}
    for name, subject in (("a", "/CN=a"), ("b", "/CN=b"), ("b2", "/CN=b"), ("rel", "/CN=rel")):
        key, out = str(folder / f"{name}.key"), folder / f"{name}.pem"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        run_program([*new, "-nodes", "-keyout", key, "-out", str(out), "-subj", subject])
        found[name] = out.read_text()
    return found


class Trusting:
    """A machine with a release's certificates below an overlay of /etc."""

    def __init__(self, fake: FakeMachine, release: str) -> None:
        self.fake = fake
        self.defaults = fake.root / "usr/share/proa/etc/ssl/certs"
        self.certs = fake.root / "etc/ssl/certs"
        for folder in (self.defaults, self.certs):
            folder.mkdir(parents=True)
            (folder / "rel.pem").symlink_to("/usr/share/ca-certificates/rel.crt")
            (folder / "11112222.0").symlink_to("rel.pem")
            (folder / "ca-certificates.crt").write_text(release)

    def boot(self, trusted: Sequence[str] = (), **options: bool) -> Outcome:
        machine = replace(self.fake.machine(), ask=openssl)
        lines = [f"remove_defaults: {str(v).lower()}" for v in options.values()]
        lines.append("trusted:")
        for pem in trusted:
            lines += ["- |", *(f"  {line}" for line in pem.splitlines())]
        body = "#cloud-config\nca_certs:\n" + "".join(f"  {line}\n" for line in lines)
        planned = plan(body.encode())
        assert not planned.refused, planned.problems
        outcome = apply(planned.changes, machine, self.fake.remembered)
        self.fake.remembered = outcome.remembered
        return outcome

    @property
    def bundle(self) -> str:
        return (self.certs / "ca-certificates.crt").read_text()

    @property
    def links(self) -> dict[str, str]:
        return {p.name: str(p.readlink()) for p in self.certs.iterdir() if p.is_symlink()}


def openssl(command: Sequence[str], stdin: bytes) -> tuple[int, str]:
    done = subprocess.run(command, input=stdin, capture_output=True)
    return done.returncode, done.stdout.decode()


@pytest.fixture
def trusting(fake: FakeMachine, pems: dict[str, str]) -> Trusting:
    return Trusting(fake, pems["rel"])


def verified(trusting: Trusting, pem: str) -> bool:
    """Whether OpenSSL itself finds the certificate by its hash in /etc/ssl/certs."""
    command = ("openssl", "verify", "-no-CAfile", "-no-CAstore", "-CApath", str(trusting.certs))
    return subprocess.run(command, input=pem.encode(), capture_output=True).returncode == 0


def test_the_owners_certificates_are_trusted_beside_the_releases(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    assert not verified(trusting, pems["a"])
    trusting.boot([pems["a"], pems["b"], pems["b2"]])
    assert trusting.bundle == pems["rel"] + pems["a"] + pems["b"] + pems["b2"]
    assert all(verified(trusting, pems[name]) for name in ("a", "b", "b2"))
    assert trusting.links["11112222.0"] == "rel.pem"
    assert list(statuses(trusting.boot([pems["a"], pems["b"], pems["b2"]])).values()) == [
        "unchanged"
    ]


def test_a_new_release_brings_its_certificates_and_the_owners_stay(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    trusting.boot([pems["a"]])
    (trusting.defaults / "ca-certificates.crt").write_text("new\n")
    machine = replace(trusting.fake.machine(), ask=openssl)
    assert certificates.refresh(machine)
    assert trusting.bundle == "new\n" + pems["a"]
    assert not certificates.refresh(machine)


def test_every_boot_looks_for_a_new_release_even_without_a_document(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    trusting.boot([pems["a"]])
    (trusting.defaults / "ca-certificates.crt").write_text("new\n")
    assert cloudinit.boot(trusting.fake.machine()) == cloudinit.OK
    assert trusting.bundle == "new\n" + pems["a"]


def test_the_releases_certificates_go_and_come_back(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    trusting.boot([pems["a"]], remove_defaults=True)
    assert trusting.bundle == pems["a"]
    assert "rel.pem" not in trusting.links
    assert "11112222.0" not in trusting.links
    assert verified(trusting, pems["a"])
    trusting.boot([pems["b"]])
    assert trusting.bundle == pems["rel"] + pems["b"]
    assert trusting.links["11112222.0"] == "rel.pem"
    assert not verified(trusting, pems["a"])
    assert verified(trusting, pems["b"])


def test_a_cut_while_trust_is_made_is_mended_by_the_next_boot(
    trusting: Trusting, pems: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_place", cut)
        with pytest.raises(Cut):
            trusting.boot([pems["a"]])
    trusting.boot([pems["a"]])
    assert trusting.bundle == pems["rel"] + pems["a"]
    assert verified(trusting, pems["a"])


def test_what_openssl_cannot_read_is_told_and_nothing_is_changed(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    lines = pems["a"].splitlines()
    spoiled = "\n".join([*lines[:2], "A" * 64, *lines[3:]])
    outcome = trusting.boot([pems["b"], spoiled])
    assert list(notes(outcome).values()) == ["certificate 2 is none that openssl can read"]
    assert trusting.bundle == pems["rel"]
    assert not (trusting.fake.root / "etc/ca-certificates/cloud-config.pem").exists()


def test_a_file_that_the_owner_put_among_the_certificates_stays(
    trusting: Trusting, pems: dict[str, str]
) -> None:
    (trusting.certs / "mine.pem").write_text("mine")
    trusting.boot([pems["a"]], remove_defaults=True)
    trusting.boot([])
    assert (trusting.certs / "mine.pem").read_text() == "mine"
    assert trusting.bundle == pems["rel"]


# Whatever the document says.

_KEYS = st.sampled_from(
    [
        *("bootcmd", "runcmd", "random_seed", "timezone", "locale", "ntp", "ca_certs", "swap"),
        *("resolv_conf", "manage_resolv_conf", "device_aliases", "disk_setup", "fs_setup"),
        *("mounts", "mount_default_fields", "power_state", "phone_home", "final_message"),
    ]
)
_WORDS = st.sampled_from(
    [
        *("servers", "pools", "enabled", "trusted", "remove_defaults", "filename", "size", "auto"),
        *("maxsize", "device", "filesystem", "partition", "label", "layout", "table_type", "gpt"),
        *("overwrite", "mode", "reboot", "condition", "delay", "url", "post", "tries", "data"),
        *(
            "/dev/vdb",
            "vdb",
            "vdb.1",
            "vda",
            "sdx",
            "ext4",
            "swap",
            "none",
            "/data",
            "/",
            "LABEL=a",
        ),
        *("http://a.example/$INSTANCE_ID", "Europe/Berlin", "C.UTF-8", "10.0.0.1", "+5", "now"),
        *("true", "false", "1", "50", "1M", "tmpfs", "defaults", "echo", "$version", "\u0663", ""),
    ]
)
_VALUES = st.recursive(
    st.one_of(_WORDS, st.none(), st.integers(0, 300), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_WORDS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=4))
def test_any_document_is_refused_or_applied_to_its_end(tree: dict[str, object]) -> None:
    planned = plan(b"#cloud-config\n" + json.dumps(tree).encode(), Metadata(instance_id="i"))
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeMachine(Path(folder))
        fake.disk("vdb", partitions=1, size=4096)
        outcome = apply(planned.changes, fake.machine(), {})
        assert len(outcome.results) == len(planned.changes)
        for result in outcome.results:
            assert result.what.isprintable()
            assert result.note.isprintable()
        assert not any("vda" in c for c in fake.commands if c.startswith(("mk", "sfdisk", "wipe")))
        again = apply(planned.changes, fake.machine(), outcome.remembered)
        assert len(again.results) == len(planned.changes)
