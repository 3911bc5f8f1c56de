"""Links on which a question and its answers take longer than it is until the question is asked again."""

from __future__ import annotations

from collections.abc import Callable

from tests.service.harness import PATIENCE, Cluster


def test_followers_read_and_write_over_links_that_are_slower_than_the_retry(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(has_streams=False)
    cluster.form(3)
    leader = cluster.leader()
    for member in cluster.members:
        member.session.request_seconds = 0.22  # of an election timeout of a second
    for n, member in enumerate(m for m in cluster.members if m is not leader):
        member.service.exec(b"%d" % n, PATIENCE)
        assert b"%d" % n in member.read()
