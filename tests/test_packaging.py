"""What a user gets who installs raftsvc: the files of the wheel, its metadata, the names it exports."""

from __future__ import annotations

import email.message
import email.parser
import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import raftsvc

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing generated is left in the tree, and without isolation: no index is asked."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building a wheel offline needs what the dev extra installs"
    )
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("raftsvc", "tests", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*build, str(built), str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_module_of_the_package(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "raftsvc").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_the_wheel_says_that_the_package_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "raftsvc/py.typed" in wheel.namelist()


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
    assert set(metadata.get_all("Provides-Extra", [])) == {"flask", "django", "gunicorn", "metrics", "bench", "dev"}


@pytest.mark.parametrize("module", ["raftsvc", "raftsvc.kv"])
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
