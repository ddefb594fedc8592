"""The config drive: what is written can be read as OpenStack's format says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import yaml

from proa.lab import configdrive


def _read(iso: pycdlib.PyCdlib, path: str, by: str) -> bytes:
    content = io.BytesIO()
    iso.get_file_from_iso_fp(content, **{by: path})
    return content.getvalue()


def test_both_files_are_there_under_both_name_systems(tmp_path: Path) -> None:
    path = tmp_path / "config.iso"
    configdrive.write(path, name="web-1", ssh_keys=["ssh-ed25519 AAAA me"], user_data="hello\n")
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        assert iso.pvd.volume_identifier.decode().strip() == "config-2"
        for by in ("rr_path", "joliet_path"):
            assert _read(iso, "/openstack/latest/user_data", by) == b"hello\n"
            meta = json.loads(_read(iso, "/openstack/latest/meta_data.json", by))
            assert meta["hostname"] == "web-1"
            assert list(meta["public_keys"].values()) == ["ssh-ed25519 AAAA me"]
    finally:
        iso.close()


def test_the_cloud_config_names_the_machine_and_lets_the_key_in() -> None:
    text = configdrive.cloud_config(
        hostname="web-1", ssh_keys=["ssh-ed25519 AAAA me"], update_conf="GROUP=alpha\n"
    )
    assert text.startswith("#cloud-config\n")
    document = yaml.safe_load(text)
    assert document["hostname"] == "web-1"
    assert document["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]
    (file,) = document["write_files"]
    assert (file["path"], file["content"]) == ("/etc/proa/update.conf", "GROUP=alpha\n")
