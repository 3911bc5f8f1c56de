"""The example of the extension of Django behind gunicorn: three hosts with two workers each, of which one is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import eventually, free_port
from tests.ext.counting import Programs, three_hosts

pytest.importorskip("django")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


class Host(Programs):
    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        key = "a key of the tests, long enough"
        super().__init__(path, {**environ, "DJANGO_SETTINGS_MODULE": "guests", "SECRET_KEY": key})
        bind = f"127.0.0.1:{free_port()}"
        self.url = f"http://{bind}"
        command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
        self.run([*command, "--no-control-socket", "--bind", bind, "guests:application"])

    def visit(self, cookies: dict[str, str]) -> tuple[int, int]:
        """Both counts, once there is an answer that knows them; `cookies` become the visitor's own."""

        def visit() -> tuple[int, int] | None:
            with suppress(requests.RequestException):
                answer = requests.get(f"{self.url}/visits", cookies=cookies, timeout=30)
                if answer.status_code == 200:
                    cookies.update(answer.cookies.get_dict())
                    return answer.json()["visits"], answer.json()["yours"]
            return None

        counts: tuple[int, int] = eventually(visit, f"a visit is counted; {self.log.read_text()}")
        return counts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with three_hosts(Host, tmp_path) as made:
        yield made


def test_a_visitor_goes_on_at_any_host_and_over_one_that_is_lost(hosts: list[Host]) -> None:
    cookies: dict[str, str] = {}
    counts = [host.visit(cookies) for host in hosts]
    hosts[0].lose()
    counts += [host.visit(cookies) for host in hosts[1:]]
    assert [visits for visits, _ in counts] == sorted({visits for visits, _ in counts}), "each visit has its own number"
    yours = [own for _, own in counts]
    assert yours == sorted(set(yours)), "whichever host was asked knows what the visitor did at the others"
