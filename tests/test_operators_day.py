"""An operator's day, from the first node to a cluster restored elsewhere, by the commands that he would type.

Each node is `raftsvc serve`, with TLS by a CA of its own; nothing is restarted but what died.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.service.harness import PATIENCE, eventually, free_address

ROOT = Path(__file__).parent.parent
TOKEN = secrets.token_hex()
OPERATOR = secrets.token_hex()

pytestmark = pytest.mark.processes


class Node:
    """A host: its files, and what runs there."""

    def __init__(self, day: Day, name: str) -> None:
        self.path = day.path / name
        self.path.mkdir()
        self.data = self.path / "data"
        self.addr = f"https://{free_address()}/raft"
        self.bind = free_address()
        self.secret = self.path / "secret"
        self._day = day
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *members: Node) -> Node:
        """members: of the cluster that forms; none: the directory is that of one, or it is to join."""
        day = self._day
        files = {"SECRET_FILE": self.secret, "OPERATOR_KEYS_FILE": day.path / "operators"}
        files |= {"TLS_CERT_FILE": self.path / "n.pem", "TLS_KEY_FILE": self.path / "n.key"}
        files |= {"TLS_CA_FILE": day.path / "ca.pem", "KEYS_FILE": day.path / "keys"}
        said = {"ADDR": self.addr, "DIR": self.data, "BIND": self.bind, **files}
        if members:
            said["INITIAL_CLUSTER"] = ",".join(member.addr for member in members)
        environ = {**day.environ, **{f"RAFTSVC_{name}": str(value) for name, value in said.items()}}
        with (self.path / "log").open("ab") as log:
            command = [sys.executable, "-m", "raftsvc", "serve"]
            self._process = subprocess.Popen(command, env=environ, cwd=self.path, stdout=log, stderr=log)
        day.running.append(self._process)
        return self

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    @property
    def where(self) -> tuple[str, int]:
        host, port = self.addr.removeprefix("https://").removesuffix("/raft").rsplit(":", 1)
        return host, int(port)

    def certificate(self) -> str:
        """The one that it shows now."""
        return ssl.get_server_certificate(self.where, ca_certs=str(self._day.path / "ca.pem"), timeout=PATIENCE)

    def get(self, path: str, token: str) -> requests.Response:
        """Something of the node's own port."""
        said = {"Authorization": f"Bearer {token}"}
        return requests.get(
            f"{self.addr}/{path}", headers=said, verify=str(self._day.path / "ca.pem"), timeout=PATIENCE
        )

    def store(self, method: str, key: str, value: bytes | None = None) -> requests.Response:
        """Something of the store over HTTP."""
        said = {"Authorization": f"Bearer {TOKEN}"}
        return requests.request(method, f"http://{self.bind}/v1/keys/{key}", data=value, headers=said, timeout=PATIENCE)

    def log(self) -> str:
        return (self.path / "log").read_text()


class Day:
    """Some hosts, and the shell of who operates them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")}
        self.environ = {**kept, "PYTHONPATH": str(ROOT), "RAFTSVC_TIMEOUT": str(PATIENCE)}
        (path / "keys").write_text(f"shop write {TOKEN}\n")
        (path / "operators").write_text(f"anna full {OPERATOR}\n")
        page = (ROOT / "docs" / "security.md").read_text()
        self._certify = re.search(r"^certify\(\).*?^}\n", page, re.MULTILINE | re.DOTALL)
        (make_ca,) = re.findall(r"```sh\n(openssl req.*?)\n\n", page, re.DOTALL)
        self.shell(make_ca)

    def shell(self, script: str) -> None:
        subprocess.run(["sh", "-e", "-c", script], cwd=self.path, check=True, capture_output=True, timeout=PATIENCE)

    def certify(self, node: Node) -> None:
        """Have a new certificate and key in its files, each in place of the former at once."""
        assert self._certify is not None
        host = node.where[0]
        name = node.path.name
        self.shell(
            f"{self._certify[0]}\ncertify {name} IP:{host}\nmv {name}.key {name}/n.key; mv {name}.pem {name}/n.pem"
        )

    def begin(self, *words: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raftsvc", *map(str, words)]
        process = subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running.append(process)
        return process

    def run(self, *words: str | Path, code: int = 0) -> Any:
        """A command; what its JSON says."""
        process = self.begin(*words, "--json")
        out, err = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == code, (words, out, err)
        return json.loads(out) if out.strip() else None


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    made = Day(tmp_path)
    try:
        yield made
    finally:
        for process in made.running:
            process.kill()
            process.communicate()


def test_from_the_first_node_to_a_cluster_restored_elsewhere(day: Day) -> None:
    nodes = [Node(day, f"n{number}") for number in (1, 2, 3)]
    first, second, third = nodes
    secret = day.path / "former"
    secret.write_text(secrets.token_hex() + "\n")
    for node in nodes:
        day.certify(node)
        node.secret.write_bytes(secret.read_bytes())

    # It forms by itself, and serves.
    for node in nodes:
        node.start(*nodes)
    eventually(lambda: _serves(day, first), "the cluster serves")
    eventually(lambda: day.run("--at", first.data, "status")["safe_to_lose_one_more"] is True, "all three take part")
    assert first.store("PUT", "orders", b"41").ok
    assert second.store("GET", "orders").content == b"41"

    # A node dies: the page and the metrics of another say so, and that none more may go.
    third.kill()
    (dead,) = [
        member["id"] for member in day.run("--at", first.data, "members")["members"] if member["addr"] == third.addr
    ]
    eventually(lambda: not _feed(first)["verdict"]["is_safe"], "the page says that no other may go")
    eventually(lambda: _not_current(first) == [dead], "the page says who is dead, and that all others are current")
    line = f'raftsvc_peer_unreachable{{peer="{dead}"}} 1'
    eventually(lambda: line in first.get("metrics", OPERATOR).text, "the metrics say who is dead")
    assert day.run("--at", first.data, "status")["safe_to_lose_one_more"] is False
    assert first.store("PUT", "orders", b"42").ok

    # Another takes its place.
    fourth = Node(day, "n4")
    day.certify(fourth)
    fourth.secret.write_bytes(secret.read_bytes())
    replacing = day.begin("--at", first.data, "replace", third.addr, fourth.addr, "--wait", str(PATIENCE))
    fourth.start()
    eventually(lambda: (fourth.data / "socket").exists(), "the node that is new is there")
    joining = day.begin("--at", fourth.data, "join", first.addr)
    assert joining.wait(2 * PATIENCE) == 0, joining.communicate()
    assert replacing.wait(2 * PATIENCE) == 0, replacing.communicate()
    members = day.run("--at", first.data, "status")["members"]
    assert sorted(member["addr"] for member in members) == sorted(each.addr for each in (first, second, fourth))
    present = [first, second, fourth]

    # Another secret, and other certificates, while all of them serve.
    new = day.path / "new"
    new.write_text(secrets.token_hex() + "\n")
    rotations = [day.begin("--at", node.data, "secret", "rotate", new, "--wait", str(PATIENCE)) for node in present]
    for rotation in rotations:
        assert rotation.wait(2 * PATIENCE) == 0, rotation.communicate()
    assert {node.secret.read_text() for node in present} == {new.read_text()}
    for node in present:
        former = node.certificate()
        day.certify(node)
        eventually(lambda node=node, former=former: node.certificate() != former, "the new certificate is shown")  # type: ignore[misc]
    assert second.store("PUT", "orders", b"43").ok
    assert fourth.store("GET", "orders").content == b"43"

    # A backup, which is whole.
    backup = day.path / "orders.raft"
    day.run("--at", second.data, "backup", backup)
    day.run("verify", backup)

    # The majority is lost, for good: what survives goes on as a cluster of its own.
    assert first.store("PUT", "orders", b"44").ok
    for node in (second, fourth):
        node.kill()
    assert first.store("PUT", "orders", b"45").status_code in (503, 504)
    first.kill()
    day.run("recover", first.data, first.addr, "--yes", "--accept-loss")
    first.start()
    eventually(lambda: _serves(day, first), "what was recovered serves")
    assert first.store("GET", "orders").content in (b"44", b"45"), "what was acknowledged is there"
    first.kill()
    day.run("verify", first.data)

    # Elsewhere the backup is a cluster, as of when it was taken.
    elsewhere = Node(day, "n5")
    day.certify(elsewhere)
    elsewhere.secret.write_bytes(new.read_bytes())
    day.run("restore", backup, elsewhere.data, elsewhere.addr)
    elsewhere.start()
    eventually(lambda: _serves(day, elsewhere), "what was restored serves")
    restored = elsewhere.store("GET", "orders")
    assert restored.content == b"43"
    assert elsewhere.store("PUT", "orders", b"46").ok
    assert _version(elsewhere.store("GET", "orders")) > 10**15 > _version(restored), "none that anybody may have seen"
    elsewhere.kill()
    day.run("verify", elsewhere.data)


def _serves(day: Day, node: Node) -> bool:
    process = day.begin("--at", node.data, "status", "--json")
    out, _ = process.communicate(timeout=2 * PATIENCE)
    return process.returncode == 0 and json.loads(out)["serves"] is True


def _version(answer: requests.Response) -> int:
    return int(answer.headers["ETag"].strip('"'))


def _not_current(node: Node) -> list[Any]:
    return [member["id"] for member in _feed(node)["members"] if member["state"] != "current"]


def _feed(node: Node) -> Any:
    """What the page shows of the cluster."""
    answer = node.get("operator/feed", OPERATOR)
    assert answer.status_code == 200, answer.text
    return answer.json()
