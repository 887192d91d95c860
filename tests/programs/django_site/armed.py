"""Gunicorn's settings for a preloaded application in `UvicornWorker`.

Each worker sets signals' handlers of its own after the fork, so that the parent's are gone.
"""


def post_worker_init(worker):
    import valued

    valued.flush_on_signals()
