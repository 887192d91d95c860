"""Django: each request records for its own user, in sync and in async views. In the settings::

    INSTALLED_APPS += ["valued.integrations.django"]
    MIDDLEWARE.insert(0, "valued.integrations.django.ScopeMiddleware")
    VALUED = {"TOKEN": os.environ.get("VALUED_TOKEN")}

and, in any view, ``valued.action("report.generated")``.

``VALUED`` may hold, all of it optional:

* ``TOKEN`` and ``ENDPOINT``: as for `valued.connect`, with the same variables for defaults. Where
  there is no token, every command works, nothing is sent, and a check (``valued.W001``) says so. An
  application that calls `valued.connect` itself, before Django's setup, leaves ``TOKEN`` out: its
  client stays. With ``TOKEN``, it is replaced.
* ``ENABLED`` (default True): False sends nothing, and says nothing.
* ``USER`` (default ``"lazy"``): who the user is. ``"lazy"`` gives ``{"id": request.user.pk}`` for
  one who is signed in, and asks for it at the first event: a view that records nothing causes no
  query, and no ``Vary: Cookie``. Else a function of the request, or its dotted path, that returns a
  mapping or None, called as late; or None, for no user.
* ``CUSTOMER`` (default None): likewise a function of the request.
* ``PAGE_VIEWS`` (default False): True records a page view of each answer to GET with a 2xx status
  and the type ``text/html``, outside of the admin, ``STATIC_URL`` and ``MEDIA_URL``. Or a function
  of request and response, or its dotted path, that is asked for each of these and returns True,
  False or the URL to record. URLs go without their query. Where no user's id is known, there is
  none. Anything else is a line of ``valued.page_view(…)`` in the view.
* ``FLUSH_ON_SIGNALS`` (default False): True calls `valued.flush_on_signals`, which servers need
  that end without running Python's exit, such as uvicorn. Where Gunicorn preloads the application
  for ``UvicornWorker``, call that in its ``post_worker_init`` as well.
* any option of `valued.Client`, in upper case, such as ``MAX_QUEUE`` or ``DEFAULTS``.

In an async view, call ``await request.auser()`` before the first event: ``request.user`` would need
a query there, and the event raises `valued.ValidationError`, which says so. The functions above are
called in async views, too, so they must not query either.

A mistake in the settings is a `valued.ValidationError` at the start. The client is connected once,
in ``AppConfig.ready``; forked workers have it.
"""

from valued.integrations.django._middleware import ScopeMiddleware

__all__ = ["ScopeMiddleware"]
