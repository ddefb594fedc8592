"""The power goes at any step of a first boot; the next boot finishes what it began.

A step is a program that is run, a unit that is started, an address that is told, or a file, link
or memory that is put in place. The power goes just before each, and just after each.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proa.machine.cloudconfig.apply import apply
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.plan import plan
from support.cloudconfig_disks import FakeMachine

DOCUMENT = """#cloud-config
bootcmd: [early]
disk_setup: {/dev/vdb: {table_type: gpt, layout: [50, 50]}}
fs_setup:
- {device: /dev/vdb.1, filesystem: ext4, label: one}
- {device: /dev/vdb.2, filesystem: ext4, label: two, overwrite: true}
mounts: [[/dev/vdb.1, /one], [LABEL=two, /two]]
swap: {filename: /var/swap, size: 1M}
timezone: Etc/UTC
hostname: web-1
write_files: [{path: /one/file, content: hello}]
ntp: {servers: [10.0.0.1]}
runcmd: [late]
phone_home: {url: "http://a.example/"}
final_message: up
power_state: {mode: reboot}
"""


# What was to be renamed into place, and was not.
_NOT_YET = re.compile(r"\..+\.[0-9a-f]{12}")


class PowerCut(BaseException):
    pass


class Cutting(FakeMachine):
    """A machine whose power goes at the step ``cut``; ``after``: once that step is done."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.steps = 0
        self.cut = -1
        self.after = False
        self.inside = False
        self.done: Counter[str] = Counter()
        self.disk("vdb", size=4 * 1024 * 1024)
        self.react = self.work
        (root / "usr/share/zoneinfo/Etc").mkdir(parents=True)
        (root / "usr/share/zoneinfo/Etc/UTC").write_bytes(b"TZif")

    def step(self, doing: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.inside:  # of a program, which is one step
            return doing(*args, **options)
        self.steps += 1
        if self.steps == self.cut and not self.after:
            raise PowerCut
        self.inside = True
        try:
            result = doing(*args, **options)
        finally:
            self.inside = False
        if self.steps == self.cut:
            raise PowerCut
        return result

    def work(self, command: Sequence[str], stdin: bytes) -> None:
        """What the programs do to the disks."""
        name = Path(command[-1]).name
        if command[0] == "sfdisk":
            self.contents["vdb"] = {"PTTYPE": "gpt"}
            self.answers["sfdisk"] = (
                0,
                '{"partitiontable": {"partitions": [{"type": "x"}, {"type": "x"}]}}',
            )
            for part in (1, 2):
                self.partition("vdb", part)
        if command[0] == "mkfs.ext4":
            self.done[f"mkfs {name}"] += 1
            self.contents[name] = {"TYPE": "ext4", "LABEL": "proa-unfinished", "UUID": f"u-{name}"}
        if command[0] == "e2label":
            self.contents[Path(command[1]).name]["LABEL"] = command[2]
            folder = self.root / "dev/disk/by-label"
            folder.mkdir(exist_ok=True)
            (folder / command[2]).touch()
        if command[0] == "systemctl" and command[-1].endswith(".mount"):
            number = {"one.mount": "268:1", "two.mount": "268:2"}[command[-1]]
            self.mount(f"/{command[-1].removesuffix('.mount')}", number)
        if command[0] == "systemctl" and command[-1].endswith(".swap"):
            (self.root / "proc/swaps").write_text("Filename\n/var/swap file 1 0 -2\n")

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        self.step(super().run, command, stdin)
        self.done[command[0]] += 1

    def start(self, unit: str, timeout: float | None) -> int:
        code = self.step(super().start, unit, timeout)
        self.done[unit] += 1
        assert isinstance(code, int)
        return code

    def post(self, url: str, data: bytes) -> None:
        self.step(super().post, url, data)

    def first_boot(self, patch: pytest.MonkeyPatch) -> None:
        """A boot from what was last remembered; a cut leaves what is on disk."""
        remembered = self.saved[-1] if self.saved else {}
        planned = plan(DOCUMENT.encode(), Metadata(instance_id="i-1"))
        assert not planned.refused, planned.problems
        with patch.context() as patched:
            for name in ("rename", "link", "symlink"):
                real = getattr(os, name)
                patched.setattr(os, name, lambda *a, _real=real, **o: self.step(_real, *a, **o))
            outcome = apply(planned.changes, self.machine(), remembered, self.save)
        assert not outcome.failed, outcome.results
        self.saved.append(dict(outcome.remembered))

    def save(self, outcome: Any) -> None:
        self.step(self.saved.append, dict(outcome.remembered))

    def restart(self) -> None:
        """What a boot begins with: nothing in /run, nothing mounted, no swap."""
        shutil.rmtree(self.root / "run", ignore_errors=True)
        (self.root / "proc/swaps").write_text("Filename\n")
        self.mounts = self.mounts[:2]
        (self.root / "proc/self/mountinfo").write_text("\n".join(self.mounts) + "\n")

    def everything(self) -> dict[str, bytes | str]:
        found: dict[str, bytes | str] = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if name.startswith(("run", "proc", "sys", "dev")) or _NOT_YET.fullmatch(path.name):
                continue
            if path.is_symlink():
                found[name] = str(path.readlink())
            elif path.is_file() and name != "var/swap":  # it has an UUID of its own
                found[name] = path.read_bytes()
        return found


def whole(folder: Path, patch: pytest.MonkeyPatch) -> Cutting:
    machine = Cutting(folder)
    machine.first_boot(patch)
    return machine


@pytest.mark.parametrize("after", [False, True])
def test_whatever_moment_the_power_goes_the_next_boot_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    (tmp_path / "whole").mkdir()
    reference = whole(tmp_path / "whole", monkeypatch)
    assert reference.steps > 25
    wanted = reference.everything()
    for cut in range(1, reference.steps + 1):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        machine = Cutting(folder)
        machine.cut, machine.after = cut, after
        with pytest.raises(PowerCut):
            machine.first_boot(monkeypatch)
        ended = machine.saved[-1] if machine.saved else {}
        before = Counter(machine.done)
        machine.cut = -1
        machine.restart()
        machine.first_boot(monkeypatch)
        assert machine.everything() == wanted, f"cut at step {cut}"
        assert {k: v for k, v in machine.contents.items() if v} == reference.contents
        # What had ended and was noted did not happen again.
        if "script:runcmd" in ended:
            assert machine.done["proa-script@runcmd.service"] == 1
        if "power_state" in ended:
            assert machine.done["shutdown"] == before["shutdown"]
        assert machine.done["shutdown"] <= 1
        for device, label in (("vdb.1", "one"), ("vdb.2", "two")):
            if f"fs:/dev/{device}:any:{label}" in ended:
                name = device.replace(".", "")
                assert machine.done[f"mkfs {name}"] == before[f"mkfs {name}"]


def test_a_third_boot_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = whole(tmp_path, monkeypatch)
    machine.done.clear()
    machine.restart()
    machine.first_boot(monkeypatch)
    assert machine.done == {
        "proa-script@bootcmd.service": 1,
        "systemctl": 3,  # the mounts and the swap, had systemd not made them already
    }
