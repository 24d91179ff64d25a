"""What the launchers share: their command lines, one-line errors, commands and log folders."""

import argparse
import errno
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
STOPPED = 75  # EX_TEMPFAIL: the command was asked to stop and has saved; the same line again goes on
LOST = 76  # EX_PROTOCOL: the command ended because it had waited long enough for another of its processes
LONGEST = 120 * 2 ** 10  # bytes of one argument: Linux takes 128 KiB, some of which ssh and xpk need for their own


class Fault(Exception):
    """A mistake or a missing tool, told in one line: fact, value, remedy."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are Faults, and whose options may not be shortened."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message):
        raise Fault(f'{message}; see {self.prog} --help.')


def run(main):
    """Exits with what `main(arguments)` returns; a Fault is one line on standard error and code 2."""
    program = os.path.basename(sys.argv[0])
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except Fault as fault:
        print(f'{program}: {fault}', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f'{program}: interrupted', file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        print(f'{program}: the command and the environment are longer than this system takes; move settings from the '
              'command into the experiment file.', file=sys.stderr)
        code = 2
    sys.exit(code)


def parse(parser, arguments):
    """Returns (options, command): the parsed words before the first `--`, and the words after it."""
    if '--' not in arguments:
        parser.parse_args(arguments)
        raise Fault('no command is given; put it after --, e.g. -- lm train experiments/quickstart.py.')
    border = arguments.index('--')
    command = arguments[border + 1:]
    if not command:
        raise Fault('no command follows --; try -- lm train experiments/quickstart.py.')
    return parser.parse_args(arguments[:border]), command


def count(text):
    """Returns a whole number of at least 1."""
    if not re.fullmatch('[0-9]+', text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


def positive(text):
    """Returns a number above 0."""
    if not re.fullmatch(r'\d+(\.\d*)?|\.\d+', text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return float(text)


def say(text):
    """Prints a line of the launcher's own to standard error, beside the command's output."""
    print(f'{os.path.basename(sys.argv[0])}: {text}', file=sys.stderr, flush=True)


def shown(words):
    """Returns a command as a shell takes it."""
    return ' '.join(shlex.quote(str(word)) for word in words)


def check_length(text, what):
    """Raises a Fault where a text is too long to be one argument of a command, here or on the machine it is sent to."""
    size = len(os.fsencode(text))
    if size > LONGEST:
        raise Fault(f'{what} takes {size:,} bytes as one argument, and at most {LONGEST:,} get through; move settings '
                    'from the command into the experiment file.')


def packing(how, *options):
    """Returns the shell command that gives the project's files to tar, `how` being its letters, e.g. czf FILE.

    The files are those that git does not ignore, without pictures and pages of results.
    """
    return (f'cd {shown([ROOT])} && git ls-files -z --cached --others --exclude-standard -- . ":!*.png" '
            f'":!experiments/*.html" | tar --null --ignore-failed-read {" ".join([*options, f"-{how}"])} -T -')


def wrapped(command):
    """Returns the command; through launch/local.sh, which installs the project, if PATH lacks its program."""
    if '/' in command[0] and not shutil.which(command[0]):
        raise Fault(f'no program {command[0]!r} here; name one that exists and may be executed.')
    return list(command) if shutil.which(command[0]) else [str(ROOT / 'launch' / 'local.sh'), *command]


def need(tool, remedy):
    """Raises a Fault with the remedy if a tool is not on PATH."""
    if not shutil.which(tool):
        raise Fault(f'no command {tool!r} on PATH; {remedy}')


def ask(words, text=None):
    """Returns (exit code, standard output, standard error) of a command, given `text` as its input.

    Ctrl-C does not reach it, so that what it does is not left half done.
    """
    feed = {'stdin': subprocess.DEVNULL} if text is None else {'input': text}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False,
                          start_new_session=True, **feed)
    return done.returncode, done.stdout, done.stderr


def folder(given, launcher):
    """Returns the absolute log folder: the one given, or a new name under runs/ from the time and the process."""
    stamp = time.strftime('%Y%m%d-%H%M%S', time.gmtime())
    return pathlib.Path(given or f'runs/{launcher}/{stamp}-{os.getpid()}').absolute()


def make(logs):
    """Makes a log folder; raises a Fault where it cannot be made."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f'the log folder {logs} cannot be made ({error.strerror}); try --logs=DIR.') from error


def last_lines(path, limit=20):
    """Returns the end of a log: from its last traceback, if that is near the end, or its last `limit` lines."""
    lines = pathlib.Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith('Traceback (most recent call last)')]
    first = starts[-1] if starts and len(lines) - starts[-1] <= 5 * limit else max(len(lines) - limit, 0)
    return lines[first:]
