"""From a tree of Debian packages to Proa's ``/usr``.

Afterwards everything that a release carries is below ``usr``: the defaults of /etc lie in
``usr/share/proa/etc`` (the initrd lays the owner's /etc over them) and /var is made anew by
tmpfiles.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from proa.factory.recipe import Recipe
from proa.factory.sdk import Sdk
from proa.wire.errors import UserError
from proa.wire.version import Version

# Ours is the source tree that this very module lies in.
_SOURCE = Path(__file__).parents[1]
_MACHINE_HOUSES = ("wire", "machine")
_LIBRARIES = "usr/lib/python3/dist-packages"
_PYTHON = f"{_LIBRARIES}/proa"

# What a person or a unit calls, and the function behind it.
_PROGRAMS = {
    "usr/bin/proactl": "proa.machine.proactl",
    "usr/bin/coreos-cloudinit": "proa.machine.coreos_cloudinit",
    "usr/bin/update_engine_client": "proa.machine.update_engine_client",
    "usr/lib/proa/cloudinit": "proa.machine.cloudinit",
}
# -I: neither the environment nor the current directory may change what a program of ours imports.
# -S: nor may what the owner put below /usr/local, where Debian's site module looks first.
_PROGRAM = """\
#!/usr/bin/python3 -IS
import sys

sys.path.append("/{libraries}")
from {module} import main

raise SystemExit(main())
"""

_UNITS = "usr/lib/systemd/system"

# State that some package's installation made and no machine should start with.
_NOT_IN_VAR = re.compile(
    r"/var/(cache|tmp|backups|lock|run|local|opt|mail|spool/(mail|cron)|log/(apt|runit)"
    r"|lib/(dpkg|apt|ucf|pam|python|misc|vim|shells\.state|systemd/deb-systemd))(/|$)"
)


def kernel_version(tree: Path) -> str:
    """Return the release of the one kernel in ``tree``."""
    found = sorted(p.name for p in (tree / "usr/lib/modules").iterdir() if p.is_dir())
    if len(found) != 1:
        raise UserError(f"one kernel is wanted in /usr, not {len(found)}: {', '.join(found)}")
    return found[0]


def make(
    tree: Path,
    recipe: Recipe,
    version: Version,
    epoch: int,
    tools: Sdk,
    files: Path,
    root_json: Path,
) -> None:
    """Turn the package tree into Proa's.

    ``files`` is the directory with the system's own files, ``root_json`` the trusted TUF root.
    """
    kernel = kernel_version(tree)
    shutil.move(tree / f"boot/vmlinuz-{kernel}", tree / f"usr/lib/modules/{kernel}/vmlinuz")
    _unpack_modules(tree, tools, kernel)
    remove(tree, recipe.remove)
    lay_over(files, tree)
    # sudo itself asks for this mode.
    for path in (tree / "etc/sudoers.d").iterdir():
        path.chmod(0o440)
    _units(tree, recipe, tools)
    _hwdb(tree, tools)
    _identity(tree, recipe, version, epoch)
    _user_core(tree)
    _programs(tree, tools)
    share = tree / "usr/share/proa"
    share.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root_json, share / "root.json")
    defaults = f"GROUP={recipe.group}\nSERVER={recipe.server}\nREBOOT_STRATEGY=reboot\n"
    (share / "update.conf").write_text(defaults)
    for extra in recipe.files:
        target = tree / extra.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(extra.content)
        target.chmod(extra.mode)
    tools.run(["ldconfig", "-r", "/work/tree"], work=tree.parent)
    _var(tree)
    shutil.move(tree / "etc", share / "etc")
    shutil.rmtree(tree / "boot")


def _unpack_modules(tree: Path, tools: Sdk, kernel: str) -> None:
    """Unpack the kernel's modules: the image is compressed as a whole, and an update of a kernel
    finds what two versions of a module have in common only in their plain bytes."""
    modules = tree / "usr/lib/modules" / kernel
    for packed in sorted(modules.rglob("*.ko.xz")):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    tools.run(["depmod", "-b", "/work/tree", kernel], work=tree.parent)


def lay_over(source: Path, target: Path) -> None:
    """Copy a directory of the checkout over ``target``.

    Of the modes only "executable" counts, which is all that git keeps: an image must not depend on
    the umask under which somebody cloned.
    """
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            if not copy.is_dir():
                copy.mkdir(parents=True)
            continue
        copy.unlink(missing_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        else:
            shutil.copyfile(path, copy)
            copy.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def remove(tree: Path, patterns: Iterable[str]) -> None:
    """Delete what the patterns name below ``tree``; a pattern that meets nothing is no error.

    Packages change, and a file that is already gone is as good as removed.
    """
    for pattern in patterns:
        # glob does not see a dangling link that it is given by its full name.
        literal = not re.search(r"[*?\[]", pattern)
        for path in [tree / pattern] if literal else sorted(tree.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.is_symlink() or path.exists():
                path.unlink()


def _units(tree: Path, recipe: Recipe, tools: Sdk) -> None:
    """Enable the recipe's units, now and by preset.

    The preset matters too: systemd applies it to every unit at a machine's first boot.
    """
    preset = "".join(f"enable {unit}\n" for unit in recipe.enable) + "disable *\n"
    (tree / "usr/lib/systemd/system-preset/00-proa.preset").write_text(preset)
    tools.run(["systemctl", "--root=/work/tree", "enable", *recipe.enable], work=tree.parent)
    (tree / _UNITS / "default.target").unlink()
    (tree / _UNITS / "default.target").symlink_to("multi-user.target")
    for unit in recipe.mask:
        path = tree / _UNITS / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")


def _hwdb(tree: Path, tools: Sdk) -> None:
    """Compile udev's hardware database without the vendors' and products' names.

    They are three quarters of it and only shown by tools that are not here.
    """
    sources = tree / "usr/lib/udev/hwdb.d"
    for path in sources.glob("20-*.hwdb"):
        path.unlink()
    tools.run(["systemd-hwdb", "--usr", "--root=/work/tree", "update"], work=tree.parent)
    shutil.rmtree(sources)


def _identity(tree: Path, recipe: Recipe, version: Version, epoch: int) -> None:
    pretty = f"{recipe.name} {version} (Debian 13)"
    lines = {
        "NAME": recipe.name,
        "ID": recipe.id,
        "ID_LIKE": "debian",
        "VERSION": str(version),
        "VERSION_ID": str(version),
        "IMAGE_ID": recipe.id,
        "IMAGE_VERSION": str(version),
        "BUILD_ID": str(epoch),
        "PRETTY_NAME": pretty,
        "HOME_URL": recipe.home_url,
        "DEFAULT_HOSTNAME": recipe.id,
        "ANSI_COLOR": "0;36",
    }
    text = "".join(f'{key}="{value}"\n' for key, value in lines.items())
    (tree / "usr/lib/os-release").write_text(text)
    etc = tree / "etc"
    (etc / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (etc / "mtab").symlink_to("../proc/self/mounts")
    (etc / "fstab").write_text("# Mounts of your own. The system's are units.\n")
    (etc / "default/locale").write_text("LANG=C.UTF-8\n")
    (etc / "issue").write_text(f"{pretty} \\n \\l\n\\4\n\n")
    (etc / "issue.net").write_text(f"{pretty}\n")


def _user_core(tree: Path) -> None:
    """The user that a fresh machine lets in, with a key and never with a password."""
    etc = tree / "etc"
    _append(etc / "passwd", "core:x:1000:1000:Proa:/home/core:/bin/bash")
    _append(etc / "shadow", "core:*:19675:0:99999:7:::")
    _append(etc / "group", "core:x:1000:")
    _append(etc / "gshadow", "core:!::")
    for name in ("sudo", "docker", "systemd-journal", "adm"):
        _join(etc / "group", name, field=3)
        _join(etc / "gshadow", name, field=3)
    _append(etc / "subuid", "core:100000:65536")
    _append(etc / "subgid", "core:100000:65536")
    # The root account: no password either, and a date that does not tell the day of the build.
    shadow = (etc / "shadow").read_text()
    (etc / "shadow").write_text(re.sub(r"(?m)^([^:]+:[^:]*):\d+:", r"\1:19675:", shadow))


def _append(file: Path, line: str) -> None:
    with file.open("a") as out:
        out.write(line + "\n")


def _join(file: Path, group: str, field: int) -> None:
    lines = []
    for line in file.read_text().splitlines():
        parts = line.split(":")
        if parts[0] == group:
            parts[field] = ",".join([*filter(None, parts[field].split(",")), "core"])
        lines.append(":".join(parts))
    file.write_text("\n".join(lines) + "\n")


def _programs(tree: Path, tools: Sdk) -> None:
    target = tree / _PYTHON
    target.mkdir(parents=True)
    shutil.copyfile(_SOURCE / "__init__.py", target / "__init__.py")
    for house in _MACHINE_HOUSES:
        (target / house).mkdir()
        lay_over(_SOURCE / house, target / house)
    for cache in sorted(target.rglob("__pycache__")):
        shutil.rmtree(cache)
    compiling = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    strip = ["-s", "/work/tree", "-p", "/"]
    tools.run([*compiling, *strip, f"/work/tree/{_PYTHON}"], work=tree.parent)
    for name, module in _PROGRAMS.items():
        program = tree / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(_PROGRAM.format(libraries=_LIBRARIES, module=module))
        program.chmod(0o755)


def _var(tree: Path) -> None:
    """Describe /var's directories to tmpfiles, so that a machine makes them when they lack."""
    text = "# What the packages of this release expect in /var.\n" + "\n".join(_var_lines(tree))
    (tree / "usr/lib/tmpfiles.d/proa-var.conf").write_text(text + "\n")
    shutil.rmtree(tree / "var")


def _var_lines(tree: Path) -> Iterator[str]:
    for directory, names, _ in os.walk(tree / "var"):
        names.sort()
        for name in names:
            path = Path(directory, name)
            rel = f"/{path.relative_to(tree)}"
            if _NOT_IN_VAR.match(rel):
                continue
            if path.is_symlink():
                yield f"L {rel} - - - - {path.readlink()}"
            else:
                info = path.stat()
                yield f"d {rel} {info.st_mode & 0o7777:04o} {info.st_uid} {info.st_gid} -"
