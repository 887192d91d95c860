"""What may be pickled, and when: a token only while a child is being started with it."""

from __future__ import annotations

import sys

from valued._errors import PicklingError


def is_spawning() -> bool:
    """Whether this thread pickles for a child that multiprocessing, or billiard, is starting.

    Only then a pickle stays between a process and its child. The standard library protects its own
    ``AuthenticationString`` by the same check.
    """
    for name in ("multiprocessing.context", "billiard.context"):
        context = sys.modules.get(name)
        if context is not None and context.get_spawning_popen() is not None:
            return True
    return False


def _trial_pickle(part: object) -> None:
    """Try to pickle *part* in the way of the pickle that this thread is making.

    Raises whatever *part* raises. Some objects can be pickled only while multiprocessing is
    starting a child.
    """
    import pickle

    reduction = sys.modules.get("multiprocessing.reduction") if is_spawning() else None
    (reduction.ForkingPickler if reduction is not None else pickle).dumps(part)


def check_pickle(name: str, part: object) -> None:
    """Raise `PicklingError`, which names *name*, if *part* can't be pickled now."""
    try:
        _trial_pickle(part)
    except PicklingError:
        raise
    except Exception as error:
        raise PicklingError(
            f"{name}: a {type(part).__name__} can't be pickled ({error}); use a function or a "
            "class of a module, or make the client in the child"
        ) from error
