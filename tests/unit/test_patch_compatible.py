"""Machines in the field have the decoder that they were released with, and updates reach them.

A patch over an ELF file is made against exactly one decoder: it holds what differs from that
decoder's predictions. So these patches, made once by the first decoder (OpenSSH's
sftp-server 10.0p1-7+deb13u2 to u4, and a kernel module of 6.12.107 to 6.12.117), must come out
right for ever.
Where this fails, do not make them anew: a decoder that predicts otherwise needs a kind number of
its own, and the old kind its old code.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from proa.factory import patch
from proa.wire import patch as wire

DATA = Path(__file__).parent / "data/elf-patches.tar.xz"


def _parts(name: str) -> dict[str, bytes]:
    with tarfile.open(DATA) as archive:
        found = {}
        for member in archive:
            folder, _, part = member.name.partition("/")
            file = archive.extractfile(member)
            if folder == name and file is not None:
                found[part] = file.read()
        return found


def _made(parts: dict[str, bytes]) -> str:
    """Return the sha256 of what the patch makes, in hex."""
    size = int(parts["new-size"])
    assert wire.read_control(parts["control"], size).kind == wire.ELF
    diff, extra = patch.stream(parts["diff"]), patch.stream(parts["extra"])
    pieces = wire.apply(parts["control"], diff, extra, patch.reader(parts["old"]), size)
    return hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("name", ["program", "module"])
def test_a_patch_of_the_first_decoder_still_leads_to_the_same_file(name: str) -> None:
    parts = _parts(name)
    assert _made(parts) == parts["new-sha256"].decode()


@pytest.mark.parametrize("name", ["program", "module"])
def test_without_the_predictions_something_else_comes_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the test above would hold whatever the decoder predicts."""
    parts = _parts(name)
    monkeypatch.setattr(wire, "predict", lambda _layout, _addresses, _start, piece, _shift: piece)
    assert _made(parts) != parts["new-sha256"].decode()
