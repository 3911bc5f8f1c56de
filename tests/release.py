"""Checks what is to be released: each file of dist/, installed in an environment of its own, runs README.

    python -m tests.release dist          # what `make release-check` does after `make wheels`

For the source distribution, the pure wheel and the compiled one: a fresh virtual environment in a fresh folder, `pip
install` with the extras that README names, then README's first screen as it is printed, in bash and zsh.  The ports
of README are taken for that time.  `twine check --strict` reads the metadata of all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import raftsvc
from benchmarks import screen

PATIENCE_SECONDS = 1800.0


def run(*command: str | Path, folder: Path) -> str:
    """What it prints.  Raises SystemExit, with that, if it fails.  Nothing of this repository is in its way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAFTSVC_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def environment_of(package: Path, extras: str, folder: Path) -> Path:
    """Its executables, where the package is installed with these extras."""
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    place = folder / "venv" / "bin"
    run(place / "python", "-m", "pip", "install", "--quiet", f"{package}[{extras}]", folder=folder)
    return place


def check(package: Path, folder: Path) -> None:
    """One of them.  Raises SystemExit."""
    place = environment_of(package, "flask,gunicorn", folder)
    ask = "import raftsvc; print(raftsvc.__file__, raftsvc.__compiled__)"
    path, is_compiled = run(place / "python", "-c", ask, folder=folder).split()
    if not path.startswith(str(folder)):
        raise SystemExit(f"{package.name}: {path} was imported")
    if (is_compiled == "True") != (package.suffix == ".whl" and "-none-any" not in package.name):
        raise SystemExit(f"{package.name}: is compiled: {is_compiled}")
    version = run(place / "raftsvc", "--version", folder=folder).strip()
    if version != f"raftsvc {raftsvc.__version__}":
        raise SystemExit(f"{package.name} says that it is {version}")
    for shell in filter(shutil.which, ("bash", "zsh")):
        empty = folder / shell
        empty.mkdir()
        names = {"PATH": os.pathsep.join([str(place), os.environ["PATH"]]), "HOME": str(folder)}
        lines = [line.text for line in screen.run(empty, shell, names) if not line.is_typed]
        if [json.loads(line) for line in lines[:3]] != [{"visits": number} for number in (1, 2, 3)]:
            raise SystemExit(f"{package.name}, {shell}: {lines}")
    sys.stdout.write(f"{package.name}: installed, README runs\n")


def main() -> None:
    """All of them."""
    packages = sorted(path.resolve() for path in Path(sys.argv[1]).iterdir())
    kinds = {".gz": 0, "pure": 0, "compiled": 0}
    for package in packages:
        kinds[package.suffix if package.suffix == ".gz" else "pure" if "-none-any" in package.name else "compiled"] += 1
    if set(kinds.values()) != {1}:
        raise SystemExit(f"there has to be one of each kind, not {[package.name for package in packages]}")
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            check(package, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        pure = next(package for package in packages if "-none-any" in package.name)
        place = environment_of(pure, "release", Path(folder))
        sys.stdout.write(run(place / "python", "-m", "twine", "check", "--strict", *packages, folder=Path(folder)))


if __name__ == "__main__":
    main()
