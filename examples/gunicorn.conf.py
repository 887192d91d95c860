"""Gunicorn's settings for `flask_app`, with what matters to a client in a prefork server."""

workers = 4

# The application is imported once, in the master, and its memory is shared by the workers. Without
# it each worker imports the application: the client works the same.
preload_app = True

# A worker that is asked to leave delivers what it recorded, for `shutdown_timeout` (5) seconds at
# most. Past these it is killed, so they must be more.
graceful_timeout = 30


def pre_fork(server, worker):
    # Only for a master that records events itself, while it imports the application for example.
    # It delivers them and ends the threads that did, so that it forks as a process without threads:
    # Python 3.12 and later warn of any other. A service that is down delays the fork by a second.
    import valued

    if valued.connected():
        valued.client().park(timeout=1)
