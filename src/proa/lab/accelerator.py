"""Whether KVM can really run a guest here.

That /dev/kvm opens says little: under some hypervisors it is there and no ordinary kernel gets
past its first instructions. So a kernel is booted for real, to the panic that it must end in when
it has no root file system; only that text counts. The answer is kept until the host's kernel, its
processor or QEMU changes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from proa.lab import qemu
from proa.lab.qemu import Accelerator

_PROOF = b"Kernel panic"
_PATIENCE = 15.0  # seconds; with KVM the panic comes within two


def choose(kernel: Path, cache: Path) -> Accelerator:
    """Return the fastest accelerator that can run ``kernel`` (a bzImage) on this host."""
    if os.environ.get("PROA_ACCEL"):
        return Accelerator(os.environ["PROA_ACCEL"])
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator.TCG
    host = _host()
    remembered = cache / "accelerator.json"
    try:
        known = json.loads(remembered.read_text())
        if known["host"] == host:
            return Accelerator(known["accelerator"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never asked, or written by another version: ask again
    answer = Accelerator.KVM if _kvm_runs(kernel) else Accelerator.TCG
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(json.dumps({"host": host, "accelerator": answer}) + "\n")
    return answer


def _host() -> str:
    """What the answer depends on, in one line."""
    version = subprocess.run(
        [qemu.PROGRAM, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{platform.release()}; {models[0] if models else platform.machine()}; {version}"


def _kvm_runs(kernel: Path) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        serial = Path(directory, "serial")
        process = subprocess.Popen(
            [
                qemu.PROGRAM,
                *qemu.accelerator_options(Accelerator.KVM),
                *("-m", "256", "-nodefaults", "-display", "none", "-no-reboot"),
                *("-serial", f"file:{serial}"),
                *("-kernel", str(kernel)),
                *("-append", "console=ttyS0 rdinit=/none panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < end:
                ended = process.poll() is not None
                if serial.exists() and _PROOF in serial.read_bytes():
                    return True
                if ended:
                    return False
                time.sleep(0.1)
            return False
        finally:
            process.kill()
            process.wait()
