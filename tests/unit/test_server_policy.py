"""The server offers what the channel says, never anything older, and never an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.server import policy
from proa.server.catalogue import Catalogue, Release
from proa.server.policy import Channel, Decision, Progress, Status
from proa.wire.omaha import AppRequest, Event
from proa.wire.version import VersionError, parse

_CATALOGUE = Catalogue(
    {v: Release(v, "amd64", ()) for v in ("1.0.0", "1.1.0", "1.2.0-rc.1")}, frozenset({"0.9.0"})
)
_APP = AppRequest("id", "1.0.0", "alpha", "boot", "machine", update_check=True)
_ALPHA = Channel("alpha", "1.1.0")


def test_a_newer_version_is_offered() -> None:
    decision = policy.decide(_APP, _ALPHA, _CATALOGUE)
    assert decision.release == _CATALOGUE.releases["1.1.0"]


@pytest.mark.parametrize(
    ("app", "channel", "why"),
    [
        (_APP, None, "no group or channel is named 'alpha'"),
        (_APP, Channel("beta"), "has no version yet"),
        (_APP, Channel("beta", "0.9.0"), "was withdrawn"),
        (_APP, Channel("beta", "3.0.0"), "is not published"),
        (_APP, Channel("beta", "1.0.0"), "it runs 1.0.0, the version of beta"),
        (replace(_APP, version="1.1.1"), _ALPHA, "newer than 1.1.0"),
        (replace(_APP, version="nightly"), _ALPHA, "not a version"),
        (replace(_APP, version=""), _ALPHA, "not a version"),
        (replace(_APP, version="3510.2.0"), _ALPHA, "newer"),
        (replace(_APP, board="arm64-usr"), _ALPHA, "for amd64, the machine is arm64-usr"),
    ],
)
def test_whoever_gets_nothing_has_a_reason(
    app: AppRequest, channel: Channel | None, why: str
) -> None:
    decision = policy.decide(app, channel, _CATALOGUE)
    assert decision.release is None
    assert why in decision.why


@pytest.mark.parametrize("version", ["0.0.0", "0.0.0.0"])  # noqa: S104
def test_a_machine_that_says_it_is_older_than_anything_gets_the_version(version: str) -> None:
    assert policy.decide(replace(_APP, version=version), _ALPHA, _CATALOGUE).release


def test_a_channel_can_lead_back_if_the_operator_says_so() -> None:
    newer = replace(_APP, version="2.0.0")
    channel = replace(_ALPHA, allow_downgrade=True)
    assert policy.decide(newer, channel, _CATALOGUE).release == _CATALOGUE.releases["1.1.0"]


_versions = st.from_regex(r"[0-3]\.[0-3]\.[0-3](-rc\.[0-9])?", fullmatch=True) | st.text(max_size=9)


@given(
    version=_versions,
    wanted=st.none() | st.sampled_from(sorted(_CATALOGUE.releases)) | _versions,
    board=st.sampled_from(["amd64-usr", "arm64-usr", "", "-"]),
    downgrade=st.booleans(),
)
def test_an_offer_is_the_channels_version_and_newer(
    version: str, wanted: str | None, board: str, downgrade: bool
) -> None:
    app = replace(_APP, version=version, board=board)
    decision = policy.decide(app, Channel("alpha", wanted, downgrade), _CATALOGUE)
    assert decision.why
    if decision.release is not None:
        assert decision.release.version == wanted != version
        assert not board.startswith("arm64")
        assert downgrade or parse(decision.release.version) > parse(
            "0.0.0" if version == "0.0.0.0" else version  # noqa: S104
        )


def _tell(*events: Event, status: Progress | None = None) -> Progress:
    progress = status or Progress(Status.OFFERED, "1.1.0")
    for event in events:
        progress = policy.after_event(progress, event)
    return progress


def test_the_events_of_a_good_update_tell_its_way() -> None:
    assert _tell(Event(13, 1)) == Progress(Status.DOWNLOADING, "1.1.0")
    assert _tell(Event(13, 1), Event(14, 1)) == Progress(Status.DOWNLOADED, "1.1.0")
    staged = _tell(Event(13, 1), Event(14, 1), Event(3, 1))
    assert staged == Progress(Status.STAGED, "1.1.0")
    booted = _tell(Event(3, 2, previous_version="1.0.0"), status=staged)
    assert booted.status is Status.CURRENT


def test_a_routine_event_tells_nothing() -> None:
    for previous in (None, "", "0.0.0.0"):  # noqa: S104
        event = Event(3, 2, previous_version=previous)
        assert _tell(event) == Progress(Status.OFFERED, "1.1.0")
        assert not policy.is_news(event)


@pytest.mark.parametrize(
    ("event", "progress", "words"),
    [
        (Event(3, 0, 10), Progress(Status.FAILED, "1.1.0"), "1.1.0 failed"),
        (Event(3, 0), Progress(Status.FAILED, "1.1.0"), "1.1.0 failed"),
        (Event(3, 0, 44), Progress(Status.ROLLED_BACK, "1.1.0"), "rolled back from 1.1.0"),
        (
            Event(3, 0, 0x1000002C, error_version="1.2.0"),
            Progress(Status.ROLLED_BACK, "1.2.0"),
            "rolled back from 1.2.0",
        ),
        (Event(3, 9, 36), Progress(Status.DEFERRED, "1.1.0"), "put off 1.1.0"),
    ],
)
def test_a_failure_names_the_version(event: Event, progress: Progress, words: str) -> None:
    assert _tell(event) == progress
    assert policy.describe(progress) == words


@given(
    st.sampled_from(Status),
    st.text(max_size=5),
    st.integers(-5, 1000),
    st.integers(-5, 20),
    st.none() | st.integers(),
)
def test_any_event_leaves_a_status_with_words(
    status: Status, version: str, kind: int, result: int, code: int | None
) -> None:
    after = policy.after_event(Progress(status, version), Event(kind, result, code))
    assert policy.describe(after)


_OFFER = Decision(_CATALOGUE.releases["1.1.0"], "")
_NOTHING = Decision(None, "")


@pytest.mark.parametrize(
    ("before", "decision", "after"),
    [
        (Progress(), _OFFER, Progress(Status.OFFERED, "1.1.0")),
        (Progress(Status.CURRENT, "1.0.0"), _OFFER, Progress(Status.OFFERED, "1.1.0")),
        # Went back by its owner's hand: it runs 1.0.0 again.
        (Progress(Status.CURRENT, "1.1.0"), _OFFER, Progress(Status.OFFERED, "1.1.0")),
        # What the machine is at, or what became of it, is not forgotten by asking again ...
        (Progress(Status.STAGED, "1.1.0"), _OFFER, Progress(Status.STAGED, "1.1.0")),
        (Progress(Status.ROLLED_BACK, "1.1.0"), _OFFER, Progress(Status.ROLLED_BACK, "1.1.0")),
        (Progress(Status.ROLLED_BACK, "1.1.0"), _NOTHING, Progress(Status.ROLLED_BACK, "1.1.0")),
        # ... until there is something else.
        (Progress(Status.ROLLED_BACK, "1.0.9"), _OFFER, Progress(Status.OFFERED, "1.1.0")),
        (Progress(Status.OFFERED, "1.1.0"), _NOTHING, Progress(Status.CURRENT, "1.0.0")),
        (Progress(Status.FAILED, "1.0.0"), _NOTHING, Progress(Status.CURRENT, "1.0.0")),
        (Progress(), _NOTHING, Progress(Status.CURRENT, "1.0.0")),
    ],
)
def test_a_check_moves_the_status(before: Progress, decision: Decision, after: Progress) -> None:
    assert policy.after_check(before, _APP, decision) == after


@pytest.mark.parametrize(
    ("before", "staged", "decision", "after"),
    [
        (Progress(Status.OFFERED, "1.1.0"), "1.1.0", _NOTHING, Progress(Status.STAGED, "1.1.0")),
        # As after the database was lost: the machine knows better than we do.
        (Progress(), "1.1.0", _OFFER, Progress(Status.STAGED, "1.1.0")),
        (Progress(Status.STAGED, "1.0.9"), "1.0.9", _OFFER, Progress(Status.OFFERED, "1.1.0")),
        (
            Progress(Status.ROLLED_BACK, "1.1.0"),
            "1.1.0",
            _OFFER,
            Progress(Status.ROLLED_BACK, "1.1.0"),
        ),
    ],
)
def test_a_machine_that_says_what_it_staged_is_believed_unless_it_failed(
    before: Progress, staged: str, decision: Decision, after: Progress
) -> None:
    app = replace(_APP, next_version=staged)
    assert policy.after_check(before, app, decision) == after


@given(st.text(max_size=12))
def test_any_version_text_is_judged(text: str) -> None:
    decision = policy.decide(replace(_APP, version=text), _ALPHA, _CATALOGUE)
    try:
        parse(text)
    except VersionError:
        assert decision.release is None or text == "0.0.0.0"  # noqa: S104
