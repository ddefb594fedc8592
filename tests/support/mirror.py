"""A small Debian archive, served by HTTP, signed, whose state a test can change."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proa.factory import archive


@dataclass(frozen=True)
class Mirror:
    """An archive at ``root`` with one package, ``tiny``; ``home`` holds the key that signs it.

    ``url`` is where it is served.
    """

    root: Path
    home: Path
    url: str

    @property
    def mirrors(self) -> archive.Mirrors:
        """The archive as builds know it."""
        return archive.Mirrors(self.url, self.url)

    @property
    def keyring(self) -> str:
        """The file with the archive's public key."""
        return str(self.home / "keyring.gpg")

    def publish(self, version: str, date: str) -> None:
        """Offer ``tiny`` in ``version``, and no other, in the stable suite; all suites are new."""
        package = f"pool/tiny_{version}_all.deb"
        self._make_package(version, self.root / package)
        content = (self.root / package).read_bytes()
        index = (
            f"Package: tiny\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b.example>\n"
            f"Filename: {package}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\nDescription: tiny\n\n"
        )
        for suite in archive.SUITES:
            self._suite(suite, index if suite == archive.SUITE else "", date)

    def drop(self, version: str) -> None:
        """Remove a package from the pool, as archives do with what no index names."""
        (self.root / f"pool/tiny_{version}_all.deb").unlink()

    def _suite(self, suite: str, index: str, date: str) -> None:
        path = self.root / "dists" / suite
        name = "main/binary-amd64/Packages"
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(index)
        digest = hashlib.sha256(index.encode()).hexdigest()
        (path / "Release").write_text(
            f"Origin: Test\nSuite: {suite}\nCodename: {suite}\nDate: {date}\n"
            f"Architectures: amd64\nComponents: main\nSHA256:\n {digest} {len(index)} {name}\n"
        )
        (path / "InRelease").unlink(missing_ok=True)
        gpg(self.home, "--clearsign", "--output", path / "InRelease", path / "Release")

    def _make_package(self, version: str, target: Path) -> None:
        tree = self.home / f"tiny-{version}"
        files: Mapping[str, str] = {
            "DEBIAN/control": f"Package: tiny\nVersion: {version}\nArchitecture: all\n"
            "Maintainer: A <a@b.example>\nDescription: tiny\n",
            "usr/share/tiny/version": version,
        }
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        target.parent.mkdir(exist_ok=True)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target],
            check=True,
            capture_output=True,
        )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(root: Path) -> Iterator[str]:
    """Serve the directory ``root`` on the loopback interface; the value is its URL."""
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def made(directory: Path) -> Iterator[Mirror]:
    """Make an empty archive below ``directory``, and its key."""
    root, home = directory / "archive", directory / "gpg"
    root.mkdir(parents=True)
    home.mkdir(mode=0o700)
    gpg(home, "--quick-generate-key", "Test <test@example.org>", "ed25519", "sign", "never")
    gpg(home, "--output", home / "keyring.gpg", "--export")
    with served(root) as url:
        yield Mirror(root, home, url)


def gpg(home: Path, *arguments: str | Path) -> None:
    """Run GnuPG on a key directory of its own, and leave none of its agents running."""
    common = ["gpg", "--homedir", str(home), "--batch", "--yes", "--passphrase", ""]
    subprocess.run([*common, "--pinentry-mode", "loopback", *arguments], check=True, stdin=-3)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
