"""`manage.py raft_worker`: run tasks of Django 6 that are kept by the cluster."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from raftsvc.errors import ConfigurationError
from raftsvc.ext.django.node import start
from raftsvc.ext.nodes import one_node


class Command(BaseCommand):
    """It ends by SIGTERM or SIGINT, after what runs, with 0; with 1 if something ran on, or nothing can be run."""

    help = "Run tasks that were enqueued, one after the other, until this is told to end."

    def add_arguments(self, parser: CommandParser) -> None:
        """As `--help` shows them."""
        parser.add_argument("--backend", default="default", help="the alias in TASKS; 'default' unless given")
        parser.add_argument("--queue", action="append", help="of these only, may be repeated; else all in QUEUES")
        parser.add_argument("--threads", type=int, default=1, help="so many tasks of each queue at once; 1")
        parser.add_argument("--max-tasks", type=int, help="end after so many, for instance against leaks of memory")
        parser.add_argument(
            "--grace", type=_seconds, default=30.0, help="seconds for what runs to end when this is to; 30"
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """As the command line begins it; who waits for tasks is told to wait no more."""
        try:
            super().run_from_argv(argv)
        finally:
            one_node.end()

    def handle(self, *args: str, **options: Any) -> None:
        """Run them.  Raises CommandError where that makes no sense."""
        try:
            from raftsvc.ext.django.tasks import RaftBackend
            from raftsvc.ext.django.worker import Worker
        except ImportError as error:
            raise CommandError(str(error)) from error
        from django.tasks import DEFAULT_TASK_QUEUE_NAME, task_backends

        try:
            backend = task_backends[options["backend"]]
            start()
        except (ImproperlyConfigured, ConfigurationError) as error:
            raise CommandError(str(error)) from error
        if not isinstance(backend, RaftBackend):
            raise CommandError(
                f"the tasks of {options['backend']!r} are kept by {type(backend).__name__}, not by raftsvc"
            )
        queues = options["queue"] or sorted(backend.queues) or [DEFAULT_TASK_QUEUE_NAME]
        for queue in queues:
            if backend.queues and queue not in backend.queues:
                raise CommandError(f"QUEUES of {backend.alias!r} has no {queue!r}: {', '.join(sorted(backend.queues))}")
        try:
            worker = Worker(backend, list(dict.fromkeys(queues)), options["threads"], options["max_tasks"])
        except ValueError as error:
            raise CommandError(f"--queue, --threads or --max-tasks: {error}") from error

        def stop(number: int, frame: object) -> None:
            worker.is_asked_to_stop = True

        former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        self.stdout.write(f"worker {worker.id}: {', '.join(queues)}")
        try:
            is_over = worker.run(options["grace"])
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if not is_over:
            self._leave()

    def _leave(self) -> None:
        """End the process, though threads run on: what they have is given to others once they are gone, not before."""
        self.stderr.write("what ran longer than it may is left to other workers")
        one_node.end()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 10**9:
        raise argparse.ArgumentTypeError(f"that is no number of seconds: {text!r}")
    return seconds
