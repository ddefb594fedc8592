"""The guest of the cloud-config benchmark: one Debian 13 that has Proa, cloud-init and the script.

The guest is booted once. Each run gets a fresh copy of its root (an overlay over the root, which
stays as it is) with namespaces of its own, and a cold page cache, as a boot has. What the program
at hand is started with and in which order is what its own units say. No systemd runs, which would
measure other things too: ``systemctl`` is a stand-in that notes what it was asked for, for all of
them alike. A run is two boots: the first of a machine, and another of the same instance.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from benchmarks.cloudconfig_effects import Document, State, read_state

from proa.factory import build, rootfs, sdk
from proa.lab import metadata, qemu
from proa.lab.qemu import Accelerator
from proa.wire.errors import UserError

# What all of them need, and what Debian's own cloud images have of the same kind.
PACKAGES = (
    "ca-certificates",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "locales",
    "netcat-openbsd",
    "openssh-server",
    "procps",
    "python3-urllib3",
    "python3-yaml",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "time",
    "tzdata",
    "udev",
    "zstd",
)
# Keys that may be left out of the document, since one program does nearly all of their work.
OPTIONAL = ("ca_certs",)
_MACHINE_ID = "6e3c11a7d2b94c5f8a01b2c3d4e5f607\n"

# cloud-init is spared what Proa does not do in its run or does not have to do at all: to search in
# clouds, to make host keys (a unit of its own on Proa), to write network configuration.
CLOUD_INIT = """\
datasource_list: [NoCloud]
network: {config: disabled}
ssh_deletekeys: false
system_info: {default_user: {name: core}}
"""
# What the document needs, and no module more: how fast cloud-init gets if its owner takes care.
LEAN = """\
cloud_init_modules:
  [bootcmd, write_files, mounts, set_hostname, update_etc_hosts, ca_certs, users_groups, ssh]
cloud_config_modules: [locale, set_passwords, ntp, timezone, runcmd]
cloud_final_modules: [write_files_deferred, scripts_user, final_message]
"""

_INIT = r"""#!/bin/sh
# PID 1, after Debian's initrd. The root is mounted read-only.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
exec < /dev/console > /dev/console 2>&1
for place in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/run tmpfs:/tmp; do
    mountpoint -q "${place#*:}" || mount -t "${place%%:*}" "${place%%:*}" "${place#*:}"
done
modprobe -a overlay vfat nls_cp437 nls_ascii nls_utf8 virtio_net
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger; udevadm settle
ip link set lo up
ip addr add 169.254.169.254/32 dev lo
disk() { echo /dev/disk/by-id/virtio-$1; }
mount "$(disk scratch)" /bench/scratch
mkdir -p /tmp/out
uname -r > /tmp/out/kernel
while read -r peer round; do
    rm -rf /bench/scratch/upper /bench/scratch/work
    mkdir /bench/scratch/upper /bench/scratch/work
    boots="first second"
    # How long one waits for a service is seen in one boot.
    case $peer in *+*) boots=first ;; esac
    for boot in $boots; do
        echo "bench: $(cut -d. -f1 /proc/uptime) $peer $round $boot"
        mkdir /tmp/out/$peer.$round.$boot
        sync
        echo 3 > /proc/sys/vm/drop_caches
        unshare --mount --uts --pid --fork --kill-child \
            sh /bench/sandbox $peer $round $boot < /dev/null
        # Each time anew, so that a run that is broken off has left something to look at.
        tar -C /tmp/out -cf "$(disk results)" .
    done
done < /bench/runs
umount /bench/scratch
sync
echo o > /proc/sysrq-trigger
sleep 60
"""

_SANDBOX = r"""
root=/bench/root
mount -t overlay -o lowerdir=/,upperdir=/bench/scratch/upper,workdir=/bench/scratch/work bench $root
mount --rbind /dev $root/dev
mount -t sysfs sysfs $root/sys
mount -t tmpfs tmpfs $root/run
mkdir $root/run/udev $root/run/bench $root/run/lock
mount --bind /run/udev $root/run/udev
mount --bind /tmp/out/$1.$2.$3 $root/run/bench
# exec: with another root than PID 1's, udev would think itself in a chroot and do nothing.
exec chroot $root sh /bench/stages "$1" "$2" "$3"
"""

_STAGES = r"""
. /bench/settings
peer=${1%%+*}
mount -t proc proc /proc
mkdir -p /run/systemd/system
hostname localhost
if [ "$3" = second ]; then # what systemd does at each boot
    hostname "$(cat /etc/hostname)"
    mount -a
fi
cd /run/bench
timed() { # name command...
    name=$1; shift
    time -q -f "%e %U %S %M" -o usage.$name timeout -k 5 600 "$@" > said.$name 2>&1
    echo $? > status.$name
}
again=; [ "$3" = first ] || again=again
case $1 in
*+*)
    service=${1#*+}
    echo 'datasource_list: [Ec2]' > /etc/cloud/cloud.cfg.d/92-service.cfg
    mkdir -p /etc/proa
    echo DATASOURCE=ec2 > /etc/proa/datasource.conf
    case $service in at-once) fault= ;; *) fault="--fault $service" ;; esac
    python3 /bench/metadata.py --cloud ec2 --listen 169.254.169.254:80 $fault > service 2>&1 &
    until grep -qs . service; do sleep 0.1; done
    ;;
esac
case $peer in
nothing) ;;
script) timed local sh /bench/script $again ;;
proa)
    timed local /usr/lib/proa/cloudinit
    for stage in network final; do
        if grep -qs "start proa-cloudinit-$stage.service" /run/systemctl.log; then
            timed $stage /usr/lib/proa/cloudinit --stage $stage
        fi
    done
    ;;
cloud-init*)
    [ $peer != cloud-init-lean ] || cp /bench/lean.cfg /etc/cloud/cloud.cfg.d/91-lean.cfg
    mkdir -p /run/generators
    timed generator /usr/lib/systemd/system-generators/cloud-init-generator \
        /run/generators /run/generators /run/generators
    date +%s.%N > begin
    time -q -f "%e %U %S %M" -o usage.all cloud-init --all-stages > said.all 2>&1 &
    main=$!
    while [ ! -S /run/cloud-init/share/local.sock ] && kill -0 $main; do sleep 0.02; done
    date +%s.%N > ready
    for stage in local network config final; do
        timed $stage sh -c "echo start | nc -Uu -W1 /run/cloud-init/share/$stage.sock \
            -s /run/cloud-init/share/$stage-return.sock | sh"
    done
    wait $main
    echo $? > status.all
    cat /var/log/cloud-init-output.log > said.output
    cp /var/log/cloud-init.log log
    ;;
esac
cp /proc/self/mounts mounts
hostname > hostname
cp /run/systemctl.log systemctl 2> /dev/null
cp /run/proa/cloudinit.json report.json 2> /dev/null
tar -C / -cf state.tar etc home opt srv $(cd /; ls -d var/lib/bench 2> /dev/null)
"""

# Two kinds of unit are waited for by Proa: the owner's scripts, and mounts.
_SYSTEMCTL = """#!/bin/sh
echo "$*" >> /run/systemctl.log
starting=
for word; do
    case "$word" in
    start) starting=yes ;;
    proa-script@*.service)
        name=${word#proa-script@}
        [ -z "$starting" ] || exec "/run/proa/scripts/${name%.service}"
        ;;
    *.mount)
        [ -z "$starting" ] || exec mount "$(systemd-escape --unescape --path "${word%.mount}")"
        ;;
    esac
done
"""


@dataclass(frozen=True)
class Stage:
    """One program of a boot. Times in seconds, memory in bytes (the largest process)."""

    name: str
    elapsed: float
    cpu: float
    memory: int
    status: int


@dataclass(frozen=True)
class Boot:
    """One boot of one peer: its stages in their order, and how the machine is afterwards."""

    peer: str
    round: int
    kind: str
    stages: tuple[Stage, ...]
    state: State
    asked: tuple[str, ...] = ()
    """What systemctl was asked for."""


@dataclass(frozen=True)
class Guest:
    """A tree that is ready to be made an image of; ``versions`` of what is measured."""

    tree: Path
    kernel: Path
    initrd: Path
    tools: sdk.Sdk
    versions: dict[str, str]


def make(work: Path, caches: Path, benchmarks: Path, report: sdk.Report) -> Guest:
    """Install Debian, Proa as its images have it, and the programs of the benchmark."""
    _, tools, packed = build.prepare(PACKAGES, caches, report)
    tree = work / "tree"
    tree.mkdir()
    report("unpacking the packages")
    build._run("tar", "-C", tree, "--numeric-owner", "--xattrs", "-xpf", packed)
    rootfs._user_core(tree)
    rootfs._programs(tree, tools)
    (tree / "etc/machine-id").write_text(_MACHINE_ID)
    (tree / "etc/hostname").write_text("debian\n")
    (tree / "etc/fstab").write_text("# none\n")
    (tree / "etc/cloud/cloud.cfg.d/90-bench.cfg").write_text(CLOUD_INIT)
    # As in Proa's images: the defaults that /etc is laid over.
    shutil.copytree(tree / "etc", tree / "usr/share/proa/etc", symlinks=True)
    systemctl = tree / "usr/bin/systemctl"
    systemctl.unlink()
    systemctl.write_text(_SYSTEMCTL)
    systemctl.chmod(0o755)
    for folder in ("root", "scratch"):
        (tree / "bench" / folder).mkdir(parents=True)
    files = {"init": _INIT, "sandbox": _SANDBOX, "stages": _STAGES, "lean.cfg": LEAN}
    files["script"] = (benchmarks / "cloudconfig.sh").read_text()
    files["metadata.py"] = Path(metadata.__file__).read_text()
    for name, text in files.items():
        (tree / "bench" / name).write_text(text)
    (tree / "bench/init").chmod(0o755)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    for found in (kernel, initrd):
        shutil.move(found, work / found.name)
    return Guest(
        tree, work / kernel.name, work / initrd.name, tools, _versions(tree, ("cloud-init",))
    )


def _versions(tree: Path, names: Sequence[str]) -> dict[str, str]:
    command = ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", "${Version}"]
    return {
        name: subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout
        for name in names
    }


def run(
    guest: Guest,
    work: Path,
    document: Document,
    runs: Sequence[tuple[str, int]],
    accelerator: Accelerator,
    timeout: float,
) -> tuple[str, list[Boot]]:
    """Boot the guest, do the runs (peer, round) in their order; return its kernel and the boots.

    ``timeout`` is in seconds. Raises :class:`UserError` if the guest does not come to its end.
    """
    # The script does what is not left out of the document.
    without = "".join(f"export without_{key}=yes\n" for key in OPTIONAL if key not in document)
    (guest.tree / "bench/settings").write_text(without)
    (guest.tree / "bench/runs").write_text("".join(f"{peer} {n}\n" for peer, n in runs))
    _disks(guest, work, f"#cloud-config\n{yaml.safe_dump(document)}".encode())
    log = work / "serial.log"
    with log.open("wb") as serial:
        try:
            subprocess.run(
                _command(guest, work, accelerator),
                stdin=subprocess.DEVNULL,
                stdout=serial,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the guest was not done in {timeout:.0f} s: {_tail(log)}") from None
    try:
        return read_results((work / "results").read_bytes(), runs)
    except (tarfile.TarError, KeyError) as error:
        raise UserError(f"the guest has left no results ({error}): {_tail(log)}") from None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").replace("\r", "")[-2000:]


def _disks(guest: Guest, work: Path, user_data: bytes) -> None:
    """Make the root's image, an empty file system for its changes, and a NoCloud disk."""
    (work / "user-data").write_bytes(user_data)
    (work / "meta-data").write_text("instance-id: bench-instance-1\n")
    with (work / "results").open("wb") as results:
        results.truncate(512 << 20)
    script = """
    mkfs.ext4 -q -d /tree -L bench-root /work/root.raw 1536M
    mkfs.ext4 -q /work/scratch.raw 1G
    rm -f /work/cidata.raw; truncate -s 1M /work/cidata.raw; mkfs.vfat -n CIDATA /work/cidata.raw
    mcopy -i /work/cidata.raw /work/user-data /work/meta-data ::/
    """
    for name in ("root", "scratch"):
        (work / f"{name}.raw").unlink(missing_ok=True)
    guest.tools.run(["sh", "-ec", script], work=work, binds={"/tree": guest.tree})


def _command(guest: Guest, work: Path, accelerator: Accelerator) -> list[str]:
    drives: list[str] = []
    for name in ("root.raw", "scratch.raw", "cidata.raw", "results"):
        serial = name.removesuffix(".raw")
        drives += ("-drive", f"if=none,id={serial},file={work / name},format=raw,cache=unsafe")
        drives += ("-device", f"virtio-blk-pci,drive={serial},serial={serial}")
    return [
        qemu.PROGRAM,
        *("-machine", "q35,hpet=off", *_accelerator(accelerator)),
        *("-smp", "1", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
        "-append",
        "console=ttyS0 quiet panic=-1 no_timer_check audit=0 root=LABEL=bench-root ro"
        " init=/bench/init",
        *drives,
        *("-device", "virtio-rng-pci", "-serial", "stdio", "-no-reboot"),
    ]


def _accelerator(accelerator: Accelerator) -> list[str]:
    if accelerator is Accelerator.KVM:
        return qemu.accelerator_options(accelerator)
    # Guest time is instructions run: 1 ns each. A loaded host makes the run longer, not the figure.
    return ["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0"]


def read_results(data: bytes, runs: Sequence[tuple[str, int]]) -> tuple[str, list[Boot]]:
    """Read what the guest has left: a tar with a directory for each boot.

    Raises :class:`KeyError` or :class:`tarfile.TarError` if something is missing.
    """
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {
            member.name.removeprefix("./"): file.read()
            for member in archive
            if member.isfile() and (file := archive.extractfile(member))
        }
    boots = [
        read_boot(peer, number, kind, _folder(files, f"{peer}.{number}.{kind}"))
        for peer, number in runs
        for kind in kinds(peer)
    ]
    return files["kernel"].decode().strip(), boots


def kinds(peer: str) -> tuple[str, ...]:
    """The boots of one run; what follows a ``+`` is a metadata service to wait for."""
    return ("first",) if "+" in peer else ("first", "second")


def _folder(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    start = f"{name}/"
    return {
        path.removeprefix(start): data for path, data in files.items() if path.startswith(start)
    }


def read_boot(peer: str, number: int, kind: str, files: dict[str, bytes]) -> Boot:
    """Read the files of one boot; their names are those of :data:`_STAGES`."""
    texts = {name: data.decode("utf-8", "replace") for name, data in files.items()}
    said = "\n".join(text for name, text in texts.items() if name.startswith("said."))
    state = read_state(files["state.tar"], texts["mounts"], texts["hostname"], said)
    names = [name.removeprefix("usage.") for name in texts if name.startswith("usage.")]
    stages = [_stage(name, texts) for name in sorted(names, key=_order)]
    if "ready" in texts:
        waited = float(texts["ready"]) - float(texts["begin"])
        stages.insert(1, Stage("start", round(waited, 3), 0.0, 0, 0))
    asked = tuple(texts.get("systemctl", "").splitlines())
    return Boot(peer, number, kind, tuple(stages), state, asked)


_STAGE_NAMES = ("generator", "start", "local", "network", "config", "final", "all")


def _order(name: str) -> int:
    return _STAGE_NAMES.index(name)


def _stage(name: str, texts: dict[str, str]) -> Stage:
    elapsed, user, system, peak = texts[f"usage.{name}"].split()[-4:]
    return Stage(
        name,
        float(elapsed),
        round(float(user) + float(system), 2),
        int(peak) * 1024,
        int(texts[f"status.{name}"]),
    )
