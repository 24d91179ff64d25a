"""Command lines of the launchers: their options, which are checked as they are read, and the command after `--`."""

import argparse
import re

import shell

LONGEST = 4096  # letters of an option, as of a path


class Parser(argparse.ArgumentParser):
    """A parser whose errors are Faults, whose options may not be shortened, and whose texts are of one line."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self.register('type', None, text)  # of every option that names no other

    def error(self, message):
        raise shell.Fault(f'{message}; see {self.prog} --help.')

    def print_help(self, file=None):
        shell.result(self.format_help())


def parse(parser, arguments):
    """Returns (options, command): the parsed words before the first `--`, and the words after it."""
    if '--' not in arguments:
        parser.parse_args(arguments)
        raise shell.Fault('no command is given; put it after --, e.g. -- lm train experiments/quickstart.py.')
    border = arguments.index('--')
    command = arguments[border + 1:]
    if not command or not command[0]:
        raise shell.Fault('no command follows --; try -- lm train experiments/quickstart.py.')
    for word in arguments[:border]:
        if word.endswith('=--'):  # which argparse would read as the end of the options
            raise shell.Fault(f'{word} names no value; leave it out, or say what it is.')
    return parser.parse_args(arguments[:border]), command


def text(value):
    """Returns a text of one line that says something."""
    if not value:
        raise argparse.ArgumentTypeError('it is empty; leave it out, or say what it is')
    if not value.isprintable():
        raise argparse.ArgumentTypeError(f'{value!r} has a line break or another character that cannot be printed; '
                                         'leave that out')
    if len(value) > LONGEST:
        raise argparse.ArgumentTypeError(f'{value!r} has {len(value):,} letters; use at most {LONGEST:,}')
    return value


def option(value):
    """Returns an option of another program."""
    if not text(value).startswith('-'):
        raise argparse.ArgumentTypeError(f'{value!r} is not an option; try --{value}')
    return value


def count(value):
    """Returns a whole number of at least 1."""
    if not re.fullmatch('[0-9]{1,9}', value) or int(value) < 1:
        raise argparse.ArgumentTypeError(f'{value!r} is not a whole number of at least 1, and of at most 9 digits')
    return int(value)


def positive(value):
    """Returns a number above 0."""
    if not re.fullmatch(r'[0-9]{1,9}(\.[0-9]*)?|\.[0-9]+', value) or float(value) <= 0:
        raise argparse.ArgumentTypeError(f'{value!r} is not a number above 0, and of at most 9 digits before the point')
    return float(value)
