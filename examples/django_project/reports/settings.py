import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "of an example")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "reports.urls"
STATIC_URL = "static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", str(BASE_DIR / "database.sqlite")),
    }
}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "reports",
    "valued.integrations.django",
]
MIDDLEWARE = [
    "valued.integrations.django.ScopeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
    }
]

VALUED = {
    # If it isn't set, all of this works, and nothing is sent. The endpoint is read from
    # VALUED_ENDPOINT; don't set that in production.
    "TOKEN": os.environ.get("VALUED_TOKEN"),
    "PAGE_VIEWS": True,
    # Events of visitors who are not signed in are dropped, and mistakes in an event are logged:
    # neither breaks a page.
    "ANONYMOUS": "drop",
    "INVALID": "log",
    # A process that is stopped by SIGTERM delivers what it has recorded, with any server.
    "FLUSH_ON_SIGNALS": True,
}

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL")
CELERY_TASK_ALWAYS_EAGER = CELERY_BROKER_URL is None
CELERY_TASK_IGNORE_RESULT = True
