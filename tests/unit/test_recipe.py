"""A recipe is read whole, or refused with the file, the line and the key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.factory import recipe


def write(directory: Path, text: str, name: str = "mine.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def base() -> str:
    return f'[os]\nextends = "{recipe.DEFAULT}"\n'


def test_our_own_recipe_is_good() -> None:
    own = recipe.load(recipe.DEFAULT)
    assert own.id == "proa"
    assert "linux-image-cloud-amd64" in own.packages
    assert "proa-update.timer" in own.enable


def test_a_recipe_adds_to_lists_and_replaces_values(tmp_path: Path) -> None:
    own = recipe.load(recipe.DEFAULT)
    path = write(
        tmp_path,
        base()
        + 'group = "web"\n[packages]\ninclude = ["strace"]\nexclude = ["jq"]\n'
        + '[kernel]\nflavour = "generic"\ncmdline_extra = ["quiet"]\n'
        + '[[files]]\npath = "/usr/share/x"\ncontent = "y"\nmode = "0755"\n',
    )
    mine = recipe.load(path)
    assert mine.group == "web"
    assert mine.name == own.name
    assert "strace" in mine.packages
    assert "jq" not in mine.packages
    assert "linux-image-amd64" in mine.packages
    assert "linux-image-cloud-amd64" not in mine.packages
    assert mine.cmdline == (*own.cmdline, "quiet")
    assert mine.files == (recipe.ExtraFile("/usr/share/x", "y", 0o755),)


def test_a_recipe_may_say_its_version_and_its_channels(tmp_path: Path) -> None:
    write(tmp_path, base() + 'version = "1.1.0"\nchannels = ["alpha"]\n', "web.toml")
    path = write(tmp_path, '[os]\nextends = "web.toml"\nversion = "1.2.0"\nchannels = ["beta"]\n')
    mine = recipe.load(path)
    assert (mine.version, mine.channels) == ("1.2.0", ("alpha", "beta"))
    own = recipe.load(recipe.DEFAULT)
    assert (own.version, own.channels) == ("", ())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[kernel]\nflavor = "cloud"\n', 4, "did you mean 'flavour'"),
        ('[kernel]\nflavour = "tiny"\n', 4, "cloud, generic"),
        ('[pakages]\ninclude = ["jq"]\n', 3, "did you mean 'packages'"),
        ('[packages]\ninclude = "jq"\n', 4, "a list of strings"),
        ('[packages]\ninclude = ["jq; reboot"]\n', 4, "not a Debian package name"),
        ('[units]\nenable = ["x"]\n', 4, "not a unit name"),
        ('[remove]\npaths = ["../../etc/passwd"]\n', 4, "below /"),
        ('[image]\ncompression = "gzip"\n', 4, "zstd, lz4"),
        ('[kernel]\ncmdline_extra = ["a\\nb"]\n', 3, "kernel option"),
        ('version = "1.1"\n', 3, "os.version: '1.1' is not a version"),
        ("version = 1.1\n", 3, "os.version: must be a string"),
        ('channels = "alpha"\n', 3, "os.channels: must be a list of strings"),
        ('id = "x"\nchannels = ["al pha"]\n', 4, "os.channels: 'al pha' cannot name a channel"),
        ('chanels = ["alpha"]\n', 3, "did you mean 'channels'"),
        ('[[files]]\npath = "/usr/../etc/shadow"\ncontent = ""\n', 4, "absolute path"),
        ('[[files]]\npath = "/var/x"\ncontent = ""\n', 4, "below /usr or /etc"),
        ('[[files]]\npath = "/usr/local/bin/x"\ncontent = ""\n', 4, "is the owner's"),
        ('[[files]]\npath = "/usr/x"\ncontent = ""\nmod = "0755"\n', 6, "did you mean 'mode'"),
        ('[[files]]\npath = "/usr/x"\ncontent = ""\nmode = "7777"\n', 6, "0644"),
    ],
)
def test_a_typo_is_shown_where_it_is(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, base() + text)
    with pytest.raises(recipe.RecipeError) as caught:
        recipe.load(path)
    assert f"{path}, line {line}:" in caught.value.message
    assert words in caught.value.message


def test_broken_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, '[os]\nname = "a\n')
    with pytest.raises(recipe.RecipeError, match=r"mine\.toml.*line 2"):
        recipe.load(path)


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, '[os]\nextends = "b.toml"\n', "a.toml")
    write(tmp_path, '[os]\nextends = "a.toml"\n', "b.toml")
    with pytest.raises(recipe.RecipeError, match="extends itself"):
        recipe.load(tmp_path / "a.toml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(recipe.RecipeError, match=r"nothing\.toml cannot be read"):
        recipe.load(tmp_path / "nothing.toml")


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_a_recipe_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = write(tmp_path_factory.mktemp("r"), text)
    try:
        tomllib.loads(path.read_text())
        recipe.load(path)
    except tomllib.TOMLDecodeError:
        with pytest.raises(recipe.RecipeError):
            recipe.load(path)
    except recipe.RecipeError as error:
        assert str(path) in error.message
