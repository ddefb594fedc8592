"""The decisions of the factory: mirrors, what an initrd needs, names of bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from proa.factory import archive, build, dpkg, image, initrd, inventory, rootfs
from proa.wire.errors import UserError
from proa.wire.manifest import Package
from proa.wire.version import parse


def test_the_hosts_own_mirrors_are_used() -> None:
    sources = [
        ("http://other.example/apt", "cloud-sdk-bookworm"),
        ("http://mirror.example/debian/", "bookworm"),
        ("http://second.example/debian", "trixie"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    ]
    chosen = archive.choose_mirrors(sources)
    assert chosen.archive == "http://mirror.example/debian"
    assert chosen.security == "http://mirror.example/debian-security"
    assert "deb http://mirror.example/debian trixie main\n" in chosen.sources_list()
    assert (
        "deb http://mirror.example/debian-security trixie-security main\n" in chosen.sources_list()
    )


def test_a_host_without_a_debian_mirror_is_told_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        archive.choose_mirrors([("http://mirror.example/ubuntu", "noble")])
    assert "PROA_MIRROR" in (caught.value.hint or "")


def test_a_named_mirror_wins() -> None:
    chosen = archive.find_mirrors({"PROA_MIRROR": "http://near.example/debian/"})
    assert chosen.archive == "http://near.example/debian"
    assert chosen.security == "http://near.example/debian-security"


def test_modules_bring_the_modules_that_they_need() -> None:
    depends = initrd.read_dependencies(
        "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz\n"
        "kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc32c-x.ko.xz:\nkernel/fs/btrfs/btrfs.ko.xz:\n"
    )
    soft = initrd.read_soft_dependencies("softdep ext4 pre: crc32c_x\nsoftdep other pre: nothing\n")
    assert initrd.closure(["kernel/fs/ext4/ext4.ko.xz"], depends, soft) == [
        "kernel/fs/ext4/ext4.ko.xz",
        "kernel/fs/jbd2/jbd2.ko.xz",
        "kernel/lib/crc32c-x.ko.xz",
    ]


def test_a_program_names_its_libraries_and_its_interpreter() -> None:
    names = initrd.needed(Path("/bin/mount").resolve())
    assert "libc.so.6" in names
    assert any(name.startswith("/lib64/ld-linux") for name in names)
    assert initrd.needed(Path(__file__)) == ()


def test_what_an_initrd_names_must_be_there(tmp_path: Path) -> None:
    contents = initrd.Contents(files=("usr/bin/nothing",), units=(), modules=())
    with pytest.raises(UserError, match="usr/bin/nothing"):
        initrd.fill(tmp_path / "out", tmp_path, contents, "6.1")


def test_packages_and_their_sources_are_read_from_dpkg(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg/info").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\n"
        "Source: glibc (2.41-12)\nVersion: 2.41-12+b1\nDescription: C library\n long text: here\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n"
        "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2\n"
    )
    (tmp_path / "var/lib/dpkg/info/libc6:amd64.list").write_text(
        "/.\n/lib/ld.so\n/usr/lib/libc.so\n"
    )
    assert [d.package for d in dpkg.packages(tmp_path)] == [
        Package("bash", "5.2", "amd64", "bash", "5.2"),
        Package("libc6", "2.41-12+b1", "amd64", "glibc", "2.41-12"),
    ]
    owners = dpkg.owners(tmp_path)
    assert owners["usr/lib/ld.so"] == "libc6"
    assert owners["usr/lib/libc.so"] == "libc6"


def test_the_sbom_is_valid_and_always_the_same() -> None:
    details = dpkg.Details(
        Package("bash", "5.2-1", "amd64", "bash", "5.2-1"),
        "A <a@example.org>",
        "https://b",
        "shell",
    )
    serial = image.stable_uuid("x")
    # sbom() refuses what CycloneDX's own schema does not take.
    first = inventory.sbom([details], "Proa", parse("1.0.0"), 1_700_000_000, serial)
    assert first == inventory.sbom([details], "Proa", parse("1.0.0"), 1_700_000_000, serial)
    assert "pkg:deb/debian/bash@5.2-1?arch=amd64" in first


def test_every_byte_of_usr_is_in_the_size_report(tmp_path: Path) -> None:
    for name, size in (("usr/bin/bash", 100), ("usr/x.pyc", 7), ("usr/share/proa/etc/a", 5)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    report = inventory.sizes(tmp_path, {"usr/bin/bash": "bash", "etc/a": "base-files"})
    assert report == (
        inventory.Size("bash", 100, 1),
        inventory.Size("(byte code)", 7, 1),
        inventory.Size("base-files", 5, 1),
    )


def test_the_grub_environment_is_what_grub_reads() -> None:
    block = image.grub_environment({"good": "a", "tries": "0"})
    assert len(block) == 1024
    assert block.startswith(b"# GRUB Environment Block\ngood=a\ntries=0\n#")


def test_the_command_line_carries_the_root_hash_first() -> None:
    assert image.command_line(["root=PARTLABEL=ROOT", "rw"], "ab" * 32) == (
        f"usrhash={'ab' * 32} root=PARTLABEL=ROOT rw"
    )


@pytest.mark.parametrize("holes", [[], [(0, 3 << 20)], [(1 << 20, 5 << 20), (7 << 20, 8 << 20)]])
def test_a_sparse_file_has_the_hash_of_its_content(
    tmp_path: Path, holes: list[tuple[int, int]]
) -> None:
    content = bytearray(os.urandom(8 << 20))
    for start, end in holes:
        content[start:end] = bytes(end - start)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        position = 0
        for start, end in [*holes, (len(content), len(content))]:
            file.seek(position)
            file.write(content[position:start])
            position = end
        file.truncate(len(content))
    assert build.digest(path) == hashlib.sha256(content).hexdigest()


def test_an_empty_file_has_the_empty_hash(tmp_path: Path) -> None:
    (tmp_path / "e").touch()
    assert build.digest(tmp_path / "e") == hashlib.sha256().hexdigest()


def test_a_tree_is_known_by_names_modes_links_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "l").symlink_to("a")
    digests = [build.digest_tree(tmp_path)]
    (tmp_path / "a").chmod(0o755)
    digests.append(build.digest_tree(tmp_path))
    (tmp_path / "a").write_text("2")
    digests.append(build.digest_tree(tmp_path))
    (tmp_path / "l").unlink()
    digests.append(build.digest_tree(tmp_path))
    assert len(set(digests)) == 4


def test_removing_takes_dangling_links_too(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").symlink_to("nowhere")
    (tmp_path / "etc/rc3.d").mkdir()
    rootfs.remove(tmp_path, ["etc/resolv.conf", "etc/rc?.d", "usr/never/was"])
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_release_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text("{}")
    options = build.BuildOptions(parse("1.0.0"), tmp_path / "r", tmp_path / "out", tmp_path / "c")
    if os.geteuid() != 0:
        pytest.skip("building needs root")
    with pytest.raises(UserError, match="not empty"):
        build.build(options, print)


def test_an_image_does_not_depend_on_the_umask_of_the_clone(tmp_path: Path) -> None:
    source, target = tmp_path / "os", tmp_path / "tree"
    (source / "etc/new").mkdir(parents=True)
    for name, mode in (("etc/plain", 0o600), ("etc/new/program", 0o775), ("etc/old", 0o664)):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    (source / "etc/link").symlink_to("plain")
    (target / "etc").mkdir(parents=True)
    (target / "etc/old").symlink_to("/dev/null")
    rootfs.lay_over(source, target)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (target / "etc").rglob("*") if p.is_file()}
    assert modes == {"plain": 0o644, "link": 0o644, "program": 0o755, "old": 0o644}
    assert (target / "etc/link").is_symlink()
    assert not (target / "etc/old").is_symlink()
