"""Gunicorn's settings for gevent with preload: Django, too, has to be imported patched."""

from gevent import monkey

monkey.patch_all()
