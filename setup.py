"""What is not declared in setup.cfg: with `RAFTSVC_COMPILE=1` in the environment mypyc compiles the hot rooms.

Without it nothing here needs a compiler, or mypy.  `RAFTSVC_OPT_LEVEL` is what the C compiler is
asked for (3).  docs/architecture.md says which rooms these are, and why.
"""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOMS = ("core", "storage", "member", "transport", "kv", "testing")
# What applications call or derive from, for a compiled class has no subclasses that are not, and refuses an argument
# of another type before we can say what is wrong with it; and what is of a form that cannot be compiled: a base class
# that is built in or from elsewhere, a protocol that is asked for by `isinstance`, an Enum with an `__init__`,
# `__doc__`, `continue` inside `try`.
PURE = {
    "core/stretches.py",
    "kv/aio.py",
    "kv/client.py",
    "kv/duty.py",
    "kv/events.py",
    "kv/freshness.py",
    "kv/instructions.py",
    "kv/tickets.py",
    "kv/leases.py",
    "kv/queries.py",
    "kv/remote.py",
    "kv/state.py",
    "kv/timekeeper.py",
    "kv/watching.py",
    "member/health.py",
    "storage/files.py",
    "storage/lock.py",
    "transport/certificates.py",
    "transport/chunks.py",
    "transport/listener.py",
    "transport/peer.py",
    "transport/session.py",
    "testing/disk.py",
    "testing/models.py",
    "testing/runner.py",
    "testing/violation.py",
    "testing/workload.py",
}
# What mypy has to see of what the rooms import.
NEEDS = ["mypy>=2.4,<3", "types-requests>=2.32", "requests>=2.32", "werkzeug>=3.0"]


# An attribute as mypyc sets it: what it held is let go, then the new value is stored.
STORE = re.compile(
    r"^(?P<release>(?: +if \(.+\) \{\n)?(?: +\w+_DECREF\((?P<place>[^\n]+?->\w+)(?:\.f\d+)*\);\n)+(?: +\}\n)?)"
    r"(?P<store> +(?P=place) = [^;\n]+;\n)",
    re.MULTILINE,
)
RELEASE = re.compile(r"_DECREF\([^\n]*->\w+(?:\.f\d+)*\);\n(?: +\}\n)? +[^\n]*->\w+ = ")


def store_before_release(code: str) -> str:
    """The same C code, where an attribute has its new value before the old one is let go.

    What is let go may run anything (a `__del__`, a weak reference's callback) or let go of the interpreter
    (a socket is closed), and whoever read the attribute then would get an object that is gone.
    """

    def in_order(match: re.Match[str]) -> str:
        place, release, store = match["place"], match["release"], match["store"]
        return f"    {{ __typeof__({place}) was = {place};\n{store}{release.replace(place, 'was')}    }}\n"

    made = STORE.sub(in_order, code)
    assert not RELEASE.search(made), "mypyc writes what it did not write before; is every attribute stored safely?"
    return made


# What refers weakly to an object (an exception, a function within another) is listed there, and not the object's own.
WEAK = r"Py_(?:VISIT|CLEAR)\(\*\(\(PyObject \*\*\)\(\(char \*\)self \+ sizeof\(PyObject \*\) \+ sizeof\(\w+\)\)\)\);\n"
WALK = re.compile(r"^(?P<name>\w+)_traverse\([^)]*\)\n\{\n(?:[^}\n][^\n]*\n)*? +" + WEAK, re.MULTILINE)
END = r"^%s_dealloc\([^)]*\)\n\{\n(?:[^}\n][^\n]*\n)*? +PyObject_GC_UnTrack\(self\);\n"


def disown_weak_references(code: str) -> str:
    """The same C code, where an object that ends tells who refers to it weakly, and only then.

    mypyc has the collector take these for the object's own, of which there are none left then,
    so that they end while they are in use.
    """
    names = [match["name"] for match in WALK.finditer(code)]
    made = re.sub("^ +" + WEAK, "", code, flags=re.MULTILINE)
    for name in names:
        made, ends = re.subn(
            END % name, r"\g<0>    PyObject_ClearWeakRefs((PyObject *)self);\n", made, flags=re.MULTILINE
        )
        assert ends == 1, f"{name}: who refers to it weakly has to be told of its end"
    kinds = re.findall(r"^static PyTypeObject .*?^};", code, re.MULTILINE | re.DOTALL)
    weak = [kind for kind in kinds if ".tp_weaklistoffset" in kind and ".tp_traverse" in kind]
    assert len(names) == len(weak), "every object that is referred to weakly is such"
    return made


class ParallelBuild(build_ext):
    """Compiles the files of an extension side by side, one for each core."""

    def build_extensions(self) -> None:
        """Build them all."""
        compile_in_turn = self.compiler.compile
        for path in {Path(source) for module in self.extensions for source in module.sources}:
            path.write_text(disown_weak_references(store_before_release(path.read_text())))

        def compile_all(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                built = pool.map(lambda source: compile_in_turn([source], *arguments, **options), sources)
                return [name for names in built for name in names]

        self.compiler.compile = compile_all
        super().build_extensions()


def hot_modules() -> list[str]:
    """The files that are compiled, relative to this one."""
    package = Path("raftsvc")
    files = [package / "compiled.py", *sorted(file for room in ROOMS for file in (package / room).glob("*.py"))]
    return [
        file.as_posix()
        for file in files
        if not file.name.startswith("__") and file.relative_to(package).as_posix() not in PURE
    ]


def options() -> dict[str, Any]:
    """What `setup` is told beside setup.cfg."""
    if os.environ.get("RAFTSVC_COMPILE", "0") in ("", "0"):
        return {}
    if {"egg_info", "dist_info"} & set(sys.argv):  # only asked what building needs
        return {"setup_requires": NEEDS}
    from mypyc.build import mypycify

    level = os.environ.get("RAFTSVC_OPT_LEVEL", "3")
    modules = mypycify(hot_modules(), opt_level=level, debug_level="0", multi_file=True, group_name="raftsvc.native")
    for module in modules:  # a group with a dot in its name has its headers in a folder below
        module.include_dirs.append(os.path.join("build", "raftsvc"))
    return {"ext_modules": modules, "cmdclass": {"build_ext": ParallelBuild}}


setup(**options())
