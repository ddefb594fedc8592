"""A real TUF client (``tuf.ngclient``, as machines run it) that reads a repository's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface


class _Files(FetcherInterface):
    """Answers as a web server over a directory would."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url.removeprefix("file://"))
        if not path.is_file():
            raise DownloadHTTPError(f"no {path}", 404)
        yield path.read_bytes()


class Client:
    """A machine's view of a repository; keeps what it trusts between calls, as a machine does."""

    def __init__(self, state: Path, root: Path, repository: Path) -> None:
        self._state = state
        self._repository = repository
        state.mkdir(parents=True)
        (state / "root.json").write_bytes(root.read_bytes())

    def fetch(self, target: str) -> bytes | None:
        """Return a verified target, or None if the signed metadata does not have it."""
        updater = Updater(
            str(self._state),
            f"file://{self._repository}/metadata/",
            str(self._state),
            f"file://{self._repository}/targets/",
            fetcher=_Files(),
        )
        updater.refresh()
        if (info := updater.get_targetinfo(target)) is None:
            return None
        return Path(updater.download_target(info)).read_bytes()
