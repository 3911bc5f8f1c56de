"""What tests of extensions share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftsvc.ext.nodes import TEMPORARY, one_node


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process has a node of its own, the only one, for all tests of a module that ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAFTSVC_DIR", TEMPORARY)
        yield
        one_node.stop()
