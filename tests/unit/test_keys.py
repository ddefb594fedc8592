"""Keys are kept from others, never lost by a crash, and every root follows from the one before."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proa.factory import atomic, keys
from proa.factory.keys import KeysError

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    keys.init(tmp_path / "keys", NOW)
    return tmp_path / "keys"


def test_init_makes_a_root_that_names_four_different_keys(home: Path) -> None:
    (root,) = keys.roots(home)
    assert root.signed.version == 1
    assert root.signed.consistent_snapshot is True
    assert root.signed.expires == datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    infos = keys.describe(home)
    assert [info.role for info in infos] == list(keys.ROLES)
    assert len({info.key_id for info in infos}) == 4
    assert (home / "root.json").read_bytes() == (home / "roots" / "1.root.json").read_bytes()


def test_only_the_owner_can_read_keys(home: Path) -> None:
    for file in home.rglob("*.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert len(list(home.rglob("*.pem"))) == 4


def test_init_never_overwrites(home: Path) -> None:
    before = (home / "root.pem").read_bytes()
    with pytest.raises(KeysError, match="not empty"):
        keys.init(home, NOW)
    assert (home / "root.pem").read_bytes() == before


def test_an_init_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(keys, "_write_root", fail)
    with pytest.raises(KeysError, match="disk full"):
        keys.init(tmp_path / "keys", NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", keys.ROLES)
def test_rotation_replaces_one_key_and_is_signed_by_the_root_before(home: Path, role: str) -> None:
    before = {info.role: info.key_id for info in keys.describe(home)}
    assert keys.rotate(home, role, NOW + timedelta(days=1)) == 2
    after = {info.role: info.key_id for info in keys.describe(home)}
    assert {r for r in keys.ROLES if before[r] != after[r]} == {role}
    old, new = keys.roots(home)  # Reading them checks the chain of signatures.
    assert new.signed.expires == old.signed.expires + timedelta(days=1)
    assert (home / "root.json").read_bytes() == (home / "roots" / "2.root.json").read_bytes()
    assert not list(home.rglob("*.next"))
    for file in home.rglob("*.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_every_role_can_be_rotated_again_and_again(home: Path) -> None:
    for count, role in enumerate(keys.ROLES * 2, start=2):
        assert keys.rotate(home, role, NOW) == count
    assert len(keys.roots(home)) == 9


def test_renewing_keeps_the_keys(home: Path) -> None:
    before = keys.describe(home)
    assert keys.renew(home, NOW + timedelta(days=300)) == 2
    assert keys.describe(home) == before
    assert keys.roots(home)[-1].signed.expires.year == 2027


@pytest.mark.parametrize("role", keys.ROLES)
def test_a_rotation_that_is_cut_short_anywhere_can_be_done_again(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps that last: write the key, write the root, retire the old, put the new, copy the root.
    for step in range(5):
        home = tmp_path / str(step)
        keys.init(home, NOW)
        with monkeypatch.context() as patch:
            _stop_after(patch, step)
            with pytest.raises(KeyboardInterrupt):
                keys.rotate(home, role, NOW)
        version = keys.rotate(home, role, NOW)
        newest = keys.roots(home)[-1].signed
        assert newest.version == version
        for info in keys.describe(home):
            (signer,) = keys.signers([home], info.role, [newest])
            assert signer.public_key.keyid == info.key_id
            assert info.file is not None and info.file.exists()


def _stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let ``steps`` durable changes happen, then stop as a kill would."""
    left = [steps]

    def counted(real: object) -> object:
        def run(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            assert callable(real)
            return real(*args, **kwargs)

        return run

    patch.setattr(atomic, "write", counted(atomic.write))
    patch.setattr(atomic, "rename", counted(atomic.rename))


def test_offline_keys_can_have_a_passphrase(tmp_path: Path) -> None:
    home = tmp_path / "keys"
    keys.init(home, NOW, passphrase=b"correct horse")
    root = keys.roots(home)[-1].signed
    for role in keys.ONLINE:
        assert keys.signers([home], role, [root])
    for role in keys.OFFLINE:
        assert b"ENCRYPTED" in (home / f"{role}.pem").read_bytes()
        assert keys.signers([home], role, [root], passphrase=b"correct horse")
        with pytest.raises(KeysError, match="has a passphrase"):
            keys.signers([home], role, [root])
        with pytest.raises(KeysError, match="passphrase is wrong"):
            keys.signers([home], role, [root], passphrase=b"battery staple")
    assert keys.rotate(home, "targets", NOW, passphrase=b"correct horse") == 2


def test_a_key_that_others_can_read_is_refused(home: Path) -> None:
    (home / "targets.pem").chmod(0o640)
    root = keys.roots(home)[-1].signed
    with pytest.raises(KeysError, match="can be read by others") as caught:
        keys.signers([home], "targets", [root])
    assert "chmod 600" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_is_named_and_its_content_is_not_shown(home: Path, content: bytes) -> None:
    (home / "root.pem").write_bytes(content)
    with pytest.raises(KeysError, match=r"root\.pem: it is damaged") as caught:
        keys.rotate(home, "root", NOW)
    assert "BEGIN" not in caught.value.message


def test_a_strangers_key_is_not_used(home: Path, tmp_path: Path) -> None:
    keys.init(tmp_path / "stranger", NOW)
    root = keys.roots(home)[-1].signed
    with pytest.raises(KeysError, match="not here"):
        keys.signers([tmp_path / "stranger"], "targets", [root])


def test_a_root_that_does_not_follow_is_refused(home: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    keys.init(stranger, NOW)
    keys.rotate(stranger, "root", NOW)
    (home / "roots" / "2.root.json").write_bytes((stranger / "roots" / "2.root.json").read_bytes())
    with pytest.raises(KeysError, match="cannot be used as a root"):
        keys.roots(home)


def test_missing_keys_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="no keys in") as caught:
        keys.rotate(tmp_path / "nowhere", "root", NOW)
    assert "proa keys init" in str(caught.value.hint)
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_role_is_refused(home: Path) -> None:
    with pytest.raises(KeysError, match="no role 'mirrors'"):
        keys.rotate(home, "mirrors", NOW)
