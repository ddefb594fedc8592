"""What the tour is made of, as far as it needs no machine."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from proa.lab import poller, tour
from proa.lab.poller import Answer
from proa.lab.site import Site
from proa.lab.tour import Broken, Step, Tour
from proa.wire.errors import UserError


def test_a_variant_is_a_recipe_that_extends_ours() -> None:
    script = "#!/bin/sh\necho 'it is \"torn\"'\nexit 1\n"
    text = tour.variant({"/usr/lib/proa/health.d/sails": script}, "0755", ["rdinit=/no"])
    document = tomllib.loads(text)
    assert Path(document["os"]["extends"]).name == "recipe.toml"
    assert document["kernel"]["cmdline_extra"] == ["rdinit=/no"]
    assert document["files"] == [
        {"path": "/usr/lib/proa/health.d/sails", "mode": "0755", "content": script}
    ]


def test_one_byte_is_flipped_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(bytes(1000))
    with tour._one_byte_flipped(path):
        changed = path.read_bytes()
        assert len(changed) == 1000
        assert sum(byte != 0 for byte in changed) == 1
    assert path.read_bytes() == bytes(1000)


def test_another_directory_stands_in_and_goes_away_even_after_an_error(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for directory in (own, other):
        directory.mkdir()
        (directory / "name").write_text(directory.name)
    with pytest.raises(UserError), tour._in_place_of(own, other):
        assert (own / "name").read_text() == "other"
        raise UserError("stop")
    assert (own / "name").read_text() == "own"
    assert (other / "name").read_text() == "other"


def test_a_step_that_breaks_is_told_with_its_words(tmp_path: Path) -> None:
    def act(_tour: Tour) -> list[str]:
        raise Broken("the mast fell")

    told = Tour(Site(tmp_path, tmp_path), Site(tmp_path, tmp_path))
    result = tour.perform(told, Step("mast", "Set the mast", act))
    assert (result.ok, result.error, result.evidence) == (False, "the mast fell", ())


def test_the_stage_is_gone_after_the_tour(tmp_path: Path) -> None:
    with tour.stage(tmp_path, keep=False) as told:
        assert told.site.home.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_the_stage_stays_if_it_is_kept(tmp_path: Path) -> None:
    with tour.stage(tmp_path, keep=True) as told:
        pass
    assert list(tmp_path.iterdir()) == [told.site.home]


def test_steps_have_names_of_their_own() -> None:
    names = [step.name for step in tour.STEPS]
    assert len(set(names)) == len(names)


def test_the_longest_gap_is_between_good_answers() -> None:
    answers = [
        Answer(0.0, 0.1, True),
        Answer(0.6, 0.7, True),
        Answer(1.2, 5.0, False),
        Answer(5.5, 5.7, True),
    ]
    summary = poller.summarise(answers)
    assert (summary.asked, summary.missed) == (4, 1)
    assert summary.longest_gap == pytest.approx(5.0)


def test_a_server_that_never_answers_is_one_long_gap() -> None:
    summary = poller.summarise([Answer(0.0, 1.0, False), Answer(2.0, 9.0, False)])
    assert (summary.missed, summary.longest_gap) == (2, 9.0)


def test_the_timers_command_is_read_from_systemds_words() -> None:
    shown = (
        "{ path=/usr/bin/proactl ; argv[]=/usr/bin/proactl update --scheduled ; "
        "ignore_errors=no ; start_time=[n/a] ; pid=0 }"
    )
    assert tour._argv(shown) == "/usr/bin/proactl update --scheduled"
