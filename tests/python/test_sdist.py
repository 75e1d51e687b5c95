"""The source distribution holds what a build, the tests and the site need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "from setuptools import build_meta; build_meta.build_sdist({!r})"
# Of the checkout alone.
LEFT_OUT = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")


def tracked() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout with git")
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def packed(source: Path, folder: Path) -> set[str]:
    """The files in the sdist of these sources, without its first folder."""
    command = [sys.executable, "-c", BUILD.format(str(folder))]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        return {name.partition("/")[2] for name in opened.getnames()}


def test_the_sdist_holds_every_file_of_the_checkout(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    names = tracked()
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    # What a build leaves behind stays there.
    (source / "python/dendnorm/lib/torch2.13").mkdir(parents=True)
    (source / "python/dendnorm/lib/torch2.13/libdendnorm.so").write_bytes(b"")
    (source / "docs/__pycache__").mkdir()
    (source / "docs/__pycache__/imports.cpython-311.pyc").write_bytes(b"")
    found = packed(source, tmp_path / "sdist")
    needed = {name for name in names if not name.startswith(LEFT_OUT)}
    assert needed - found == set()
    added = {name for name in found - set(names) if name and not (source / name).is_dir()}
    assert {name for name in added if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name} == set()
