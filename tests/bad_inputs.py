"""Bad inputs over every field, flag, file, data file, variable and experiment file, and how each case ends.

    python tests/bad_inputs.py 50000 --seed=1                      a table, and every finding with what reproduces it
    python tests/bad_inputs.py --seed=1 --only='typed fields 17'   one case again

A case depends on the seed, its kind and its number alone. It ends refused (config.Error in one line), harmless
(accepted, and right), listed (as LISTED says, and why), or as a finding: a traceback, a hang, a message of more than a
line, or something wrong that was accepted in silence.
"""
import argparse
import collections
import contextlib
import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if __name__ == '__main__':
    import conftest  # noqa: F401  sets what JAX reads when it is first imported

from lm import config
from lm.config import files

SECONDS, MEMORY = 20, 2 ** 32  # that a case may take, and bytes
LONGEST = 1000  # characters of a message
# Findings that are as they should be: a pattern of one in words, and why.
LISTED = {
    'data files: .*silent: other documents, of a file without a checksum$':
        'text, JSON and what compresses without a checksum cannot tell; `lm data` names the files that have none',
    'data files: .*the whole twice -> silent: other documents, though': 'two whole streams in one file are a file',
    'written files: table .*silent: another result':
        'a table of --against is written by hand: a number changed into another is another table',
    'written files: .*experiment.py by report: .*silent: another result':
        'the kept experiment is text for a reader: a report shows how it begins, and decides nothing by it',
    'written files: .*failed.json by .*silent: another result':
        'why a trial failed is text for a reader; a note that cannot be read is shown as such',
    r'written files: .*claims/.*silent: another result':
        'a claim that cannot be read is watched for 30 s as if its owner lived, and is named then',
    r"written files: .*metrics.jsonl by .*(cut to|absent|dangling|zeros|b'.n'... in).*silent: another result":
        'a record that ends early, in zeros after a power cut, is that of an unfinished run, which trains on',
    r'written files: (plan|run spikes)/?.* by .*: (absent|dangling) -> silent: another result':
        'what is not there is compiled or measured again',
    r'flags: replay step: .*silent: --step=-\d+ is taken':
        'a step is compared with the record once the run is open, which is later than a case goes'}


class Silent(Exception):
    """Something wrong was accepted; the text says what."""


class Hang(BaseException):
    """A case takes too long."""


class Kind(NamedTuple):
    """A kind of bad input. share: of all cases, in relation to the others. places: what can be bad, in words.
    draw(place, rng): returns (the input in words, a function that tries it), which raises what the product raises, and
    Silent.
    """

    name: str
    share: float
    places: list
    draw: Any


class Outcome(NamedTuple):
    """How a case ended, 'refused', 'harmless', 'listed' or 'finding'; what its input was, and what was raised."""

    end: str
    case: str
    input: str
    fault: str


def attempt(kind, number, seed):
    """Returns the Outcome of a case. Places come in turn, in another order for another seed."""
    places = random.Random(f'{seed} {kind.name}').sample(kind.places, len(kind.places))
    place = places[number % len(places)]
    text, run = kind.draw(place, random.Random(f'{seed} {kind.name} {number}'))
    fault, end = '', 'harmless'
    with guarded() as late, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            run()
        except config.Error as error:
            end, message = 'refused', str(error)
            if len(message.splitlines()) != 1 or len(message) >= LONGEST:
                size = f'{len(message.splitlines())} lines and {len(message)} characters'
                fault = f'a message of {size}: {message[:99]!r}'
        except Silent as error:
            fault = f'silent: {error}'
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = f'{type(error).__name__}: {config.first_line(error)[:200]} at {place_of(error)}'
    if late:
        fault = f'hang: more than {SECONDS} s; {fault}'
    case = f'{kind.name} {number}'
    if not fault:
        return Outcome(end, case, f'{place}: {text}', '')
    known = any(re.search(pattern, f'{kind.name}: {place}: {text} -> {fault}', re.S) for pattern in LISTED)
    return Outcome('listed' if known else 'finding', case, f'{place}: {text}', fault)


def place_of(error):
    """Returns 'file.py:line' of the last frame in lm of an exception, else of the last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if '/lm/' in frame.filename] or frames
    return f'{Path(own[-1].filename).name}:{own[-1].lineno}'


@contextlib.contextmanager
def guarded():
    """Yields a list that has an item once a case has taken more than SECONDS: then Hang is raised, again and again.

    What a case may leave is as before at the end: the environment, the directory, and what was warned of.
    """
    late, environ, place, handler = [], dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGALRM)

    def ring(number, frame):
        late.append(number)
        raise Hang
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    files.warn.cache_clear()
    try:
        yield late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environ)


@contextlib.contextmanager
def workplace():
    """Yields the [Kind] of all inputs, in a directory of its own, where paths of users, caches and data lead too.

    What is read is made there once; programs are compiled for one device.
    """
    import bad_commands
    import bad_data
    import bad_experiments
    import bad_fields
    import bad_files
    import jax
    modules, devices = (bad_fields, bad_experiments, bad_data, bad_files, bad_commands), jax.devices()[:1]
    with contextlib.ExitStack() as ending, pytest.MonkeyPatch.context() as patch:
        name = tempfile.mkdtemp()
        ending.callback(subprocess.run, ['rm', '-rf', name])  # of thousands of levels, over which shutil recurses
        ending.callback(sys.modules.pop, 'experiments', None)  # it was the folder of this workplace last
        folder, deep = Path(name).resolve(), Path(name).resolve() / 'one' / 'two' / 'three'
        deep.mkdir(parents=True)
        patch.chdir(deep)
        patch.setattr(jax, 'devices', lambda: devices)
        for variable in ('HOME', 'TMPDIR', 'XDG_CACHE_HOME', 'LM_CACHE', 'LM_DATA'):
            (folder / variable.lower()).mkdir()
            patch.setenv(variable, str(folder / variable.lower()))
        made = [kind for module in modules for kind in module.kinds(folder, patch)]
        with limited():
            yield made


@contextlib.contextmanager
def limited():
    """Has whatever takes MEMORY more than is taken now end in a MemoryError."""
    before, taken = resource.getrlimit(resource.RLIMIT_AS), int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (taken * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def cases(chosen, count, seed):
    """Yields the Outcomes of `count` cases of some kinds, by their shares, one kind after the other."""
    whole = sum(kind.share for kind in chosen)
    for kind in chosen:
        for number in range(max(1, round(count * kind.share / whole))):
            yield attempt(kind, number, seed)


def table(outcomes, seconds):
    """Returns the lines of a table: how many cases of each kind ended how."""
    kinds_of = list(dict.fromkeys(outcome.case.rpartition(' ')[0] for outcome in outcomes))
    lines = [f'{"":18}{"cases":>8}{"refused":>9}{"harmless":>10}{"listed":>8}{"finding":>9}{"ms":>7}']
    for name in [*kinds_of, 'all']:
        ends = collections.Counter(o.end for o in outcomes if name in ('all', o.case.rpartition(' ')[0]))
        numbers = [ends.total(), ends['refused'], ends['harmless'], ends['listed'], ends['finding']]
        lines.append(f'{name:18}' + ''.join(f'{n:{w},}' for n, w in zip(numbers, (8, 9, 10, 8, 9))) +
                     f'{1000 * seconds.get(name, 0) / max(1, numbers[0]):7.1f}')
    return lines


def findings(outcomes, seed, shown=3):
    """Returns the lines of all findings: equal ones once, with their number and what reproduces the first few."""
    groups = {}
    for outcome in outcomes:
        if outcome.end == 'finding':
            words = re.sub(r'0x\w+|\d{5,}', '#', outcome.fault.rpartition(' at ')[2] or outcome.fault)
            groups.setdefault((outcome.case.rpartition(' ')[0], outcome.fault.split(':')[0], words), []).append(outcome)
    lines = []
    for (name, *_), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f'{len(group)} x {name}: {group[0].fault}')
        lines += [f'    --seed={seed} --only={o.case!r}: {o.input[:300]!r}' for o in group[:shown]]
    return lines


def main():
    """Runs the command; its exit code is 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('count', type=int, nargs='?', default=2000)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--only', default='', help='a kind, or a kind and the number of a case')
    options = parser.parse_args()
    name, _, number = options.only.rpartition(' ') if options.only[-1:].isdigit() else (options.only, '', '')
    outcomes, seconds = [], collections.Counter()
    begun = time.process_time()
    with workplace() as every:
        chosen = [kind for kind in every if name in ('', kind.name)]
        seconds['fixtures'] = time.process_time() - begun
        for kind in chosen:
            begun = time.process_time()
            outcomes += ([attempt(kind, int(number), options.seed)] if number else
                         cases([kind], round(options.count * kind.share / sum(k.share for k in chosen)), options.seed))
            seconds[kind.name] = time.process_time() - begun
            seconds['all'] += seconds[kind.name]
    spent = f'fixtures {seconds["fixtures"]:.1f} s, cases {seconds["all"]:.1f} s of CPU'
    print(*table(outcomes, seconds), '', spent, '', *findings(outcomes, options.seed), sep='\n')
    return int(any(outcome.end == 'finding' for outcome in outcomes))


if __name__ == '__main__':
    sys.modules['bad_inputs'] = sys.modules['__main__']
    sys.exit(main())
