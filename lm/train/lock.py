"""The lock of a run's directory: one process trains in it, and only where nothing of anybody else's is."""
import contextlib
import errno
import fcntl
import os
import re
import socket
import time

from lm import config
from lm.config import files
from lm.parallel import processes
from lm.train import checkpoint

MARK = re.compile(r'((\S*) (\d+) [\d.]+)?')  # what this file writes to a run's lock: host, process, time
OURS = {'config': {'type': str, 'model': dict, 'steps': int}, 'command': [str], 'versions': dict}  # of config.json
RESTORE = 'restore it from a copy, or begin the command of the run in a new --workdir and copy config.json from there.'


class Busy(config.Error):
    """Another process is training in the directory."""


@contextlib.contextmanager
def writing(directory):
    """Turns a disk that is full or not writable into a config.Error."""
    try:
        yield
    except OSError as error:
        remedy = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'give another --workdir'
        raise config.Error(f'cannot write to {directory}: {error.strerror or error}; {remedy}.') from error


def claim(directory, locks):
    """Locks a run's directory, adds the open lock file to `locks`, and returns the mark that it wrote there.

    Raises config.Error if it cannot be written or holds files of another kind, Busy if another process has it.
    """
    if re.match(r'[a-z][a-z0-9]+:/', str(directory)):
        raise config.Error(f'{directory} is not in a file system, which a run needs for its lock and its record; '
                           'mount the bucket (gcsfuse) and give a --workdir there.')
    checkpoint.check_name(directory)
    with writing(directory):
        files.make_directory(directory)
        check_own(directory, 'config.json')
        if os.path.exists(directory / 'config.json'):
            remedy = RESTORE if os.path.isdir(directory / 'checkpoints') else 'give an empty --workdir, or a new one.'
            files.read_json(directory / 'config.json', OURS, remedy)
        lock = open(directory / 'lock', 'a')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise Busy(f'another process{_owner(directory)} is training in {directory}; wait for it, or give another '
                   '--workdir.') from error
    locks.append(lock)
    mark = f'{socket.gethostname()} {os.getpid()} {time.time()}'
    with writing(directory):
        lock.truncate(0)
        lock.write(mark)
        lock.flush()
    return mark


def _owner(directory):
    """Returns in words whose mark is in the lock of a directory, '' where none is."""
    mark = MARK.fullmatch((directory / 'lock').read_bytes()[:300].decode(errors='replace'))
    return f' ({mark[3]} on {mark[2]})' if mark and mark[1] else ''


def check_own(directory, record):
    """Raises config.Error where a directory holds files and no `record`, so is not one of a run or a sweep, or has
    anything else for a lock.
    """
    temporary = ('.config.json.', '.sweep.json.', '.experiment.py.')  # of a process that was killed
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith(temporary)) \
        if os.path.isdir(directory) else []
    lock = directory / 'lock'
    if 'lock' in names and (lock.is_file() and MARK.fullmatch(lock.read_bytes()[:300].decode(errors='replace'))):
        names.remove('lock')
    if names and ('lock' in names or record not in names):
        raise config.Error(f'{directory} holds {", ".join(names[:5])}{", ..." * (len(names) > 5)} and no {record} of '
                           'lm; give an empty --workdir, or a new one.')


def check_shared(directory, mark, patience=20):
    """Raises config.Error unless all hosts read process 0's mark in the directory, within `patience` seconds."""
    path, until = directory / 'lock', time.monotonic() + patience
    while not (shared := path.exists() and path.read_text() == mark) and time.monotonic() < until:
        time.sleep(0.5)
    apart = [host for host, sees in enumerate(processes.gather(shared)) if not sees]
    if apart:
        raise config.Error(f'{directory} on host {apart[0]} is not the directory of host 0; '
                           'give a --workdir on a file system that all hosts share.')
