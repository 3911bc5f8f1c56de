"""Keys, counters and transactions over HTTP: each request becomes one call of the store.

What a client sends is checked here whole before anything is proposed: a Problem is always a write not done.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from werkzeug.wrappers import Response

from raftsvc import kv as store
from raftsvc.errors import ConfigurationError
from raftsvc.kv import Condition, ConflictError, Effect, KeyValue, Value
from raftsvc.kv.instructions import Code, checked_key
from raftsvc.kv.transactions import NUMBERS
from raftsvc.web.asked import Asked
from raftsvc.web.callers import Caller
from raftsvc.web.positions import Positions
from raftsvc.web.problems import Problem, bad_request
from raftsvc.web.repeats import RESERVED, Outcome, Repeats, Write

MAX_KEYS = 10_000
"""Of one listing, as many as a client may ask for."""
_KEYS = 1000
_MAX_LISTED_BYTES = 4 * 1024 * 1024
"""Of the values in one listing; one value at least is shown."""
_MAX_ASKED_BYTES = 512 * 1024
"""The same where a member is asked for them; with one more value, and a thousand keys, an answer there has that."""
MAX_OPERATIONS = 1000
_LEAST, _MOST = -(2**63), 2**63 - 1
_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_AFTER_RESERVED = RESERVED + "\U0010ffff"
_WRITE_SECONDS, _READ_SECONDS = 10.0, 5.0

KINDS_HELD = ("lock", "election")

T = TypeVar("T")


class Keys:
    """What is done with keys."""

    def __init__(self, kv: KeyValue, repeats: Repeats, positions: Positions) -> None:
        self._kv = kv
        self._repeats = repeats
        self._positions = positions

    # -- one key

    def get(self, asked: Asked, caller: Caller, key: str) -> Response:
        """GET /v1/keys/{key}."""
        check_allowed(caller, key)
        value = self._read(asked, key)
        present = 0 if value is None else value.version
        match, none_match = asked.tags("If-Match"), asked.tags("If-None-Match")
        # Conditions are for what would be answered without them, and in this order (RFC 9110, section 13.2).
        if value is None:
            raise Problem(404, "NoSuchKey", "There is no such key.", key=key)
        if match is not None and not _matches(match, present, is_strong=True):
            raise _failed(key, present)
        if none_match is not None and _matches(none_match, present, is_strong=False):
            response = Response(status=304)
        else:
            response = Response(value.data, mimetype="application/octet-stream")
            response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["ETag"] = tag_of(present)
        response.headers["Cache-Control"] = "private, no-cache"
        return response

    def _read(self, asked: Asked, key: str) -> Value | None:
        max_age, timeout = asked.seconds("max_age"), asked.timeout(_READ_SECONDS)
        if asked.flag("stale"):
            if max_age is not None:
                raise bad_request("A read is stale=1, however old, or has a max_age.")
            return made_by(lambda: self._kv.get_stale(key))
        return made_by(lambda: self._kv.get(key, timeout, max_age=max_age))

    def put(self, asked: Asked, caller: Caller, key: str) -> Response:
        """PUT /v1/keys/{key}."""
        check_allowed(caller, key)
        ttl = asked.seconds("ttl")
        body = asked.whole_body()
        effect = made_by(lambda: store.set(key, body, ttl))
        outcome = self._write_one(asked, caller, key, Write([effect]))
        return _answer(outcome, {"version": outcome.version}, tag_of(outcome.version))

    def delete(self, asked: Asked, caller: Caller, key: str) -> Response:
        """DELETE /v1/keys/{key}."""
        check_allowed(caller, key)
        effect = made_by(lambda: store.delete(key))
        outcome = self._write_one(asked, caller, key, _foreseen([effect]))
        return _answer(outcome, {"deleted": outcome.answer, "version": outcome.version})

    def _write_one(self, asked: Asked, caller: Caller, key: str, write: Write) -> Outcome:
        """With the condition that the headers say; where it does not hold, that is a failed precondition."""
        expected = asked.expected_version()
        if expected == -1:
            value = self._kv.get(key, asked.timeout(_READ_SECONDS))
            raise _failed(key, 0 if value is None else value.version)
        if expected is not None:
            condition = store.if_not_modified(key, expected)
            write = Write([condition, *write.operations], write.looked_at, write.foresee)
        try:
            return self._write(asked, caller, write, asked.body() if asked.method == "PUT" else b"")
        except ConflictError as error:
            raise _failed(key, error.version) from error

    def _write(self, asked: Asked, caller: Caller, write: Write, body: bytes) -> Outcome:
        parameters = sorted((name, value) for name, value in asked.parameters.items() if name != "timeout")
        conditions = [asked.tags("If-Match"), asked.tags("If-None-Match")]
        request = json.dumps([asked.method, asked.path, parameters, conditions]).encode() + b"\n" + body
        timeout = asked.timeout(_WRITE_SECONDS)
        return self._repeats.perform(write, caller.name, asked.idempotency_key(), request, timeout)

    # -- several

    def list(self, asked: Asked, caller: Caller, _: str) -> Response:
        """GET /v1/keys."""
        prefix = listed_prefix(asked, caller)
        limit = asked.integer("limit", _KEYS, 1, MAX_KEYS)
        after = asked.parameters.get("after", "")
        max_age, timeout = asked.seconds("max_age"), asked.timeout(_READ_SECONDS)
        start = max(after, _AFTER_RESERVED)
        left = _MAX_LISTED_BYTES
        if not self._positions.are_known:
            limit, left = min(limit, _KEYS), _MAX_ASKED_BYTES

        def look() -> tuple[dict[str, Value], int | None]:
            if self._positions.are_known:
                return self._kv.list_at(prefix, timeout, limit=limit + 1, after=start, max_age=max_age)
            # All of it has to fit into what a connected client is told at once.
            return self._kv.list(prefix, timeout, limit=limit + 1, after=start, max_age=max_age, max_bytes=left), None

        found, index = made_by(look)
        entries: list[dict[str, object]] = []
        has_more = False
        for key, value in found.items():
            if len(entries) == limit or (entries and len(value.data) > left):
                has_more = True
                break
            left -= len(value.data)
            if not key.startswith(RESERVED):
                entries.append({"key": key, "value": encoded(value.data), "version": value.version})
        said: dict[str, object] = {"keys": entries, "more": has_more}
        if index is not None:
            said["position"] = self._positions.position(index)
        return json_response(said)

    def count(self, asked: Asked, caller: Caller, key: str) -> Response:
        """POST /v1/counters/{key}."""
        check_unconditional(asked)
        check_allowed(caller, key)
        delta, initial = asked.integer("delta", 1, _LEAST, _MOST), asked.integer("initial", 0, _LEAST, _MOST)
        effect = made_by(lambda: store.incr(key, delta, initial, asked.seconds("ttl")))
        write = _foreseen([effect])
        outcome = self._write(asked, caller, write, b"")
        return _answer(outcome, {"value": outcome.answer, "version": outcome.version}, tag_of(outcome.version))

    def transact(self, asked: Asked, caller: Caller, _: str) -> Response:
        """POST /v1/transactions."""
        check_unconditional(asked)
        given = asked.json()
        operations = self._operations_of(given)
        for each in given:
            check_allowed(caller, each["key"])
        outcome = self._write(asked, caller, _foreseen(operations), asked.body())
        return _answer(outcome, {"version": outcome.version, "answer": outcome.answer})

    def _operations_of(self, said: Any) -> Sequence[Condition | Effect]:
        """What a list of JSON objects means.  Raises Problem."""
        if not isinstance(said, list) or not 0 < len(said) <= MAX_OPERATIONS:
            raise bad_request(f"A transaction is a JSON list of 1 to {MAX_OPERATIONS} operations.")
        found = []
        for position, each in enumerate(said):
            try:
                found.append(_operation(each, self._kv))
            except (Problem, ConfigurationError, TypeError, ValueError) as error:
                raise bad_request(f"Operation {position}: {str(error)[:300]}") from None
        return found


def check_unconditional(asked: Asked) -> None:
    """Raise a Problem where there is a condition that would not be looked at (RFC 9110, section 13.1)."""
    if asked.tags("If-Match") is not None or asked.tags("If-None-Match") is not None:
        raise bad_request("This takes no If-Match or If-None-Match; a transaction has conditions of its own.")


_FIELDS = {
    "if_version": ({"key", "version"}, set[str]()),
    "if_not_exists": ({"key"}, set[str]()),
    "if_held": ({"key", "fence"}, {"kind"}),
    "set": ({"key"}, {"value", "text", "ttl"}),
    "delete": ({"key"}, set[str]()),
    "incr": ({"key"}, {"delta", "initial", "ttl"}),
    "touch": ({"key", "ttl"}, set[str]()),
}
"""What each operation has to say, and what it may."""
OPERATIONS = tuple(_FIELDS)


class _Grant(NamedTuple):
    """What is held.  name: in the whole store."""

    name: str
    fence: int


def _operation(said: Any, kv: KeyValue) -> Condition | Effect:
    if not isinstance(said, dict) or said.get("op") not in OPERATIONS:
        raise bad_request(f"it is an object whose op is one of {', '.join(OPERATIONS)}.")
    needed, allowed = _FIELDS[said["op"]]
    given = set(said) - {"op"}
    if not needed <= given <= needed | allowed:
        raise bad_request(
            f"{said['op']} has {', '.join(sorted(needed))}, and may have {', '.join(sorted(allowed)) or 'no more'}."
        )
    key: Any = said["key"]
    if said["op"] == "if_version":
        return store.if_not_modified(key, said["version"])
    if said["op"] == "if_not_exists":
        return store.if_not_exists(key)
    if said["op"] == "if_held":
        kind = said.get("kind", "lock")
        if kind not in KINDS_HELD:
            raise bad_request(f"kind is one of {', '.join(KINDS_HELD)}.")
        return store.if_held(_Grant(kv.ticket(claimed_name(kind, key)).name, said["fence"]))
    if said["op"] == "delete":
        return store.delete(key)
    if said["op"] == "touch":
        return store.touch(key, said["ttl"])
    if said["op"] == "incr":
        return store.incr(key, said.get("delta", 1), said.get("initial", 0), said.get("ttl"))
    return store.set(key, _value_of(said), said.get("ttl"))


def _value_of(said: Mapping[str, Any]) -> bytes:
    if ("value" in said) == ("text" in said):
        raise bad_request("set has value, in base64, or text, and not both.")
    given: Any = said.get("value", said.get("text"))
    if not isinstance(given, str):
        raise bad_request("value and text are texts.")
    if "text" in said:
        return given.encode()
    try:
        return base64.b64decode(given, validate=True)
    except binascii.Error:
        raise bad_request("value is no base64.") from None


def _foreseen(operations: Sequence[Condition | Effect]) -> Write:
    """The write of those, with what its answer depends on: the last `incr`, or the only effect."""
    effects = [each for each in operations if isinstance(each, Effect)]
    counted = [each.key for each in effects if each.code == Code.INCR]
    if counted:
        key = counted[-1]
        return Write(operations, [key], lambda values: _counted(effects, key, values.get(key)))
    if len(effects) == 1 and effects[0].code in (Code.DELETE, Code.TOUCH):
        only = effects[0].key
        return Write(operations, [only], lambda values: only in values)
    return Write(operations)


def _counted(effects: Iterable[Effect], key: str, value: Value | None) -> int | None:
    """What the last `incr` of `key` makes of its value; None: nothing, for the cluster refuses to count that."""
    data = None if value is None else value.data
    counted = None
    for effect in effects:
        if effect.key != key:
            continue
        if effect.code == Code.DELETE:
            data = None
        elif effect.code == Code.SET or effect.code == Code.SET_EXPIRING:
            data = effect.data
        elif effect.code == Code.INCR:
            delta, initial = NUMBERS.unpack(effect.data)
            if data is not None and not _NUMBER.fullmatch(data):
                return None
            counted = (initial if data is None else int(data)) + delta
            data = b"%d" % counted
    return counted


def claimed_name(kind: str, name: str) -> str:
    """By what name a lock, or an election, is claimed.  Raises TypeError, ValueError."""
    return f"{kind}:{checked_key(name)}"


# -- what is said


def tag_of(version: int) -> str:
    """A version as an ETag."""
    return f'"{version}"'


def encoded(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def json_response(said: Mapping[str, object]) -> Response:
    """An answer that nobody keeps."""
    response = Response(json.dumps(said) + "\n", mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def _answer(outcome: Outcome, said: Mapping[str, object], tag: str | None = None) -> Response:
    response = json_response(said)
    if tag is not None:
        response.headers["ETag"] = tag
    if outcome.is_repeat:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _matches(tags: list[tuple[bool, str]], version: int, is_strong: bool) -> bool:
    """Whether a key at that version, 0: that does not exist, is one of those."""
    if not version:
        return False
    return any(tag == "*" or (tag == str(version) and not (is_strong and is_weak)) for is_weak, tag in tags)


def _failed(key: str, version: int) -> Problem:
    headers = {"ETag": tag_of(version)} if version else {}
    detail = f"The key is at version {version}." if version else "There is no such key."
    return Problem(412, "PreconditionFailed", detail, headers, key=key, version=version)


def check_allowed(caller: Caller, key: str) -> None:
    """Raise Problem unless it is a key, and he may name it."""
    made_by(lambda: store.delete(key))
    if not key.startswith(caller.prefix):
        raise Problem(403, "Forbidden", "This token is for other keys.")
    if key.startswith(RESERVED):
        raise Problem(403, "Forbidden", "Keys that begin by U+0000 are for this API's own use.")


def listed_prefix(asked: Asked, caller: Caller) -> str:
    """Below what the keys are that he asks for; without a word all that he may see."""
    prefix = asked.parameters.get("prefix", caller.prefix)
    if not prefix.startswith(caller.prefix):
        raise Problem(403, "Forbidden", "This token is for other keys.")
    if prefix.startswith(RESERVED):
        raise Problem(403, "Forbidden", "Keys that begin by U+0000 are for this API's own use.")
    return prefix


def made_by(make: Callable[[], T]) -> T:
    """What `make` returns; what it finds wrong with what a client gave is a Problem."""
    try:
        return make()
    except (ConfigurationError, TypeError, ValueError) as error:
        raise bad_request(str(error)[:300] + ".") from error
