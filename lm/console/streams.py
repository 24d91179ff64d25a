"""Standard output and error of the command, also where they are closed, full, or have no reader."""
import errno
import io
import os
import sys


class Full(OSError):
    """Raised where standard output takes no more."""


class Gone(BrokenPipeError):
    """Raised where the reader of standard output has closed it."""


class Output(io.FileIO):
    """The file of a standard stream. Standard error decides over nothing: what it does not take is dropped."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 2:
                return len(data)
            raise (Gone if error.errno == errno.EPIPE else Full)(error.errno, error.strerror) from error


class Lines(io.TextIOWrapper):
    """The text of a standard stream, which the code of an experiment cannot close: the command still has to print."""

    def close(self):
        self.flush()


def open_all():
    """Makes sys.stdout and sys.stderr writable; closed ones discard, so that no other file takes their number.

    Text that an encoding lacks shows as ? on standard output, as an escape on standard error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for number, name, errors in (1, 'stdout', 'replace'), (2, 'stderr', 'backslashreplace'):
        stream = getattr(sys, name)
        if stream is getattr(sys, f'__{name}__'):
            file = io.BufferedWriter(Output(number, 'wb', closefd=False))
            stream = Lines(file, stream.encoding if stream else 'utf-8', errors,
                                      line_buffering=number == 2 or os.isatty(number))
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def discard_output():
    """Discards what standard output has still to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
