"""What is compiled does what the source says: the same seed, the same trace."""

from __future__ import annotations

import ast
import gc
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest

import raftsvc
from raftsvc.core.messages import MalformedError
from raftsvc.errors import RaftError
from raftsvc.member.waiters import Call
from raftsvc.testing.schedule import Lifetime, Schedule
from raftsvc.transport.contact import Contact, PeerTrouble
from raftsvc.transport.wire import Problem

PACKAGE = Path(raftsvc.__file__).resolve().parent

needs_compiled = pytest.mark.skipif(not raftsvc.__compiled__, reason="pure: run `make compile` first")


def _trace(directory: Path, seed: int) -> bytes:
    """What the simulator prints of a seed, by the package in `directory`."""
    command = [sys.executable, "-m", "raftsvc.testing", "--seconds", "60", "--replay", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package as its sources alone."""
    directory = tmp_path_factory.mktemp("pure")
    shutil.copytree(PACKAGE, directory / "raftsvc", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return directory


@needs_compiled
@pytest.mark.parametrize("seed", range(4100, 4124))
def test_a_seed_has_the_same_trace_compiled_and_pure(sources: Path, seed: int) -> None:
    pure = _trace(sources, seed)
    assert pure.count(b"\n") > 100
    assert _trace(PACKAGE.parent, seed) == pure


def test_who_asks_is_told_whether_it_is_compiled(sources: Path) -> None:
    script = "import raftsvc; print(raftsvc.__compiled__)"
    for directory, expected in ((sources, "False"), (PACKAGE.parent, str(raftsvc.__compiled__))):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == expected


def test_what_is_let_go_finds_what_is_there_now() -> None:
    """An attribute has its new value before the old one ends, for the end of an object may run anything."""
    contact, call = Contact(), Call(b"")
    seen: list[object] = []

    class LookingTrouble(PeerTrouble):
        def __del__(self) -> None:
            seen.append(contact.trouble)

    class LookingError(RaftError):
        def __del__(self) -> None:
            seen.append(call.error)

    contact.trouble = LookingTrouble("a:1", 0.0, "unreachable", "")
    contact.answered()
    call.error = LookingError()
    call.error = None
    assert seen == [None, None]


def test_who_refers_weakly_is_told_of_the_end_and_outlives_the_collector() -> None:
    """An exception, and a function within another."""

    def make() -> list[object]:
        schedule = Schedule(keep_trace=False)
        Lifetime(schedule).later(1, int)
        inner = schedule._events[0][2]
        return [Problem(503, "busy", "later"), MalformedError("no"), inner]

    told: list[object] = []
    for _ in range(30):
        made = make()
        references = [weakref.ref(one, told.append) for one in made]
        for _ in range(3):
            gc.collect()
        assert [reference() for reference in references] == made
        del made
        gc.collect()
        assert [reference() for reference in references] == [None] * 3
    assert len(told) == 90


def test_an_exception_has_a_name_of_its_own() -> None:
    """In a function that is compiled a name has one type: to that of the first all others would have to belong."""
    shared = []
    for path, node in _compiled_nodes():
        if isinstance(node, ast.FunctionDef):
            shared += [f"{path.name}: {node.name}: {name}" for name in _names_of_several(node)]
    assert not shared


def test_nothing_is_yielded_while_an_exception_is_handled() -> None:
    """Compiled, a generator that waits there leaves its exception to whoever goes on, as the one being handled."""
    waiting = []
    for path, node in _compiled_nodes():
        if isinstance(node, ast.ExceptHandler):
            yields = [inner for inner in ast.walk(node) if isinstance(inner, (ast.Yield, ast.YieldFrom))]
            waiting += [f"{path.name}:{one.lineno}" for one in yields]
    assert not waiting


def test_no_function_of_a_class_has_a_second_name_there() -> None:
    """`other = name` of a class that is compiled is looked for outside of it, and what is not found goes unsaid."""
    renamed = []
    for path, node in _compiled_nodes():
        if isinstance(node, ast.ClassDef):
            own = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
            values = [one.value for one in node.body if isinstance(one, (ast.Assign, ast.AnnAssign))]
            renamed += [f"{path.name}: {one.id}" for one in values if isinstance(one, ast.Name) and one.id in own]
    assert not renamed


def test_what_is_not_compiled_derives_from_nothing_that_is() -> None:
    compiled = {path for path, _ in _compiled_nodes()}
    natives = {
        node.name
        for _, node in _compiled_nodes()
        if isinstance(node, ast.ClassDef)
        and not {ast.unparse(base).split("[")[0] for base in node.bases} & {"NamedTuple", "Protocol", "IntEnum", "Enum"}
    }
    derived = [
        f"{path.name}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        if path not in compiled
        for tree in [ast.parse(path.read_text())]
        for known in [natives & _taken_from(compiled, tree)]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and known & {ast.unparse(base) for base in node.bases}
    ]
    assert not derived


def _taken_from(compiled: set[Path], tree: ast.Module) -> set[str]:
    """The names that a module imports from what is compiled, or from a package: others may be called the same."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for path in [PACKAGE.parent / f"{node.module.replace('.', '/')}.py"]
        if path in compiled or path.with_suffix("").is_dir()
        for alias in node.names
    }


def test_what_an_error_comes_from_is_known_by_the_place_too() -> None:
    """Compiled, `raise ... from` keeps what is being handled, as the error's context, and no more."""
    unheard = []
    for path, node in _compiled_nodes():
        if isinstance(node, ast.FunctionDef):
            handled = {one.name for one in ast.walk(node) if isinstance(one, ast.ExceptHandler)}
            handled |= {one.arg for one in node.args.args}  # of who is called by a handler
            causes = [one.cause for one in ast.walk(node) if isinstance(one, ast.Raise) and one.cause]
            unheard += [f"{path.name}:{one.lineno}" for one in causes if ast.unparse(one) not in handled]
    assert not unheard


@cache
def _compiled_nodes() -> list[tuple[Path, ast.AST]]:
    rooms, pure = (_constant(name) for name in ("ROOMS", "PURE"))
    files = [path for room in rooms for path in (PACKAGE / room).glob("*.py")]
    compiled = [path for path in files if path.relative_to(PACKAGE).as_posix() not in pure]
    assert compiled
    return [(path, node) for path in compiled for node in ast.walk(ast.parse(path.read_text()))]


def _constant(name: str) -> Collection[str]:
    """What setup.py, which cannot be imported, says of the compiled rooms."""
    for node in ast.parse((PACKAGE.parent / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value: Collection[str] = ast.literal_eval(node.value)
            return value
    raise AssertionError(f"setup.py has no {name}")


def _names_of_several(function: ast.FunctionDef) -> list[str]:
    kinds: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type:
            kinds.setdefault(node.name, set()).add(ast.unparse(node.type))
    return [name for name, caught in kinds.items() if len(caught) > 1]
