"""Signed metadata and manifests spoilt in every region, given to what decides about trust.

A repository of two releases, the second with payloads, is looked at by the updater's own code, over
a network that a case spoils: one file of it is altered, cut, extended, made a bomb, mixed with
another state of the repository or with another owner's, or replaced by theirs. Some of the machines
have seen the repository before. What they then believe must be what was signed, or they must refuse
it in words.

    PYTHONPATH=src:tests python -m fuzz.metadata --cases 10000

prints how many cases ended how; ``--first`` repeats from a case's number.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from unittest import mock

from fuzz.mutations import spoil
from proa.factory import keys, repository
from proa.machine import fetch, report, slot, state, update
from proa.machine.errors import MachineError
from proa.machine.system import System, running
from proa.wire import manifest, version
from support import payload_machine
from support.machine import Machine, make_release

BASE = "http://mirror/repository/"
_ROLES = ("root.json", "timestamp.json", "snapshot.json", "targets.json", manifest.MANIFEST)

# What readers of JSON stumble over: depth, endless digits, nothing, a length without end.
_BOMBS = (b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b"", b"\xff\xfe", bytes(9 << 20))

# A repository's files by their paths, as far as they are small: metadata and manifests.
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Sample:
    """A machine, what it should believe, and what others would like it to believe."""

    system: System
    seen: Path
    files: Files
    older: Files
    stranger: Files
    offer: report.Offer

    def look(self, files: Files) -> update.Found:
        """Let the machine look at a repository of these files."""
        server = cast(report.Server, mock.Mock(patience=fetch.PATIENCE))
        run = update._Run(
            self.system,
            update.Options(),
            running(self.system),
            state.Store(self.system),
            server,
            lambda line: None,
            lambda done, size: None,
        )

        def serve(url: str) -> bytes:
            try:
                return files[url.removeprefix(BASE)]
            except KeyError:
                raise fetch.FetchError("not there", status=404, temporary=False) from None

        def get(url: str, limit: int, _: object) -> Iterator[bytes]:
            yield serve(url)[: limit + 1]

        def download(url: str, _: int, size: int, *__: object, **___: object) -> Iterator[bytes]:
            if len(data := serve(url)) != size:
                raise fetch.WrongSize(f"{url} has {len(data)} bytes", temporary=False)
            yield data

        with mock.patch.object(fetch, "get", get), mock.patch.object(fetch, "download", download):
            return run._look(self.offer, slot.find(self.system), BASE)


def make(directory: Path) -> Sample:
    """Make the machine and the repositories below ``directory``."""
    pair = payload_machine.make_pair(directory / "pair")
    payloads = []
    for name, made in (("delta", pair.delta), ("full", pair.full)):
        payloads.append(directory / name)
        payloads[-1].write_bytes(made.data)
    now = datetime.now(UTC)

    def publish(owner: str, *releases: tuple[Path, Sequence[Path]]) -> Files:
        for release, files in releases:
            where = directory / owner
            repository.publish(release, where / "repository", where / "keys", now, payloads=files)
        return _files(directory / owner / "repository")

    anchor = keys.init(directory / "own/keys", now)
    keys.init(directory / "stranger/keys", now)
    before = make_release("1.0.5").write(directory / "before")
    older = publish("own", (pair.directories[0], ()), (before, ()))
    files = publish("own", (pair.directories[1], payloads))
    stranger = publish("stranger", (pair.directories[0], ()), (pair.directories[1], payloads))
    system = Machine(directory / "machine", "uefi", pair.old).system()
    share = system.path("/usr/share/proa")
    share.mkdir(parents=True)
    (share / "root.json").write_bytes(anchor.read_bytes())
    offer = report.Offer(version.parse(pair.new.version), (BASE,))
    sample = Sample(system, directory / "seen", files, older, stranger, offer)
    sample.look(files)
    shutil.copytree(system.state_dir, sample.seen)
    return sample


def _files(folder: Path) -> Files:
    paths = [*folder.glob("metadata/*.json"), *folder.glob(f"targets/*/*.{manifest.MANIFEST}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _number(path: str) -> tuple[str, int]:
    """Order files by the release that they are of, and by the number of their version."""
    folder, _, name = path.rpartition("/")
    first = name.partition(".")[0]
    return folder, int(first) if first.isdigit() and len(first) < 9 else 0


def case(sample: Sample, good: update.Found, number: int) -> str:
    """Spoil one file; return how it ended."""
    dice = random.Random(number)
    shutil.rmtree(sample.system.state_dir)
    if dice.random() < 0.2:
        shutil.copytree(sample.seen, sample.system.state_dir)
    role = dice.choice(_ROLES)
    # The file of this role that is looked at: the newest; or a new root, where there is none.
    name = max((path for path in sample.files if path.endswith(role)), key=_number)
    place = "metadata/2.root.json" if role == "root.json" else name
    others = [
        data
        for files in (sample.older, sample.stranger, sample.files)
        for path, data in files.items()
        if path.endswith(role) and data != sample.files[name]
    ]
    other = dice.choice(others)
    data = spoil(sample.files[name], dice, other)
    if dice.random() < 0.1:
        data = dice.choice((other, *_BOMBS))
    try:
        found = sample.look({**sample.files, place: data})
    except MachineError as error:
        assert error.message, "it is refused without a reason"
        return f"{role}: refused, code {error.code}"
    assert found == good, "something else is believed than was signed"
    return f"{role}: what was signed"


def run(sample: Sample, cases: Sequence[int]) -> Counter[str]:
    """Run cases; raises with the number of one that is not as it should be."""
    shutil.rmtree(sample.system.state_dir)
    good, ended = sample.look(sample.files), Counter[str]()
    for number in cases:
        try:
            ended[case(sample, good, number)] += 1
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sample, began = make(Path(directory)), time.process_time()
        ended = run(sample, range(args.first, args.first + args.cases))
    for words, count in sorted(ended.items()):
        print(f"{count:7}  {words}")
    print(f"{ended.total():7}  cases in {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
