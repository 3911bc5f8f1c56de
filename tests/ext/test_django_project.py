"""A project of Django in processes of its own: the server of its reloader, a shell beside it, tests in parallel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import PATIENCE, ROOT, eventually, free_port

pytest.importorskip("django")
pytestmark = pytest.mark.processes

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "app"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
APP = """
import os
from django.http import HttpResponse
from django.urls import path
from raftsvc.ext.django import kv

SECRET_KEY, DEBUG, ROOT_URLCONF = "a key of the tests, long enough", True, __name__
INSTALLED_APPS = ["raftsvc.ext.django"]

def visit(request):
    return HttpResponse(f"WORD {kv.incr('visits')} {os.getpid()}")

urlpatterns = [path("", visit)]
"""
TESTS = """
from django.test import SimpleTestCase
from raftsvc.ext.django import kv

class Own(SimpleTestCase):
    def test_the_store_is_its_own_process_s(self):
        assert kv.get("who") is None

class AlsoOwn(Own):
    pass

kv.set("who", b"the parent, which may have one when it migrates")
"""


class Project:
    def __init__(self, path: Path) -> None:
        addr = f"127.0.0.1:{free_port()}"
        self.path = path
        self.node = path / "node"
        self.temporary = path / "temporary"
        self.temporary.mkdir()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")},
            "RAFTSVC_ADDR": addr,
            "RAFTSVC_INITIAL_CLUSTER": addr,
            "RAFTSVC_DIR": str(self.node),
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
        }
        (path / "manage.py").write_text(MANAGE)
        self.say("one")

    def say(self, word: str) -> None:
        (self.path / "app.py").write_text(APP.replace("WORD", word))

    def manage(self, *words: str) -> str:
        """What the command says that has ended well."""
        command = [sys.executable, "manage.py", *words]
        done = subprocess.run(
            command, cwd=self.path, env=self.environ, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def url(project: Project) -> Iterator[str]:
    """Of `runserver` with its reloader."""
    at = f"127.0.0.1:{free_port()}"
    with (project.path / "log").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", at],
            cwd=project.path,
            env=project.environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield f"http://{at}/"
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait(30)


def test_the_server_has_the_node_over_reloads_and_a_shell_is_its_client(project: Project, url: str) -> None:
    def page(word: str) -> tuple[int, int]:
        """Its count and its process, once the server has this word."""

        def told() -> list[str]:
            with suppress(requests.RequestException):
                answer = requests.get(url, timeout=30)
                said = answer.text.split()
                if answer.status_code == 200 and said[0] == word:
                    return said
            return []

        said = eventually(told, f"the page says {word}; {(project.path / 'log').read_text()}")
        return int(said[1]), int(said[2])

    count, former = page("one")
    assert (project.node / "lock").read_text().startswith(f"process {former} "), "and the parent has no node"
    shell = "from raftsvc.ext.django import kv; print('count', kv.incr('visits'))"
    assert f"count {count + 1}\n" in project.manage("shell", "-c", shell)
    project.say("another")
    more, pid = page("another")
    assert more > count + 1 and pid != former
    assert (project.node / "lock").read_text().startswith(f"process {pid} ")


def test_each_process_of_tests_has_a_node_of_its_own(project: Project) -> None:
    (project.path / "tests.py").write_text(TESTS)
    assert "Ran 2 tests" in project.manage("test", "--parallel", "2")
    assert not project.node.exists(), "what tests write is not the server's"
    assert not [path for path in project.temporary.iterdir() if path.name.startswith("raftsvc-")]
