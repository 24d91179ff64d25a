"""Hostile words for every option of every verb, and for every variable of the environment that lm reads."""
import os
import re
import sys

import pytest
from bad_fields import BRACKETS, NUMBERS, ROOT, TEXTS, components
from bad_files import trained
from bad_inputs import Kind, Silent

from lm import backend, cli, config, data, generate
from lm.commands import bench, bisect, coord_check, plan, replay, scaling, sweep, train
from lm.config import paths
from lm.convert import imports
from lm.data import cache
from lm.models import ngram
from lm.parallel import processes
from lm.plan import compiler
from lm.sweep import vectors
from lm.train import NextToken, checkpoint, runs

# What a shell can pass.
WORDS = tuple(word for word in NUMBERS + TEXTS + BRACKETS if '\0' not in word and '\ud800' not in word)
PATHS = ('no/such', 'tiny.py', '.', '..', 'a\nb', 'x' * 300, 'a/' * 2000, '/dev/null', '/dev/null/x', '/proc/1/x',
         'a[x]b', '*', 'é ü', "a'b", 'gs://b/x')
OVERRIDES = ('steps', '=', '=1', 'steps=', 'steps=x', 'model=', 'model.=1', '.steps=1', 'model..width=1', 'no.such=1',
             'steps.x=1', 'steps=1=2', 'model.width=-5', '--steps=1', '-x', '--', '--no-such=1', '-h', 'model=None',
             'a' * 5000 + '=1', 'optimizer=Lion(peak=1e-4)', 'é=1')
SIGNED = {'seed'}  # whole numbers that may be negative


class Costly(BaseException):
    """Raised where a verb would begin to compile, to train or to resample: what came in has been taken."""


def stop(*args, **named):
    raise Costly


# The first costly call of verbs; `lm config`, `data`, `plan --against`, `report` and `sweep --watch` run to their ends.
FIRST = ((bench.bench, 'measure_loader'), (bench.bench, 'measure'), (bisect, 'trajectories'), (coord_check, 'measure'),
         (plan.planner, 'make_plan'), (plan.search, 'ranked'), (replay, 'replay_step'), (replay.Trajectory, '__init__'),
         (scaling.laws, 'fit'), (sweep, 'work'), (train.session, 'train'), (checkpoint, '_read'),
         (generate.sampling, 'begin'), (NextToken, 'score'), (imports, 'run_of'), (ngram, 'fit'))


def lines(root):
    """Returns {verb: [command lines that are right]}, each a list of words."""
    file, run, swept = f'{root}/tiny.py', f'{root}/run', f'{root}/sweep'
    planned = [[file, '--on=v5e-8'], [file, '--on=v5e-8', '--search'], [f'--against={root}/table/table.json']]
    searched = [file, '--over=optimizer.peak=1e-3..1e-1', '--sample=Random(trials=2)']
    return {'bench': [[file]], 'bisect': [[run, f'{root}/other']], 'config': [[file]], 'data': [[file]],
            'eval': [[run]], 'coord-check': [[file, '--widths=8,16']], 'generate': [[run], [run, 'Mavu', 'do']],
            'convert': [[f'{root}/checkpoint', f'{root}/converted']], 'embed': [[run, 'Mavu', 'do']],
            'ngram': [[file]], 'translate': [[run, f'{root}/tiny.py']],
            'plan': planned, 'replay': [[run]], 'report': [[swept], [swept, run]], 'scaling': [[swept]],
            'train': [[file]], 'sweep': [[file], [swept, '--watch'], searched]}


def word_for(rng, names):
    """Returns a hostile word for an argument."""
    match rng.randrange(8):
        case 0 | 1 | 2 | 3:
            return rng.choice(WORDS)
        case 4 | 5:
            return rng.choice(PATHS)
        case 6:
            return rng.choice(OVERRIDES)
    one, other, name = rng.choice(WORDS), rng.choice(WORDS), rng.choice(names)
    return rng.choice((name, f'{name}({one})', f'optimizer.peak={one}..{other}', f'N={one},D={other}', f'steps={one}',
                       f'a < b by {one}', f'8x{one}', f'v5e-{one}', f'{one},{other}', f'data.batch={one}'))


def run_line(argv):
    """Runs a command line; raises config.Error as it was printed, and Silent for an exit code that says nothing and for
    a number that is taken and is none, or negative.
    """
    try:
        code = cli.main(argv)
    except Costly:
        code = 0
    except SystemExit as error:
        if error.code not in (0, 75):
            raise
        return  # of --help
    shown = sys.stderr.getvalue().splitlines()
    if code == 2 and [line[:4] for line in shown] == ['lm: ']:
        raise config.Error(shown[0])
    if code not in (0, 1):
        raise Silent(f'exit code {code} with {len(shown)} lines on stderr')
    for name, value in (cli._parse(argv[0], argv[1:])[1] if code == 0 else {}).items():
        numbers = [number for number in (value if isinstance(value, list) else [value]) if type(number) in (int, float)]
        for number in numbers:
            if not abs(number) < float('inf') or (number < 0 and name not in SIGNED):
                raise Silent(f'--{name}={number} is taken')


class Flags:
    """The kind of bad options: each of each verb, on command lines that are right but for one word."""

    def __init__(self, root):
        self.correct, self.kept = lines(root), runs.load(root / 'run')
        assert {*self.correct} == {*cli.verbs()}, 'a verb has no command line that is right'
        self.parameters = {f'{verb} {parameter.name}': parameter for verb in cli.verbs()
                           for parameter in cli.signature(verb)[0]}

    def draw(self, place, rng):
        """Returns (command line in words, function that runs it until the first costly call)."""
        verb, parameter = place.split()[0], self.parameters[place]
        argv, word = [verb, *rng.choice(self.correct[verb])], word_for(rng, [cls.__name__ for cls in components()])
        flag = f'--{parameter.name.replace("_", "-")}'
        if parameter.default is None and not parameter.repeated:
            argv[1] = word
        elif parameter.default is None:
            argv += [word]
        else:
            argv += rng.choice(([flag], [f'{flag}={word}'], [f'{flag}={word}'], [flag, word]))

        def run():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runs, 'load', self.loaded(runs.load))
                for where, name in FIRST:
                    patch.setattr(where, name, stop)
                run_line(argv)
        return ' '.join(argv[1:]), run

    def loaded(self, load):
        """Returns `load` with the run that was loaded once where it would read a checkpoint."""
        def substitute(*args, **named):
            try:
                return load(*args, **named)
            except Costly:
                return self.kept
        return substitute


VARIABLE = re.compile(r"'((?:LM|SLURM|TPU|JAX|XLA|XDG|CUDA|MEGASCALE|LIBTPU)_[A-Z_]+)'")
DIRECTORIES = ('HOME', 'LM_CACHE', 'LM_DATA', 'XDG_CACHE_HOME')
SLURM = {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2',
         'SLURM_PROCID': '1', 'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'CUDA_VISIBLE_DEVICES': '0,1'}
JOINT = {'LM_COORDINATOR': 'node-0:1234', 'LM_PROCESSES': '2', 'LM_PROCESS': '1'}
TPU = {'JAX_PLATFORMS': 'tpu', 'TPU_PROCESS_ADDRESSES': 'a:1,b:1', 'TPU_WORKER_HOSTNAMES': 'a,b',
       'MEGASCALE_NUM_SLICES': '2'}
PIECES = ('2(x3),1', '0', '1', '2', '-1', 'a:b', ':1', 'a:0', 'a:99999', '[::1]:80', 'a:1,b:1', ',', ',,', 'cpu',
          'tpu,cpu', 'a[1-', '1(x', '²:²', '1' * 20)
compiled = compiler.cache_directory  # before the one of tests takes its place


def variables():
    """Returns the names of the variables that lm reads."""
    texts = (path.read_text(encoding='utf-8') for path in sorted((ROOT / 'lm').rglob('*.py')))
    return sorted({name for text in texts for name in VARIABLE.findall(text)} | {*DIRECTORIES})


def draw_variable(name, rng):
    """Returns (an environment in words, function that reads it) in which a variable is bad, or absent."""
    base = {variable: os.environ[variable] for variable in ('PATH', *DIRECTORIES)} | rng.choice(({}, SLURM, JOINT, TPU))
    word = rng.choice(PATHS if name in DIRECTORIES else PIECES) if rng.randrange(2) else rng.choice(WORDS)
    if rng.randrange(12) == 0:
        base.pop(name, None)
        return f'{name} unset of {sorted(base)}', lambda: read_environment(base)
    return f'{name}={word!r} in {sorted(base)}', lambda: read_environment({**base, name: word})


def read_environment(environ):
    """Reads an environment as a process that starts does; raises Silent for arguments that cannot be."""
    arguments = processes.initialize_arguments(environ) or {}
    if not 0 <= arguments.get('process_id', 0) < arguments.get('num_processes', 1):
        raise Silent(f'{arguments}')
    for change in (backend.tune, backend.hide_accelerators, lambda values: vectors.spread(2, values)):
        changed = dict(environ)
        change(changed)
        if not all(isinstance(value, str) for value in changed.values()):
            raise Silent(f'{changed} has a value that is no text')
    os.environ.clear()
    os.environ.update(environ)
    faults = []
    for read in (lambda: paths.locate('a/b.txt'), lambda: list(data.Files('a/b.txt').records()), compiled,
                 lambda: cache.build(data.Synthetic(1, 50), data.Bytes().fit((), '.'), paths.caches(), workers=1)):
        try:
            read()
        except config.Error as error:
            faults.append(error)
    if faults:
        raise max(faults, key=lambda error: len(str(error)))


def kinds(folder, patch):
    """Returns the [Kind] of options and of variables."""
    flags, text = Flags(trained(folder)), folder / 'lm_data' / 'a' / 'b.txt'
    text.parent.mkdir()
    text.write_text('text')
    return [Kind('flags', 12, [*flags.parameters], flags.draw), Kind('variables', 6, variables(), draw_variable)]
