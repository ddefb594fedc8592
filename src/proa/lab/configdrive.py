"""A config drive: the disk by which a machine gets its configuration at boot.

Format: OpenStack's config drive, version 2: an ISO 9660 file system labelled ``config-2`` with
``openstack/latest/meta_data.json`` and ``openstack/latest/user_data``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pycdlib
import yaml

LABEL = "config-2"


def write(path: Path, *, name: str, ssh_keys: Sequence[str], user_data: str) -> None:
    """Write a config drive for the machine ``name`` to ``path``."""
    meta_data = {
        "uuid": name,
        "name": name,
        "hostname": name,
        "public_keys": {f"key-{number}": key for number, key in enumerate(ssh_keys)},
    }
    files = {
        "openstack/latest/meta_data.json": json.dumps(meta_data),
        "openstack/latest/user_data": user_data,
    }
    write_iso(path, LABEL, files)


def write_iso(path: Path, label: str, files: Mapping[str, str]) -> None:
    """Write an ISO 9660 file system with Rock Ridge and Joliet names to ``path``."""
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident=label, joliet=3, rock_ridge="1.09", interchange_level=3)
    short = {PurePosixPath("."): ""}  # ISO 9660's own names, which nobody reads
    for number, (name, text) in enumerate(files.items()):
        whole = PurePosixPath(name)
        for folder in reversed(whole.parents):
            if folder not in short:
                short[folder] = f"{short[folder.parent]}/DIR{len(short)}"
                iso.add_directory(short[folder], rr_name=folder.name, joliet_path=f"/{folder}")
        iso.add_fp(
            io.BytesIO(text.encode()),
            len(text.encode()),
            f"{short[whole.parent]}/FILE{number}.;1",
            rr_name=whole.name,
            joliet_path=f"/{whole}",
        )
    iso.write(str(path))
    iso.close()


def cloud_config(
    *, hostname: str, ssh_keys: Sequence[str], update_conf: str, units: Sequence[object] = ()
) -> str:
    """Return a ``#cloud-config`` that names the machine, lets ``core`` in and sets its updates."""
    document = {
        "hostname": hostname,
        "ssh_authorized_keys": list(ssh_keys),
        "write_files": [
            {"path": "/etc/proa/update.conf", "permissions": "0644", "content": update_conf}
        ],
        "coreos": {"units": list(units)},
    }
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False)
