"""The pages: every link leads somewhere, every command can be given, every snippet runs, every log line is explained.

What is printed in a page is run here, or by a test that names the page (`ELSEWHERE`).
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import functools
import html
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

import raftsvc
from benchmarks import screen
from raftsvc import kv, recipes
from raftsvc.commands.parser import build, parse
from raftsvc.ext import nodes as nodes_of_extensions
from raftsvc.ext.nodes import one_node
from raftsvc.kv import KeyValue
from tests.service.harness import PATIENCE, free_address
from tests.test_demo import commands_beside, free_prefixes

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
ELSEWHERE = {
    "docs/backup.md": "tests/rescue/test_page.py",
    "docs/operations.md": "tests/test_operations.py",
    "docs/operator.md": "tests/operator/test_access.py",
    "docs/security.md": "tests/test_tls.py",
    "docs/tasks.md": "tests/ext/test_django_tasks.py",
    "README.md": "benchmarks/screen.py",
}
"""Whose code a test of its own runs."""
ONLY_COMPILED = {
    "docs/log.md": "it configures the log of the whole process",
    "docs/events.md": "it is a filter, for whoever has a handler",
    "docs/metrics.md": "it is what is added to a call of start",
}
"""Whose code is not run, and why."""


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code."""
    return re.findall(r"^ *```\{?(\w*)\}?[^\n]*\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)


def python_of(name: str) -> list[str]:
    return [text for language, text in blocks(PAGES[name]) if language == "python"]


def prose(page: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page, flags=re.MULTILINE | re.DOTALL)


# -- links


def anchors(page: str) -> set[str]:
    """Those of its headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(PAGES[name]))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if (
            not target.exists()
            or ROOT not in [target.resolve(), *target.resolve().parents]
            or (anchor and anchor not in anchors(target.read_text()))
        ):
            broken.append(link)
    assert not broken


def test_the_site_has_every_page() -> None:
    listed = re.findall(r"^[^\n<]+ <(\w+)>$", PAGES["docs/index.md"], re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {f"docs/{page}.md" for page in listed} == {
        name for name in PAGES if name.startswith("docs/") and name != "docs/index.md"
    }
    assert not {
        page for page in listed if page not in ("changelog", "vulnerabilities", "architecture", "correctness")
    } - {
        path.removeprefix("docs/").removesuffix(".md")
        for path in re.findall(r"\]\((docs/\w+\.md)\)", PAGES["README.md"])
    }, "README names each"


def test_the_reference_has_every_module_with_public_names() -> None:
    modules = set(re.findall(r"automodule:: ([\w.]+)", PAGES["docs/reference.md"]))
    rooms = [path for path in (ROOT / "raftsvc").rglob("__init__.py") if re.search("^__all__", path.read_text(), re.M)]
    public = {".".join(path.parent.relative_to(ROOT).parts) for path in rooms}
    inside = {
        f"raftsvc.{room}"
        for room in ("core", "storage", "transport", "member", "attached", "host", "client", "commands")
    }
    assert public - inside <= modules
    for module in sorted(modules):
        assert importlib.import_module(module)


# -- commands


def commands() -> Iterator[tuple[str, list[str], bool]]:
    """Each command that a page shows, in words, and whether in a block of code; others stand in backticks."""
    for name, page in PAGES.items():
        if name == "CHANGELOG.md":
            continue
        lines = [(line, False) for line in re.findall(r"`([^`\n]+)`", prose(page))]
        for language, text in blocks(page):
            if language in ("sh", "console"):
                text = re.sub(r"\\\n *", "", text)
                lines += [(line, True) for line in re.sub(r"^\$ ", "", text, flags=re.MULTILINE).splitlines()]
        lines += [(line, True) for line in re.findall(r"^    (make .+|python -m .+|raftsvc .+)$", page, re.MULTILINE)]
        for line, is_shown in lines:
            # What is behind a variable, within a substitution or a pipe, is a command too.
            for part in re.split(r"\|\||&&|[|;(`]|\s#\s", line):
                words = part.replace("$ ", "").strip()
                while re.match(r"[A-Z_]+=\S* ", words):
                    words = words.partition(" ")[2].strip()
                try:
                    found = shlex.split(re.sub(r"[<>&].*", "", words))
                except ValueError:  # half of one, cut at a bracket
                    continue
                if found and found[0] in ("raftsvc", "python", "gunicorn", "make", "pip"):
                    yield f"{name}: {part.strip()}", found, is_shown


COMMANDS = list(commands())


def of(program: str, is_shown: bool = False) -> list[Any]:
    """is_shown: only those in blocks of code, to be typed as they stand."""
    return [
        pytest.param(words, id=line) for line, words, shown in COMMANDS if words[0] == program and shown >= is_shown
    ]


def flags_of(command: str) -> set[str]:
    """Those that may stand with it."""
    parser, _ = build({})
    return {*parser.words, *parser.commands[command].words, "--help", "--version"}


@pytest.mark.parametrize("words", of("raftsvc"))
def test_a_command_line_can_be_given(words: list[str]) -> None:
    parser, _ = build({})
    command = next((word for word in words[1:] if word in parser.commands), None)
    ours = words[1 : words.index("--") if "--" in words else None]
    given = {word.partition("=")[0] for word in ours if re.match("--[a-z]", word)}
    assert given <= (flags_of(command) if command else {*parser.words, "--help", "--version"})


@pytest.mark.parametrize("words", of("raftsvc", is_shown=True))
def test_a_command_line_that_is_shown_makes_sense(words: list[str]) -> None:
    if words[1:] != ["COMMAND", "--help"]:
        assert parse(words[1:], {"RAFTSVC_DIR": "data"}).function


def test_every_command_is_on_its_page() -> None:
    parser, _ = build({})
    page = PAGES["docs/commands.md"]
    assert not [name for name in parser.commands if not re.search(rf"`{name}\b", page)]


@pytest.mark.parametrize("words", of("gunicorn"))
def test_gunicorn_has_these_flags(words: list[str]) -> None:
    config = pytest.importorskip("gunicorn.config").Config()
    if len(words) > 1:
        config.parser().parse_args(words[1:])


@pytest.mark.parametrize("words", of("python"))
def test_a_module_that_is_run_is_there(words: list[str]) -> None:
    if "-m" in words:
        assert find_spec(words[words.index("-m") + 1]) is not None


@pytest.mark.parametrize("words", of("make"))
def test_make_has_the_target(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words[1:2]:
        assert word in targets


@pytest.mark.parametrize("words", of("pip"))
def test_an_extra_that_is_installed_is_there(words: list[str]) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(config["options.extras_require"])


@functools.cache
def known_variables() -> set[str]:
    source = (ROOT / "raftsvc" / "kv" / "environment.py").read_text()
    _, flags = build({})
    return {*flags.names, *re.findall(r"^    (RAFTSVC_\w+) ", source, re.MULTILINE), "RAFTSVC_FENCE", "RAFTSVC_COMPILE"}


@pytest.mark.parametrize("name", PAGES)
def test_every_variable_of_the_environment_is_one(name: str) -> None:
    # Those that end so stand for several.
    named = {word for word in re.findall(r"RAFTSVC_\w+", PAGES[name]) if not word.endswith("_")}
    assert named <= {*known_variables(), "RAFTSVC_SOME_FLAG", "RAFTSVC_OPT_LEVEL"}


@pytest.mark.parametrize("name", PAGES)
def test_a_shell_reads_what_it_is_given(name: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    for language, text in blocks(PAGES[name]):
        if language == "sh":
            done = subprocess.run(
                ["bash", "-n"], input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "deploy").iterdir()), ids=lambda path: path.name)
def test_what_is_deployed_gives_the_example_what_it_reads(path: Path) -> None:
    text = path.read_text()
    read = set(re.findall(r'os\.environ\["(\w+)"\]', (ROOT / "examples" / "wsgi.py").read_text()))
    assert {"RAFT_ADDR", "RAFT_SECRET"} < read
    assert not [name for name in {*read, "RAFT_INITIAL_CLUSTER"} if not re.search(rf"\b{name}\b", text)]
    # A node that listens where its name leads has no port, and fails its probes, until that is known.
    assert path.suffix != ".yaml" or re.search(r"RAFT_LISTEN\b.*0\.0\.0\.0:8001", text)
    (command,) = re.findall(r"gunicorn,? (--[^\n]*wsgi:application)", text)
    flags = [word for word in re.sub(r'[",]', " ", command).split() if word.startswith("--")]
    config = pytest.importorskip("gunicorn.config").Config()
    known = {flag for action in config.parser()._actions for flag in action.option_strings}
    assert {flag.partition("=")[0] for flag in flags} <= known


# -- Python


@pytest.mark.parametrize("name", [name for name in PAGES if python_of(name)])
def test_every_snippet_is_compiled_and_run_somewhere(name: str) -> None:
    for text in python_of(name):
        compile(text, name, "exec")
    if name in ELSEWHERE:
        assert Path(name).name in (ROOT / ELSEWHERE[name]).read_text()
    elif name not in ONLY_COMPILED:
        assert Path(name).name in Path(__file__).read_text().partition("# -- Python")[2]


class Snippets:
    """Runs what a page shows, block after block in one namespace; its nodes are alone in their clusters."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = iter(python_of(name))
        self.known: dict[str, Any] = {"__name__": "a_page", "print": lambda *args: None}
        self._name, self._monkeypatch = name, monkeypatch
        self._started: list[raftsvc.Service] = []
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        self.use_another_node()

    def use_another_node(self) -> None:
        """What is started next."""
        self.addr = free_address()
        values = {"ADDR": self.addr, "INITIAL_CLUSTER": self.addr, "DIR": f"node-{self.addr[-5:]}", "SECRET": "x" * 16}
        for variable, value in values.items():
            self._monkeypatch.setenv(f"RAFTSVC_{variable}", value)

    def take(self) -> str:
        """The next block."""
        text = next(self.blocks)
        text = text.replace('["n1:8001", "n2:8001", "n3:8001"]', f'["{self.addr}"]')
        return text.replace("n1:8001", self.addr).replace("127.0.0.1:9001", self.addr)

    def run(self, text: str | None = None) -> None:
        """It, or the next one."""
        exec(compile(text or self.take(), self._name, "exec"), self.known)
        for thing in list(self.known.values()):
            service = thing.service if isinstance(thing, KeyValue) else thing
            if isinstance(service, raftsvc.Service) and service not in self._started:
                self._started.append(service)
                service.wait_formed(PATIENCE)

    def run_all(self) -> None:
        """All that are left."""
        while True:
            try:
                text = self.take()
            except StopIteration:
                return
            self.run(text)

    def save(self) -> None:
        """The next one into the file that its first line names."""
        text = self.take()
        path = Path(re.match(r"# ([\w/]+\.py)", text)[1])  # type: ignore[index]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def stop(self) -> None:
        for service in self._started:
            service.stop()


@pytest.fixture
def make_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Snippets] = []

    def make(name: str) -> Snippets:
        made.append(Snippets(name, tmp_path, monkeypatch))
        return made[-1]

    yield make
    for snippets in made:
        snippets.stop()


def test_store_runs_as_printed(make_snippets: Any) -> None:
    snippets = make_snippets("docs/store.md")
    snippets.run()
    assert snippets.known["kv"].incr("n") == 1
    snippets.use_another_node()
    snippets.run_all()
    assert snippets.known["event"].kind == "delete"
    assert snippets.known["kv"].get("colors").data == b"blue "


def counts_said(programs: list[str]) -> str:
    counts = [len([line for line in text.splitlines() if line.strip()]) for text in programs]
    return "{} lines that bear code, {} and {}".format(*counts)


def test_pages_say_how_long_examples_are() -> None:
    said = re.findall(r"`examples/(\w+)\.py`[^.]* has (\d+) lines that bear code", "".join(PAGES.values()))
    assert {name for name, _ in said} >= {"quotes", "shifts"}
    for name, count in said:
        text = (ROOT / "examples" / f"{name}.py").read_text().split('"""\n', 1)[1]
        assert len([line for line in text.splitlines() if line.strip()]) == int(count), name


def test_asgi_runs_as_printed(make_snippets: Any) -> None:
    pytest.importorskip("fastapi")
    snippets = make_snippets("docs/asgi.md")
    snippets.run()
    snippets.run()
    assert snippets.known["greeting"].data == b"hello"
    assert (snippets.known["event"].kind, snippets.known["event"].key) == ("delete", "orders/7")
    programs = [snippets.take() for _ in range(3)]
    snippets.use_another_node()
    snippets.run(programs[0])
    assert asyncio.run(snippets.known["order"]("8")) == {"number": "8"}
    assert snippets.known["kv"].get("order/8").data == b"taken"
    assert next(snippets.blocks, None) is None
    assert counts_said(programs) in PAGES["docs/asgi.md"]


def test_state_runs_as_printed(make_snippets: Any, caplog: pytest.LogCaptureFixture) -> None:
    snippets = make_snippets("docs/state.md")
    snippets.run_all()
    assert snippets.known["balance"]


def test_servers_runs_as_printed(make_snippets: Any) -> None:
    pytest.importorskip("flask")
    snippets = make_snippets("docs/servers.md")
    snippets.run_all()
    assert callable(snippets.known["on_starting"])
    assert snippets.known["app"].test_client().get("/raft/livez").status_code == 200


def use_one_node(snippets: Snippets, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an extension starts next is another."""
    one_node.stop()
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    snippets.use_another_node()


def test_flask_runs_as_printed(make_snippets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask")
    snippets = make_snippets("docs/flask.md")
    try:
        snippets.run()
        assert snippets.known["app"].test_client().post("/visits").json == {"visits": 1}
        use_one_node(snippets, monkeypatch)
        snippets.save()
        snippets.run()
        assert snippets.known["app"].test_client().put("/orders/7").status_code == 201
        snippets.run()
        assert callable(snippets.known["post_worker_init"])
        use_one_node(snippets, monkeypatch)
        programs = [snippets.take() for _ in range(3)]
        snippets.run(programs[0])
        assert snippets.known["app"].test_client().put("/orders/7").status_code == 201
    finally:
        one_node.stop()
    assert next(snippets.blocks, None) is None
    assert counts_said(programs) in PAGES["docs/flask.md"]


def test_redis_runs_as_printed(make_snippets: Any) -> None:
    snippets = make_snippets("docs/redis.md")
    text = snippets.take()
    first, _, rest = text.partition("\n\nwith")
    snippets.run(first)
    snippets.run("with" + rest)
    assert snippets.known["store"].get("order/7").data == b"taken"


def test_testing_runs_as_printed(make_snippets: Any, tmp_path: Path) -> None:
    """In a pytest of its own."""
    pytest.importorskip("flask")
    snippets = make_snippets("docs/testing.md")
    snippets.save()
    snippets.save()
    (tmp_path / "app.py").write_text(python_of("docs/flask.md")[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "raftsvc.ext.pytest"],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout


DJANGO = """
from mysite.wsgi import application
from raftsvc.ext.django import kv
from werkzeug.test import Client
import mysite.views, raftsvc
kv.service.wait_formed(60)
answer = Client(application).post("/visits")
assert answer.json == {"visits": 1}, answer.get_data()
assert "sessionid" in answer.headers["Set-Cookie"]
def refuse(key):
    raise raftsvc.OverloadedError("too many")
mysite.views.kv = type("Failing", (), {"incr": staticmethod(refuse)})
answer = Client(application).post("/visits")
assert (answer.status_code, answer.json["code"], answer.headers["Retry-After"]) == (503, "OverloadedError", "1")
import mysite.wsgi
exec(open("mount.py").read(), vars(mysite.wsgi))
assert mysite.wsgi.application is application
kv.service.stop()
"""


def test_django_runs_as_printed(make_snippets: Any) -> None:
    """In a process of its own, for a process has one configuration of Django."""
    pytest.importorskip("django")
    snippets = make_snippets("docs/django.md")
    for _ in range(3):
        snippets.save()
    Path("mysite/urls.py").write_text(
        'from django.urls import path\nfrom mysite import views\nurlpatterns = [path("visits", views.visit)]\n'
    )
    Path("mount.py").write_text(snippets.take())
    with Path("mysite/urls.py").open("a") as urls:
        urls.write(snippets.take())
    programs = [snippets.take() for _ in range(3)]
    assert programs[0] in (ROOT / "examples" / "guests.py").read_text()
    counts = [len([line for line in text.splitlines() if line.strip()]) for text in programs]
    assert "{} lines that bear code, {} and {}".format(*counts) in PAGES["docs/django.md"]
    assert next(snippets.blocks, None) is None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "SECRET_KEY": "s"}
    done = subprocess.run(
        [sys.executable, "-c", DJANGO], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr


class _Enough(Exception):
    """Raised where a snippet would go on for ever."""


@pytest.mark.parametrize("name", ["docs/caches.md", "docs/limits.md", "docs/schedulers.md"])
def test_pages_of_libraries_run_as_printed(name: str, make_snippets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = make_snippets(name)
    monkeypatch.setenv("RAFTSVC_DIR", nodes_of_extensions.TEMPORARY)
    try:
        if name == "docs/schedulers.md":
            snippets.known["kv"] = one_node.store()
            programs = [next(snippets.blocks) for _ in range(3)]
            snippets.blocks = iter(programs[:1])  # the others have servers that are not here
            counts = [len([line for line in text.splitlines() if line.strip()]) for text in programs]
            assert f"is {counts[0]} lines" in PAGES[name]
            assert "That is {} and {} lines".format(*counts[1:]) in PAGES[name]
        snippets.run_all()
        if name == "docs/caches.md":
            with snippets.known["app"].app_context():
                snippets.known["flask_cache"].set("a", [1])
                assert snippets.known["flask_cache"].get("a") == [1]
    finally:
        nodes_of_extensions.one_node.stop()


def test_recipes_runs_as_printed(make_snippets: Any) -> None:
    """What tests/service/test_recipes.py does not run of it."""
    snippets = make_snippets("docs/recipes.md")
    snippets.run("from raftsvc.kv import start_from_env\nstore = start_from_env()")
    seen: list[str] = []

    def enough() -> None:
        seen.append("due")
        raise _Enough

    names = ("charge", "show", "compute", "migrate", "serve", "fill")
    snippets.known |= {name: lambda *args, name=name, **named: seen.append(name) for name in names}
    snippets.known |= {"order": 7, "catalog": 7, "run_what_is_due": enough}
    for heading in (
        "A lock",
        "A lock for readers and a writer, and a semaphore",
        "An election",
        "What is done once",
        "Who is there",
        "Jobs",
    ):
        section = PAGES["docs/recipes.md"].split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        (text,) = [text for language, text in blocks(section) if language == "python"]
        if heading == "Jobs":
            pytest.importorskip("cronsim")
        try:
            snippets.run(text.replace("wait(1.0)", "wait(0.0)"))
        except _Enough:
            assert heading == "An election"
    assert snippets.known["jobs"].stop(PATIENCE)
    assert {*names, "due"} - set(seen) <= {"fill"}


def test_http_runs_as_printed(make_snippets: Any) -> None:
    """That the application has the store below a path; what is asked of it is in tests/web."""
    snippets = make_snippets("docs/http.md")
    snippets.known |= {"app": None, "token": "x" * 16}
    snippets.run_all()
    snippets.known["store"].service.wait_formed(PATIENCE)
    headers = {"Authorization": "Bearer " + "x" * 16}
    answer = Client(snippets.known["application"]).put("/store/v1/keys/a", data=b"1", headers=headers)
    assert answer.status_code == 200 and answer.json["version"] > 0


# -- five minutes


def test_the_recording_is_of_what_is_printed() -> None:
    _, printed = screen.printed(PAGES["README.md"])
    recording = html.unescape(re.sub("<[^>]*>", "", (ROOT / "docs" / "first-screen.svg").read_text()))
    typed = "".join(recording.split())
    assert not [line for line in printed.splitlines() if "".join(line.split()) not in typed], (
        "python -m benchmarks.screen"
    )


@pytest.mark.processes
def test_five_minutes_go_as_printed(tmp_path: Path) -> None:
    for program in ("bash", "curl", "pgrep"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    pytest.importorskip("gunicorn")
    page = PAGES["docs/start.md"]
    environment = commands_beside(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    (tmp_path / "app.py").write_text(python_of("docs/start.md")[0])
    steps: list[tuple[str, str]] = []
    for language, text in blocks(page):
        if language == "sh" and "pip install" not in text:
            steps.append((text, ""))
        elif language == "console":
            parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
            steps += [(command, said) for command, _, said in (part.partition("\n") for part in parts)]
    script = "".join(f"{command}\necho '-- next'\n" for command, _ in steps)
    for known, other in zip(("127.0.0.1:900", "127.0.0.1:800"), free_prefixes(), strict=True):
        script = script.replace(known, f"127.0.0.1:{other}")
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        printed = process.communicate(timeout=2 * PATIENCE)[0].split("-- next\n")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    logs = "\n".join(path.read_text()[-2000:] for path in [tmp_path / "stderr", *sorted(tmp_path.glob("?.log"))])
    assert len(printed) == len(steps) + 1, logs
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING raftsvc\S*: ", logs, re.MULTILINE), logs
    for (command, expected), found in zip(steps, printed, strict=False):
        if " members" in command:
            assert [line.split()[0] for line in found.splitlines()] == ["ID", "1", "2", "3"]
        elif '"detail"' in expected:
            assert json.loads(found)["code"] == json.loads(expected)["code"]
        else:
            assert found.strip() == expected.strip(), (command, logs)


# -- what the log says, and errors


@functools.cache
def nodes() -> list[tuple[str, ast.Call | ast.Constant]]:
    """Each call, and each text, of the library's sources, with its place."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / "raftsvc").rglob("*.py"))
        if path.relative_to(ROOT / "raftsvc").parts[0] not in ("testing", "commands")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]


def said_by(call: ast.Call) -> ast.expr | None:
    """What it says in the log, if that is of level WARNING or ERROR."""
    if not isinstance(call.func, ast.Attribute) or not call.args:
        return None
    kind = call.func.attr
    if kind in ("warning", "error", "exception", "critical", "log"):
        if ast.unparse(call.func.value) == "logger":
            return call.args[kind == "log"]
    elif kind == "tell" and ast.unparse(call.args[0]) == "logger":
        if not ast.unparse(call.args[1]).endswith("INFO"):
            return call.args[2]
    elif kind in ("say", "_say"):
        if "logging" in ast.unparse(call.args[0]) and not ast.unparse(call.args[0]).endswith("INFO"):
            return call.args[1]
    elif kind == "append" and ast.unparse(call.func.value).endswith("remarks"):
        return call.args[0]
    return None


def lines_of_the_log() -> Iterator[tuple[str, str]]:
    """Where, and what; what is another each time is `...`."""
    for where, node in nodes():
        text = said_by(node) if isinstance(node, ast.Call) else None
        if isinstance(text, ast.JoinedStr):
            line = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in text.values)
        elif isinstance(text, ast.Constant):
            line = re.sub(r"%[-#.\d]*[a-z]", "...", str(text.value))
        else:
            continue  # made elsewhere: a condition, or one of those that the page has besides
        if line not in ("...", "node ...: ..."):
            yield where, line


ROWS = re.findall(r"^\| `([^|]+)` \| ", PAGES["docs/log.md"], re.MULTILINE)


def test_every_line_of_the_log_is_explained() -> None:
    assert len(ROWS) == len(set(ROWS)) > 50
    begun = tuple(row.rstrip(". ") for row in ROWS if len(row) > 40 and row.endswith("..."))
    missing = [
        f"{where}: {line}" for where, line in lines_of_the_log() if line not in ROWS and not line.startswith(begun)
    ]
    assert not missing, "say in docs/log.md what it means and what to do"


def test_no_line_of_the_log_is_explained_that_nobody_says() -> None:
    texts = "\0".join(str(node.value) for _, node in nodes() if isinstance(node, ast.Constant))
    texts = re.sub(r"%[-#.\d]*[a-z]", "\0", texts)
    assert not [row for row in ROWS if max(row.split("..."), key=len).strip(" :,.") not in texts]


def test_every_error_that_a_caller_can_catch_is_explained() -> None:
    for module in (raftsvc, kv, recipes):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and issubclass(thing, Exception):
                assert f"`{name}`" in PAGES["docs/operations.md"], "say what it means and what to do"
