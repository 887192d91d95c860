"""Django: each request records for its own user, in sync and async views. In the settings:

>>> INSTALLED_APPS += ["valued.integrations.django"]
>>> MIDDLEWARE.insert(0, "valued.integrations.django.ScopeMiddleware")
>>> VALUED = {"PAGE_VIEWS": True, "ANONYMOUS": "drop"}

and in any view ``valued.action("report.generated")``. ``VALUED`` may hold, all of it optional:

* ``TOKEN`` and ``ENDPOINT``: as for `valued.connect`, with the same variables as defaults. Without
  a token every command works, nothing is sent, and a check (``valued.W001``) says so. If the
  application calls `valued.connect` itself, before Django's setup, leave ``TOKEN`` out, and its
  client stays. With ``TOKEN``, it is replaced.
* ``ENABLED`` (default True): False sends nothing, and gives no warning.
* ``USER`` (default ``"lazy"``): who the user is. ``"lazy"`` gives ``{"id": request.user.pk}`` for a
  user who is signed in, and reads it at the first event: a view that records nothing causes no
  query, and no ``Vary: Cookie``. Or a function of the request, or its dotted path, that returns a
  mapping or None and is called as late. Or None, for no user.
* ``CUSTOMER`` (default None): likewise a function of the request.
* ``PAGE_VIEWS`` (default False): True records a page view for each answer to GET with a 2xx status
  and the type ``text/html``, except in the admin, ``STATIC_URL`` and ``MEDIA_URL``. Or a function
  of the request and the response, or its dotted path, that is called for each of these and returns
  True, False or the URL to record. URLs have no query string. If no user's id is known, there is no
  page view. For any other page view write ``valued.page_view(…)`` in the view.
* ``FLUSH_ON_SIGNALS`` (default False): True calls `valued.flush_on_signals`. Servers that end
  without running Python's exit handlers, such as uvicorn, need it. If Gunicorn preloads the
  application for ``UvicornWorker``, call it in Gunicorn's ``post_worker_init`` as well.
* any option of `valued.Client`, in upper case, such as ``MAX_QUEUE`` or ``DEFAULTS``.

In an async view, call ``await request.auser()`` before the first event: ``request.user`` would need
a query there, so the event raises `valued.ValidationError`, which says so. The functions above are
called in async views, too, so they must not query either.

A mistake in the settings raises `valued.ValidationError` at the start. The client is connected
once, in ``AppConfig.ready``; forked workers have it.
"""

from valued.integrations.django._middleware import ScopeMiddleware

__all__ = ["ScopeMiddleware"]
