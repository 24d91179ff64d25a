"""What the launchers share: their ends, one-line errors, standard streams, commands and log folders."""

import errno
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
STOPPED = 75  # EX_TEMPFAIL: the command was asked to stop and has saved; the same line again goes on
LOST = 76  # EX_PROTOCOL: the command ended because it had waited long enough for another of its processes
LONGEST = 120 * 2 ** 10  # bytes of one argument: Linux takes 128 KiB, some of which ssh and xpk need for their own


REMEDIES = {
    errno.E2BIG: 'the command and the environment are longer than this system takes; move settings from the command '
                 'into the experiment file',
    errno.EAGAIN: 'free some processes or memory, or try a smaller number',
    errno.EMFILE: 'allow more open files with ulimit -n',
    errno.ENOSPC: 'free some space there',
}


class Fault(Exception):
    """A mistake or a missing tool, told in one line: fact, value, remedy."""


def run(main):
    """Exits with what `main(arguments)` returns; a Fault or an error of the system is one line and code 2."""
    open_streams()
    try:
        code = main(sys.argv[1:])
    except Fault as fault:
        say(shortened(one_line(str(fault))))
        code = 2
    except KeyboardInterrupt:
        say('interrupted')
        code = 130
    except BrokenPipeError:
        discard(sys.stdout)
        code = 141
    except OSError as error:
        place = f' ({error.filename})' if error.filename else ''
        remedy = REMEDIES.get(error.errno, 'run this in a folder that exists and may be read and written')
        say(shortened(f'{error.strerror or error}{place}: {remedy}.'))
        code = 2
    sys.exit(code)


def open_streams():
    """Makes standard output carry any argument of this program, and standard streams that are closed fail as files do.

    Without that the next file that is opened would take the number of the closed one, and get its output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = sys.stdout or open(1, 'w')
    sys.stderr = sys.stderr or open(2, 'w', errors='backslashreplace')
    sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors='surrogateescape')


def one_line(text):
    """Returns a text with its line breaks and other characters that cannot be printed as escapes."""
    return ''.join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text, limit=1000):
    """Returns the beginning and the end of a text that is longer than the limit."""
    return text if len(text) <= limit else f'{text[:limit // 3]} ... {text[-limit // 3:]}'


def say(text):
    """Prints a line of the launcher's own to standard error, beside the command's output."""
    tell(f'{os.path.basename(sys.argv[0])}: {one_line(text)}')


def tell(text):
    """Prints to standard error, as long as it takes it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def result(text):
    """Prints what the launcher was asked for; raises a Fault where standard output does not take it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise Fault(f'standard output cannot be written ({error.strerror}); send it to a pipe or a file that takes '
                    'it.') from error


def write(stream, content, name):
    """Writes bytes of the command's output; a stream that takes no more is told once, and the command goes on."""
    try:
        stream.write(content)
        stream.flush()
    except OSError as error:
        discard(stream)
        if not isinstance(error, BrokenPipeError):
            say(f'{name} cannot be written ({error.strerror}); the command goes on, and what it prints is not kept '
                'there.')


def show(line):
    """Prints a line of the command's output."""
    write(sys.stdout.buffer, os.fsencode(f'{line}\n'), 'standard output')


def discard(stream):
    """Has a stream that takes no more, and what it still holds, lead nowhere."""
    with open(os.devnull, 'wb') as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def shown(words):
    """Returns a command as a shell takes it."""
    return ' '.join(shlex.quote(str(word)) for word in words)


def document(content):
    """Returns a text as a here-document of a shell, which ends at a line that is none of the text's."""
    end = 'END'
    while end in content.split('\n'):
        end += '_'
    return f'<<"{end}"\n{content}\n{end}'


def check_length(text, what):
    """Raises a Fault where a text is too long to be one argument of a command, here or on the machine it is sent to."""
    size = len(os.fsencode(text))
    if size > LONGEST:
        raise Fault(f'{what} takes {size:,} bytes as one argument, and at most {LONGEST:,} get through; move settings '
                    'from the command into the experiment file.')


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

    Ctrl-C does not reach it, so that what it does is not left half done. Its output may hold any bytes, as names of
    files do.
    """
    feed = {'stdin': subprocess.DEVNULL} if text is None else {'input': text}
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False, start_new_session=True,
                          encoding=sys.getfilesystemencoding(), errors='surrogateescape', **feed)
    return done.returncode, done.stdout, done.stderr


def folder(chosen, launcher):
    """Returns the absolute log folder: the one chosen, or a new name under runs/ from the time and the process."""
    stamp = time.strftime('%Y%m%d-%H%M%S', time.gmtime())
    path = pathlib.Path(chosen or f'runs/{launcher}/{stamp}-{os.getpid()}').absolute()
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > 255:
        raise Fault(f'the log folder {path} has a name of {longest} bytes, and file systems take 255; try --logs=DIR.')
    return path


def make(logs):
    """Makes a log folder; raises a Fault where it cannot be made."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f'the log folder {logs} cannot be made ({error.strerror}); try --logs=DIR.') from error


def lines(path):
    """Returns the lines of a log or a script."""
    return pathlib.Path(path).read_text(encoding='utf-8', errors='replace').splitlines()


def last_lines(path, limit=20):
    """Returns the end of a log: from its last traceback, if that is near the end, or its last `limit` lines."""
    content = lines(path)
    starts = [i for i, line in enumerate(content) if line.startswith('Traceback (most recent call last)')]
    first = starts[-1] if starts and len(content) - starts[-1] <= 5 * limit else max(len(content) - limit, 0)
    return content[first:]
