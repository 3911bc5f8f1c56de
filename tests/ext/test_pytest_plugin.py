"""The plugin of pytest: stores for tests, faults at will, and nothing for those who do not use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.attached.hosts import ROOT

pytest_plugins = ["pytester"]

STORES = """
import glob, os, tempfile, threading
import pytest
from raftsvc.kv import incr
from raftsvc.kv.instructions import encode
from raftsvc.ext.nodes import one_node
from raftsvc import NotApplied, OutcomeUnknown, ReadTimeoutError

@pytest.mark.parametrize("n", range(2))
def test_each_test_has_an_empty_one(raft_kv, n):
    assert raft_kv.incr("visits") == 1
    assert one_node.store() is raft_kv

def test_what_another_test_began_is_gone(raft_kv):
    assert raft_kv.get("visits") is None

def test_settings_are_forgotten():
    assert not one_node.is_configured

@pytest.mark.parametrize("applied", [True, False])
def test_unknown(raft_kv, raft_faults, applied):
    raft_faults.outcome_unknown(applied=applied)
    with pytest.raises(OutcomeUnknown):
        raft_kv.set("a", b"1")
    assert (raft_kv.get("a") is not None) == applied
    assert raft_kv.set("b", b"1") > 0

def test_in_order(raft_kv, raft_faults):
    raft_faults.not_applied()
    raft_faults.outcome_unknown(applied=True)
    raft_faults.read_timeout()
    with pytest.raises(NotApplied):
        raft_kv.incr("n")
    with pytest.raises(OutcomeUnknown):
        raft_kv.incr("n")
    with pytest.raises(ReadTimeoutError):
        raft_kv.get("n")
    assert raft_kv.get("n").data == b"1"

@pytest.mark.anyio
async def test_of_coroutines(raft_kv, raft_faults, anyio_backend):
    raft_faults.outcome_unknown(applied=True)
    raft_faults.not_applied()
    raft_faults.read_timeout()
    with pytest.raises(OutcomeUnknown):
        await raft_kv.aio.incr("n")
    with pytest.raises(NotApplied):
        await raft_kv.service.aio.exec(encode([incr("n")]))
    with pytest.raises(ReadTimeoutError):
        await raft_kv.aio.get("n")
    async with raft_kv.aio.lock("l"):
        assert (await raft_kv.aio.get("n")).data == b"1"

@pytest.mark.parametrize("how", ["propose", "exec", "propose_many"])
def test_by_the_service(raft_kv, raft_faults, how):
    one = encode([incr("n")])
    raft_faults.outcome_unknown(applied=True)
    with pytest.raises(OutcomeUnknown):
        getattr(raft_kv.service, how)([one] if how == "propose_many" else one)
    assert raft_kv.incr("n") == 2

def test_nothing_is_left_of_former_tests():
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("raftsvc")}
    assert names <= {"raftsvc-main", "raftsvc.aio"}, "those are the process's"
    assert not glob.glob(os.path.join(tempfile.gettempdir(), "raftsvc-*"))

def test_a_lock_is_kept_meanwhile(raft_kv, raft_faults):
    with raft_kv.lock("l", ttl=4.0) as lock:
        raft_faults.not_applied()
        assert not lock.lost.wait(6.0)
        with pytest.raises(NotApplied):
            raft_kv.incr("n")

def test_what_did_not_happen(raft_faults):
    raft_faults.not_applied()

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it is named, whatever is installed
    monkeypatch.delenv("RAFTSVC_DIR", raising=False)
    return pytester


def test_stores_are_fresh_and_faults_come_as_they_were_said(run: pytest.Pytester) -> None:
    pytest.importorskip("anyio")
    run._monkeypatch.setenv("TMPDIR", str(run.mkdir("tmp")))
    run.makepyfile(STORES)
    result = run.runpytest_subprocess("-p", "raftsvc.ext.pytest", "-p", "anyio", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=14, errors=1)
    result.stdout.fnmatch_lines(["*these did not happen*: NotApplied*"])


def test_applications_of_a_module_keep_their_settings_and_a_real_directory_is_refused(run: pytest.Pytester) -> None:
    pytest.importorskip("flask")
    run.makepyfile(
        application="""
        import os
        from flask import Flask
        from raftsvc.ext.flask import Raft
        app = Flask(__name__)
        app.config["RAFTSVC_DIR"] = os.environ.get("WHERE", ":temporary:")
        raft = Raft(app, laddr="127.0.0.1:1")
        app.post("/visits")(lambda: {"visits": raft.kv.incr("visits")})
        """,
        test_it="""
        from application import app

        def test_without_a_fixture():
            assert app.test_client().post("/visits").json == {"visits": 1}

        def test_with_one(raft_kv):
            assert app.test_client().post("/visits").json == {"visits": 1}
            assert raft_kv.get("visits").data == b"1"

        def test_without_again():
            assert app.test_client().post("/visits").json == {"visits": 1}
        """,
    )
    options = ("-p", "raftsvc.ext.pytest", "-p", "no:cacheprovider")
    run.runpytest_subprocess(*options).assert_outcomes(passed=3)
    run._monkeypatch.setenv("WHERE", str(run.path / "data"))
    result = run.runpytest_subprocess(*options, "-k", "test_with_one")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*better not write to*"])
    assert not (run.path / "data").exists()


def test_who_does_not_use_it_has_nothing_of_it_but_its_module() -> None:
    program = (
        "import sys, raftsvc.ext.pytest\n"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in ('raftsvc', 'requests', 'werkzeug')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["raftsvc", "raftsvc.ext", "raftsvc.ext.pytest"], done.stderr
