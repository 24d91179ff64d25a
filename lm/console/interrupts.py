"""SIGINT while the command imports: an exception would end in a traceback there, or be lost in a C library."""
import os
import signal


def leave(number, frame):
    """A signal handler: ends the process at once, in one line."""
    os.write(2, b'lm: interrupted\n')
    os._exit(128 + number)


def leave_at_once():
    """Makes SIGINT end the process at once, where Python's own handler has it: in the background a shell ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def raise_again():
    """Makes SIGINT a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
