"""The launcher ``./proa``: what is missing is named, halves are never used, nothing is repeated."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

LAUNCHER = Path(__file__).parents[2] / "proa"


@pytest.fixture
def launcher() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("proa_launcher", str(LAUNCHER))
    spec = importlib.util.spec_from_loader("proa_launcher", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def _run(*arguments: str, cache: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PROA_CACHE": str(cache)}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _fake_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _ready_environment(launcher: ModuleType, cache: Path) -> Path:
    """An environment that counts as complete, whose Python says how it was called."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    identity = f"{python} {sys.version}".encode()
    key = hashlib.sha256(launcher.LOCK.read_bytes() + identity).hexdigest()[:16]
    environment = cache / f"venv-{key}"
    _fake_program(environment / "bin" / "python", 'echo "$PYTHONPATH|$PYTHONPYCACHEPREFIX|$*"')
    (environment / ".complete").touch()
    return environment


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_ready_environment_is_used_as_it_is(launcher: ModuleType, cache: Path) -> None:
    _ready_environment(launcher, cache)
    result = _run("machines", "--json", cache=cache)
    assert (result.returncode, result.stderr) == (0, "")
    python_path, pycache, arguments = result.stdout.strip().split("|")
    assert python_path == str(LAUNCHER.parent / "src")
    assert pycache == str(cache / "pycache"), "byte code must not be written into the checkout"
    assert arguments == "-m proa.cli machines --json"


def test_an_environment_without_its_mark_is_not_used(launcher: ModuleType, cache: Path) -> None:
    environment = _ready_environment(launcher, cache)
    (environment / ".complete").unlink()
    _fake_program(environment / "bin" / "python", "echo half-made")
    # With an index that cannot be reached the making fails, and then nothing may be started.
    result = subprocess.run(
        [sys.executable, str(LAUNCHER), "machines"],
        env={
            **os.environ,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": "http://127.0.0.1:9/",
            "PIP_FIND_LINKS": "",
            "PIP_RETRIES": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == launcher.MISSING
    assert "requirements.lock could not be installed" in result.stderr
    assert "half-made" not in result.stdout
    assert not (environment / ".complete").exists()


def test_what_is_missing_is_named_by_its_package(launcher: ModuleType, tmp_path: Path) -> None:
    needs = {"openssh-client": "ssh-not-here", "ovmf": str(tmp_path / "no.fd"), "dash": "sh"}
    assert launcher.missing_packages(needs) == ["openssh-client", "ovmf"]


def test_nothing_missing_needs_no_package_manager(launcher: ModuleType) -> None:
    launcher.provide_packages([])


def test_who_is_not_root_is_told_the_command(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(launcher.shutil, "which", lambda _name: "/usr/bin/apt-get")
    with pytest.raises(launcher.Missing) as raised:
        launcher.provide_packages(["ovmf", "mmdebstrap"])
    command = "sudo apt-get install --no-install-recommends ovmf mmdebstrap"
    assert command in str(raised.value)


def test_a_system_without_apt_is_told_the_names(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(launcher.Missing, match="ovmf"):
        launcher.provide_packages(["ovmf"])


def test_root_gets_it_installed_after_an_update_where_one_is_needed(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    # Installing fails until the package lists are there, as on a fresh container.
    _fake_program(
        tmp_path / "bin" / "apt-get",
        f'echo "$DEBIAN_FRONTEND $*" >> {log}\n'
        f"case $* in *update*) : > {tmp_path}/lists ;; *) [ -e {tmp_path}/lists ] ;; esac",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    launcher.provide_packages(["ovmf"])
    words = [line.split()[-1] for line in log.read_text().splitlines()]
    assert words == ["ovmf", "update", "ovmf"]
    assert all(line.startswith("noninteractive ") for line in log.read_text().splitlines())


def test_what_apt_says_is_shown_when_it_fails(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_program(tmp_path / "bin" / "apt-get", "echo 'E: no space left'; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(launcher.Missing, match="E: no space left"):
        launcher.provide_packages(["ovmf"])


def test_an_old_python_hands_over_to_a_newer_one(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_program(tmp_path / "python3.12", "exit 0")
    monkeypatch.setattr(launcher.sys, "version_info", (3, 10, 12))
    monkeypatch.setenv("PATH", str(tmp_path))
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, arguments: called.append(arguments))
    with pytest.raises(launcher.Missing):  # only because execv came back
        launcher.use_new_python(["up"])
    assert called[0] == [str(tmp_path / "python3.12"), str(LAUNCHER), "up"]


def test_an_old_python_alone_is_told_what_to_do(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.sys, "version_info", (3, 9, 2))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(launcher.Missing, match=r"3\.11 or newer is needed; .* is 3\.9\.2"):
        launcher.use_new_python([])


def test_it_parses_under_an_old_python() -> None:
    ast.parse(LAUNCHER.read_text(), feature_version=(3, 8))
