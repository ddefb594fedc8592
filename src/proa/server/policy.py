"""Who gets what: pure decisions on what a machine said and what the operator wants.

A refusal is never an error to the machine: it gets ``noupdate``, and the operator the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from proa.server.catalogue import Catalogue, Release
from proa.wire import omaha
from proa.wire.omaha import AppRequest, ErrorCode, Event, EventResult, EventType
from proa.wire.version import Version, VersionError, parse


class Status(StrEnum):
    """Where a machine is on its way to a version, as far as it has told."""

    SEEN = "seen"
    CURRENT = "current"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    STAGED = "staged"
    DEFERRED = "deferred"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True)
class Channel:
    """A named pointer to a release. With ``allow_downgrade`` it also leads to older ones."""

    name: str
    version: str | None = None
    allow_downgrade: bool = False


@dataclass(frozen=True)
class Decision:
    """The release to offer, or None; ``why`` says it in words for the operator."""

    release: Release | None
    why: str


@dataclass(frozen=True)
class Progress:
    """A machine's status and the version that it is about."""

    status: Status = Status.SEEN
    version: str = ""


def decide(app: AppRequest, channel: Channel | None, catalogue: Catalogue) -> Decision:
    """Decide what to offer to a machine that asked for an update."""
    if channel is None:
        return Decision(None, f"no group or channel is named {app.track!r}")
    if channel.version is None:
        return Decision(None, f"channel {channel.name} has no version yet")
    wanted = catalogue.releases.get(channel.version)
    if wanted is None:
        gone = "was withdrawn" if channel.version in catalogue.withdrawn else "is not published"
        return Decision(None, f"{channel.version} of channel {channel.name} {gone}")
    if app.version == wanted.version:
        return Decision(None, f"it runs {wanted.version}, the version of {channel.name}")
    architecture = app.board.partition("-")[0]
    if architecture and architecture != wanted.architecture:
        return Decision(
            None, f"{wanted.version} is for {wanted.architecture}, the machine is {app.board}"
        )
    if (running := _running(app.version)) is None:
        return Decision(None, f"it runs {app.version!r}, which is not a version")
    if running > parse(wanted.version) and not channel.allow_downgrade:
        return Decision(None, f"it runs {app.version}, newer than {wanted.version}")
    return Decision(wanted, f"{wanted.version} from channel {channel.name}")


def after_event(before: Progress, event: Event) -> Progress:
    """Return a machine's progress after it reported ``event``."""
    failed = event.error_version or before.version
    match event.type, event.result:
        case _, EventResult.ERROR:
            rolled_back = omaha.mask_error(event.errorcode or 0) == ErrorCode.ROLLBACK
            return Progress(Status.ROLLED_BACK if rolled_back else Status.FAILED, failed)
        case _, EventResult.DEFERRED:
            return Progress(Status.DEFERRED, failed)
        case EventType.DOWNLOAD_STARTED, EventResult.SUCCESS:
            return Progress(Status.DOWNLOADING, before.version)
        case EventType.DOWNLOAD_FINISHED, EventResult.SUCCESS:
            return Progress(Status.DOWNLOADED, before.version)
        case ((EventType.UPDATE_COMPLETE | EventType.INSTALLED), EventResult.SUCCESS):
            return Progress(Status.STAGED, before.version)
        case EventType.UPDATE_COMPLETE, EventResult.SUCCESS_REBOOT if is_news(event):
            return Progress(Status.CURRENT, before.version)
    return before


def after_check(before: Progress, app: AppRequest, decision: Decision) -> Progress:
    """Return a machine's progress after its update check was answered with ``decision``."""
    offered = decision.release.version if decision.release else None
    failed = before.status in (Status.FAILED, Status.ROLLED_BACK)
    if app.next_version and not failed and offered in (None, app.next_version):
        return Progress(Status.STAGED, app.next_version)
    if offered is not None:
        # A machine that is busy with this very version, or failed on it, says so itself.
        asks_again = before.version == offered and before.status is not Status.CURRENT
        return before if asks_again else Progress(Status.OFFERED, offered)
    if failed and before.version != app.version:
        return before
    return Progress(Status.CURRENT, app.version)


def is_news(event: Event) -> bool:
    """Say whether an event is worth keeping.

    update_engine sends "complete after reboot" with every check; only one that names the version
    before it tells of an update.
    """
    routine = (EventType.UPDATE_COMPLETE, EventResult.SUCCESS_REBOOT)
    known = event.previous_version not in (None, "", "0.0.0.0")  # noqa: S104 - a version
    return (event.type, event.result) != routine or known


def describe(progress: Progress) -> str:
    """Say a machine's progress in words."""
    version = progress.version
    return {
        Status.SEEN: "seen",
        Status.CURRENT: "up to date",
        Status.OFFERED: f"was offered {version}",
        Status.DOWNLOADING: f"downloading {version}",
        Status.DOWNLOADED: f"downloaded {version}",
        Status.STAGED: f"{version} is staged, waiting for its reboot",
        Status.DEFERRED: f"put off {version}",
        Status.FAILED: f"{version} failed" if version else "an update failed",
        Status.ROLLED_BACK: f"rolled back from {version}" if version else "rolled back",
    }[progress.status]


def _running(text: str) -> Version | None:
    """Read the version that a machine runs; 0.0.0.0 is how clients say "older than anything"."""
    try:
        return parse("0.0.0" if text == "0.0.0.0" else text)  # noqa: S104 - a version
    except VersionError:
        return None
