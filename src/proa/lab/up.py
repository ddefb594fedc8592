"""``proa up`` and its companions: one machine to play with, which outlives the command."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import proa
from proa.lab import accelerator, machine, process, qemu, shell, site
from proa.lab.configdrive import cloud_config
from proa.lab.machine import Machine, Record
from proa.lab.qemu import Firmware
from proa.lab.shell import Shell
from proa.lab.site import Site
from proa.wire.errors import UserError
from proa.wire.version import parse

FIRST_VERSION = "1.0.0"
CHANNEL = "alpha"

# The houses whose code makes an image or is in it.
IMAGE_HOUSES = ("factory", "machine", "wire")

# Seconds until ssh must answer. The slowest boot seen under emulation on a busy host was 630 s.
BOOT_TIMEOUT = 900.0

# Seconds until a system is judged, after a shutdown and as many as three boots that fail.
JUDGED_TIMEOUT = 3000.0


class Progress(Protocol):
    """A step that is being shown to the user; ``text`` is what it will have been."""

    text: str

    def report(self, detail: str) -> None: ...


Step = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Wish:
    """What the user wants the machine to be."""

    name: str = "proa"
    firmware: Firmware = Firmware.UEFI
    memory_mib: int = 512


def up(home: Site, wish: Wish, step: Step) -> tuple[Machine, bool]:
    """Return the running machine, and whether it ran already.

    Whatever fails or is interrupted, what was started here is stopped again, and a machine that
    was made here is removed.
    """
    directory = home.machines / wish.name
    with _alone(home.machines, wish.name), contextlib.ExitStack() as undo:
        known = machine.load(directory)
        if known is not None and known.is_running and _server_runs(known):
            return known, True
        if known is None:
            release = prepare_release(home, step)
            known = _make(home, wish, release, step)
            undo.callback(known.remove)
        _start_server(home, known, step, undo)
        if not known.is_running:
            with step(f"Starting the machine ({describe(known.record)})"):
                known.start(dies_with_us=False)
            undo.callback(known.cut_power)
            with step("Booting until ssh answers") as shown, known.shell(home.ssh_key) as remote:
                wait_for_boot(known, remote, shown.report)
        undo.pop_all()
    return known, False


def prepare_release(home: Site, step: Step) -> Path:
    """Make sure of keys, a release built from this checkout, and its place in the repository.

    A published version never changes, so a checkout that has changed since gets a new version.
    """
    if not home.root.exists():
        with step("Making the signing keys"):
            home.proa("keys", "init")
    sources = digest_of_sources([home.root])
    version, is_built = choose_version(built_from(home), sources)
    release = home.release(version)
    if is_built:
        with step(f"Release {version} is built already: nothing has changed"):
            return release
    # Not stamped, so whatever lies there was never finished.
    shutil.rmtree(release, ignore_errors=True)
    with step(f"Building release {version}") as shown:
        build(home, version, shown.report)
    with step(f"Publishing {version} to channel {CHANNEL}"):
        publish(home, version)
    _stamp(home, version).write_text(sources + "\n")
    return release


def choose_version(built: Mapping[str, str], sources: str) -> tuple[str, bool]:
    """Return the version to run, and whether it is built already.

    ``built`` says from which sources each built version was made.
    """
    versions = sorted(built, key=parse)
    for version in reversed(versions):
        if built[version] == sources:
            return version, True
    if not versions:
        return FIRST_VERSION, False
    newest = parse(versions[-1])
    return str(dataclasses.replace(newest, patch=newest.patch + 1, pre=())), False


def built_from(home: Site) -> dict[str, str]:
    """Return the releases that ``proa up`` has built here, with the digest of their sources."""
    return {
        stamp.stem: stamp.read_text().strip()
        for stamp in home.release("x").parent.glob("*.sources")
        if home.release(stamp.stem).is_dir()
    }


def digest_of_sources(further: Iterable[Path] = ()) -> str:
    """Return a sha256 over everything in the checkout that can change an image's bytes."""
    package = Path(proa.__file__).parent
    directories = [package.parent.parent / "os", *(package / house for house in IMAGE_HOUSES)]
    files = [path for top in directories for path in top.rglob("*") if path.is_file()]
    total = hashlib.sha256()
    for path in sorted({*files, *further}):
        if "__pycache__" not in path.parts:
            total.update(f"{path}\0{path.stat().st_mode:o}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def build(
    home: Site, version: str, report: Callable[[str], None], recipe: Path | None = None
) -> Path:
    """Build ``version`` into the site's releases, as a release is built."""
    out = home.release(version)
    chosen = () if recipe is None else ("--recipe", recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    home.proa(
        *("build", "--version", version, "--root", home.root, "--out", out),
        *chosen,
        report=report,
    )
    return out


def _stamp(home: Site, version: str) -> Path:
    """What says from which sources a release was built; written when it is published."""
    release = home.release(version)
    return release.with_name(f"{release.name}.sources")


def publish(home: Site, version: str, channel: str | None = CHANNEL, *, deltas: int = 1) -> None:
    """Publish a built release and point ``channel`` to it.

    It comes with payloads from the ``deltas`` latest versions, and no full one: that takes
    minutes, and no machine of the lab starts from nothing.
    """
    payloads = ("--no-full", "--deltas", str(deltas))
    home.proa("publish", home.release(version), "--repo", home.repository, *payloads)
    if channel is not None:
        home.proa("channel", "set", channel, version)


def update_conf(port: int, **settings: object) -> str:
    """The machine's update configuration: our server, seen from the guest."""
    server = f"http://{qemu.HOST_SEEN_FROM_GUEST}:{port}/v1/update/"
    lines = {"GROUP": CHANNEL, "SERVER": server, **settings}
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def wait_for_boot(known: Machine, remote: Shell, report: Callable[[str], None]) -> str:
    """Wait until the machine answers by ssh; return the id of its boot."""

    def probe(asked: Shell) -> str:
        report(_last_words(known))
        return machine.boot_id(asked)

    return known.wait_until(remote, probe, what="answer by ssh", timeout=BOOT_TIMEOUT)


def wait_until_judged(
    known: Machine,
    remote: Shell,
    report: Callable[[str], None] = lambda _: None,
    *,
    version: str | None = None,
    not_boot: str = "",
) -> None:
    """Wait until the health check of a boot has found the system well.

    Boots of other versions than ``version`` do not count, nor does the boot with id ``not_boot``,
    the one that is about to end.
    """

    def judged(asked: Shell) -> bool | None:
        boot, runs, health = asked.run(
            "cat /proc/sys/kernel/random/boot_id; . /etc/os-release; echo $IMAGE_VERSION; "
            "systemctl is-active proa-health.service || true",
            timeout=60,
        ).splitlines()
        report(f"{runs} runs, its health check is {health}")
        counts = boot != not_boot and runs == (version or runs)
        return True if counts and health == "active" else None

    what = f"committed {version}" if version else "good health"
    known.wait_until(remote, judged, what=what, timeout=JUDGED_TIMEOUT, pause=2)


def describe(record: Record) -> str:
    """One phrase for a machine's hardware."""
    return f"{record.accelerator}, {record.firmware}, {record.memory_mib} MB"


def down(home: Site, name: str) -> bool:
    """Stop and remove the machine; False if there was none. Keys and releases stay."""
    with _alone(home.machines, name):
        known = machine.load(home.machines / name)
        if known is None:
            return False
        known.remove()
        return True


def existing(home: Site, name: str, *, running: bool) -> Machine:
    """Return the machine ``name``, or say what to do if it is not there (or does not run)."""
    known = machine.load(home.machines / name)
    if known is None:
        raise UserError(f"there is no machine {name!r}", hint="make it with: ./proa up")
    if running and not known.is_running:
        raise UserError(f"machine {name!r} is not running", hint="start it with: ./proa up")
    return known


def _make(home: Site, wish: Wish, release: Path, step: Step) -> Machine:
    with step("Making the machine's disk"):
        public_key = shell.make_key(home.ssh_key)
        port = site.server_port()
        record = Record(
            name=wish.name,
            version=release.name,
            firmware=wish.firmware,
            accelerator=accelerator.choose(release / "vmlinuz", home.cache),
            memory_mib=wish.memory_mib,
            ssh_port=machine.free_port(),
            application_port=machine.free_port(),
            server_port=port,
        )
        return machine.create(
            home.machines / wish.name,
            record,
            disk=release / "disk.raw",
            ssh_keys=[public_key],
            user_data=cloud_config(
                hostname=wish.name, ssh_keys=[public_key], update_conf=update_conf(port)
            ),
        )


def _server_runs(known: Machine) -> bool:
    return known.record.server is not None and process.is_running(known.record.server)


def _start_server(home: Site, known: Machine, step: Step, undo: contextlib.ExitStack) -> None:
    if _server_runs(known):
        return
    port = known.record.server_port
    with step(f"Starting the update server on port {port}"):
        log = known.directory / "server.log"
        server = home.serve(port=port, log=log, dies_with_us=False)
        undo.callback(process.stop, server)
        known.remember(server=server)


def _last_words(known: Machine) -> str:
    """The last line that the machine has said on its serial port, without control sequences."""
    said = known.serial_since(max(0, known.serial_size() - 2000))
    for line in reversed(machine.CONTROL.sub("", said).splitlines()):
        if printable := "".join(c for c in line if c.isprintable()).strip():
            return printable[:60]
    return "the firmware starts"


@contextlib.contextmanager
def _alone(machines: Path, name: str) -> Iterator[None]:
    """Let only one command at a time make or remove the machine ``name``."""
    machines.mkdir(parents=True, exist_ok=True)
    with (machines / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another proa is just making or removing machine {name!r}",
                hint="wait until it has ended, or use --name for a second machine",
            ) from None
        yield


def uptime(known: Machine) -> float | None:
    """Seconds since QEMU was started; None if it does not run."""
    if not known.is_running or known.record.started is None:
        return None
    return time.time() - known.record.started
