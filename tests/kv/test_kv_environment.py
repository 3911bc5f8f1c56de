"""A store by the environment alone: what each variable means, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import kv
from raftsvc.kv import environment
from tests.service.harness import free_address

SECRET = "a secret of the whole cluster"
BASE = {"RAFTSVC_ADDR": "n1.example:8001", "RAFTSVC_DIR": "/var/lib/app/raft"}


class Asked(Exception):
    """`start` was called, with these options."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(**options: Any) -> None:
        raise Asked(options)

    monkeypatch.setattr(environment, "start", start)

    def ask(given: dict[str, str], **options: Any) -> dict[str, Any]:
        with pytest.raises(Asked) as caught:
            kv.start_from_env(given, **options)
        found: dict[str, Any] = caught.value.args[0]
        assert isinstance(found.pop("state"), kv.KeyValueState)
        return found

    return ask


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, {"listen": "n1.example:8001", "secret": None}),
        ({"RAFTSVC_LISTEN": "0.0.0.0:9"}, {"listen": "0.0.0.0:9"}),
        ({"RAFTSVC_LISTEN": ""}, {"listen": None}),
        ({"RAFTSVC_ADDR": "https://n1.example/raft"}, {"listen": "n1.example:443"}),
        ({"RAFTSVC_ADDR": "http://n1.example/raft"}, {"listen": "n1.example:80"}),
        ({"RAFTSVC_ADDR": "[::1]:8001"}, {"listen": "[::1]:8001"}),
        ({"RAFTSVC_SECRET": f" {SECRET}\n"}, {"secret": [SECRET]}),
        ({"RAFTSVC_SECRET": "", "RAFTSVC_SECRET_FILE": ""}, {"secret": None}),
        ({"RAFTSVC_INITIAL_CLUSTER": "a:1,b:2 , c:3,"}, {"initial_cluster": ["a:1", "b:2", "c:3"]}),
        ({"RAFTSVC_INITIAL_CLUSTER": "a:1\n  b:2\n"}, {"initial_cluster": ["a:1", "b:2"]}),
        ({"RAFTSVC_INITIAL_CLUSTER": " "}, {}),
    ],
)
def test_variables_mean_options(asked: Any, given: dict[str, str], meant: dict[str, Any]) -> None:
    found = asked({**BASE, **given})
    assert {name: found[name] for name in meant} == meant
    assert ("initial_cluster" in found) == ("initial_cluster" in meant)


def test_a_file_has_the_secret_and_the_node_reads_it_again_and_again(asked: Any, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"\n{SECRET}\n\nthe one before, of many bytes\r\n")
    found = asked({**BASE, "RAFTSVC_SECRET_FILE": str(file)})
    assert found["secret_file"] == str(file) and "secret" not in found
    assert "client_keys_file" not in found
    found = asked({**BASE, "RAFTSVC_SECRET_FILE": "/nowhere"}, secret="x" * 16)
    assert found["secret"] == "x" * 16 and "secret_file" not in found
    keys = tmp_path / "keys"
    keys.write_text(f"ann write {'k' * 32}\n")
    found = asked({**BASE, "RAFTSVC_CLIENT_KEYS_FILE": str(keys)})
    assert found["client_keys_file"] == str(keys)
    assert "client_keys_file" not in asked({**BASE, "RAFTSVC_CLIENT_KEYS_FILE": "/keys"}, client_keys=[])


@pytest.mark.parametrize(
    "given",
    [
        {"RAFTSVC_COMPILE": "1", "RAFTSVC_OPT_LEVEL": "0", "RAFTSVC_EFFORT": "2"},
        {"RAFTSVC_INITAL_CLUSTER": " ", "RAFTSVCX": "1", "RAFT_SVC": "1", "raftsvc_listen": "x"},
        # What Kubernetes tells of services that are named raftsvc and raftsvc-web.
        {"RAFTSVC_SERVICE_HOST": "10.0.0.1", "RAFTSVC_SERVICE_PORT": "80", "RAFTSVC_SERVICE_PORT_HTTP": "80"},
        {"RAFTSVC_PORT": "tcp://10.0.0.1:80", "RAFTSVC_PORT_80_TCP": "tcp://10.0.0.1:80"},
        {"RAFTSVC_PORT_80_TCP_ADDR": "10.0.0.1", "RAFTSVC_PORT_53_UDP_PROTO": "udp"},
        {"RAFTSVC_WEB_SERVICE_HOST": "10.0.0.1", "RAFTSVC_WEB_PORT": "tcp://10.0.0.1:80"},
        {"RAFTSVC_WEB_PORT_80_TCP_PORT": "80"},
    ],
)
def test_variables_of_others_are_left_alone(asked: Any, given: dict[str, str]) -> None:
    assert asked({**BASE, **given})["listen"] == "n1.example:8001"


def test_what_the_caller_gives_comes_first(asked: Any) -> None:
    given = {**BASE, "RAFTSVC_SECRET": SECRET, "RAFTSVC_SECRET_FILE": "both"}
    found = asked(given, secret="x" * 16, laddr="b:2", listen=None, election_timeout=3.0)
    assert found == {"laddr": "b:2", "dir": BASE["RAFTSVC_DIR"], "secret": "x" * 16, "listen": None} | {
        "election_timeout": 3.0
    }
    assert asked({}, laddr="b:2", dir="d")["listen"] == "b:2"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"RAFTSVC_ADDR": ""}, "RAFTSVC_ADDR is not set: where the others reach this node"),
        (
            {"RAFTSVC_ADDR": "", "RAFTSVC_ADDRESS": "a:1"},
            "RAFTSVC_ADDRESS is no variable of raftsvc: RAFTSVC_ADDR is, was that meant?",
        ),
        ({"RAFTSVC_DIR": " "}, "RAFTSVC_DIR is not set: a directory"),
        ({"RAFTSVC_SECRET": SECRET, "RAFTSVC_SECRET_FILE": "/x"}, "both set"),
        ({"RAFTSVC_SECRET_FILE": "/nowhere/secret"}, "/nowhere/secret cannot be read"),
        ({"RAFTSVC_SECRET_FILE": "/dev/null"}, "/dev/null is no file"),
        ({"RAFTSVC_ADDR": "nowhere"}, "^RAFTSVC_ADDR: .*neither host:port"),
        ({"RAFTSVC_LISTEN": "nowhere"}, "^RAFTSVC_LISTEN is host:port"),
        ({"RAFTSVC_LISTEN": "0.0.0.0:0"}, "^RAFTSVC_LISTEN is host:port"),
        ({"RAFTSVC_CLIENT_KEYS_FILE": "/nowhere/keys"}, "^RAFTSVC_CLIENT_KEYS_FILE: /nowhere/keys cannot be read"),
        ({"RAFTSVC_INITIAL_CLUSTER": "n1.example:8001;n2:1"}, "^RAFTSVC_INITIAL_CLUSTER: "),
        ({"RAFTSVC_INITAL_CLUSTER": "a:1"}, "RAFTSVC_INITIAL_CLUSTER is, was that meant?"),
        ({"RAFTSVC_CLUSTER": "a:1"}, "RAFTSVC_INITIAL_CLUSTER"),
        ({"RAFTSVC_SECRETFILE": "a"}, "RAFTSVC_SECRET_FILE is, was that meant?"),
        ({"RAFTSVC_SECERT": SECRET}, "RAFTSVC_SECRET is, was that meant?"),
        ({"RAFTSVC_Listen": "a:1"}, "RAFTSVC_Listen is no variable of raftsvc: RAFTSVC_LISTEN is, was that meant?"),
        ({"RAFTSVC_PORT": "8001"}, "RAFTSVC_PORT is no variable"),
        ({"RAFTSVC_ELECTION_TIMEOUT": "3"}, "unset it; there are RAFTSVC_ADDR, "),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_said_by_its_name(asked: Any, given: dict[str, str], why: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=why.replace("?", r"\?")):
        kv.start_from_env({**BASE, **given})


def test_a_node_starts_as_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    addr = free_address()
    for name, value in {"ADDR": addr, "DIR": str(tmp_path / "node"), "SECRET": SECRET}.items():
        monkeypatch.setenv(f"RAFTSVC_{name}", value)
    store = kv.start_from_env(election_timeout=0.3)
    try:
        store.service.init()
        store["a"] = b"1"
        assert store.incr("a") == 2
        assert store.service.status()["addr"] == addr
    finally:
        store.service.stop()
