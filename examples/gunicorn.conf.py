"""Gunicorn's settings for `flask_app`, and what matters to a client in a prefork server."""

workers = 4

# The application is imported once, in the master, and the workers share its memory. Without this
# setting each worker imports the application, and the client works just as well.
preload_app = True

# A worker that is told to stop delivers what it recorded, for at most `shutdown_timeout` seconds
# (default 5). After `graceful_timeout` seconds Gunicorn kills it, so this must be longer.
graceful_timeout = 30


def pre_fork(server, worker):
    # Only needed if the master records events itself, for example while it imports the application.
    # This delivers them and ends the threads that did, so that the master has no threads when it
    # forks: Python 3.12 and later warn about a fork with threads. If the service is down, this
    # delays the fork by a second.
    import valued

    if valued.connected():
        valued.client().park(timeout=1)
