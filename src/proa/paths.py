"""Where the workstation tools keep things: never in the checkout."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Things that can be made again: the SDK, package trees, probe results."""
    return _base("PROA_CACHE", "XDG_CACHE_HOME", ".cache")


def data_dir() -> Path:
    """Things that cannot: keys, the repository, the server's database, machines."""
    return _base("PROA_HOME", "XDG_DATA_HOME", ".local/share")


def _base(own: str, xdg: str, fallback: str) -> Path:
    if value := os.environ.get(own):
        return Path(value).absolute()
    if value := os.environ.get(xdg):
        return Path(value).absolute() / "proa"
    return Path.home() / fallback / "proa"
