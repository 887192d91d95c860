"""Make the site's database with so many users; prints the key of each one's session."""

import json
import os
import sys

import django
from django.core.management import call_command

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.programs.django_site.settings"
    django.setup()
    call_command("migrate", verbosity=0)

    from django.contrib.auth import get_user_model
    from django.test import Client

    sessions = {}
    for key in range(1, int(sys.argv[1]) + 1):
        client = Client()
        client.force_login(get_user_model().objects.create_user(f"user{key}", pk=key))
        sessions[key] = client.cookies["sessionid"].value
    print(json.dumps(sessions))
