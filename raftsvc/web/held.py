"""Locks and elections over HTTP: each request is one thing that is done with a ticket (`KeyValue.ticket`).

No process holds anything for a client, so any node does the same by the same ticket, and a client that is gone is
followed by the next one once its TTL is over.  They are those of `KeyValue.lock` and `KeyValue.election` of the same
name: who holds one there excludes who asks for it here.

Invariant: whoever waits has one of the places that there are for that, and gives it back.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable

from werkzeug.wrappers import Response

from raftsvc.kv import KeyValue, LostError, Ticket
from raftsvc.web.asked import Asked
from raftsvc.web.callers import Caller
from raftsvc.web.keys import check_allowed, check_unconditional, claimed_name, json_response, made_by
from raftsvc.web.problems import Problem, bad_request
from raftsvc.web.repeats import Repeats, Write
from raftsvc.web.watching import Places

KINDS = {
    "lock": ("acquireLock", "keepLock", "releaseLock", "getLock"),
    "election": ("campaign", "keepLeading", "resign", "getLeader"),
}
"""What there is of each."""
_TTL_SECONDS = 15.0
_MAX_TTL_SECONDS = 24 * 3600.0
"""What is held by a ticket that nobody knows any more is over then at the latest."""
_DIGITS = 16
_TICKET = re.compile(f"(?P<id>[0-9a-f]{{{_DIGITS}}})-(?P<ttl_ms>[0-9]{{1,12}})")
"""As clients have it: with the TTL, after a third of which it is kept for who waits."""
_ASK_SECONDS, _READ_SECONDS = 10.0, 5.0


class Held:
    """Those of one kind."""

    def __init__(self, kv: KeyValue, kind: str, places: Places, repeats: Repeats) -> None:
        self._kv = kv
        self._repeats = repeats
        self._kind = kind
        self._places = places

    def acquire(self, asked: Asked, caller: Caller, name: str) -> Response:
        """POST: hold it, or have a place among those who wait."""
        check_unconditional(asked)
        check_allowed(caller, name)
        ttl = asked.seconds("ttl", _TTL_SECONDS, _MAX_TTL_SECONDS) or 0.0
        data = asked.parameters.get("data", caller.name).encode()
        stays, timeout = asked.flag("stay"), asked.timeout(_ASK_SECONDS)
        asked.wait()

        def ticket_of(id: str) -> Ticket:  # noqa: A002
            return made_by(lambda: self._kv.ticket(claimed_name(self._kind, name), id, ttl=ttl, data=data))

        ticket = ticket_of(secrets.token_hex(_DIGITS // 2))
        key = asked.idempotency_key()
        if key is not None:
            request = json.dumps([self._kind, name, ttl, asked.parameters.get("data"), stays]).encode()
            new = Write([], foresee=lambda values: ticket.id)
            known = self._repeats.perform(new, caller.name, key, request, asked.left(timeout)).answer
            ticket = ticket_of(str(known))
        try:
            # The client, who may have given up by now, is not to get what he does not know of.
            left = asked.left(timeout)
            fence = self._waiting(asked, ticket, lambda wait: ticket.acquire(wait, left, stays=stays))
        except LostError as error:
            raise Problem(409, "LostError", error.http_detail, outcome="unknown") from error
        if not fence and not stays:
            raise Problem(409, "HeldByOthers", "Others hold it; GET says who.", key=name)
        return _answer(ticket, ttl, fence)

    def keep(self, asked: Asked, caller: Caller, name: str) -> Response:
        """PUT: have it last, held or waited for."""
        ticket, ttl = self._ticket(asked, caller, name)
        timeout = asked.timeout(_ASK_SECONDS)
        return _answer(ticket, ttl, self._waiting(asked, ticket, lambda wait: ticket.keep(wait, timeout)))

    def release(self, asked: Asked, caller: Caller, name: str) -> Response:
        """DELETE: let go of it."""
        timeout = asked.timeout(_ASK_SECONDS)
        if "fence" not in asked.parameters:
            ticket, _ = self._ticket(asked, caller, name)
            return json_response({"released": ticket.end(timeout)})
        check_unconditional(asked)
        check_allowed(caller, name)
        if not caller.may("admin"):
            raise Problem(403, "Forbidden", "To end what others hold, by its fence, takes the right to admin.")
        if asked.ticket() is not None:
            raise bad_request("What is to end is said by its ticket, or by its fence.")
        fence = asked.integer("fence", 0, 1, 2**63 - 1)
        anyone = made_by(lambda: self._kv.ticket(claimed_name(self._kind, name)))
        return json_response({"released": anyone.end(timeout, fence=fence)})

    def show(self, asked: Asked, caller: Caller, name: str) -> Response:
        """GET: who has it."""
        check_allowed(caller, name)
        max_age, timeout = asked.seconds("max_age"), asked.timeout(_READ_SECONDS)
        found = made_by(lambda: self._kv.claims(claimed_name(self._kind, name), timeout, max_age=max_age))
        claims = [{"fence": each.fence, "data": each.data.decode(errors="replace")} for each in found]
        return json_response({"held": bool(found) and found[0].fence > 0, "claims": claims})

    def _waiting(self, asked: Asked, ticket: Ticket, ask: Callable[[float], int]) -> int:
        """What `ask` returns, given for how many seconds it may wait; as one of those who may."""
        wait = asked.wait()
        if not wait:
            return ask(0.0)
        self._places.take()
        try:
            self._places.begins(ticket)
            return ask(wait)
        finally:
            self._places.give_back(ticket)

    def _ticket(self, asked: Asked, caller: Caller, name: str) -> tuple[Ticket, float]:
        """That of the request, and its TTL."""
        check_unconditional(asked)
        check_allowed(caller, name)
        found = _TICKET.fullmatch(asked.ticket() or "")
        if found is None:
            raise bad_request("ticket is needed: what the answer to POST said.")
        id, ttl = found["id"], int(found["ttl_ms"]) / 1000  # noqa: A001
        return made_by(lambda: self._kv.ticket(claimed_name(self._kind, name), id, ttl=ttl, data=b"")), ttl


def _answer(ticket: Ticket, ttl: float, fence: int) -> Response:
    response = json_response({"held": fence > 0, "fence": fence, "ticket": f"{ticket.id}-{round(ttl * 1000)}"})
    response.status_code = 200 if fence else 202
    return response
