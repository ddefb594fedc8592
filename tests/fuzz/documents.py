"""What a cloud hands over, as something that takes any bytes: what a fuzzer needs.

``FUZZ=documents`` makes ``fuzz.search`` run it under atheris. ``python -m fuzz.documents
DIRECTORY`` writes good inputs to start from. ``tests/fuzz/corpus-documents`` has the inputs that
reach all that was reached; a unit test replays them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from fuzz import write_seeds
from proa.machine.cloudconfig import template
from proa.machine.cloudconfig.assemble import Assembled, assemble
from proa.machine.cloudconfig.document import read
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.parse import Refused
from proa.machine.record import asdict

CORPUS = Path(__file__).with_name("corpus-documents")

# Between user-data, vendor-data and what the included addresses answer, one after another.
CUT = b"\xff\xfd\n"

METADATA = Metadata(
    instance_id="i-1", hostname="web-1", region="here", addresses={"private_ipv4": "10.0.0.1"}
)


def one(data: bytes) -> str:
    """Take these documents apart and together; return how it ended. Any exception is a find."""
    user, *rest = data.split(CUT)
    answers = iter(rest[1:])

    def fetch(url: str) -> bytes:
        answer = next(answers, None)
        if answer is None:
            raise Refused("there is no such thing")
        return answer

    # The real thing forks, which a fuzzer cannot afford.
    with mock.patch.object(template, "render", lambda source, variables: (source, ())):
        assembled = check(user, rest[0] if rest else None, fetch if len(rest) > 1 else None)
    if assembled.refused:
        return "refused"
    return "waits" if assembled.needs_network else "taken"


def check(
    user: bytes, vendor: bytes | None, fetch: Callable[[str], bytes] | None = None
) -> Assembled:
    """What always holds of documents that are taken apart and together, whatever they are."""
    assembled = assemble(user, vendor, METADATA, {}, fetch)
    problems = list(assembled.problems)
    if not assembled.refused:
        _, found = read(assembled.root)
        problems += [assembled.told(problem) for problem in found]
    for problem in problems:
        assert problem.line >= 0 and problem.column >= 0
        assert problem.message.isprintable()
    json.dumps([asdict(problem) for problem in problems]).encode()
    for script in (*assembled.scripts, *assembled.boothooks):
        assert script.content.startswith(b"#!")
        assert "/" not in script.name and script.name not in ("", ".", "..")
    if fetch is not None:
        assert not assembled.needs_network
    return assembled


# --- Seeds ----------------------------------------------------------------------------------------

CONFIG = b"#cloud-config\nhostname: web-1\n"
SCRIPT = b"#!/bin/sh\necho a\n"


def message(*parts: bytes) -> bytes:
    """A MIME message; each part is its head, an empty line, and its content."""
    text = b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=X\n\n"
    return text + b"".join(b"--X\n" + part + b"\n" for part in parts) + b"--X--\n"


def seeds() -> Iterator[bytes]:
    """Yield a good input for each form of user-data."""
    yield CONFIG
    yield SCRIPT
    yield b"#cloud-boothook\n" + SCRIPT
    yield b"## template: jinja\n" + CONFIG
    yield b'{"ignition": {"version": "3.4.0"}}'
    yield b"variant: fcos\nversion: 1.5.0\n"
    yield gzip.compress(CONFIG)
    yield base64.b64encode(CONFIG)
    yield b"#cloud-config-archive\n- type: text/x-shellscript\n  content: a\n- 'b: c'\n"
    yield b"#include\nhttp://example.com/\n"
    yield CUT.join([b"#include\nhttp://a/b\n#include-once http://a/c\n", b"", CONFIG, SCRIPT])
    yield CUT.join([CONFIG + b"vendor_data: {enabled: no}\n", CONFIG])
    yield b"#cloud-config\na: $private_ipv4 \\$public_ipv6\nb: &a [x, ~]\nc: *a\n"
    yield message(
        b"Content-Type: text/cloud-config; charset=utf-8\nMerge-Type: list(append)\n\na: [1]",
        b"Content-Type: text/x-shellscript-per-boot\nContent-Transfer-Encoding: base64\n\nIyE=",
        b"Content-Disposition: attachment; filename*=utf-8''%41\nLaunch-Index: 1\n\n" + CONFIG,
        b"Content-Transfer-Encoding: quoted-printable\n\n" + CONFIG.replace(b":", b"=3A"),
    )
    yield message(
        b"\n#cloud-config\nmerge_how: 'dict(recurse_list,allow_delete)+list(append)'\na: [{b: c}]",
        b"\n#cloud-config\nmerge_type: [{name: list, settings: [prepend]}, [dict, replace]]\na: ~",
    )


if __name__ == "__main__":
    write_seeds(seeds())
