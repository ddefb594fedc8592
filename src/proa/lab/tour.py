"""The tour: the whole way of a machine, told in steps that each bring their evidence.

Each step is a function that takes the :class:`Tour`, does one thing, proves it, and returns the
lines that prove it. What does not hold raises :class:`Broken`. Steps build on those before them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import proa
from proa.lab import accelerator, machine, poller, process, shell, site, up
from proa.lab.configdrive import cloud_config
from proa.lab.machine import Machine, Record
from proa.lab.process import Process
from proa.lab.qemu import Firmware
from proa.lab.shell import Shell, ShellError
from proa.lab.site import Site
from proa.wire.errors import UserError

MEMORY_MIB = 512
IDLE_MEMORY_MIB = 160

# Exit codes of `proactl update` (docs/updating.md).
NOT_OURS, PAYLOAD_DIFFERS, ON_HOLD = 13, 14, 20

# Seconds between staging and the machine's own restart; shutdown(8) counts in minutes.
# What a step looks at in between takes some 20 s, more on a busy host.
REBOOT_DELAY = 120

PAGE = "This page is served by a container on Proa."

# Prints, once the boot is over, for how many seconds the machine has been up, its memory, and its
# Python processes in a line, or "none". What ends while it is looked at is no failure.
_AT_REST = (
    "systemctl is-system-running --wait >/dev/null; cut -d. -f1 /proc/uptime; free -m; "
    "pythons=$(sudo find /proc -maxdepth 2 -name exe -lname '*/python3*' 2>/dev/null); "
    "echo ${pythons:-none}"
)

Report = Callable[[str], None]


class Broken(UserError):
    """The machine did not do what the step says."""


@dataclass
class Tour:
    """Everything that the steps share."""

    site: Site
    stranger: Site
    report: Report = field(default=lambda _detail: None)
    server_port: int = 0
    server: Process | None = None
    machine: Machine | None = None
    shell: Shell | None = None

    def here(self) -> tuple[Machine, Shell]:
        """The machine of the present part of the story."""
        if self.machine is None or self.shell is None:
            raise Broken("no machine runs: an earlier step has failed")
        return self.machine, self.shell

    def run(self, command: str, timeout: float = 300.0, *, check: bool = True) -> str:
        """Run a command on the machine."""
        return self.here()[1].run(command, timeout=timeout, check=check)

    def status(self) -> dict[str, Any]:
        """What ``proactl status`` says."""
        document: dict[str, Any] = json.loads(self.run("sudo proactl status --json"))
        return document

    def server_knows(self) -> dict[str, Any]:
        """What the update server knows of the machine."""
        known, _ = self.here()
        for entry in json.loads(self.site.proa("machines", "--json")):
            if entry["alias"] == known.record.name:
                return dict(entry)
        raise Broken(f"the update server has never heard of machine {known.record.name!r}")


@dataclass(frozen=True)
class Step:
    """One step of the story."""

    name: str
    title: str
    act: Callable[[Tour], list[str]]


@dataclass(frozen=True)
class Result:
    """What came of a step; ``error`` is empty if it held."""

    name: str
    title: str
    ok: bool
    seconds: float
    evidence: tuple[str, ...]
    error: str = ""


def perform(tour: Tour, step: Step) -> Result:
    """Do one step and time it."""
    started = time.monotonic()
    cycles = tour.machine.power_cycles if tour.machine else 0
    try:
        evidence, error = step.act(tour), ""
    except (UserError, ShellError) as failure:
        evidence, error = [], getattr(failure, "message", str(failure))
    if tour.machine and (more := tour.machine.power_cycles - cycles) > 0:
        evidence.append(f"(QEMU's firmware hung after a restart; its power was cut {more} times)")
    seconds = time.monotonic() - started
    return Result(step.name, step.title, not error, seconds, tuple(evidence), error)


@contextlib.contextmanager
def stage(cache: Path, *, keep: bool) -> Iterator[Tour]:
    """A place for one tour, with nothing of the owner's in it; afterwards it is gone.

    With ``keep`` its files stay; nothing keeps running in any case.
    """
    cache.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="tour-", dir=cache))
    tour = Tour(Site(home, cache), Site(home / "stranger", cache))
    try:
        yield tour
    finally:
        _switch_off(tour)
        if tour.server is not None:
            process.stop(tour.server)
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def serial_tail(tour: Tour, lines: int = 40) -> list[str]:
    """The last words of the machine on its serial port."""
    if tour.machine is None:
        return []
    return tour.machine.serial_since().splitlines()[-lines:]


# --- The steps, in the order of the story ---


def build_first(tour: Tour) -> list[str]:
    tour.site.proa("keys", "init")
    evidence = _build(tour, "1.0.0")
    up.publish(tour.site, "1.0.0")
    tour.server_port = site.server_port()
    log = tour.site.home / "server.log"
    tour.server = tour.site.serve(port=tour.server_port, log=log, dies_with_us=True)
    return [*evidence, f"update server on port {tour.server_port}; channel alpha leads to 1.0.0"]


def boot_first(tour: Tour) -> list[str]:
    return _boot_new(tour, "tour-uefi", Firmware.UEFI)


def read_only_usr(tour: Tour) -> list[str]:
    manifest = json.loads((tour.site.release("1.0.0") / "manifest.json").read_text())
    root_hash = manifest["usr"]["root_hash"]
    mount = tour.run("findmnt -no SOURCE,FSTYPE,OPTIONS /usr")
    verity = tour.run("sudo veritysetup status usr")
    refusal = tour.run("sudo touch /usr/bin/mine", check=False)
    _expect("erofs" in mount and "ro" in mount, f"/usr is not a read-only erofs: {mount}")
    _expect("status:      verified" in verity, f"/usr is not verified:\n{verity}")
    _expect(root_hash in verity, f"/usr is not the release that was built:\n{verity}")
    _expect("Read-only file system" in refusal, f"/usr/bin could be written: {refusal}")
    return [
        f"/usr: {mount}",
        f"verity: verified, root hash {root_hash[:16]}… as in manifest.json",
        f"$ sudo touch /usr/bin/mine → {refusal}",
    ]


def idle(tour: Tour) -> list[str]:
    tour.report("waiting until it has been up for 60 s and is at rest")
    known, remote = tour.here()

    def at_rest(asked: Shell) -> list[str] | None:
        # In one look: the updater's timer may strike between two.
        uptime, *free, pythons = asked.run(_AT_REST, timeout=300).splitlines()
        return free if int(uptime) >= 60 and pythons == "none" else None

    free = known.wait_until(remote, at_rest, what="rest, with no Python resident", timeout=600)
    state = tour.run("systemctl is-system-running", check=False)
    failed = tour.run("systemctl --failed --no-legend --plain")
    boot = tour.run("systemd-analyze", check=False)
    used = int(free[1].split()[2])
    _expect(state == "running" and not failed, f"the system is {state}; failed: {failed}")
    _expect(used <= IDLE_MEMORY_MIB, f"{used} MiB are used at rest, more than {IDLE_MEMORY_MIB}")
    return [
        f"$ systemctl is-system-running → {state}; systemctl --failed → none",
        f"memory used at rest: {used} MiB of {MEMORY_MIB} (at most {IDLE_MEMORY_MIB})",
        *free,
        "no Python process is resident",
        *boot.splitlines(),
    ]


def container(tour: Tour) -> list[str]:
    before = tour.run("systemctl is-active docker.service", check=False)
    tour.report("carrying an image over, made of a static busybox")
    _, remote = tour.here()
    command = '["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]'
    remote.run(
        f"sudo docker import --change 'CMD {command}' - hello",
        stdin=_container_image(tour.site.cache),
        timeout=600,
    )
    # Socket activation starts docker when somebody asks it; what shall come back after a reboot
    # without being asked needs it enabled, and then the health check watches it too.
    tour.run("sudo systemctl enable docker.service", timeout=300)
    # As a container's first process busybox ignores SIGTERM, which was seen to hold up a restart
    # of the machine for 80 seconds.
    options = "--restart=always --stop-signal=KILL -p 8080:80"
    run = f"sudo docker run -d --name hello {options} hello"
    tour.run(run, timeout=600)
    _wait_for_page(tour)
    shown = tour.run("sudo docker ps --format '{{.Names}}: {{.Image}}, {{.Status}}, {{.Ports}}'")
    used = tour.run("free -m").splitlines()[1].split()[2]
    _expect(before == "inactive", f"docker was {before} before it was used")
    return [
        "docker.service was inactive until it was used",
        f"$ {run}",
        shown,
        f"GET {_page_url(tour)} → {poller.fetch(_page_url(tour)).strip()}",
        f"memory used with docker and the container: {used} MiB of {MEMORY_MIB}",
    ]


def build_second(tour: Tour) -> list[str]:
    evidence = _build(tour, "1.1.0", files={"/usr/share/proa/greeting": "Greetings from 1.1.0\n"})
    up.publish(tour.site, "1.1.0", channel=None)
    return [*evidence, "published; it differs by /usr/share/proa/greeting"]


def update_to_second(tour: Tour) -> list[str]:
    timers = tour.run("systemctl list-timers --no-pager --no-legend proa-update.timer")
    program = tour.run("systemctl show -P ExecStart proa-update.service")
    old = tour.run("cat /proc/sys/kernel/random/boot_id")
    started = time.monotonic()
    with poller.Poller(_page_url(tour), PAGE) as asked:
        tour.site.proa("channel", "set", "alpha", "1.1.0")
        journal = _timers_command(tour)
        answers, seconds = asked.summary(), time.monotonic() - started
    status = tour.run("sudo proactl status")
    saved = _saved(tour, "1.1.0")
    _expect(answers.missed == 0, f"the container was away during the update: {answers}")
    tour.report("staged; waiting for the machine's own restart")
    committed = _wait_committed(tour, "1.1.0", old)
    greeting = tour.run("cat /usr/share/proa/greeting")
    _expect(greeting == "Greetings from 1.1.0", f"the new file says: {greeting!r}")
    _wait_for_page(tour)
    known = tour.server_knows()
    return [
        f"timer: {timers}",
        f"runs: {_argv(program)}",
        *journal,
        f"written and verified in {seconds:.0f} s; the container meanwhile: {answers}",
        saved,
        "before the restart:",
        *_indent(status),
        f"after it: {committed['version']} in slot {committed['slot']}, {committed['condition']}",
        f"$ cat /usr/share/proa/greeting → {greeting}",
        f"the container answers again; the server knows: {_words(known)}",
    ]


def bad_health(tour: Tour) -> list[str]:
    check = "#!/bin/sh\necho 'the sails are torn'\nexit 1\n"
    files = {"/usr/lib/proa/health.d/sails": check}
    evidence = _build(tour, "1.2.0", files=files, mode="0755")
    up.publish(tour.site, "1.2.0")
    mark = tour.here()[0].serial_size()
    told = _fails_and_returns(tour, "1.2.0")
    _expect("torn" in told[-1], f"the server does not know why 1.2.0 failed: {told[-1]}")
    boots = tour.run("sudo journalctl --list-boots --no-pager | wc -l", check=False)
    said = tour.here()[0].serial_since(mark).count("the sails are torn")
    return [
        *evidence,
        "its health check prints 'the sails are torn' and fails",
        f"it said so {said} times on the console; the journal has {boots} boots",
        *told,
    ]


def cannot_boot(tour: Tour) -> list[str]:
    evidence = _build(tour, "1.2.1", cmdline=["rdinit=/no/such/init"])
    up.publish(tour.site, "1.2.1")
    mark = tour.here()[0].serial_size()
    told = _fails_and_returns(tour, "1.2.1")
    panics = machine.panics(tour.here()[0].serial_since(mark))
    _expect(panics == 3, f"the serial log has {panics} kernel panics instead of 3")
    return [
        *evidence,
        "its kernel command line has rdinit=/no/such/init",
        f"{panics} kernel panics on the serial console, then the other slot",
        *told,
    ]


def flipped_byte(tour: Tour) -> list[str]:
    files = {"/usr/share/proa/greeting": "Greetings from 1.3.0\n"}
    evidence = _build(tour, "1.3.0", files=files)
    # Deltas from all versions so far: the machine that boots by BIOS starts from the first one.
    up.publish(tour.site, "1.3.0", channel=None, deltas=4)
    # Each way that this machine could go: where the delta is refused, it takes the image.
    published = tour.site.repository / "targets" / "1.3.0"
    spoilt = [*published.glob("*.payload"), *published.glob("*.usr.erofs")]
    with contextlib.ExitStack() as stack:
        for path in spoilt:
            stack.enter_context(_one_byte_flipped(path))
        stack.enter_context(_offered(tour, "1.3.0"))
        told = _refuses(tour, PAYLOAD_DIFFERS)
    names = ", ".join(path.name.partition(".")[2] for path in spoilt)
    return [*evidence, f"one byte flipped in each of {names}", *told]


def strangers_key(tour: Tour) -> list[str]:
    tour.stranger.proa("keys", "init")
    release = tour.site.release("1.3.0")
    tour.stranger.proa("publish", release, "--repo", tour.stranger.repository, "--no-payloads")
    with (
        _offered(tour, "1.3.0"),
        _in_place_of(tour.site.repository, tour.stranger.repository),
    ):
        told = _refuses(tour, NOT_OURS)
    return ["the same 1.3.0, all of its metadata signed by a stranger's keys", *told]


def good_again(tour: Tour) -> list[str]:
    old = tour.run("cat /proc/sys/kernel/random/boot_id")
    tour.site.proa("channel", "set", "alpha", "1.3.0")
    journal = _timers_command(tour)
    _restart_now(tour)
    committed = _wait_committed(tour, "1.3.0", old)
    return [
        "the repository is whole again",
        *journal,
        _saved(tour, "1.3.0"),
        f"{committed['version']} in slot {committed['slot']}, {committed['condition']}",
    ]


def roll_back(tour: Tour) -> list[str]:
    old = tour.run("cat /proc/sys/kernel/random/boot_id")
    tour.run(_TIMER_RESTS, timeout=600)  # two updaters at once are refused, and so is rollback
    said = tour.run("sudo proactl rollback")
    _restart_now(tour)
    committed = _wait_committed(tour, "1.1.0", old)
    journal = _timers_command(tour, expected=ON_HOLD)
    again = tour.status()
    _expect(again["staged"] is None, "it has staged 1.3.0 again on its own")
    _wait_for_page(tour)
    return [
        f"$ sudo proactl rollback → {said}",
        f"{committed['version']} in slot {committed['slot']}, {committed['condition']}",
        "and it stays there, though the channel still leads to 1.3.0:",
        *journal,
    ]


def boot_bios(tour: Tour) -> list[str]:
    _switch_off(tour)
    evidence = _boot_new(tour, "tour-bios", Firmware.BIOS)
    tour.run(_TIMER_RESTS, timeout=600)  # the channel leads to 1.3.0 already: not before its step
    status = tour.status()
    _expect(status["boot"] == "bios", f"it booted by {status['boot']}")
    return ["the same disk image of 1.0.0, another firmware", *evidence]


def update_bios(tour: Tour) -> list[str]:
    old = tour.run("cat /proc/sys/kernel/random/boot_id")
    journal = _timers_command(tour)
    _restart_now(tour)
    committed = _wait_committed(tour, "1.3.0", old)
    grub = tour.run("sudo cat /boot/grub/grubenv | tr -d '#'", check=False)
    failed = tour.run("systemctl --failed --no-legend --plain")
    _expect(not failed, f"failed units: {failed}")
    return [
        *journal,
        _saved(tour, "1.3.0"),
        f"{committed['version']} in slot {committed['slot']}, {committed['condition']}",
        "GRUB's environment: " + "; ".join(line for line in grub.splitlines() if line.strip()),
    ]


STEPS: Sequence[Step] = (
    Step("build-1.0.0", "Build 1.0.0, publish it, start the update server", build_first),
    Step("boot-1.0.0", "Boot it (UEFI, 512 MB)", boot_first),
    Step("read-only-usr", "/usr is read-only and verified", read_only_usr),
    Step("idle", "Nothing failed, nothing resident", idle),
    Step("container", "Run a container", container),
    Step("build-1.1.0", "Build and publish 1.1.0", build_second),
    Step("update-1.1.0", "Update to 1.1.0 under the running container", update_to_second),
    Step("bad-health-1.2.0", "1.2.0 fails its health check: back to 1.1.0", bad_health),
    Step("cannot-boot-1.2.1", "1.2.1 cannot boot at all: back to 1.1.0", cannot_boot),
    Step("flipped-byte", "1.3.0 with one byte flipped is refused", flipped_byte),
    Step("strangers-key", "1.3.0 signed by a stranger is refused", strangers_key),
    Step("update-1.3.0", "The true 1.3.0 is taken", good_again),
    Step("rollback", "Go back by hand", roll_back),
    Step("boot-bios", "Boot the same disk image by BIOS", boot_bios),
    Step("update-bios", "Update it there too", update_bios),
)


# --- What the steps are made of ---


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _build(
    tour: Tour,
    version: str,
    *,
    files: dict[str, str] | None = None,
    mode: str = "0644",
    cmdline: Sequence[str] = (),
) -> list[str]:
    recipe = None
    if files or cmdline:
        recipe = tour.site.home / f"recipe-{version}.toml"
        recipe.write_text(variant(files or {}, mode, cmdline))
    tour.report(f"building {version}")
    release = up.build(tour.site, version, tour.report, recipe)
    manifest = json.loads((release / "manifest.json").read_text())
    sizes = {name: entry["size"] / (1 << 20) for name, entry in manifest["files"].items()}
    return [
        f"{version}: {len(manifest['packages'])} packages, kernel {manifest['kernel']}, "
        f"/usr {sizes['usr.erofs']:.0f} MiB, boot image {sizes['proa.efi']:.0f} MiB"
    ]


def variant(files: dict[str, str], mode: str, cmdline: Sequence[str]) -> str:
    """Return a recipe that extends ours by some files and kernel options."""
    ours = Path(proa.__file__).parents[2] / "os" / "recipe.toml"
    # A JSON string is a TOML basic string.
    lines = ["[os]", f"extends = {json.dumps(str(ours))}", ""]
    if cmdline:
        lines += ["[kernel]", f"cmdline_extra = {json.dumps(list(cmdline))}", ""]
    for path, content in files.items():
        lines += ["[[files]]", f"path = {json.dumps(path)}", f"mode = {json.dumps(mode)}"]
        lines += [f"content = {json.dumps(content)}", ""]
    return "\n".join(lines)


def _boot_new(tour: Tour, name: str, firmware: Firmware) -> list[str]:
    release = tour.site.release("1.0.0")
    key = shell.make_key(tour.site.ssh_key)
    record = Record(
        name=name,
        version="1.0.0",
        firmware=firmware,
        accelerator=accelerator.choose(release / "vmlinuz", tour.site.cache),
        memory_mib=MEMORY_MIB,
        ssh_port=machine.free_port(),
        application_port=machine.free_port(),
        server_port=tour.server_port,
    )
    settings = up.update_conf(
        tour.server_port,
        MACHINE_ALIAS=name,
        REBOOT_STRATEGY="reboot",
        REBOOT_DELAY=REBOOT_DELAY,
    )
    tour.machine = machine.create(
        tour.site.machines / name,
        record,
        disk=release / "disk.raw",
        ssh_keys=[key],
        user_data=cloud_config(hostname=name, ssh_keys=[key], update_conf=settings),
    )
    tour.shell = tour.machine.shell(tour.site.ssh_key)
    started = time.monotonic()
    tour.machine.start(dies_with_us=True)
    up.wait_for_boot(tour.machine, tour.shell, tour.report)
    seconds = time.monotonic() - started
    tour.report("ssh answers; waiting until the boot is judged")
    committed = _wait_committed(tour, "1.0.0", "")
    uname = tour.run("hostname; uname -sr")
    return [
        f"{up.describe(record)}: ssh answers {seconds:.0f} s after power-on",
        f"$ hostname; uname -sr → {', '.join(uname.splitlines())}",
        f"{committed['version']} in slot {committed['slot']}, {committed['condition']}",
    ]


def _switch_off(tour: Tour) -> None:
    if tour.shell is not None:
        tour.shell.close()
    if tour.machine is not None:
        tour.machine.cut_power()
    tour.machine = tour.shell = None


def _container_image(cache: Path) -> bytes:
    """A tar of a root file system with a web server and one page."""
    found = sorted((cache / "sdk").glob("*/usr/bin/busybox"))
    _expect(bool(found), f"the SDK in {cache / 'sdk'} has no busybox")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data, mode in (
            ("bin/busybox", found[-1].read_bytes(), 0o755),
            ("www/index.html", f"{PAGE}\n".encode(), 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _page_url(tour: Tour) -> str:
    known, _ = tour.here()
    return f"http://127.0.0.1:{known.record.application_port}/"


def _wait_for_page(tour: Tour) -> None:
    tour.report("waiting for the container's page")
    end = time.monotonic() + 300
    while PAGE not in poller.fetch(_page_url(tour)):
        _expect(time.monotonic() < end, "the container's page did not come within 300 s")
        time.sleep(1)


# The timer's own run, minutes after each boot, may be under way; then a start would only wait for
# its end, and it saw the repository before the step changed it.
_TIMER_RESTS = """\
unit=proa-update.service
sudo systemctl stop proa-update.timer
while [ "$(systemctl show -P ActiveState $unit)" = activating ]; do sleep 1; done
"""
_START_ALONE = f"""\
{_TIMER_RESTS}
before=$(systemctl show -P InvocationID $unit)
sudo systemctl start $unit
[ "$(systemctl show -P InvocationID $unit)" != "$before" ]
"""


def _timers_command(tour: Tour, expected: int = 0) -> list[str]:
    """Start what the timer starts; return its own words. ``expected`` is its exit status.

    The timer itself rests until the next boot.
    """
    tour.report("the timer's command runs")
    invocation = "systemctl show -P InvocationID proa-update.service"
    try:
        tour.run(_START_ALONE, timeout=1800)
        code = int(tour.run("systemctl show -P ExecMainStatus proa-update.service"))
        words = tour.run(
            "sudo journalctl --sync; sudo journalctl --no-pager -o cat -t proactl"
            f" _SYSTEMD_INVOCATION_ID=$({invocation})",
            check=False,
        )
    except ShellError as error:
        if error.is_connection:
            raise Broken(f"the machine went away during the update: {error}") from None
        raise
    _expect(code == expected, f"proactl update ended with {code} instead of {expected}:\n{words}")
    # Its errors bear its name already.
    return [f"  proactl: {line.removeprefix('proactl: ')}" for line in words.splitlines()]


def _restart_now(tour: Tour) -> None:
    """Restart without waiting for the time that the machine gives its users."""
    with contextlib.suppress(ShellError):
        tour.run("sudo systemctl reboot", timeout=30)
    tour.here()[1].close()


def _wait_committed(tour: Tour, version: str, old_boot: str) -> dict[str, Any]:
    """Wait until ``version`` runs in another boot than ``old_boot``, and has been judged good."""
    up.wait_until_judged(*tour.here(), tour.report, version=version, not_boot=old_boot)
    status = tour.status()
    _expect(status["condition"] == "committed", f"{version} is {status['condition']}")
    return status


def _fails_and_returns(tour: Tour, version: str) -> list[str]:
    """Update to ``version``, which fails; wait until 1.1.0 runs again and the server knows."""
    old = tour.run("cat /proc/sys/kernel/random/boot_id")
    journal = _timers_command(tour)
    _restart_now(tour)
    tour.report(f"{version} has three tries")
    status = _wait_committed(tour, "1.1.0", old)
    _expect(version in status["failed"], f"the machine does not know that {version} failed")
    # The next check tells the server, and does not take the failed version again.
    again = _timers_command(tour, expected=ON_HOLD)
    failure = tour.server_knows()["last_failure"]
    _expect(
        failure is not None and failure["version"] == version,
        f"the server does not know that {version} failed: {failure}",
    )
    _wait_for_page(tour)
    return [
        *journal,
        f"after three tries: {status['version']} in slot {status['slot']} again; "
        f"{version} failed: {status['failed'][version]['reason']}",
        "the next check:",
        *again,
        f"the server knows: {failure['version']} failed: {failure['reason']}",
    ]


def _saved(tour: Tour, version: str) -> str:
    """Say what the delta saved; raise if the version did not come by one."""
    last = tour.status()["transfer"]
    _expect(last["version"] == version, f"the last transfer was of {last['version']}")
    _expect("delta" in last["way"], f"{version} came by {last['way']}")
    saved = 1 - last["fetched"] / last["written"]
    return (
        f"{last['way']}: {last['fetched']:,} bytes fetched for {last['written']:,} bytes "
        f"of images, {saved:.3%} saved"
    )


def _refuses(tour: Tour, code: int) -> list[str]:
    """Run the timer's command, which must end with ``code`` and change nothing that can boot."""
    before, entries = tour.status(), _bootable(tour)
    journal = _timers_command(tour, expected=code)
    tour.run("sudo systemctl reset-failed proa-update.service", check=False)
    after = tour.status()
    _expect(after["staged"] is None, f"something was staged: {after['staged']}")
    _expect(after["version"] == before["version"], f"it runs {after['version']}")
    now = _bootable(tour)
    _expect(set(now) <= set(entries), f"there are new boot entries: {now}, before: {entries}")
    return [
        *journal,
        f"exit status {code}; still {after['version']} in slot {after['slot']}, "
        f"{after['condition']}; boot entries: {', '.join(now)}",
    ]


def _bootable(tour: Tour) -> list[str]:
    """The boot entries that the loader may start: those with tries left, or committed."""
    names = tour.run("sudo ls /boot/EFI/Linux").split()
    return [name for name in names if "+0" not in name]


@contextlib.contextmanager
def _offered(tour: Tour, version: str) -> Iterator[None]:
    """Offer ``version`` meanwhile, and no longer: the machine's own timer runs when it likes."""
    tour.site.proa("channel", "set", "alpha", version)
    try:
        yield
    finally:
        tour.site.proa("channel", "set", "alpha", "1.1.0")


@contextlib.contextmanager
def _one_byte_flipped(path: Path) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            (byte,) = file.read(1)
            file.seek(-1, io.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


@contextlib.contextmanager
def _in_place_of(own: Path, other: Path) -> Iterator[None]:
    """Let the directory ``other`` stand where ``own`` stands."""
    aside = own.with_name(own.name + ".own")
    own.rename(aside)
    other.rename(own)
    try:
        yield
    finally:
        own.rename(other)
        aside.rename(own)


def _argv(exec_start: str) -> str:
    """The command in what ``systemctl show -P ExecStart`` prints."""
    _, _, rest = exec_start.partition("argv[]=")
    return rest.partition(" ;")[0] or exec_start


def _words(known: dict[str, Any]) -> str:
    return f"{known['alias']}, {known['version']}, {known['status_text']}"


def _indent(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
