"""A node without a secret serves its own machine only, whatever address its server is bound to."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.middleware.proxy_fix import ProxyFix

import raftsvc
from raftsvc.transport import App, Authenticator, SnapshotChunk
from raftsvc.transport import app as app_module
from raftsvc.transport.listener import Listener
from raftsvc.transport.local import trace_of_outside
from raftsvc.transport.wire import CONTENT_TYPE, PROTOCOL_VERSION, JoinRequest
from tests.service.harness import ListState, free_address
from tests.transport.harness import SECRET, Answer, Recorder, call, make_app, message, request
from tests.transport.test_app import SNAPSHOT
from tests.transport.test_peer import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
BODIES = {
    "msg": message().encode(),
    "snapshot": SnapshotChunk(SNAPSHOT, 100, 5, 0, b"data").encode(),
    "join": JoinRequest("127.0.0.1:9", b"t" * 16).encode(),
    "confirm": b"n" * 16,
    "stream": b"",
    "status": b"",
    "metrics": b"",
}
PATHS = sorted(BODIES)


def asking(path: str, **raw: Any) -> dict[str, Any]:
    """The environ of a request as a peer on this machine makes it; `raw` alters it."""
    method = "GET" if path in ("status", "metrics", "stream", "livez", "readyz") else "POST"
    changes = {f"raw_{name}": value for name, value in raw.items()}
    return request(path, BODIES.get(path, b""), secret=None, method=method, **changes)


def refused(environ: dict[str, Any], wrap: Callable[[App], Any] = lambda app: app) -> Answer:
    recorder = Recorder()
    body = environ["wsgi.input"]
    answer = call(wrap(make_app(recorder, secret=None)), environ)
    assert (answer.status, answer.code) == (403, "local_only")
    detail = json.loads(answer.body)["detail"]
    assert "secret=" in detail and "insecure=True" in detail, "it says what to do"
    assert recorder.calls == [], "what is refused changes nothing"
    assert body.read() == b"", "the connection is fit for the next request"
    return answer


def is_served(environ: dict[str, Any], **options: Any) -> bool:
    recorder = Recorder()
    return call(make_app(recorder, **{"secret": None, **options}), environ).status == 200 and bool(recorder.calls)


# -- where it comes from

LOOPBACK = ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1"]
ELSEWHERE = {
    "another machine": "10.0.0.9",
    "the public": "203.0.113.7",
    "IPv6": "2001:db8::1",
    "link-local": "fe80::1%eth0",
    "IPv4 by an IPv6 socket": "::ffff:10.0.0.9",
    "embedded otherwise": "::127.0.0.1",
    "NAT64": "64:ff9b::7f00:1",
    "6to4": "2002:7f00:1::1",
    "any address": "0.0.0.0",
    "any address of IPv6": "::",
    "a Unix socket under gunicorn": "",
    "a Unix socket under waitress": "localhost",
    "a Unix socket under werkzeug": "<local>",
    "a Unix socket elsewhere": "unix:",
    "missing": None,
    "a zone": "::1%lo",
    "a mapped zone": "::ffff:127.0.0.1%1",
    "a port": "127.0.0.1:4711",
    "brackets": "[::1]",
    "short": "127.1",
    "octal": "0177.0.0.1",
    "zeros": "127.0.0.01",
    "a number": "2130706433",
    "not text": 2130706433,
    "bytes": b"127.0.0.1",
    "a list": "127.0.0.1, 10.0.0.9",
    "spaces": " 127.0.0.1",
    "a line": "127.0.0.1\n",
    "other digits": "\u0661\u0662\u0667.0.0.1",
    "a name": "127.0.0.1.example",
    "junk": "\x00\u00e9" * 3000,
}


@pytest.mark.parametrize("addr", LOOPBACK)
def test_a_peer_on_this_machine_is_served(addr: str) -> None:
    assert is_served(asking("msg", REMOTE_ADDR=addr))
    assert call(make_app(Recorder(), secret=None), asking("status", REMOTE_ADDR=addr)).status == 200


@pytest.mark.parametrize("addr", ELSEWHERE.values(), ids=ELSEWHERE.keys())
@pytest.mark.parametrize("path", PATHS)
def test_who_does_not_provably_come_from_this_machine_is_refused(path: str, addr: object) -> None:
    refused(asking(path, REMOTE_ADDR=addr))


class Connected:
    """A socket whose other end is `peer`."""

    def __init__(self, peer: object) -> None:
        self._peer = peer

    def shutdown(self, how: int) -> None: ...

    def getpeername(self) -> object:
        if isinstance(self._peer, Exception):
            raise self._peer
        return self._peer


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket", "raftsvc.socket"])
def test_the_kernel_is_asked_where_the_server_shows_its_socket(name: str, caplog: pytest.LogCaptureFixture) -> None:
    for peer in (("127.0.0.1", 9), ("::1", 9, 0, 0), ("::ffff:127.0.0.1", 9, 0, 0)):
        assert is_served(asking("msg", **{name: Connected(peer)}))
    # Some middleware put 127.0.0.1 into REMOTE_ADDR.
    for peer in (("10.0.0.9", 9), ("fe80::1%eth0", 9, 0, 2), "", b"", "/run/nginx.sock", b"\x00abstract"):
        refused(asking("msg", **{name: Connected(peer)}))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        refused(asking("msg", **{name: ours}))
    caplog.clear()
    refused(asking("msg", **{name: Connected(OSError("not connected"))}))
    assert not caplog.records, "a peer that died is no reason for alarm"


# -- what it came through

PROXIED = {
    "FORWARDED": "for=127.0.0.1",
    "X_FORWARDED": "1",
    "X_FORWARDED_FOR": "127.0.0.1",
    "X_FORWARDED_HOST": "localhost",
    "X_FORWARDED_PROTO": "http",
    "X_FORWARDED_PORT": "80",
    "X_FORWARDED_PREFIX": "/",
    "X_FORWARDED_SERVER": "a",
    "X_FORWARDED_BY": "a",
    "X_FORWARDED_SSL": "on",
    "X_FORWARDED_ANYTHING": "a",
    "FORWARDED_FOR": "127.0.0.1",
    "X_ORIGINAL_FORWARDED_FOR": "127.0.0.1",
    "X_REAL_IP": "127.0.0.1",
    "X_REALIP": "127.0.0.1",
    "X_CLIENT_IP": "127.0.0.1",
    "CLIENT_IP": "127.0.0.1",
    "X_CLUSTER_CLIENT_IP": "127.0.0.1",
    "TRUE_CLIENT_IP": "127.0.0.1",
    "FASTLY_CLIENT_IP": "127.0.0.1",
    "FLY_CLIENT_IP": "127.0.0.1",
    "X_AZURE_CLIENTIP": "127.0.0.1",
    "X_NF_CLIENT_CONNECTION_IP": "127.0.0.1",
    "CF_CONNECTING_IP": "127.0.0.1",
    "CF_CONNECTING_IPV6": "::1",
    "CF_RAY": "1",
    "CLOUDFRONT_VIEWER_ADDRESS": "127.0.0.1:1",
    "X_APPENGINE_USER_IP": "127.0.0.1",
    "X_ORIGINATING_IP": "127.0.0.1",
    "X_REMOTE_ADDR": "127.0.0.1",
    "X_REMOTE_IP": "127.0.0.1",
    "WL_PROXY_CLIENT_IP": "127.0.0.1",
    "X_PROXYUSER_IP": "127.0.0.1",
    "PROXY_CONNECTION": "close",
    "X_ENVOY_EXTERNAL_ADDRESS": "127.0.0.1",
    "X_ENVOY_DECORATOR_OPERATION": "a",
    "X_VARNISH": "1",
    "X_AMZN_TRACE_ID": "1",
    "X_ARR_LOG_ID": "1",
    "X_ORIGINAL_URL": "/",
    "X_ORIGINAL_HOST": "a",
    "X_REWRITE_URL": "/",
    "X_URL_SCHEME": "https",
    "FRONT_END_HTTPS": "on",
    "CDN_LOOP": "a",
    "VIA": "1.1 a",
    "X_VIA": "1.1 a",
}


@pytest.mark.parametrize("name", PROXIED)
def test_a_header_of_a_proxy_refuses_whatever_it_says(name: str) -> None:
    refused(asking("msg", **{f"HTTP_{name}": PROXIED[name]}))
    refused(asking("join", **{f"HTTP_{name}": ""}))


@pytest.mark.parametrize("path", PATHS)
def test_what_came_through_a_proxy_is_refused_everywhere(path: str) -> None:
    refused(asking(path, HTTP_X_FORWARDED_FOR="127.0.0.1"))
    # nginx with `proxy_pass` and no more.
    refused(asking(path, SERVER_PROTOCOL="HTTP/1.0"))


def test_headers_of_clients_refuse_nothing() -> None:
    ordinary = {
        "HTTP_ACCEPT": "*/*",
        "HTTP_ACCEPT_ENCODING": "identity",
        "HTTP_ACCEPT_LANGUAGE": "en",
        "HTTP_AUTHORIZATION": "Bearer x",
        "HTTP_CACHE_CONTROL": "no-cache",
        "HTTP_CONNECTION": "keep-alive",
        "HTTP_COOKIE": "a=b",
        "HTTP_SEC_FETCH_SITE": "none",
        "HTTP_SEC_CH_UA_PLATFORM": "a",
        "HTTP_TRACEPARENT": "00-1-1-1",
        "HTTP_UPGRADE_INSECURE_REQUESTS": "1",
        "HTTP_USER_AGENT": "curl",
        "HTTP_X_REQUEST_ID": "1",
    }
    assert is_served(asking("msg", **ordinary))


@pytest.mark.parametrize("keeps_headers", [True, False])
@pytest.mark.parametrize("claimed", ["127.0.0.1", "10.0.0.9, 127.0.0.1", "::1"])
def test_a_stranger_does_not_become_local_by_a_middleware(claimed: str, keeps_headers: bool) -> None:
    def wrap(app: App) -> Any:
        def forgetting(environ: dict[str, Any], start_response: Any) -> Any:
            assert environ["REMOTE_ADDR"] in ("127.0.0.1", "::1")
            if not keeps_headers:
                del environ["HTTP_X_FORWARDED_FOR"]
            return app(environ, start_response)

        return ProxyFix(forgetting)

    refused(asking("msg", REMOTE_ADDR="10.0.0.9", HTTP_X_FORWARDED_FOR=claimed), wrap)
    refused(asking("status", REMOTE_ADDR="", HTTP_X_FORWARDED_FOR=claimed), wrap)
    if keeps_headers:
        refused(asking("msg", HTTP_X_FORWARDED_FOR=claimed), wrap)


def test_a_middleware_for_proxies_does_no_harm_where_there_is_none() -> None:
    recorder = Recorder()
    assert call(ProxyFix(make_app(recorder, secret=None)), asking("msg")).status == 200  # type: ignore[arg-type]
    assert recorder.calls


# -- what it asks for, and pages in a browser

HOSTS = [
    "127.0.0.1:8001",
    "127.0.0.1",
    "127.0.0.2:1",
    "localhost:8001",
    "LocalHost",
    "[::1]:8001",
    "[::ffff:127.0.0.1]",
]
OTHER_HOSTS = [
    None,
    "",
    "evil.example",
    "evil.example:8001",
    "10.0.0.1:8001",
    "0.0.0.0:8001",
    "[::]:8001",
    "[2001:db8::1]:8001",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1,evil.example",
    "127.0.0.1:8001:8001",
    "127.0.0.1:x",
    "::1",
    "[::1",
    "[localhost]:1",
    "[::1%1]:1",
    "2130706433",
    "127.0.0.1 ",
    "127.0.0.1\n",
    "loc\u0430lhost",
    "a" * 9000,
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_loopback_host_is_served(host: str) -> None:
    assert is_served(asking("msg", HTTP_HOST=host))


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_a_name_that_was_made_to_resolve_to_this_machine_is_refused(host: str | None) -> None:
    for path in PATHS:
        refused(asking(path, HTTP_HOST=host))


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8001", "http://localhost:3000"])
def test_a_page_in_a_browser_is_refused(origin: str) -> None:
    for path in PATHS:
        refused(asking(path, HTTP_ORIGIN=origin))


@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("status", "metrics")])
@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", f"text/plain; {CONTENT_TYPE}", ""],
)
def test_what_a_page_may_send_unasked_does_nothing(path: str, kind: str) -> None:
    """Its content types are few and it sets no header; that it says no Origin is the worst case."""
    recorder = Recorder()
    environ = {name: value for name, value in asking(path).items() if not name.startswith("HTTP_RAFT_")}
    environ["CONTENT_TYPE"] = kind
    assert call(make_app(recorder, secret=None), dict(environ)).status == 400
    environ["HTTP_RAFT_VERSION"] = PROTOCOL_VERSION
    environ["wsgi.input"] = io.BytesIO(BODIES[path])
    assert call(make_app(recorder, secret=None), dict(environ)).status in (412, 415)
    assert not recorder.calls


# -- what stays open, and to whom

STRANGE = [
    {"REMOTE_ADDR": "10.0.0.9"},
    {"REMOTE_ADDR": ""},
    {"REMOTE_ADDR": None},
    {"HTTP_X_FORWARDED_FOR": "10.0.0.9"},
    {"HTTP_HOST": "raft.example"},
    {"HTTP_HOST": None, "SERVER_PROTOCOL": "HTTP/1.0"},
]


@pytest.mark.parametrize("strange", STRANGE)
def test_load_balancers_still_see_whether_it_lives(strange: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(Recorder(), secret=None)
    for path in ("livez", "readyz"):
        answer = call(app, asking(path, **strange))
        assert (answer.status, answer.body) == (200, b"ok\n")
    assert not caplog.records, "and nobody is alarmed by it"
    refused(asking("status", **strange))


@pytest.mark.parametrize("strange", STRANGE)
def test_who_knows_its_peers_or_wants_none_serves_from_everywhere(strange: dict[str, Any]) -> None:
    assert is_served(asking("msg", **strange), insecure=True)
    assert is_served(asking("msg", **strange), judge=lambda environ: True)
    certificate = {"subjectAltName": (("DNS", "peer.example"),)}
    assert is_served({**asking("msg", **strange), "raftsvc.peer_certificate": certificate}, mutual_tls=True)
    raw = {f"raw_{name}": value for name, value in strange.items()}
    assert is_served(request("msg", BODIES["msg"], **raw), secret=SECRET)
    assert not is_served(asking("msg", **strange), insecure=True, secret=SECRET), "insecure takes no secret away"
    assert not is_served(asking("msg", **strange))


def test_a_head_or_a_wrong_request_of_a_stranger_is_no_way_around() -> None:
    app = make_app(Recorder(), secret=None)
    assert call(app, {**asking("status", REMOTE_ADDR="10.0.0.9"), "REQUEST_METHOD": "HEAD"}).status == 403
    for info, script in (("/raft/msg", ""), ("/msg/", "/raft"), ("/livez/msg", ""), ("/readyz/msg/", "/raft")):
        refused(asking("msg", REMOTE_ADDR="10.0.0.9", PATH_INFO=info, SCRIPT_NAME=script))
    # Refused for where it comes from before its body is looked at.
    refused(asking("msg", REMOTE_ADDR="10.0.0.9", CONTENT_TYPE="text/plain"))
    garbage = io.BytesIO(b"\xff" * len(BODIES["msg"]))
    refused({**asking("msg", REMOTE_ADDR="10.0.0.9"), "wsgi.input": garbage})


def test_it_is_said_once_and_again_after_an_hour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(app_module.time, "monotonic", lambda: now)
    app = make_app(Recorder(), secret=None)

    def said() -> list[str]:
        assert {record.levelno for record in caplog.records} <= {logging.ERROR}
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    for addr in ("10.0.0.9", "10.0.0.8", "", "junk\nINFO all is well"):
        for path in PATHS:
            assert call(app, asking(path, REMOTE_ADDR=addr)).status == 403
    (line,) = said()
    assert "10.0.0.9" in line and "secret=" in line and "127.0.0.1" in line
    now += 3599.0
    call(app, asking("msg", REMOTE_ADDR="10.0.0.9"))
    assert said() == []
    now += 2.0
    for _ in range(3):
        call(app, asking("msg", HTTP_HOST="junk\nINFO all is well" * 1000))
    (line,) = said()
    assert "\n" not in line and len(line) < 1000, "a stranger forges no lines"


def test_strangers_at_the_same_moment_are_one_alarm(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(Recorder(), secret=None)
    threads = [
        threading.Thread(target=lambda: [call(app, asking("msg", REMOTE_ADDR="10.0.0.9")) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(caplog.records) == 1


# -- real servers


@pytest.fixture
def serve() -> Iterator[Callable[[str], tuple[Recorder, int]]]:
    """Serve an open node by the library's own listener, at a host."""
    listeners: list[Listener] = []

    def run(host: str) -> tuple[Recorder, int]:
        recorder = Recorder()
        listener = Listener(make_app(recorder, secret=None), f"{host}:0")
        listeners.append(listener)
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        return recorder, listener.address[1]

    yield run
    for listener in listeners:
        listener.stop()


def exchange(host: str, port: int, path: str, *headers: str, source: str = "") -> tuple[int, str]:
    """Status and body of a request as a peer makes it, with `headers` more; a Host among them is the only one."""
    environ = asking(path)
    names = [f"{k[5:].replace('_', '-')}: {v}" for k, v in environ.items() if k.startswith("HTTP_RAFT_")]
    if not any(header.startswith("Host:") for header in headers):
        names.append(f"Host: 127.0.0.1:{port}")
    lines = [f"{environ['REQUEST_METHOD']} /raft/{path} HTTP/1.1", *names, *headers, "Connection: close"]
    if path in BODIES:
        lines += [f"Content-Type: {CONTENT_TYPE}", f"Content-Length: {len(BODIES[path])}"]
    where = (source, 0) if source else None
    with socket.create_connection((host, port), PATIENCE, source_address=where) as connection:
        return _exchanged(connection, lines, BODIES.get(path, b""))


def _exchanged(connection: socket.socket, lines: list[str], body: bytes) -> tuple[int, str]:
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content.decode()


def own_address() -> str:
    """An address of this machine that is not loopback; a packet to it never leaves.  Skips if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address")
    if address.startswith("127."):
        pytest.skip("this machine has no other address")
    return address


def test_the_librarys_own_listener_tells_where_a_request_comes_from(
    serve: Callable[[str], tuple[Recorder, int]],
) -> None:
    recorder, port = serve("127.0.0.1")
    assert exchange("127.0.0.1", port, "msg")[0] == 200
    assert exchange("127.0.0.1", port, "msg", source="127.0.0.2")[0] == 200
    assert len(recorder.calls) == 2
    for header in ("X-Forwarded-For: 127.0.0.1", "Via: 1.1 a", "Host: evil.example", "Origin: http://evil.example"):
        status, body = exchange("127.0.0.1", port, "msg", header)
        assert (status, json.loads(body)["code"]) == (403, "local_only")
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("bound", ["0.0.0.0", "[::]"])
def test_a_listener_that_is_bound_to_every_address_serves_this_machine_only(
    serve: Callable[[str], tuple[Recorder, int]], bound: str
) -> None:
    address = own_address()
    if bound == "[::]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    recorder, port = serve(bound)
    assert exchange("127.0.0.1", port, "msg")[0] == 200, "also by an IPv6 socket"
    for path in PATHS:
        status, body = exchange(address, port, path)
        assert (status, json.loads(body)["code"]) == (403, "local_only")
    assert exchange(address, port, "livez") == (200, "ok\n")
    assert len(recorder.calls) == 1


def test_under_waitress_which_takes_the_headers_of_proxies_away() -> None:
    waitress_server = pytest.importorskip("waitress.server")
    wasyncore = pytest.importorskip("waitress.wasyncore")
    recorder = Recorder()
    channels: dict[int, object] = {}
    app = make_app(recorder, secret=None)
    server = waitress_server.create_server(app, map=channels, host="127.0.0.1", port=0, threads=2)
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            wasyncore.loop(timeout=0.05, map=channels, count=1)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(channels)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        port = server.effective_port
        assert exchange("127.0.0.1", port, "msg")[0] == 200
        for header in ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "X-Forwarded-Proto: https"):
            status, body = exchange("127.0.0.1", port, "msg", header)
            assert (status, json.loads(body)["code"]) == (403, "local_only"), header
        assert len(recorder.calls) == 1
    finally:
        is_over.set()
        thread.join(PATIENCE)


def test_a_waitress_that_shows_nothing_is_not_trusted() -> None:
    class Channel:
        requests: tuple[Any, ...] = ()

        def check(self) -> bool:
            return False

    assert trace_of_outside({**asking("msg"), "waitress.client_disconnected": Channel().check}) is not None
    assert trace_of_outside({**asking("msg"), "waitress.client_disconnected": lambda: False}) is None


GUNICORN_APP = """
    import os
    import raftsvc
    from tests.service.harness import ListState

    service = raftsvc.start(
        os.environ["ADDR"], os.environ["DIR"], None, ListState(), insecure=os.environ["INSECURE"] == "yes"
    )
    service.init()
    app = service.wsgi_app
"""


@pytest.mark.processes
@pytest.mark.parametrize("insecure", [False, True])
def test_under_a_gunicorn_that_is_bound_to_every_address_and_a_unix_socket(tmp_path: Path, insecure: bool) -> None:
    pytest.importorskip("gunicorn")
    address = own_address()
    addr = free_address()
    port = int(addr.rpartition(":")[2])
    (tmp_path / "bound.py").write_text(textwrap.dedent(GUNICORN_APP))
    path = tmp_path / "unix"
    log = (tmp_path / "log").open("wb")
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--threads",
        "4",
        "--chdir",
        str(tmp_path),
        "--bind",
        f"0.0.0.0:{port}",
    ]
    process = subprocess.Popen(
        [*command, "--bind", f"unix:{path}", "bound:app"],
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ADDR": addr,
            "DIR": str(tmp_path / "data"),
            "INSECURE": "yes" if insecure else "no",
        },
    )
    expected = 200 if insecure else 403
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert requests.get(f"http://{addr}/raft/readyz", timeout=PATIENCE).status_code == 200
                break
            except (requests.ConnectionError, AssertionError):
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
        assert exchange("127.0.0.1", port, "status")[0] == 200
        assert exchange(address, port, "status")[0] == expected
        assert exchange("127.0.0.1", port, "status", "X-Forwarded-For: 127.0.0.1")[0] == expected
        assert exchange(address, port, "livez")[0] == 200
        for name, wanted in (("status", expected), ("livez", 200)):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(str(path))
                lines = [f"GET /raft/{name} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
                assert _exchanged(connection, lines, b"")[0] == wanted
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()
    alarms = [line for line in (tmp_path / "log").read_text().splitlines() if "reached from elsewhere" in line]
    assert len(alarms) == (0 if insecure else 1)


# -- the public face


@pytest.mark.parametrize("listen", ["0.0.0.0:8001", "[::]:8001", "10.0.0.1:8001", "a.example:8001"])
def test_a_listener_for_others_needs_a_secret(tmp_path: Path, listen: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="secret="):
        raftsvc.start("127.0.0.1:1", tmp_path, None, ListState(), listen=listen)


@pytest.mark.parametrize("insecure", [False, True])
def test_a_service_serves_strangers_only_if_it_was_told_to(tmp_path: Path, insecure: bool) -> None:
    service = raftsvc.start("127.0.0.1:1", tmp_path, None, ListState(), insecure=insecure)
    try:
        for strange in STRANGE:
            status = call(service, asking("status", **strange)).status  # type: ignore[arg-type]
            assert status == (200 if insecure else 403)
        assert call(service, asking("status")).status == 200  # type: ignore[arg-type]
    finally:
        service.stop()


def test_joining_who_serves_another_machine_only_fails_at_once(tmp_path: Path) -> None:
    asked: list[str] = []
    app = App(Recorder(), Authenticator(None, None, False))

    def elsewhere(environ: dict[str, Any], start_response: Any) -> Any:
        asked.append(environ["PATH_INFO"])
        return app({**environ, "REMOTE_ADDR": "10.0.0.9"}, start_response)

    listener = Listener(elsewhere, "127.0.0.1:0")
    listener.start()
    service = raftsvc.start("127.0.0.1:1", tmp_path, None, ListState())
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        boot = f"127.0.0.1:{listener.address[1]}"
        with pytest.raises(raftsvc.ConfigurationError, match=rf"{boot}.*secret="):
            service.join(boot, timeout=PATIENCE)
        assert asked == ["/raft/join"], "it was not asked again"
    finally:
        service.stop()
        listener.stop()
