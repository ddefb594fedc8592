"""Which version ``proa up`` runs: what is built is used again, what was published never changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from proa.lab import site, up
from proa.lab.site import Site
from proa.wire.errors import UserError


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        ({}, ("1.0.0", False)),
        ({"1.0.0": "now"}, ("1.0.0", True)),
        ({"1.0.0": "before"}, ("1.0.1", False)),
        ({"1.0.0": "now", "1.0.1": "between"}, ("1.0.0", True)),
        ({"1.0.9": "before", "1.0.10": "before"}, ("1.0.11", False)),
    ],
)
def test_the_version_follows_the_sources(built: dict[str, str], expected: tuple[str, bool]) -> None:
    assert up.choose_version(built, "now") == expected


def test_the_digest_follows_the_trust_anchor(tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    root.write_text("one")
    first = up.digest_of_sources([root])
    assert up.digest_of_sources([root]) == first
    root.write_text("two")
    assert up.digest_of_sources([root]) != first


def test_a_release_without_its_directory_counts_as_not_built(tmp_path: Path) -> None:
    home = Site(tmp_path, tmp_path)
    home.release("1.0.1").mkdir(parents=True)
    for version in ("1.0.0", "1.0.1"):
        home.release(version).with_name(f"{version}.sources").write_text("abc\n")
    assert up.built_from(home) == {"1.0.1": "abc"}


def test_the_update_configuration_points_to_the_host_as_the_guest_sees_it() -> None:
    assert up.update_conf(8123, REBOOT_DELAY=0) == (
        "GROUP=alpha\nSERVER=http://10.0.2.2:8123/v1/update/\nREBOOT_DELAY=0\n"
    )


def test_a_machine_that_is_not_there_is_named_with_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no machine 'web'") as raised:
        up.existing(Site(tmp_path, tmp_path), "web", running=True)
    assert raised.value.hint == "make it with: ./proa up"


def test_removing_a_machine_that_is_not_there_says_so(tmp_path: Path) -> None:
    assert up.down(Site(tmp_path, tmp_path), "web") is False


def test_a_failing_command_is_shown_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`proa status` failed with exit status 1") as raised:
        Site(tmp_path, tmp_path).proa("status")
    assert "there is no machine 'proa'" in raised.value.message


def test_a_wanted_port_is_given_up_only_when_it_is_taken() -> None:
    free = site.server_port()
    assert site.server_port(free) == free
