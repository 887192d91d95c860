"""Make the database: users who are signed in, or have a token. Prints who has which."""

import json
import os

import django
from django.core.management import call_command

USERS = (11, 12, 13, 14)

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.programs.django_site.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from django.contrib.auth import get_user_model
    from django.test import Client
    from rest_framework.authtoken.models import Token

    known = {}
    for key in USERS:
        user = get_user_model().objects.create_user(f"user{key}", pk=key)
        client = Client()
        client.force_login(user)
        token = Token.objects.create(user=user).key
        known[key] = {"session": client.cookies["sessionid"].value, "token": token}
    print(json.dumps(known))
