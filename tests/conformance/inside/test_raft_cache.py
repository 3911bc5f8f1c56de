"""Beside cachelib's own tests: these bring theirs for every cache to this one."""

import pytest
from clear import ClearTests
from common import CommonTests
from has import HasTests

from raftsvc.ext.cachelib import RaftCache

try:
    from delete_many_with_prefix import DeleteManyWithPrefixTests
except ImportError:  # before 0.16

    class DeleteManyWithPrefixTests:
        pass


@pytest.fixture(autouse=True, params=["", "test-key-prefix:"])
def cache_factory(request):
    def make(self, *args, **kwargs):
        kwargs.setdefault("key_prefix", request.param)
        cache = RaftCache(*args, key="a key of the tests, long enough", **kwargs)
        cache.clear()
        return cache

    request.cls.cache_factory = make


class TestRaftCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests):
    pass
