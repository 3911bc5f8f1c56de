"""A conftest above limits' own tests: one more storage is in the lists that they are parametrized by."""

import os

import pytest


def _storages(*values):
    for number, url in enumerate(os.environ["STORAGE_URLS"].splitlines()):
        yield pytest.param(url, {}, *values, id=f"raftsvc-{number}")


@pytest.fixture
def emptied():
    """As their servers are before each test."""
    from limits.storage import storage_from_string

    storage_from_string("raftsvc://").reset()


def pytest_pycollect_makemodule(module_path, parent):
    from pytest_lazy_fixtures import lf

    import raftsvc.ext.limits  # noqa: F401 - makes the scheme known
    from tests import utils

    if "raftsvc" in utils.ALL_STORAGES:
        return
    here = next(_storages(lf("emptied")))  # of who is a client each hit takes longer than what is tested allows
    utils.ALL_STORAGES["raftsvc"] = here  # whose values the other lists are
    utils.moving_window_storage.args[1].append(here)


def pytest_pycollect_makeitem(collector, name, obj):
    if name == "TestConcreteStorages":
        from pytest_lazy_fixtures import lf

        from raftsvc.ext.limits import RaftStorage

        (mark,) = obj.pytestmark
        if not any(each.id and each.id.startswith("raftsvc") for each in mark.args[1]):
            mark.args[1].extend(_storages(RaftStorage, lf("emptied")))
