from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.harness import Node, Shell
from tests.service.harness import PATIENCE


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one, for all tests that change nothing but keys of their own."""
    made = Node(tmp_path_factory.mktemp("node") / "n1")
    try:
        made.service.init()
        yield made
    finally:
        made.service.stop()


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes that belong to no cluster yet, with options of `start`."""
    made: list[Node] = []

    def make(**options: Any) -> Node:
        made.append(Node(tmp_path / f"n{len(made) + 1}", **options))
        return made[-1]

    yield make
    for each in made:
        each.service.stop()


@pytest.fixture
def shell(capfdbinary: pytest.CaptureFixture[bytes]) -> Shell:
    """With no place to go."""
    return Shell(capfdbinary, {"RAFTSVC_TIMEOUT": str(PATIENCE)})


@pytest.fixture
def here(shell: Shell, node: Node) -> Shell:
    """On the host of the node, as its user."""
    shell.environ["RAFTSVC_AT"] = str(node.path)
    return shell
