"""A release's own kernel and /usr in QEMU, without its systemd: seconds instead of minutes.

Where a test asks what cloud-config finds on a machine (its DMI, disks, firmware, metadata services)
and not how the whole system starts, the release's kernel and initrd are booted with a script of
ours in the place of init. It mounts the release's /usr under a root in memory and runs the commands
of the test there, on real hardware as QEMU emulates it. systemctl is a stand-in that writes down
what it was asked for, and runs the owner's scripts: no systemd runs in this guest.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proa.lab import qemu
from proa.lab.qemu import Accelerator
from support.cpio import newc

# Answers come between lines like these, so that the kernel's own words do not get into them.
_BEGIN, _END = "=== begin ", "=== end "

_INIT = r"""#!/usr/bin/sh
# The release's initrd has these programs; ln, cp and chroot come from /usr once it is there.
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in virtio_pci virtio_blk erofs overlay virtio_net virtio_scsi ata_piix ahci sr_mod qemu_fw_cfg
do modprobe -q $m; done
mkdir -p /m; mount -t tmpfs tmpfs /m
cd /m; mkdir -p usr proc sys dev run etc var root home tmp oem
n=0; while [ ! -b /dev/vda ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done
mount -t erofs -o ro /dev/vda /m/usr || exec sleep 1
L=/m/usr/lib/x86_64-linux-gnu
with() { p=$1; shift; /m/usr/lib64/ld-linux-x86-64.so.2 --library-path $L /m/usr/$p "$@"; }
for d in bin sbin lib lib64; do with bin/ln -s usr/$d /m/$d; done
with bin/cp -a /m/usr/share/proa/etc/. /m/etc/
with bin/cp /commands /fake-systemctl /m/run/
mount -t proc proc /m/proc; mount -t sysfs sysfs /m/sys; mount -t devtmpfs dev /m/dev
# exec: with another root than PID 1's, udev would think itself in a chroot and do nothing.
exec /m/usr/lib64/ld-linux-x86-64.so.2 --library-path $L /m/usr/sbin/chroot /m /bin/sh /run/commands
"""

_COMMANDS = r"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
exec < /dev/null
chmod 755 /run/fake-systemctl
mount --bind /run/fake-systemctl /usr/bin/systemctl
for m in iso9660 vfat nls_cp437 nls_ascii nls_utf8; do modprobe -q $m; done
systemd-sysusers > /dev/null 2>&1
/usr/lib/systemd/systemd-udevd --daemon > /dev/null 2>&1
export PAGER=cat SYSTEMD_PAGER=cat
udevadm trigger; udevadm settle
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
answer() { echo "=== begin $1"; shift; "$@" 2>&1; printf '\n=== end %s\n' $?; }
"""

_SYSTEMCTL = """#!/bin/sh
echo "$*" >> /run/systemctl.log
case "$*" in
"start -- proa-script@"*)  # the owner's script is run; nothing else is started in this guest
    name=${3#proa-script@}
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin  # what systemd gives its units
    export $(cat /run/proa/scripts.env)
    exec /run/proa/scripts/${name%.service} ;;
esac
"""


@dataclass(frozen=True)
class Answer:
    """What a command of the test printed, and its exit status."""

    text: str
    status: int


def run(
    release: Path,
    work: Path,
    commands: Mapping[str, str],
    *,
    options: Sequence[str] = (),
    namespace: str = "",
    cmdline: str = "",
    accelerator: Accelerator = Accelerator.TCG,
    timeout: float = 300,
) -> dict[str, Answer]:
    """Boot ``release`` and return what each of ``commands`` (shell, by name) printed.

    ``options`` are QEMU's, for what the guest is to find; ``namespace`` is a network namespace in
    which QEMU connects, so that 169.254.169.254 can be an address of ours.
    """
    script = _COMMANDS + "".join(
        f"answer {name} sh -c {_quote(c)}\n" for name, c in commands.items()
    )
    script += "echo o > /proc/sysrq-trigger\nsleep 60\n"
    files = {"init-tiny": _INIT, "commands": script, "fake-systemctl": _SYSTEMCTL}
    extra = newc({name: text.encode() for name, text in files.items()}, 0o100755)
    initrd = work / "initrd"
    whole = (release / "initrd").read_bytes()
    initrd.write_bytes(whole + b"\0" * (-len(whole) % 4) + extra)
    command = [
        *(("ip", "netns", "exec", namespace) if namespace else ()),
        qemu.PROGRAM,
        *("-machine", "q35,hpet=off", *qemu.accelerator_options(accelerator)),
        *("-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(release / "vmlinuz"), "-initrd", str(initrd)),
        "-append",
        f"console=ttyS0 quiet panic=-1 rdinit=/init-tiny no_timer_check {cmdline}",
        *("-drive", f"if=none,id=usr,file={release / 'usr.erofs'},format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=usr"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-serial", "stdio", "-no-reboot"),
        *options,
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
    )
    said = done.stdout.decode(errors="replace").replace("\r", "")
    (work / "serial.log").write_text(said)
    answers = dict(_answers(said))
    missing = set(commands) - set(answers)
    assert not missing, f"no answer to {missing}: {said[-2000:]} {done.stderr.decode()[-500:]}"
    return answers


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _answers(said: str) -> list[tuple[str, Answer]]:
    found = []
    name, lines = "", list[str]()
    for line in said.split("\n"):
        if line.startswith(_BEGIN):
            name, lines = line.removeprefix(_BEGIN), []
        elif line.startswith(_END) and name:
            found.append((name, Answer("\n".join(lines).strip("\n"), int(line.removeprefix(_END)))))
            name = ""
        else:
            lines.append(line)
    return found
