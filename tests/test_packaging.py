"""What a user gets who installs raftsvc: the files of the wheel, its metadata, the names it exports."""

from __future__ import annotations

import email.message
import email.parser
import faulthandler
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import raftsvc

ROOT = Path(__file__).resolve().parent.parent


# Nothing is asked of an index.
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")


def run(*command: object, **options: Any) -> str:
    """What the command prints, which has to succeed."""
    arguments = [str(argument) for argument in command]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, made of a copy, so that nothing generated is left in the tree."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building a wheel offline needs what the dev extra installs"
    )
    tree = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("raftsvc", "tests", "examples"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    run(sys.executable, "setup.py", "--quiet", "sdist", cwd=tree, timeout=120)
    (path,) = (tree / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(source, tmp_path_factory.mktemp("wheel")))


def build(source: Path, directory: Path, **environment: str) -> Path:
    """A wheel of the source distribution."""
    command = (sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-cache-dir", "--wheel-dir", directory, source)
    faulthandler.cancel_dump_traceback_later()  # pytest's, for what hangs; this has a limit of its own
    run(*command, env={**os.environ, **environment}, timeout=1200)
    (path,) = directory.glob("*.whl")
    return path


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["compiled wheel"] if raftsvc.__compiled__ else ["source", "pure wheel"])
def test_the_demo_holds_with_what_is_installed(kind: str, source: Path, tmp_path: Path) -> None:
    """Each in an environment of its own; the compiled one is made where a compiler was needed anyhow."""
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    package = source
    if kind != "source":
        asked = {"RAFTSVC_COMPILE": "1", "RAFTSVC_OPT_LEVEL": "0"} if kind == "compiled wheel" else {}
        package = build(source, tmp_path / "wheel", **asked)
        assert package.name.endswith("-none-any.whl") == (kind == "pure wheel")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh", timeout=120)
    python = tmp_path / "fresh" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    installed = Path(run(python, "-c", where, timeout=60).strip())
    # What raftsvc and the demo need is taken from here, but not raftsvc: such a path's own .pth files are not read.
    (installed / "needs.pth").write_text(run(sys.executable, "-c", where, timeout=60))
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", *OFFLINE, "--no-cache-dir", "--ignore-installed", package, timeout=240)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONFAULTHANDLER": "1"}
    environment.pop("PYTHONPATH", None)
    ask = "import raftsvc; print(raftsvc.__file__, raftsvc.__compiled__)"
    answer = run(python, "-c", ask, cwd=tmp_path, env=environment, timeout=60)
    assert answer.split() == [str(installed / "raftsvc" / "__init__.py"), str(kind == "compiled wheel")]
    for command in ([tmp_path / "fresh" / "bin" / "raftsvc"], [python, "-m", "raftsvc"]):
        told = run(*command, "--version", cwd=tmp_path, env=environment, timeout=60)
        assert told == f"raftsvc {raftsvc.__version__}\n"
    assert "all of it held" in run(python, ROOT / "examples" / "demo.py", cwd=tmp_path, env=environment, timeout=240)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_module_of_the_package(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "raftsvc").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_the_wheel_has_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "[console_scripts]\nraftsvc = raftsvc.commands.main:run\n" in wheel.read(name).decode()
    assert callable(importlib.import_module("raftsvc.commands.main").run)


def test_the_wheel_says_that_the_package_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "raftsvc/py.typed" in wheel.namelist()


def test_the_wheel_holds_the_operators_page(wheel: zipfile.ZipFile) -> None:
    assert wheel.read("raftsvc/operator/page.html") == (ROOT / "raftsvc" / "operator" / "page.html").read_bytes()


def test_the_wheel_holds_the_license(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_installs_nothing_but_the_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"raftsvc"}


def test_the_version_is_the_same_in_metadata_and_package(metadata: email.message.Message) -> None:
    assert metadata["Version"] == raftsvc.__version__


def test_only_requests_and_werkzeug_are_required(metadata: email.message.Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(required) == ["requests>=2.32", "werkzeug>=3.0"]
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_extras_are_those_that_the_readme_and_the_makefile_name(metadata: email.message.Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "flask",
        "django",
        "gunicorn",
        "cachelib",
        "limits",
        "tooz",
        "fastapi",
        "apscheduler",
        "celery",
        "jobs",
        "metrics",
        "docs",
        "release",
        "browser",
        "bench",
        "dev",
    }


@pytest.mark.parametrize("module", ["raftsvc", "raftsvc.kv", "raftsvc.web"])
def test_every_public_name_can_be_imported(module: str) -> None:
    imported = importlib.import_module(module)
    assert imported.__all__
    for name in imported.__all__:
        assert getattr(imported, name) is not None


def test_the_contract_is_at_the_top_of_the_package() -> None:
    contract = {"start", "Service", "State", "BaseState", "RaftError", "ExistingClusterError", "UninitializedError"}
    contract |= {"AddressNotAllowedError", "PeerUninitializedError", "UnknownPeerError", "NotApplied", "OutcomeUnknown"}
    assert contract <= set(raftsvc.__all__)


def test_every_error_is_at_the_top_of_the_package() -> None:
    errors = {
        name for name, kind in vars(raftsvc.errors).items() if isinstance(kind, type) and not name.startswith("_")
    }
    assert errors <= set(raftsvc.__all__)


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## [{raftsvc.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
