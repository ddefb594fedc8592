"""One file makes a whole machine: a booted release with systemd, sandboxes and all.

What each key means is tested elsewhere, in seconds. This is about what only a whole system shows:
that the programs work within the rights that their units have, that the stages come in their
order, and that a second boot finds nothing to do.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proa.lab import accelerator, machine, shell, tour, up
from proa.lab.machine import Machine, Record
from proa.lab.qemu import Firmware
from proa.lab.shell import Shell, ShellError
from proa.lab.tour import Tour

pytestmark = pytest.mark.machine

NAME = "sail-1"

DOCUMENT = """#cloud-config
hostname: sail-1
fqdn: sail-1.example.net
manage_etc_hosts: true
groups:
- crew: [alice]
users:
- default
- name: alice
  gecos: Alice of the crew
  sudo: "ALL=(ALL) NOPASSWD:ALL"
  groups: [docker]
  shell: /bin/bash
  lock_passwd: false
  plain_text_passwd: a word for the test
  ssh_authorized_keys: [{key}]
ssh_genkeytypes: [rsa]
ssh_pwauth: false
write_files:
- path: /etc/sail/plain
  content: plain
  owner: alice:crew
  permissions: "0640"
- path: /etc/sail/open
  content: "for everybody\\n"
- path: /usr/local/bin/hoist
  content: "#!/bin/sh\\necho hoisted\\n"
  permissions: "0755"
- path: /usr/local/lib/python3.13/dist-packages/owners.pth
  content: import os; os.getuid() or os.system("tr '\\\\0' ' ' < /proc/$PPID/cmdline >> /run/hook")
- path: /var/lib/sail/late
  content: after everything
  defer: true
bootcmd:
- echo early >> /var/lib/early
- [modprobe, dummy]
runcmd:
- hoist >> /var/lib/hoisted
- [sh, -c, 'echo "$INSTANCE_ID $(systemctl is-active multi-user.target)" >> /var/lib/ran']
timezone: Europe/Helsinki
ntp: {{servers: [192.0.2.1]}}
locale: C.UTF-8
swap: {{filename: /swapfile, size: 32M}}
mounts:
- [tmpfs, /srv/scratch, tmpfs, "size=1m", "0", "0"]
ca_certs:
  trusted:
  - |
{certificate}
coreos:
  update: {{reboot_strategy: "off"}}
  units:
  - name: sail.service
    enable: true
    command: start
    content: |
      [Service]
      Type=oneshot
      RemainAfterExit=yes
      ExecStart=/bin/sh -c "getent passwd alice > /run/sail"
final_message: the sails are set after $UPTIME seconds
"""


@dataclass(frozen=True)
class Booted:
    machine: Machine
    remote: Shell
    certificate: str

    def run(self, command: str, *, check: bool = True) -> str:
        return self.remote.run(command, timeout=300, check=check)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("cat /run/proa/cloudinit.json"))
        return document

    def settled(self) -> None:
        """Wait until the last stage is over."""

        def over(asked: Shell) -> bool | None:
            known = json.loads(asked.run("cat /run/proa/cloudinit.json"))
            return True if "final" in known["stages"] and not known["waiting_for"] else None

        self.machine.wait_until(self.remote, over, what="its last stage", timeout=600)


@pytest.fixture(scope="module")
def booted(
    stage: Tour, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    if stage.machine is not None:
        stage.machine.cut_power()
    folder = tmp_path_factory.mktemp("cloudconfig")
    certificate = make_certificate(folder)
    key = shell.make_key(stage.site.ssh_key)
    record = Record(
        name=NAME,
        version=json.loads((release / "manifest.json").read_text())["version"],
        firmware=Firmware.UEFI,
        accelerator=accelerator.choose(release / "vmlinuz", stage.site.cache),
        memory_mib=tour.MEMORY_MIB,
        ssh_port=machine.free_port(),
        application_port=machine.free_port(),
        server_port=1,
    )
    indented = "".join(f"    {line}\n" for line in certificate.splitlines())
    made = machine.create(
        folder / "machine",
        record,
        disk=release / "disk.raw",
        ssh_keys=[key],
        user_data=DOCUMENT.format(key=key, certificate=indented.rstrip()),
    )
    try:
        with made.shell(stage.site.ssh_key) as remote:
            made.start(dies_with_us=True)
            up.wait_for_boot(made, remote, stage.report)
            whole = Booted(made, remote, certificate)
            whole.settled()
            yield whole
    finally:
        made.remove()


def make_certificate(folder: Path) -> str:
    """A certificate that nobody has signed but itself, as PEM."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=Sail test", "-keyout", "/dev/null"]
    file = folder / "certificate.pem"
    subprocess.run([*command, "-out", str(file)], check=True, capture_output=True)
    return file.read_text()


def test_every_change_is_made_and_nothing_has_failed(booted: Booted) -> None:
    status = booted.status()
    assert status["state"] == "applied", status
    assert [p for p in status["problems"] if p["level"] == "error"] == []
    assert {c["status"] for c in status["changes"]} <= {"done", "unchanged", "skipped"}, status
    assert set(status["stages"]) == {"local", "final"}
    assert booted.run("systemctl --failed --no-legend --plain") == ""


def test_users_groups_passwords_and_sudo(booted: Booted) -> None:
    assert "Alice of the crew" in booted.run("getent passwd alice")
    assert booted.run("id -nG alice").split() == ["alice", "docker", "crew"]
    assert "$y$" in booted.run("sudo getent shadow alice")
    assert booted.run("sudo -u alice sudo -n id -un") == "root"
    assert booted.run("stat -c '%U:%G %a' /etc/sail/plain") == "alice:crew 640"
    assert "127.0.1.1 sail-1.example.net sail-1" in booted.run("cat /etc/hosts")
    assert booted.run("cat /run/sail").startswith("alice:")


def test_ssh_has_the_keys_that_were_asked_for(booted: Booted) -> None:
    assert "ssh-rsa" in booted.run("cat /etc/ssh/ssh_host_rsa_key.pub")
    assert "passwordauthentication no" in booted.run("sudo sshd -T")


def test_clock_trust_swap_and_mounts(booted: Booted) -> None:
    assert booted.run("readlink -f /etc/localtime") == "/usr/share/zoneinfo/Europe/Helsinki"
    assert "192.0.2.1" in booted.run("systemd-analyze cat-config systemd/timesyncd.conf")
    bundle = booted.run("cat /etc/ssl/certs/ca-certificates.crt")
    assert booted.certificate.splitlines()[1] in bundle
    assert "/swapfile" in booted.run("cat /proc/swaps")
    assert "size=1024k" in booted.run("findmnt -no OPTIONS /srv/scratch")


def test_commands_run_early_and_late_with_all_rights(booted: Booted) -> None:
    assert booted.run("cat /var/lib/early") == "early"
    assert "dummy" in booted.run("cat /proc/modules")
    assert booted.run("cat /var/lib/ran") == f"{NAME} active"
    assert booted.run("cat /var/lib/sail/late") == "after everything"
    assert "the sails are set after" in booted.run("sudo journalctl -b -o cat -u proa-cloudinit*")


def test_programs_below_usr_local_are_the_owners_and_found_by_name(booted: Booted) -> None:
    assert booted.run("cat /var/lib/hoisted") == "hoisted"
    assert booted.run("hoist && sudo hoist").split() == ["hoisted", "hoisted"]
    assert booted.run("readlink -f /usr/local/bin/hoist") == "/var/usrlocal/bin/hoist"


def test_the_systems_programs_load_nothing_from_usr_local(booted: Booted) -> None:
    booted.run("sudo proactl health && sudo proactl status && sudo python3 -c pass")
    assert booted.run("cat /run/hook").split() == ["python3", "-c", "pass"]


def test_no_password_is_in_any_log_or_status(booted: Booted) -> None:
    assert booted.run("sudo journalctl -b | grep -c 'a word for the test'", check=False) == "0"
    assert "a word" not in json.dumps(booted.status())


def test_what_the_boot_did_is_told_in_one_place(booted: Booted) -> None:
    told = booted.run("proactl config status")
    assert "config drive" in told
    assert "applied" in told


TRIED = """#cloud-config
write_files:
- path: /etc/sail/plain
  content: tried
  permissions: "0640"
- path: /etc/sail/open
  content: "tried, for everybody\\n"
- path: /etc/sail/tried
  content: new
"""


def test_a_document_is_tried_and_goes_back_by_itself(booted: Booted) -> None:
    booted.run(f"cat > /tmp/tried.yaml <<'END'\n{TRIED}END")
    assert booted.run("proactl config validate /tmp/tried.yaml")
    difference = booted.run("sudo proactl config diff /tmp/tried.yaml")
    assert "+tried, for everybody" in difference
    assert "-for everybody" in difference
    assert "-plain" not in difference  # not everybody may read that one
    booted.run("sudo proactl config apply --try 1 /tmp/tried.yaml")
    assert booted.run("sudo cat /etc/sail/plain /etc/sail/tried") == "triednew"

    def back(asked: Shell) -> bool | None:
        # The trial is over, not only its files away: an edit of now must outlast a reboot.
        gone = asked.run("test -e /etc/sail/tried || test -e /var/lib/proa/config-try || echo gone")
        return True if gone == "gone" else None

    booted.machine.wait_until(booted.remote, back, what="its old configuration", timeout=300)
    assert booted.run("sudo cat /etc/sail/plain") == "plain"
    assert booted.run("stat -c '%U:%G %a' /etc/sail/plain") == "alice:crew 640"


def test_a_second_boot_finds_nothing_to_do_but_what_is_for_each_boot(booted: Booted) -> None:
    old = machine.boot_id(booted.remote)
    booted.run("echo mine | sudo tee /etc/sail/plain")
    with contextlib.suppress(ShellError):  # the connection may end before the answer
        booted.run("sudo systemctl --no-block reboot")

    def again(asked: Shell) -> bool | None:
        return True if machine.boot_id(asked) != old else None

    booted.machine.wait_until(booted.remote, again, what="another boot", timeout=900)
    booted.settled()
    changes = {c["what"]: c["status"] for c in booted.status()["changes"]}
    done = {what for what, status in changes.items() if status == "done"}
    each = {"script bootcmd", "start sail.service", "final message", "mask of locksmithd.service"}
    assert done <= each, done
    assert changes["file /etc/sail/plain"] == "kept"
    assert booted.run("sudo cat /etc/sail/plain") == "mine"
    assert booted.run("cat /var/lib/early") == "early\nearly"
    assert booted.run("cat /var/lib/ran") == f"{NAME} active"
    assert booted.run("systemctl --failed --no-legend --plain") == ""
