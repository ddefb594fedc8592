"""A config drive: the disk by which a machine gets its configuration at boot.

Format: OpenStack's config drive, version 2: an ISO 9660 file system labelled ``config-2`` with
``openstack/latest/meta_data.json`` and ``openstack/latest/user_data``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

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
    files = {"meta_data.json": json.dumps(meta_data).encode(), "user_data": user_data.encode()}
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident=LABEL, joliet=3, rock_ridge="1.09", interchange_level=3)
    iso.add_directory("/OPENSTAC", rr_name="openstack", joliet_path="/openstack")
    iso.add_directory("/OPENSTAC/LATEST", rr_name="latest", joliet_path="/openstack/latest")
    for number, (file_name, content) in enumerate(files.items()):
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"/OPENSTAC/LATEST/FILE{number}.;1",
            rr_name=file_name,
            joliet_path=f"/openstack/latest/{file_name}",
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
