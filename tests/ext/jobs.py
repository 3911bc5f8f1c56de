"""Tasks that tests enqueue: Django takes only functions of modules."""

from __future__ import annotations

import sys
import threading
from typing import Any

from django.tasks import task

from raftsvc.ext.django.worker import current_claim

ran: list[Any] = []
go_on = threading.Event()


@task
def add(a: int, b: int) -> int:
    ran.append(a + b)
    return a + b


@task(takes_context=True)
def attempt(context: Any) -> list[Any]:
    return [context.attempt, context.task_result.id]


@task
async def double(number: int) -> int:
    return 2 * number


@task
def fail() -> None:
    raise ValueError("no such thing")


@task
def leave() -> None:
    sys.exit(3)


@task
def wait() -> None:
    ran.append("waits")
    assert go_on.wait(60)


@task
def lose() -> str:
    current_claim().nack()  # as if this worker had been cut off
    return "late"


@task
def notice() -> None:
    current_claim().lost.set()  # as where its worker ends, before any other has it
    current_claim().ensure_held()


@task
def large(length: int) -> str:
    return "x" * length


@task
def no_json() -> object:
    return object()
