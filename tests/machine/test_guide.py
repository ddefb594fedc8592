"""The examples of docs/cloud-config-guide.md, applied one after another in a real guest.

The release's own program finds each of them as a seed of NoCloud and does all its stages; then the
commands of the page must print what the page says. What only a whole system shows (units that run,
an address on a card) is in test_cloudconfig.py and test_networkd.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from proa import paths
from proa.lab import accelerator, configdrive
from support import guest
from support.guest import Answer
from support.guide import Example, examples

pytestmark = pytest.mark.machine

EXAMPLES = examples()

_SEED = "/var/lib/cloud/seed/nocloud"
_FIND = f"mkdir -p {_SEED}; rm -f {_SEED}/*; cp /guide/{{number}}/* {_SEED}/"
_APPLY = " && ".join(
    (
        "/usr/lib/proa/cloudinit",
        # In a whole system, systemd starts it when the first stage asks for it.
        "{ ! grep -q final /run/proa/cloudinit.json || /usr/lib/proa/cloudinit --stage final; }",
    )
)
# At the end, so that the fields of one example do not meet the next one's.
_STATUS = "cat /run/proa/cloudinit.json"
# While udev looks at a device it is blind to what is written there; here it looks for a second, so
# that nobody can rely on its being quick.
_SLOW_UDEV = (
    'mkdir -p /etc/udev/rules.d; echo \'KERNEL=="vdc1", PROGRAM="/usr/bin/sleep 1"\''
    " > /etc/udev/rules.d/90-slow.rules; udevadm control --reload"
)


def commands() -> dict[str, str]:
    made = {
        "drive": "modprobe -a ext4 virtio_blk; mkdir -p /guide;"
        f" mount -o ro /dev/disk/by-label/guide /guide; {_SLOW_UDEV}"
    }
    for example in EXAMPLES:
        number = example.number
        made[f"apply-{number}"] = f"{_FIND.format(number=number)}; {_APPLY}"
        made[f"status-{number}"] = _STATUS
        for index, (command, _) in enumerate(example.shown):
            made[f"shown-{number}-{index}"] = command.replace("sudo ", "")
    return made


@pytest.fixture(scope="module")
def answers(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Answer]:
    """What a guest with all examples on one disk, and an empty second disk, answers."""
    work = tmp_path_factory.mktemp("guide")
    files = {f"{e.number}/{name}": text for e in EXAMPLES for name, text in e.files.items()}
    configdrive.write_iso(work / "guide.iso", "guide", files)
    with (work / "data.img").open("wb") as image:
        image.truncate(64 * 1024 * 1024)
    options = [
        *("-drive", f"if=none,id=guide,file={work / 'guide.iso'},format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=guide"),
        *("-drive", f"if=none,id=data,file={work / 'data.img'},format=raw"),
        *("-device", "virtio-blk-pci,drive=data,serial=data"),
    ]
    chosen = accelerator.choose(release / "vmlinuz", paths.cache_dir())
    return guest.run(release, work, commands(), options=options, accelerator=chosen, timeout=900)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.number))
def test_an_example_is_applied(example: Example, answers: Mapping[str, Answer]) -> None:
    applied = answers[f"apply-{example.number}"]
    assert applied.status == 0, applied.text
    status = json.loads(answers[f"status-{example.number}"].text)
    assert status["problems"] == []
    assert status["source"].startswith("NoCloud")
    changes = {change["what"]: change["status"] for change in status["changes"]}
    # The rights that only the example before gave are taken away beside it.
    assert set(example.makes) <= set(changes)
    assert "failed" not in changes.values(), status["changes"]
    assert "kept" not in changes.values(), status["changes"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.number))
def test_its_commands_print_what_the_page_says(
    example: Example, answers: Mapping[str, Answer]
) -> None:
    for index, (command, printed) in enumerate(example.shown):
        answer = answers[f"shown-{example.number}-{index}"]
        wanted = printed.removeprefix("…\n")
        seen = answer.text.strip()
        assert seen.endswith(wanted) if printed != wanted else seen == wanted, (command, seen)
