"""Integrations with frameworks and task queues: one module for each, imported by name.

``asgi`` (FastAPI, Starlette, any ASGI application), ``celery``, ``django``, ``flask``,
``prometheus``, ``rq`` and ``wsgi`` (any WSGI application). Each imports its framework, what
``valued`` exports, and others of these.
``import valued`` imports none of them.
"""
