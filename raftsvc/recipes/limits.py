"""How much of something is allowed in some time."""

from __future__ import annotations

from typing import NamedTuple

from raftsvc.kv.limits import ADMITTED


class Limit(NamedTuple):
    """Whether something was allowed, and how much more is.  What `KeyValue.limit` returns.

        def view(user):
            limit = store.limit(f"api/{user}", 100, per=60)
            if not limit.allowed:
                return 429, {"Retry-After": str(math.ceil(limit.retry_after))}
            return 200, {"X-RateLimit-Remaining": str(limit.remaining)}

    It is a bucket of `n` that loses them evenly, all of `n` in `per` seconds (GCRA): what was not used for a while may
    be used at once, n at most, and then one more each per / n seconds.  So within t seconds there are at most
    n + n * t / per, and over time n in each `per`.  What is refused does not count.

    It is the same for all who ask, wherever, in the order of the log, and by log time: while nobody leads, or the
    leader is frozen, it stands still, so rather less is allowed than more.  All who use a name should say the same
    `n` and `per`; whoever changes them takes over the share that is used.  A name takes some 500 bytes until nothing
    of it is used any more, and nothing after that.

    allowed:     whether it was, and was counted.
    remaining:   how many more would be allowed at once.
    reset:       in seconds, until all `n` would be.
    retry_after: in seconds, until this would be; 0 where it was.
    """

    allowed: bool
    remaining: int
    reset: float
    retry_after: float

    @classmethod
    def of(cls, answer: object) -> Limit:
        """What the cluster answered."""
        assert isinstance(answer, bytes), "the cluster keeps a few bytes"
        allowed, remaining, reset_ms, retry_ms = ADMITTED.unpack(answer)
        return cls(allowed, remaining, reset_ms / 1000, retry_ms / 1000)
