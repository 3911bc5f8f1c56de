"""The house: how large its pieces may be, which room may know which, and what is nobody else's.

Judged by reading the source; nothing of it is imported.  What a rule counts:

lines       of a function: those that bear code, its signature included; not its docstring (a contract
            may be long), comments and blank lines.  A function within counts for itself and for the one around it.
methods     of a class: every function in its body, properties included, and those of the classes of ours
            that it inherits from: nothing gets small by being spread over bases.
attributes  of a class: every name that its methods assign to `self`, its __slots__, and the fields of a
            dataclass; with those of its bases, as above.  A NamedTuple is a record and is what it holds.
bases       a class inherits from one class of ours at most, and none is called a mixin.  Protocols do not count.
rooms       a room imports itself and what ROOMS allows it.  Imports in the body of a function and those
            under TYPE_CHECKING are judged like all others.
cycles      no module comes back to itself by its imports, within a room either.
privates    a name that begins with an underscore is its module's: it is imported by nobody, and asked of
            an object (by getattr too) only where the module itself gives such a name to something.
asserts     where durability and agreement are at stake an assert only tells the type checker what is so (`x is not
            None`, `isinstance`): what it guards besides would be unguarded under -O.  Else an error is raised.
pure        the core has no threads, clocks, files, sockets, log or randomness of its own.
openings    a module opens with what it is for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 60
MAX_METHODS = 25
MAX_ATTRIBUTES = 15

# From the ground up; each may import what is named beside it, and the standard library.  A room is a package, or
# a module, of raftsvc; the last but one, `raftsvc`, is its __init__, the names that an application imports.
ROOMS = {
    "errors": "",
    "logs": "",
    "answers": "errors",
    "audit": "errors",
    "state": "",
    "results": "",
    "timeouts": "errors",
    "measures": "",
    "aio": "errors timeouts",
    "macs": "",
    "keys": "errors macs",
    "states": "errors results state",
    "systems": "errors",
    "process": "errors systems",
    "mainthread": "errors systems",
    "ports": "errors process systems",
    "compiled": "",
    "callables": "errors",
    "clocks": "",
    "core": "",
    "versions": "errors state core",
    "addresses": "errors core",
    "storage": "errors process systems core",
    "transport": "errors logs addresses keys macs ports process systems core storage",
    "member": "errors logs addresses clocks compiled measures results state versions process "
    "systems core storage transport",
    "attached": "errors logs compiled state versions process core storage transport member",
    "metrics": "errors member",
    "host": "errors addresses measures state process systems mainthread core storage transport member",
    "watched": "errors logs",
    "facts": "compiled logs",
    "credentials": "errors logs facts keys transport watched",
    "company": "transport",
    # What is done with the directory of a node that is stopped, and what becomes of a backup.
    "rescue": "errors addresses state core storage member",
    "formation": "errors logs addresses state versions process mainthread core storage transport member attached host",
    "options": "errors addresses clocks keys state states versions member storage",
    "forming": "errors logs addresses versions core member transport formation",
    "proposals": "errors measures results timeouts mainthread member host formation",
    "listeners": "errors mainthread member formation",
    "reception": "errors logs addresses company credentials facts metrics state process mainthread core storage "
    "transport member host formation forming listeners",
    "copies": "errors storage",
    "visitors": "errors audit keys state core member transport formation proposals reception copies",
    # The operator's page: what is shown and done through the public face, and who may.
    "operator": "audit errors addresses keys mainthread state states",
    # The face of a process that is no member; how what it brings is numbered and recorded is as with members.
    "client": "errors addresses aio callables keys results timeouts mainthread watched core storage transport member "
    "attached rescue options",
    "service": "errors addresses aio callables credentials keys measures state versions results timeouts process "
    "mainthread core storage transport member attached host rescue formation forming options proposals listeners "
    "reception visitors operator client",
    # What stands on the public face does not reach behind it.
    "kv": "errors logs addresses aio callables clocks keys state results timeouts process mainthread watched service "
    "client",
    "recipes": "errors callables timeouts mainthread kv",
    # Over HTTP; the threaded listener is lent to the ready-made node.
    "web": "errors answers keys transport watched kv",
    "raftsvc": "errors addresses answers client compiled keys kv state results states listeners service",
    # Whoever has a shell: the library does not know of it.
    "commands": "errors addresses client keys kv operator rescue storage systems raftsvc web",
    # Hosts and frameworks stand on the public face too, and what they have of a command line passes through to ours.
    "ext": "errors answers addresses ports service kv recipes raftsvc commands",
    "__main__": "commands",
    # The simulator is below the face: it drives members without threads.
    # Who is outside of it goes by what a real client does.
    "testing": "errors logs addresses state versions process core storage transport member attached client",
}

# What the core may have of the standard library, and of `random` only the generator that it is given.
PURE = frozenset(
    {"__future__", "abc", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools", "heapq"}
    | {"itertools", "operator", "random", "struct", "types", "typing", "zlib"}
)
IMPURE_CALLS = {"open", "print", "input", "breakpoint"}

NAMED_TUPLES_OWN = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}

# What breaks a rule, and why it may.  An entry that is no longer needed fails the test.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("methods", "storage/files.py Files"): "one for each thing that storage asks of a file system",
    ("methods", "rescue/reading.py Untouched"): "all that Files does",
    ("methods", "commands/progress.py CountedFiles"): "all that Files does, of which it counts two",
    ("methods", "client/guest.py Guest"): "all that a Connection does, and what an application says to a Service",
    ("methods", "client/copying.py FarFiles"): "all that Files does, of which it replaces four",
    ("methods", "testing/disk.py SimulatedDisk"): "all that Files does, and all that can go wrong with it",
    ("methods", "testing/process.py SimulatedProcess"): "all that a Runner does, and what happens to a process",
    ("methods", "testing/node.py SimulatedNode"): "all that a Port has, and what happens to a computer",
    (
        "methods",
        "core/raft.py Raft",
    ): "27 of its own, one for each input and change of role, and the ten of every server",
    ("methods", "kv/state.py KeyValueState"): "all that a State may be, and what is read of it",
    ("methods", "kv/client.py KeyValue"): "all that is done with a store, most of it in a line or two",
    ("methods", "ext/tooz.py RaftDriver"): "one for each thing that tooz asks of a driver",
    ("methods", "service.py Service"): "one for each thing that an application may ask of its node",
    ("methods", "states.py States"): "all that a State may be, for each part",
    (
        "attributes",
        "formation.py Membership",
    ): "all that a process holds of a cluster, formed by itself or by hand, shared or not",
    (
        "attributes",
        "testing/process.py SimulatedProcess",
    ): "one for each page that it brings together, and what it began with",
    ("attributes", "testing/node.py SimulatedNode"): "what may be on a computer, and what was done to it",
    ("attributes", "member/engine.py Engine"): "one for each page that it brings together",
    ("asserts", "core/founding.py"): "of its own course, before a log is there",
    ("privates", "host/servers.py _getframe"): "gunicorn hands its worker to nobody; the frames below are where it is",
    ("privates", "host/servers.py _current_frames"): "nothing else shows which threads serve a request",
    ("privates", "host/servers.py _work_queue"): "a pool of threads does not say what waits in it",
    ("privates", "ext/apscheduler.py _executors"): "all that a scheduler has; it gives out none",
    ("privates", "ext/tooz.py _executor"): "tooz keeps it for its drivers",
    ("privates", "ext/tooz.py _hooks_elected_leader"): "likewise",
    ("privates", "ext/django/node.py _TestState"): "nothing else of Django says that it tests",
    ("privates", "ext/django/sessions.py _get_session"): "Django has it for its engines",
    ("privates", "ext/django/sessions.py _get_new_session_key"): "likewise",
    ("privates", "ext/django/management/commands/raft_worker.py _exit"): "it is public for all that it is called",
    ("privates", "transport/peer.py _pool_block"): "a Session does not say otherwise whether its pool waits",
    ("privates", "transport/stream.py _fp"): "urllib3 has no read that returns what has arrived, chunk by chunk",
    ("privates", "transport/stream.py _sock"): "nor does http.client show the connection under its file",
}

# What looks upwards, in the body of a function alone: a method of the store that opens a recipe.
UPWARDS = {"kv/client.py": "raftsvc.recipes"}

# What durability and agreement rest on.
GUARDED = {"core", "storage", "member"}

# Paths that a page names in backticks and that are not in this repository.
NOT_HERE: dict[str, str] = {
    "app.py": "the reader's own application",
    "gunicorn.conf.py": "the reader's own configuration of gunicorn",
    "wsgi.py": "the reader's own Django project",
}


class House:
    """The sources of a package, by their paths in it."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources
        self.trees = {path: ast.parse(source) for path, source in sources.items()}
        self.modules = {module_at(path) for path in sources}
        self.classes = {
            path: {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            for path, tree in self.trees.items()
        }

    # -- sizes

    def lines(self) -> Iterator[tuple[str, str]]:
        for path, where, function in self.definitions(ast.FunctionDef, ast.AsyncFunctionDef):
            count = lines_of_code(function, self.sources[path].splitlines())
            if count > MAX_LINES:
                yield f"{path} {where}", f"{count} lines of code, at most {MAX_LINES}"

    def methods(self) -> Iterator[tuple[str, str]]:
        for path, where, node in self.definitions(ast.ClassDef):
            names = {
                each.name
                for kind in self.lineage(path, node)
                for each in kind.body
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
            if len(names) > MAX_METHODS:
                yield f"{path} {where}", f"{len(names)} methods, at most {MAX_METHODS}"

    def attributes(self) -> Iterator[tuple[str, str]]:
        for path, where, node in self.definitions(ast.ClassDef):
            if "NamedTuple" in names_of_bases(node):
                continue
            names = {name for kind in self.lineage(path, node) for name in attributes_of(kind)}
            if len(names) > MAX_ATTRIBUTES:
                yield f"{path} {where}", f"{len(names)} attributes, at most {MAX_ATTRIBUTES}: {sorted(names)}"

    def bases(self) -> Iterator[tuple[str, str]]:
        for path, where, node in self.definitions(ast.ClassDef):
            ours = [base.name for _, base in self.bases_of(path, node)]
            if len(ours) > 1:
                yield f"{path} {where}", f"inherits from {ours}"
            if node.name.lower().endswith("mixin"):
                yield f"{path} {where}", "a mixin by its name"

    # -- who knows whom

    def rooms(self) -> Iterator[tuple[str, str]]:
        for path in self.sources:
            room = room_of(path)
            if room not in ROOMS:
                yield path, "is in a room that ROOMS does not have"
                continue
            for target in self.imports(path):
                other = room_of(path_of(target))
                if other != room and other not in ROOMS[room].split():
                    yield f"{path} {target}", f"{room} does not know {other}"

    def cycles(self) -> Iterator[tuple[str, str]]:
        graph = {module_at(path): self.imports(path) for path in self.sources}
        reached = {module: reachable(graph, module) for module in graph}
        circles = {
            tuple(sorted(m for m in reached[module] if module in reached.get(m, ())))
            for module in graph
            if module in reached[module]
        }
        for circle in sorted(circles):
            yield " ".join(circle), "import each other"

    def privates(self) -> Iterator[tuple[str, str]]:
        for path, tree in self.trees.items():
            own = private_names_of(tree) | NAMED_TUPLES_OWN
            for node in ast.walk(tree):
                for name in private_names_asked_by(node):
                    if name not in own:
                        yield f"{path} {name}", f"line {node.lineno}: belongs to another module"  # type: ignore[attr-defined]

    def pure(self) -> Iterator[tuple[str, str]]:
        for path in self.sources:
            if room_of(path) != "core":
                continue
            for node in ast.walk(self.trees[path]):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [f"import {alias.name}" for alias in node.names if alias.name not in PURE - {"random"}]
                elif isinstance(node, ast.ImportFrom):
                    package = (node.module or "").partition(".")[0]
                    if package == "random":
                        names = [alias.name for alias in node.names if alias.name != "Random"]
                    elif package not in PURE | {"raftsvc"}:
                        names = [package]
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                    names = [node.func.id]
                for name in names:
                    yield f"{path} {name}", "is not the core's"

    def asserts(self) -> Iterator[tuple[str, str]]:
        for path, tree in self.trees.items():
            for node in ast.walk(tree) if room_of(path) in GUARDED else ():
                if isinstance(node, ast.Assert) and not tells_a_type(node.test):
                    yield path, f"line {node.lineno}: an assert guards something"

    def openings(self) -> Iterator[tuple[str, str]]:
        for path, tree in self.trees.items():
            if tree.body and not ast.get_docstring(tree):
                yield path, "does not say what it is for"

    # -- how the source is read

    def definitions(self, *kinds: type[Any]) -> Iterator[tuple[str, str, Any]]:
        """Path, dotted name and node of each definition of these kinds."""

        def within(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[str, ast.AST]]:
            for child in ast.iter_child_nodes(node):
                names = around
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    names = (*around, child.name)
                if isinstance(child, kinds):
                    yield ".".join(names), child
                yield from within(child, names)

        for path, tree in self.trees.items():
            for name, node in within(tree, ()):
                yield path, name, node

    def lineage(self, path: str, node: ast.ClassDef) -> list[ast.ClassDef]:
        """A class, and all that it inherits from of ours."""
        return [node, *(kind for where, base in self.bases_of(path, node) for kind in self.lineage(where, base))]

    def bases_of(self, path: str, node: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
        """What a class inherits from of ours; not Protocols, which say what is there and add nothing."""
        found = []
        for name in names_of_bases(node):
            for where in (path, *self.classes):  # its own module's, or else one that it has imported
                base = self.classes[where].get(name)
                if base is not None and base is not node:
                    if "Protocol" not in names_of_bases(base):
                        found.append((where, base))
                    break
        return found

    def imports(self, path: str) -> set[str]:
        """The modules of ours that the module at `path` imports, wherever it does."""
        found = set()
        for node in ast.walk(self.trees[path]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "raftsvc"}
            elif isinstance(node, ast.ImportFrom):
                name = node.module or ""
                if node.level:
                    parent = path_of(module_at(path)).split("/")[: -node.level]
                    name = ".".join(["raftsvc", *parent, *filter(None, [node.module])])
                if name.partition(".")[0] == "raftsvc":
                    for alias in node.names:
                        inner = f"{name}.{alias.name}"
                        found.add(inner if inner in self.modules else name)
        above = UPWARDS.get(path)
        return {name for name in found if above is None or not name.startswith(above)}


def module_at(path: str) -> str:
    """`core/log.py` is raftsvc.core.log, `core/__init__.py` is raftsvc.core."""
    parts = ["raftsvc", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def path_of(module: str) -> str:
    return module.removeprefix("raftsvc").removeprefix(".").replace(".", "/")


def room_of(path: str) -> str:
    room = path.removesuffix(".py").partition("/")[0]
    return room if room not in ("", "__init__") else "raftsvc"


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    docstring: range | tuple[()] = ()
    if ast.get_docstring(function) is not None:
        docstring = range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1)
    return sum(
        bool(text) and not text.startswith("#")
        for number in range(function.lineno, (function.end_lineno or 0) + 1)
        if number not in docstring
        for text in [lines[number - 1].strip()]
    )


def names_of_bases(node: ast.ClassDef) -> list[str]:
    plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in plain]


def attributes_of(node: ast.ClassDef) -> Iterator[str]:
    """What its methods assign to `self`, its slots, and its fields if it is a dataclass."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and is_name(each.value, "self"):
            yield each.attr
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if any(is_name(decorator, "dataclass") for decorator in decorators):
                yield statement.target.id
        elif isinstance(statement, ast.Assign) and any(is_name(target, "__slots__") for target in statement.targets):
            yield from (str(each.value) for each in ast.walk(statement.value) if isinstance(each, ast.Constant))


def is_name(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def tells_a_type(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return all(map(tells_a_type, test.values))
    if isinstance(test, ast.Call):
        return is_name(test.func, "isinstance")
    return isinstance(test, ast.Compare) and all(
        isinstance(right, ast.Constant) and right.value is None for right in test.comparators
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names_of(tree: ast.Module) -> set[str]:
    """Those that the module gives to its functions, classes, constants, and to what its objects have."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= set(attributes_of(node))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def private_names_asked_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        yield node.attr
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.name for alias in node.names if is_private(alias.name))
    elif isinstance(node, ast.Call) and is_name(node.func, "getattr", "setattr", "delattr", "hasattr"):
        name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
        if isinstance(name, str) and is_private(name):
            yield name


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Where one comes from `start` by one step or more."""
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            ahead += graph.get(module, ())
    return seen


RULES: dict[str, Callable[[House], Iterator[tuple[str, str]]]] = {
    "lines": House.lines,
    "methods": House.methods,
    "attributes": House.attributes,
    "bases": House.bases,
    "rooms": House.rooms,
    "cycles": House.cycles,
    "privates": House.privates,
    "asserts": House.asserts,
    "pure": House.pure,
    "openings": House.openings,
}


@pytest.fixture(scope="module")
def house() -> House:
    package = ROOT / "raftsvc"
    return House({path.relative_to(package).as_posix(): path.read_text() for path in sorted(package.rglob("*.py"))})


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(house: House, rule: str) -> None:
    found = dict(RULES[rule](house))
    excepted = {where for kind, where in EXCEPTIONS if kind == rule}
    broken = [f"{where}: {what}" for where, what in found.items() if where not in excepted]
    assert not broken, "mend it, or say in EXCEPTIONS why it may be so:\n" + "\n".join(broken)
    stale = sorted(excepted - set(found))
    assert not stale, f"these keep the rule by now, so they need no entry in EXCEPTIONS: {stale}"


def test_every_exception_is_to_a_rule_and_says_why() -> None:
    assert {rule for rule, _ in EXCEPTIONS} <= set(RULES)
    assert all(reason.strip() for reason in EXCEPTIONS.values())


def test_what_looks_upwards_does_so_where_it_is_called(house: House) -> None:
    for path, above in UPWARDS.items():
        tree = house.trees[path]
        looks = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        upwards = [node for node in looks if str(node.module).startswith(above)]
        assert upwards
        assert not any(node in tree.body for node in upwards)


def test_the_rooms_have_an_order() -> None:
    seen: set[str] = set()
    for room, known in ROOMS.items():
        assert set(known.split()) <= seen, f"{room} knows a room above it"
        seen.add(room)


def test_every_room_is_there(house: House) -> None:
    assert {room_of(path) for path in house.sources} == set(ROOMS)


LONG = "\n".join(f"    x{n} = {n}" for n in range(MAX_LINES - 1))
MANY = "\n".join(f"    def m{n}(self): self.a{n} = {n}" for n in range(MAX_ATTRIBUTES + 1))
MORE = "\n".join(f"    def n{n}(self): pass" for n in range(MAX_METHODS - MAX_ATTRIBUTES))

VIOLATIONS = [
    ("lines", {"kv/a.py": f"def f(\n    a,\n):\n{LONG}"}, ["kv/a.py f"]),
    (
        "lines",
        {"kv/a.py": f"class C:\n  def f(self):\n   def g():\n{LONG}\n    y = 0"},
        ["kv/a.py C.f", "kv/a.py C.f.g"],
    ),
    ("lines", {"kv/a.py": f'def f():\n    """One\n\n    two."""\n\n    # three\n{LONG}'}, []),
    ("methods", {"kv/a.py": f"class C:\n{MANY}\n{MORE}"}, ["kv/a.py C"]),
    ("methods", {"kv/a.py": f"class B:\n{MANY}", "kv/b.py": f"class C(B):\n{MORE}"}, ["kv/b.py C"]),
    ("methods", {"kv/a.py": f"class B:\n{MANY}", "kv/b.py": f"class B: ...\nclass C(B):\n{MORE}"}, []),
    ("methods", {"kv/a.py": f"class B(Protocol):\n{MANY}", "kv/b.py": f"class C(B):\n{MORE}"}, []),
    ("attributes", {"kv/a.py": f"class C:\n{MANY}"}, ["kv/a.py C"]),
    (
        "attributes",
        {"kv/a.py": "@dataclass(slots=True)\nclass C:\n" + "".join(f"    a{n}: int\n" for n in range(16))},
        ["kv/a.py C"],
    ),
    ("attributes", {"kv/a.py": f"class C:\n    __slots__ = {tuple(map(str, range(16)))}"}, ["kv/a.py C"]),
    ("attributes", {"kv/a.py": "class C(NamedTuple):\n" + "".join(f"    a{n}: int\n" for n in range(16))}, []),
    ("bases", {"kv/a.py": "class A: ...\nclass B: ...\nclass C(A, B): ..."}, ["kv/a.py C"]),
    ("bases", {"kv/a.py": "class A(Protocol): ...\nclass B: ...\nclass C(A, B, Exception): ..."}, []),
    ("bases", {"kv/a.py": "class CallsMixin: ..."}, ["kv/a.py CallsMixin"]),
    ("rooms", {"core/a.py": "from raftsvc.errors import RaftError"}, ["core/a.py raftsvc.errors"]),
    ("rooms", {"core/a.py": "import raftsvc.core.log"}, []),
    ("rooms", {"storage/a.py": "def f():\n    import raftsvc.kv.state"}, ["storage/a.py raftsvc.kv.state"]),
    ("rooms", {"storage/a.py": "if TYPE_CHECKING:\n    from ..member import x"}, ["storage/a.py raftsvc.member"]),
    (
        "rooms",
        {
            "kv/a.py": "from raftsvc import kv\nfrom raftsvc.service import start",
            "kv/__init__.py": "",
            "service.py": "",
        },
        [],
    ),
    ("rooms", {"kv/a.py": "from raftsvc import start"}, ["kv/a.py raftsvc"]),
    ("rooms", {"kv/a.py": "from raftsvc import host", "host/__init__.py": ""}, ["kv/a.py raftsvc.host"]),
    ("rooms", {"cellar/a.py": ""}, ["cellar/a.py"]),
    (
        "cycles",
        {
            "kv/a.py": "from raftsvc.kv import b",
            "kv/b.py": "if TYPE_CHECKING:\n    from raftsvc.kv.c import C",
            "kv/c.py": "from . import a, d",
            "kv/d.py": "",
        },
        ["raftsvc.kv.a raftsvc.kv.b raftsvc.kv.c"],
    ),
    ("privates", {"kv/a.py": "from raftsvc.kv.b import _x, y"}, ["kv/a.py _x"]),
    (
        "privates",
        {"kv/a.py": "def f(other):\n    return other._x + getattr(other, '_y')"},
        ["kv/a.py _x", "kv/a.py _y"],
    ),
    ("privates", {"kv/a.py": "class C:\n  def f(self, other):\n    self._x = other._x\n    other._replace(x=0)"}, []),
    ("privates", {"kv/a.py": "class C(D):\n  def f(self):\n    return self._x"}, ["kv/a.py _x"]),
    (
        "pure",
        {"core/a.py": "import time, random\nfrom os import path\nfrom random import Random, randint\nopen('x')"},
        ["core/a.py import time", "core/a.py import random", "core/a.py os", "core/a.py randint", "core/a.py open"],
    ),
    ("pure", {"storage/a.py": "import time"}, []),
    ("asserts", {"core/a.py": "assert x is not None and isinstance(x, int)", "kv/a.py": "assert y > 0"}, []),
    (
        "asserts",
        {"member/a.py": "assert y > 0, 'y'", "core/a.py": "assert x is None or x"},
        ["core/a.py", "member/a.py"],
    ),
    ("openings", {"kv/a.py": "x = 1", "kv/b.py": '"""For this."""', "kv/__init__.py": ""}, ["kv/a.py"]),
]


@pytest.mark.parametrize(("rule", "sources", "expected"), VIOLATIONS)
def test_each_rule_sees_what_breaks_it(rule: str, sources: dict[str, str], expected: list[str]) -> None:
    assert sorted(dict(RULES[rule](House(sources)))) == sorted(expected)


# -- pages


def paths_named_in(page: str) -> set[str]:
    """What stands in backticks, outside blocks of code, and is the path of a file or a directory of a repository."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\s]+)`", prose)
    return {span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.py|\.md)", span)}


def test_paths_are_told_from_other_words_in_backticks() -> None:
    page = "`core/raft.py` `docs/a.md`, `tests/chaos/` and `/raft/`, `make a.md`, `a.b`\n```\n`no.py`\n```\n`app.py`"
    assert paths_named_in(page) == {"core/raft.py", "docs/a.md", "tests/chaos/", "app.py"}


def test_pages_name_only_files_that_exist() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {(page, path) for page in pages for path in paths_named_in(page.read_text())}
    missing = {
        (page.name, path)
        for page, path in named
        # From the top, or as pages name the rooms, from the package; a page may also name its neighbours.
        if not any((base / path).exists() for base in (ROOT, ROOT / "raftsvc", page.parent))
    }
    assert {path for _, path in missing} >= set(NOT_HERE), (
        "what is named and exists, or is named no more, is no exception"
    )
    assert not {(page, path) for page, path in missing if path not in NOT_HERE}


def test_each_file_is_named_on_the_page_of_the_rooms() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("architecture.md", "rooms.md")]
    named = {path.removeprefix("raftsvc/") for page in pages for path in paths_named_in(page)}
    package = ROOT / "raftsvc"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert files - named == set()
