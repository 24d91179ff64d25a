"""Keeps off standard error what orbax, asyncio and tensorstore print of a fault besides raising it."""
import contextlib
import functools
import logging
import sys
import warnings


@contextlib.contextmanager
def all_threads():
    """Silences every thread's log records, warnings and uncaught errors while a call is waited for that raises them."""
    logger, hooks = logging.getLogger('absl'), (sys.excepthook, sys.unraisablehook)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.excepthook = sys.unraisablehook = lambda *fault: None
    try:
        with warnings.catch_warnings(action='ignore'):
            yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        logger.setLevel(level)


@functools.cache
def saves():
    """Silences, for the rest of the process, what a save that fails prints from its threads while training goes on.

    The next `wait` raises the fault itself. tensorstore calls back into asyncio's loop of that save, closed by then.
    """
    logging.getLogger('asyncio').addFilter(lambda record: 'never retrieved' not in record.getMessage())
    logging.getLogger('absl').addFilter(lambda record: not (record.exc_info and 'orbax' in record.pathname))
    uncaught, unraisable = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, fault, trace: _of_closed_loop(fault) or uncaught(kind, fault, trace)
    sys.unraisablehook = lambda event: _of_closed_loop(event.exc_value) or unraisable(event)


def _of_closed_loop(fault):
    return isinstance(fault, RuntimeError) and str(fault) == 'Event loop is closed'
