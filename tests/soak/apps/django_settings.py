"""The site of the tests, with the views of the soak."""

from tests.programs.django_site.settings import *  # noqa: F403

ROOT_URLCONF = "tests.soak.apps.django_urls"
