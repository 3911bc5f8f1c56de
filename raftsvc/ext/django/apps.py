"""What Django loads of it in every process, serving or not: checks, and nothing else."""

from django.apps import AppConfig
from django.core import checks


class RaftConfig(AppConfig):
    """The app `raftsvc`, which has no models."""

    name = "raftsvc.ext.django"
    label = "raftsvc"
    verbose_name = "raftsvc"

    def ready(self) -> None:
        """Register checks; this runs in commands, in both processes of a reloader and in a server's master too."""
        from raftsvc.ext.django.checks import check_deployment, check_settings, check_tasks

        checks.register(check_settings)
        checks.register(check_tasks)
        checks.register(check_deployment, deploy=True)
