"""TLS and mutual TLS with a private CA: the commands and the code of docs/security.md, and who is refused."""

from __future__ import annotations

import errno
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

import raftsvc
import raftsvc.metrics
from raftsvc import watched
from raftsvc.credentials import Credentials, Given
from raftsvc.transport.auth import Envelope
from raftsvc.transport.certificates import Contexts, validity_of
from raftsvc.transport.wire import CONTENT_TYPE, PROTOCOL_VERSION, JoinRequest
from raftsvc.watched import read_file
from tests.attached import hosts
from tests.service.harness import ListState, eventually

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
PATIENCE = 60.0
HOSTS = {"a": "127.0.0.1", "b": "localhost", "c": "127.0.0.2"}


def printed(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 1, "the page has one block of it"
    return str(found[0])


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the page's commands make, and some certificates more."""
    path = tmp_path_factory.mktemp("ca")
    commands = printed("sh")
    make_ca, certify, _ = re.split(r"(?=^certify\(\))|(?<=^\})", commands, flags=re.MULTILINE)
    more = f"""
certify a IP:127.0.0.1
certify a2 IP:127.0.0.1
certify b DNS:localhost
certify c IP:127.0.0.2
certify other DNS:other.example
certify both DNS:localhost,IP:127.0.0.2
(mkdir foreign && cd foreign && {make_ca.strip()} && certify a IP:127.0.0.1 && certify b DNS:localhost)
{certify.replace("-days 397", "-days 0")}
certify expired IP:127.0.0.1
"""
    subprocess.run(["sh", "-e", "-c", commands + more], cwd=path, check=True, capture_output=True, timeout=120)
    return path


@pytest.fixture
def start(ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., raftsvc.Service]]:
    """The page's function, in a directory with the certificates; all that it started is stopped."""
    monkeypatch.chdir(ca)
    scope: dict[str, Any] = {}
    exec(printed("python"), scope)
    started: list[raftsvc.Service] = []

    def start(name: str, host: str | None = None, directory: str = "") -> raftsvc.Service:
        host = host or HOSTS[name]
        path = tmp_path / (directory or f"{name}{len(started)}")
        started.append(scope["start"](name, host, free_port(host), path, ListState()))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def free_port(host: str) -> int:
    """One that nobody has there, nor is given a second time."""
    while True:
        port = hosts.free_port()
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                pytest.skip(f"this machine has no {host}")
        return port


def url_of(service: raftsvc.Service) -> str:
    return str(service.status()["addr"])


@pytest.fixture
def founder(start: Callable[..., raftsvc.Service]) -> raftsvc.Service:
    service = start("a")
    service.init()
    return service


def test_three_nodes_each_with_a_certificate_for_its_own_host(
    start: Callable[..., raftsvc.Service], founder: raftsvc.Service
) -> None:
    services = [founder, start("b"), start("c")]
    for service in services[1:]:
        service.join(url_of(founder), PATIENCE)
    for n, service in enumerate(services):
        assert service.exec(b"%d" % n, timeout=PATIENCE)
        for reader in services:
            reader.wait_read(timeout=PATIENCE)
            state = reader._membership.state
            assert isinstance(state, ListState)
            assert state.items[-1] == b"%d" % n

    def has_streams() -> bool:
        return all(
            stream["in"] and stream["out"]
            for service in services
            for stream in service.status()["streams"].values()  # type: ignore[attr-defined]
        )

    eventually(has_streams, "streams over TLS between all of them")
    eventually(lambda: all(service.is_ready() for service in services), "all are ready")
    founder.evict(url_of(services[2]), timeout=PATIENCE)
    assert services[1].exec(b"and on", timeout=PATIENCE)


# -- strangers


def stranger(name: str | None) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.verify = "ca.pem"
    session.cert = (f"{name}.pem", f"{name}.key") if name else None
    return session


@pytest.mark.parametrize("name", [None, "foreign/a", "expired"], ids=["none", "of another CA", "expired"])
@pytest.mark.parametrize("path", ["readyz", "status", "join"])
def test_who_has_no_good_certificate_does_not_get_past_the_handshake(
    founder: raftsvc.Service, name: str | None, path: str
) -> None:
    def is_refused() -> bool:
        try:
            stranger(name).request("POST" if path == "join" else "GET", f"{url_of(founder)}/{path}", timeout=PATIENCE)
        except (requests.exceptions.SSLError, requests.ConnectionError):
            return True
        assert name == "expired", "it had no certificate that is good"  # it expires a second after it was made
        return False

    eventually(is_refused, "no answer")


def ask_to_join(founder: raftsvc.Service, name: str, addr: str) -> requests.Response:
    envelope = Envelope("POST", "join", PROTOCOL_VERSION, "", "", "", "", "", addr, "", "1")
    return stranger(name).post(
        f"{url_of(founder)}/join",
        JoinRequest(addr, bytes(16)).encode(),
        headers={**envelope.headers(), "Raft-Auth": "none", "Content-Type": CONTENT_TYPE},
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("addr", ["https://127.0.0.2:9/raft", "https://localhost:9/raft", "https://127.0.0.1:9/raft"])
def test_a_certificate_of_the_ca_for_another_host_admits_nobody_else(founder: raftsvc.Service, addr: str) -> None:
    refused = ask_to_join(founder, "other", addr)
    assert (refused.status_code, refused.json()["code"]) == (401, "wrong_certificate")
    assert "the certificate is for other.example, and not for " in refused.json()["detail"]
    assert ask_to_join(founder, "other", "https://other.example:9/raft").status_code != 401, "it is its own"


def test_nobody_speaks_for_a_member_with_the_certificate_of_another(
    start: Callable[..., raftsvc.Service], founder: raftsvc.Service
) -> None:
    second = start("b")
    second.join(url_of(founder), PATIENCE)
    status = second.status()
    cluster = f"{second._membership.require_node().cluster_id:016x}"
    envelope = Envelope("POST", "msg", PROTOCOL_VERSION, cluster, str(status["node_id"]), "1", "", "", "", "", "1")
    headers = {**envelope.headers(), "Raft-Auth": "none", "Content-Type": CONTENT_TYPE}
    for name in ("other", "c", "b"):
        answer = stranger(name).post(f"{url_of(founder)}/msg", b"", headers=headers, timeout=PATIENCE)
        assert (answer.status_code == 401) == (name != "b"), "its own is looked at further"


@pytest.mark.parametrize(("name", "host"), [("b", "127.0.0.1"), ("other", "127.0.0.1"), ("c", "localhost")])
def test_a_node_whose_certificate_is_not_for_its_own_host_does_not_get_in(
    start: Callable[..., raftsvc.Service], founder: raftsvc.Service, name: str, host: str
) -> None:
    misnamed = start(name, host)
    with pytest.raises(raftsvc.RaftError):
        misnamed.join(url_of(founder), 1.0)
    assert len(founder.status()["members"]) == 1  # type: ignore[arg-type]


def test_a_node_that_joins_with_the_certificate_of_another_is_told_so_at_once(
    start: Callable[..., raftsvc.Service], founder: raftsvc.Service
) -> None:
    misnamed = start("c", "localhost")
    with pytest.raises(raftsvc.ConfigurationError, match=r"for 127\.0\.0\.2, and not for localhost.*asks to join"):
        misnamed.join(url_of(founder), PATIENCE)


def test_a_member_that_moved_to_another_host_name_knows_why_it_is_not_heard_and_what_to_do(
    start: Callable[..., raftsvc.Service], founder: raftsvc.Service, caplog: pytest.LogCaptureFixture
) -> None:
    others = [start("b"), start("a")]
    for other in others:
        other.join(url_of(founder), PATIENCE)
    mover = start("c", directory="mover")
    mover.join(url_of(founder), PATIENCE)
    mover.stop()
    told = "certificate is for localhost, and not for 127.0.0.2, the host that is recorded for node 4"
    moved = start("b", directory="mover")
    eventually(lambda: "wrong-certificate" in moved.status()["conditions"], "it knows")  # type: ignore[operator]
    eventually(lambda: told in str(moved.err()), "and says it")
    eventually(lambda: told in caplog.text, "so do those who refuse it")
    moved.stop()
    moved = start("both", "localhost", "mover")
    eventually(lambda: url_of(moved) in str(founder.status()["members"]), "that is how it is done")
    moved.stop()
    moved = start("b", directory="mover")
    eventually(moved.is_ready, "and then its own is enough, wherever at that host")
    assert moved.exec(b"it is here", timeout=PATIENCE)


def test_who_joins_does_not_speak_to_a_server_that_is_not_the_one_it_was_told(
    start: Callable[..., raftsvc.Service],
) -> None:
    impostor = start("other", "127.0.0.1")
    impostor.init()
    with pytest.raises(raftsvc.JoinFailedError, match=r"(?i)certificate"):
        start("b").join(url_of(impostor), 3.0)


# -- what cannot work is refused at start


def contexts() -> dict[str, ssl.SSLContext | None]:
    asks_for_nothing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asks = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asks.verify_mode = ssl.CERT_REQUIRED
    return {"none": None, "asks for nothing": asks_for_nothing, "asks": asks}


@pytest.mark.parametrize(
    ("laddr", "listen", "context", "mutual_tls", "advice"),
    [
        ("https://127.0.0.1:7001/raft", "127.0.0.1:7001", "none", True, "CERT_REQUIRED"),
        ("https://127.0.0.1:7001/raft", "127.0.0.1:7001", "asks for nothing", True, "CERT_REQUIRED"),
        ("127.0.0.1:7001", "127.0.0.1:7001", "asks", True, "https://127.0.0.1:7001/raft"),
        ("http://127.0.0.1:7001/raft", "0.0.0.0:7001", "asks for nothing", False, "https://127.0.0.1:7001/raft"),
        ("https://127.0.0.1/raft", "0.0.0.0:443", "none", False, "listen_ssl"),
    ],
)
def test_tls_that_cannot_work_is_refused_at_start(
    tmp_path: Path, laddr: str, listen: str, context: str, mutual_tls: bool, advice: str
) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=re.escape(advice)):
        raftsvc.start(
            laddr,
            tmp_path / "n",
            None,
            ListState(),
            secret="0123456789abcdef",
            mutual_tls=mutual_tls,
            listen=listen,
            listen_ssl=contexts()[context],
        )
    assert not (tmp_path / "n").exists()


def test_another_may_speak_tls_in_the_place_of_the_listener(tmp_path: Path) -> None:
    options: dict[str, Any] = {"secret": "0123456789abcdef", "listen": f"127.0.0.1:{free_port('127.0.0.1')}"}
    raftsvc.start("https://node.example/raft", tmp_path / "n", None, ListState(), **options).stop()


# -- files that are watched


@pytest.fixture
def renewable(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[raftsvc.Service, raftsvc.TlsFiles]]]:
    """Starts a node whose files are copies of its own, which a test may change."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.05)
    started: list[raftsvc.Service] = []

    def start(name: str) -> tuple[raftsvc.Service, raftsvc.TlsFiles]:
        folder = tmp_path / f"tls-{name}"
        folder.mkdir()
        files = raftsvc.TlsFiles(*(str(folder / kind) for kind in ("cert", "key", "ca")))
        put(files, ca, name)
        addr = f"{HOSTS[name]}:{free_port(HOSTS[name])}"
        path = tmp_path / f"watched-{name}"
        started.append(
            raftsvc.start(f"https://{addr}/raft", path, state=ListState(), listen=addr, tls=files, mutual_tls=True)
        )
        return started[-1], files

    yield start
    for service in started:
        service.stop()


def put(files: raftsvc.TlsFiles, ca: Path, name: str, *authorities: str) -> None:
    Path(files.ca).write_bytes(b"".join((ca / each).read_bytes() for each in authorities or ("ca.pem",)))
    Path(files.key).write_bytes((ca / f"{name}.key").read_bytes())
    Path(files.cert).write_bytes((ca / f"{name}.pem").read_bytes())


def shown_by(service: raftsvc.Service, ca: Path) -> bytes:
    """The certificate that its port shows to a member."""
    context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
    context.load_cert_chain(str(ca / "a.pem"), str(ca / "a.key"))
    url = urlsplit(url_of(service))
    with (
        socket.create_connection((url.hostname, url.port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as connection,
    ):
        return connection.getpeercert(True) or b""


def test_certificates_are_renewed_without_a_restart(
    ca: Path, renewable: Callable[..., tuple[raftsvc.Service, raftsvc.TlsFiles]]
) -> None:
    first, files = renewable("a")
    first.init()
    second, others = renewable("b")
    second.join(url_of(first), PATIENCE)
    former = shown_by(first, ca)
    assert former == ssl.PEM_cert_to_DER_cert((ca / "a.pem").read_text())
    put(files, ca, "a2")
    renewed = ssl.PEM_cert_to_DER_cert((ca / "a2.pem").read_text())
    eventually(lambda: shown_by(first, ca) == renewed, "the new certificate is shown")
    for service in (first, second):
        assert service.exec(b"it goes on", PATIENCE)
        eventually(service.is_ready, "it is ready")

    Path(files.key).write_bytes((ca / "b.key").read_bytes())  # which is not of that certificate
    eventually(lambda: "go together" in str(first.err()), "it is told")
    assert shown_by(first, ca) == renewed
    assert second.exec(b"it serves on", PATIENCE)
    Path(files.key).write_bytes((ca / "a2.key").read_bytes())
    eventually(lambda: first.err() is None, "it is mended")

    # Whose CA is not trusted any more is not heard by connections that are there either.
    session = stranger(str(ca / "a"))
    session.verify = str(ca / "ca.pem")
    assert session.get(f"{url_of(second)}/livez", timeout=PATIENCE).ok
    put(others, ca, "b", "ca.pem", "foreign/ca.pem")
    put(files, ca, "a2", "ca.pem", "foreign/ca.pem")
    for name, authorities in (("foreign/b", ("ca.pem", "foreign/ca.pem")), ("foreign/b", ("foreign/ca.pem",))):
        put(others, ca, name, *authorities)
        eventually(lambda: are_used(second), "they are used")

    def is_refused() -> bool:
        try:
            return not session.get(f"{url_of(second)}/livez", timeout=PATIENCE).ok
        except (requests.exceptions.SSLError, requests.ConnectionError):
            return True

    eventually(is_refused, "it is shut out")
    for name, authorities in (("foreign/b", ("ca.pem", "foreign/ca.pem")), ("b", ("ca.pem",))):
        put(others, ca, name, *authorities)
        eventually(lambda: are_used(second), "they are used")
    eventually(lambda: not is_refused(), "it is let in again")
    assert second.exec(b"all is well", PATIENCE)


def are_used(service: raftsvc.Service) -> bool:
    """Whether what is in its files of TLS is in use."""
    (file,) = service._credentials._files
    return list(file.used) == [read_file("tls", path) for path in file.paths]


def test_a_certificate_that_others_would_refuse_is_not_used(ca: Path, tmp_path: Path) -> None:
    files = raftsvc.TlsFiles(*(str(tmp_path / kind) for kind in ("cert", "key", "ca")))
    put(files, ca, "a")
    contexts = Contexts(files, True, "127.0.0.1")
    former = contexts.server()
    for name, authorities, why in (
        ("foreign/a", (), "unable to get local issuer certificate"),
        ("other", (), "mismatch, certificate is not valid for"),
        ("expired", (), "certificate has expired"),
        ("foreign/a", ("foreign/ca.pem",), "neither is the certificate in use"),
    ):
        put(files, ca, name, *authorities)
        with pytest.raises(raftsvc.ConfigurationError, match=why):
            contexts.renew(lambda: True)
        assert contexts.server() is former
    for name, authorities in (
        ("a2", ()),
        ("a2", ("ca.pem", "foreign/ca.pem")),
        ("foreign/a", ("ca.pem", "foreign/ca.pem")),
        ("foreign/a", ("foreign/ca.pem",)),
    ):
        put(files, ca, name, *authorities)
        contexts.renew(lambda: True)
        assert contexts.server() is not former
        former = contexts.server()
    put(files, ca, "expired")
    late = Contexts(files, True, "127.0.0.1")
    put(files, ca, "foreign/a", "foreign/ca.pem")
    late.renew(lambda: True)  # for what is in use is worth nothing


def test_what_others_refuse_is_said_from_the_start_on_and_mended_without_another(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.05)
    files = raftsvc.TlsFiles(*(str(tmp_path / kind) for kind in ("cert", "key", "ca")))
    put(files, ca, "expired")
    addr = f"127.0.0.1:{free_port('127.0.0.1')}"
    service = raftsvc.start(
        f"https://{addr}/raft", tmp_path / "n", state=ListState(), listen=addr, tls=files, mutual_tls=True
    )
    try:
        assert caplog.text.count("expired on") == 1 and "put a new one in its place" in caplog.text
        service.init()
        assert service.exec(b"what asks this process alone is done", PATIENCE)
        eventually(lambda: "expired on" in str(service.err()), "it is told")
        status: dict[str, Any] = service.status()
        assert "expired on" in status["conditions"]["stale-file"]
        assert "expired on" in status["process"]["files"]["tls"]["trouble"]
        assert status["process"]["certificate"]["days_left"] <= 0
        put(files, ca, "a")
        eventually(lambda: service.err() is None, "it is mended")
        status = service.status()
        ends = status["process"]["certificate"]["ends"]
        assert 396 < status["process"]["certificate"]["days_left"] <= 397
        pytest.importorskip("prometheus_client")
        told = raftsvc.metrics.exposition(service)[1].decode()
        found = re.search(r'^raftsvc_certificate_expiry_timestamp_seconds{process="owner"} (\S+)$', told, re.M)
        assert found is not None and float(found[1]) == ends
        lines = [record.getMessage() for record in caplog.records if record.name == "raftsvc.files"]
        assert len([line for line in lines if "expired on" in line]) == 1, "once, and not at each look"
    finally:
        service.stop()


def test_what_others_would_refuse_is_judged_by_time_host_and_ca(ca: Path, tmp_path: Path) -> None:
    files = raftsvc.TlsFiles(*(str(tmp_path / kind) for kind in ("cert", "key", "ca")))
    for name, why in (("other", "for 127.0.0.1: .*mismatch"), ("foreign/a", "for 127.0.0.1: .*local issuer")):
        put(files, ca, name)
        assert re.search(why, Contexts(files, True, "127.0.0.1").judge(time.time()))
        assert Contexts(files, True, "").judge(time.time()) == "", "for which host it is nobody knows"
    put(files, ca, "a")
    contexts = Contexts(files, True, "127.0.0.1")
    assert contexts.validity is not None
    begins, ends = contexts.validity
    assert contexts.judge(time.time()) == contexts.foresee(time.time()) == ""
    assert "set the clock" in contexts.judge(begins - 1)
    assert "expired on" in contexts.judge(ends)
    day = 86400.0
    assert not contexts.foresee(ends - 15 * day)
    assert "expires on" in contexts.foresee(ends - 13 * day)
    assert not contexts.foresee(ends - 12 * day), "once is enough"
    assert not contexts.foresee(ends)


def test_when_a_certificate_ends_is_found_in_it_or_it_is_none(ca: Path) -> None:
    for name in ("ca.pem", "a.pem", "expired.pem"):
        command = ["openssl", "x509", "-noout", "-dates", "-in", str(ca / name)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
        dates = [line.partition("=")[2] for line in said.splitlines()]
        der = ssl.PEM_cert_to_DER_cert((ca / name).read_text())
        assert list(validity_of(der)) == [ssl.cert_time_to_seconds(date) for date in dates]
    der = ssl.PEM_cert_to_DER_cert((ca / "a.pem").read_text())
    for size in range(0, len(der), 7):
        with pytest.raises(ValueError, match="no certificate"):
            validity_of(der[:size])
    for at in range(200):
        with suppress(ValueError):
            validity_of(der[:at] + bytes([der[at] ^ 0x55]) + der[at + 1 :])
    late = b"\x30\x20" + b"\x17\x0d491231235959Z" + b"\x18\x0f20500101000000Z"  # RFC 5280, section 4.1.2.5
    whole = b"\x02\x01\x01\x30\x00\x30\x00" + late
    signed = b"\x30" + bytes([len(whole)]) + whole
    assert list(validity_of(b"\x30" + bytes([len(signed)]) + signed)) == [2524607999.0, 2524608000.0]


def test_what_no_tls_can_be_spoken_by_is_refused_at_the_start_by_name(ca: Path, tmp_path: Path) -> None:
    garbage, locked = tmp_path / "garbage", tmp_path / "locked"
    garbage.write_text("no PEM")
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", str(ca / "a.key"), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    cert, key, authority, none = (str(ca / "a.pem"), str(ca / "a.key"), str(ca / "ca.pem"), str(tmp_path / "none"))
    for files, why in (
        ((none, key, authority), f"{none} cannot be read: No such file"),
        ((cert, none, authority), f"{none} cannot be read: No such file"),
        ((cert, key, none), f"{none} cannot be read: No such file"),
        ((cert, str(tmp_path), authority), f"{tmp_path} is no file"),
        (
            (cert, str(ca / "b.key"), authority),
            f"the key in {ca / 'b.key'} is not that of the first certificate in {cert}",
        ),
        ((str(garbage), key, authority), f"{garbage} and {key} have no certificate and key"),
        ((cert, str(garbage), authority), f"{cert} and {garbage} have no certificate and key"),
        ((cert, str(locked), authority), f"{cert} and {locked} have no certificate and key, as PEM and without a pass"),
        ((cert, key, str(garbage)), f"{garbage} has no certificates of a CA"),
    ):
        with pytest.raises(raftsvc.ConfigurationError) as caught:
            raftsvc.start(
                "https://127.0.0.1:1/raft",
                tmp_path / "n",
                state=ListState(),
                listen="127.0.0.1:1",
                tls=raftsvc.TlsFiles(*files),
            )
        assert why in str(caught.value)
    assert not (tmp_path / "n").exists()


def test_what_was_refused_is_not_made_again_until_it_is_another(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = raftsvc.TlsFiles(*(str(tmp_path / kind) for kind in ("cert", "key", "ca")))
    put(files, ca, "a")
    credentials = Credentials(Given(None, None, None, None, files, "127.0.0.1"), None, True, False)
    assert credentials.contexts is not None
    made, make = [], credentials.contexts._make
    monkeypatch.setattr(credentials.contexts, "_make", lambda: made.append(None) or make())  # type: ignore[func-returns-value]
    put(files, ca, "other")
    for _ in range(5):
        credentials.watch.look()
        assert len(made) <= 1
    assert "mismatch" in str(credentials.files())
    put(files, ca, "a2")
    for _ in range(3):
        credentials.watch.look()
    assert len(made) == 2 and "mismatch" not in str(credentials.files())


@pytest.mark.parametrize("mutual", [True, False], ids=["mutual TLS", "TLS and a secret"])
def test_an_operator_at_a_follower_hands_leadership_over(ca: Path, tmp_path: Path, mutual: bool) -> None:
    """By way of the leader, which is asked over TLS; a member that is elsewhere than its certificate says may not."""
    key = "a key of anna, long enough"
    keys = [raftsvc.OperatorKey("anna", key, "full")]
    who: dict[str, Any] = {"mutual_tls": True} if mutual else {"secret": "a secret of the tests, long enough"}
    services: list[raftsvc.Service] = []
    session = stranger(str(ca / "other"))
    session.verify = str(ca / "ca.pem")
    session.headers["Authorization"] = f"Bearer {key}"

    def act(service: raftsvc.Service, whom: int) -> requests.Response:
        url = f"{url_of(service)}/operator/act"
        return session.post(url, json={"what": "transfer", "whom": str(whom)}, timeout=PATIENCE)

    try:
        for number, name in enumerate(("a", "b", "c")):
            addr = f"{HOSTS[name]}:{free_port(HOSTS[name])}"
            files = raftsvc.TlsFiles(*(str(ca / kind) for kind in (f"{name}.pem", f"{name}.key", "ca.pem")))
            options: dict[str, Any] = {"listen": addr, "tls": files, "operator_keys": keys, **who}
            made = raftsvc.start(f"https://{addr}/raft", tmp_path / name, state=ListState(), **options)
            services.append(made)
            made.join(url_of(services[0]), PATIENCE) if number else made.init()
        first, second, third = services
        eventually(lambda: all(m["is_voter"] for m in members_of(first).values()), "all of them vote")
        answer = act(third, 2)
        assert (answer.status_code, answer.json()["outcome"]) == (200, "done"), answer.text
        eventually(lambda: second.is_leader and third.status()["leader_id"] == 2, "the second leads")
        answer = act(first, 9)
        assert (answer.status_code, answer.json()["outcome"]) == (409, "refused"), answer.text

        # Whoever has a certificate of the CA, or none, speaks for no member: neither to the leader, nor elsewhere.
        cluster = f"{second._membership.require_node().cluster_id:016x}"
        for service in services:
            envelope = Envelope("POST", "transfer", PROTOCOL_VERSION, cluster, "1", "", "", "", "", "", "1")
            headers = {**envelope.headers(), "Raft-Auth": "none", "Content-Type": CONTENT_TYPE}
            refused = session.post(f"{url_of(service)}/transfer", b"1", headers=headers, timeout=PATIENCE)
            assert (refused.status_code, refused.json()["code"]) == (
                401,
                "wrong_certificate" if mutual else "unauthenticated",
            )
        assert second.is_leader
    finally:
        for each in services:
            each.stop()


def members_of(service: raftsvc.Service) -> dict[str, Any]:
    return service.status()["members"]  # type: ignore[return-value]


def test_how_tls_is_spoken_is_said_once(ca: Path, tmp_path: Path) -> None:
    files = raftsvc.TlsFiles(str(ca / "a.pem"), str(ca / "a.key"), str(ca / "ca.pem"))
    base: dict[str, Any] = {
        "laddr": "https://127.0.0.1:1/raft",
        "dir": tmp_path / "n",
        "state": ListState(),
        "tls": files,
    }
    for options, why in (
        ({"session": requests.Session(), "listen": "127.0.0.1:1"}, "in the place of"),
        ({}, "give listen="),
        ({"listen": "127.0.0.1:1", "mutual_tls": True, "tls": raftsvc.TlsFiles(files.cert, files.key)}, "ca="),
        ({"listen": "127.0.0.1:1", "tls": raftsvc.TlsFiles(files.cert, str(ca / "b.key"))}, "go together"),
    ):
        with pytest.raises(raftsvc.ConfigurationError, match=why):
            raftsvc.start(**{**base, **options})
    for wrong in (("",), (7,)):
        with pytest.raises(raftsvc.ConfigurationError):
            raftsvc.TlsFiles(*wrong)  # type: ignore[arg-type]
