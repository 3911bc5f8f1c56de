"""Source distributions of hosts and environments for them, kept in a directory that is no part of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FETCH_SECONDS = 300
INSTALL_SECONDS = 900


class UnavailableError(Exception):
    """Something is not here and cannot be had: a Python, or what the package index should have."""


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raftsvc-conformance"


def python_of(version: str) -> str:
    """The path of a Python `x.y`, of this machine's or of pyenv's; raises UnavailableError."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        prefix = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True, check=False)
        candidates.append(f"{prefix.stdout.strip()}/bin/python")
    says = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        try:
            said = subprocess.run([candidate, "-c", says], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if said.stdout.strip() == version:
            return candidate
    raise UnavailableError(f"there is no Python {version} here")


def source_of(host: str, version: str, python: str, cache: Path) -> Path:
    """The source distribution, as the package index has it for that `python`; raises UnavailableError."""
    kept = cache / "sdists" / f"{host}-{version}"
    found = list(kept.glob("*.tar.gz"))
    if not found:
        kept.mkdir(parents=True, exist_ok=True)
        _pip(
            python,
            ["download", "--no-binary", ":all:", "--no-deps", "--dest", str(kept), f"{host}=={version}"],
            FETCH_SECONDS,
        )
        found = list(kept.glob("*.tar.gz"))
    if len(found) != 1:
        raise UnavailableError(f"{host} {version} has no source distribution of its own")
    return found[0]


def unpack(archive: Path, target: Path) -> Path:
    """Into `target`, which is empty; returns its one directory."""
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    (directory,) = target.iterdir()
    return directory


def environment(name: str, version: str, extras: str, requirements: Sequence[str], cache: Path) -> str:
    """The Python of an environment that has the project, with extras, and these; made if it is not there."""
    wanted = [f"{ROOT}[{extras}]", (ROOT / "setup.cfg").read_text(), *requirements]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    home = cache / "venvs" / f"{name}-{version}-{digest}"
    python = str(home / "bin" / "python")
    done = home / ".installed"
    if not done.exists():
        subprocess.run([python_of(version), "-m", "venv", "--clear", str(home)], check=True)
        project = ["--use-pep517", "--editable", f"{ROOT}[{extras}]"] if extras else ["--editable", str(ROOT)]
        _pip(python, ["install", *project, *requirements], INSTALL_SECONDS)
        done.touch()
    return python


def _pip(python: str, arguments: Sequence[str], seconds: float) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{' '.join(arguments)} took longer than {seconds:g} s") from error
    if said.returncode:
        raise UnavailableError(f"{' '.join(arguments)}: {said.stderr.strip()[-2000:]}")
