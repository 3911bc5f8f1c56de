"""Where Django is older than 6.0, and has no tasks, that is said."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("django")
if find_spec("django.tasks") is not None:
    pytest.skip("this Django has tasks", allow_module_level=True)

from types import SimpleNamespace

from raftsvc.ext.django import checks


def test_the_backend_says_which_django_it_takes() -> None:
    with pytest.raises(ImportError, match=r"Django 6\.0"):
        import raftsvc.ext.django.tasks  # noqa: F401


def test_a_check_says_that_tasks_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = {"BACKEND": "raftsvc.ext.django.tasks.RaftBackend"}
    for tasks, ids in (({"default": backend}, ["raftsvc.E010"]), ({"other": {"BACKEND": "another"}}, []), ({}, [])):
        monkeypatch.setattr(checks, "settings", SimpleNamespace(TASKS=tasks))
        assert [each.id for each in checks.check_tasks(None)] == ids
    monkeypatch.setattr(checks, "settings", SimpleNamespace())
    assert checks.check_tasks(None) == []


def test_the_command_says_it_too() -> None:
    from django.core.management.base import CommandError

    from raftsvc.ext.django.management.commands.raft_worker import Command

    with pytest.raises(CommandError, match=r"Django 6\.0"):
        Command().handle()
