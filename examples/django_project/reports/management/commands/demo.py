from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandParser, call_command


class Command(BaseCommand):
    help = 'Makes the database, with two users whose password is "secret", and serves the site.'

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("addrport", nargs="?", default="127.0.0.1:8000")
        parser.add_argument("--only-make", action="store_true", help="don't serve it")

    def handle(self, *args: Any, addrport: str, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        for name in ("ada", "grace"):
            if not users.filter(username=name).exists():
                users.create_user(name, password="secret")  # noqa: S106 - of a demo
        if not options["only_make"]:
            call_command("runserver", addrport, use_reloader=False)
