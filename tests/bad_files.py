"""Damage of every file that lm wrote, of a run, a sweep, token caches and plans, and of a table: each as it is read."""
import builtins
import contextlib
import gzip
import io
import json
import os
import shutil
import sys
from functools import cache

import damage
import jax
import jax.numpy as jnp
import pytest
from bad_inputs import Kind, Silent
from test_record_damage import SPIKE

from lm import cli, config, hardware, records
from lm.config.annotations import is_component
from lm.debug import sides
from lm.plan import calibration, compiler, published
from lm.report import show, study
from lm.scaling import points
from lm.sweep import claims, search, trials, view
from lm.train import checkpoint, runs, spikes

EXPERIMENT = '''"""Does it help?"""
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention

TEXT = data.Synthetic(count=12, length=300)
LETTERS = {letter for document in TEXT.documents() for letter in document.text}


def config():
    return train.Config(
        model=Decoder(vocab=len(LETTERS), depth=1, width=8, layer=Layer(Attention(heads=2))),
        data=data.Corpus(train=TEXT, valid=data.Pick(TEXT, 0, 0.5), tokenizer=data.Chars(), context=8, batch=4),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Constant()),
        steps=4, objective=train.NextToken(sample='', baselines=False), mesh={'data': 1},
        cadence=train.Cadence(log=1, save=2, eval=2, eval_batches=2))
'''
ROW = {'id': 'a', 'on': '8xh100', 'batch': 16, 'seq': 2048, 'mesh': {'fsdp': 8}, 'remat_lm': 'full',
       'measured_step_s': 1.5, 'shape': {'vocab': 32000, 'depth': 4, 'heads': 8, 'width': 1024, 'ff': 2816}}
STEP = {'text': 'HloModule a', 'memory': {'arguments': 1.0, 'outputs': 2.0, 'temporaries': 3.0}, 'needed': 0,
        'warnings': 0, 'seconds': 1.5}
ARRAYS = {'a': jnp.arange(64.0), 'b': jnp.ones((4, 4), jnp.bfloat16)}
WRITERS = ('resume', 'batches')  # readers that mend what is damaged


@cache
def trained(folder):
    """Returns the directory that holds an experiment, a run and a sweep of it, and all else that lm writes."""
    root = folder / 'written'
    root.mkdir()
    (root / 'tiny.py').write_text(EXPERIMENT)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = cli.main(['sweep', f'{root}/tiny.py', '--over=optimizer.peak=1e-3..1e-1', '--sample=Random(trials=1)',
                         '--seeds=2', f'--workdir={root}/sweep', f'--cache={root}/cache'])
    assert not code, shown.getvalue()
    first, second = (trial.directory for trial in trials.open_sweep(root / 'sweep').trials)
    shutil.copytree(first, root / 'run')
    spikes.write(root / 'run', SPIKE)
    (second / records.FAILED).write_text('{"error": "boom"}\n')
    store = checkpoint.Store(root / 'store')
    for number in (1, 2):
        store.save(number, ARRAYS, {'data': {'a': 'b'}, 'offset': number})
    store.close()
    (root / 'table').mkdir()
    table = [ROW, {**ROW, 'id': 'b', 'on': 'v5e-16', 'mesh': {'fsdp': 16}}]
    (root / 'table' / 'table.json').write_text(json.dumps(table))
    plan = compiler.cache_directory()
    (plan / 'step.json.gz').write_bytes(gzip.compress(json.dumps(STEP).encode()))
    roof = type('Roof', (), {'parts': {'products': 1.0}, 'nominal': {'products': 0.5}, 'seconds': 1.0})
    calibration.record(hardware.CHIPS['h100'], roof, 1.0)
    shutil.copytree(plan, root / 'plan')
    return root


def text_of(value):
    """Returns what a reader returned as text, to compare."""
    return json.dumps(value, default=lambda item: config.dump(item) if is_component(item) else str(item))


def run_readers(run, root):
    """Returns {name: function} of all that reads a run's directory."""
    settings = runs.read(run)
    other = shutil.copytree(run, root / 'other', ignore=shutil.ignore_patterns('checkpoints'))
    encode = lambda tokenizer: tokenizer.fit((), run / 'tokenizer').encode('Mavu do.').tolist()

    def compare():
        pair = [sides.Side('A', run), sides.Side('B', other)]
        agreed = sides.divergence(*(side.records for side in pair))
        return sides.provenance(*pair) + sides.compare_records(pair, *agreed)

    def resume():
        again = runs.Run(run, config.Experiment(settings, {}, root / 'tiny.py'))
        again.close()
        return again.store.steps(), records.read(run)
    return {'settings': lambda: runs.read(run), 'records': lambda: records.read(run), 'resume': resume,
            'intact': lambda: records.intact(run), 'compare': compare,
            'tokenizer': lambda: encode(settings.data.tokenizer),
            'spikes': lambda: [spikes.read(run, step) for step in spikes.steps(run)], 'report': lambda: report(run)}


def report(directory):
    """Returns what `lm report --json` prints of a directory."""
    return json.loads(show.as_json(study.read([directory]), []))


def sweep_readers(sweep):
    """Returns {name: function} of all that reads a sweep's directory."""
    def watched():
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            view.watch(sweep)
        return shown.getvalue()

    def searched():
        opened, about = trials.open_sweep(sweep), search.read(sweep)
        return search.ended(opened) or (search._observations(opened, about), search._sampler(opened, about))

    def claimed():
        desk = claims.Claims(sweep)
        return {trial: (number, desk.lives(trial, number)) for trial, number in desk.newest().items()}

    def scaled():
        runs_of = points.read([sweep])
        return {'loss': runs_of.loss.tolist(), 'left': [list(row) for row in runs_of.left_out]}
    failed = [path.parent for path in sweep.rglob(records.FAILED)]
    return {'open': lambda: trials.open_sweep(sweep), 'states': lambda: trials.states(trials.open_sweep(sweep)),
            'watch': watched, 'search': searched, 'claims': claimed, 'report': lambda: report(sweep), 'scaling': scaled,
            'reason': lambda: [records.failure(directory) for directory in failed]}


def cache_readers(root, settings):
    """Returns {name: function} of what reads token caches, which makes again what is damaged."""
    def served():
        train, valid = settings.data.open(root), settings.data.open(root, 'valid')
        batches = train.batch_at(0)['inputs'].tolist(), valid.batch_at(0)['targets'].tolist()
        return batches, train.fingerprint, valid.texts
    return {'batches': served}


def plan_readers(folder):
    """Returns {name: function} of what reads compiled steps and measured efficiencies."""
    return {'step': lambda: compiler._kept(folder / 'step.json.gz'),
            'efficiency': lambda: calibration.calibrated(hardware.cluster('8xh100'))}


def change_of(path, rng):
    """Returns (damage in words, function that does it) of a file, drawn by rng."""
    content = path.read_bytes()
    cases = [(obstacle.__name__, lambda obstacle=obstacle: obstacle(path)) for obstacle in damage.OBSTACLES]
    drawn = list(damage.damaged(content, rng, 6, 12))
    if path.suffix in ('.json', '.jsonl'):
        *lines, last = content.splitlines() if path.suffix == '.jsonl' else [content]
        drawn += [(words, b'\n'.join([*lines, json.dumps(value).encode(), b'']))
                  for words, value in damage.garbled(json.loads(last), rng, 12)]
    words, damaged = rng.choice(drawn)
    return rng.choice(cases) if not rng.randrange(12) else (words, lambda: path.write_bytes(damaged))


class Written:
    """A directory that lm wrote, and what reads it; `restore` makes it what it was."""

    def __init__(self, folder, readers):
        self.folder, self.readers, self.whole = folder, readers, folder.with_name(f'{folder.name}.whole')
        shutil.copytree(folder, self.whole)
        self.results, self.pairs, names = {}, [], self.files()
        for name, read in readers.items():
            for path in folder.rglob('*'):
                os.utime(path)  # or it would be known from the reader before
            with opening() as opened:
                self.results[name] = text_of(read())
            self.pairs += [f'{file} by {name}' for file in names if str(folder / file) in opened]
        self.restore()
        again = {name: text_of(read()) for name, read in readers.items()}
        assert self.results == again, 'a reader whose result is not the same twice'
        self.restore()

    def files(self):
        """Returns the names of its files but for locks."""
        return [path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob('*'))
                if path.is_file() and not path.name.endswith('lock')]

    def restore(self):
        """Returns the names of what differs from how it was, and makes it so again."""
        here, there = (sorted(path.relative_to(root) for path in root.rglob('*')) for root in (self.folder, self.whole))
        differ = [name for name in dict.fromkeys(here + there) if stamp(self.folder / name) != stamp(self.whole / name)]
        for name in reversed(differ):
            damage.absent(self.folder / name)
        for name in filter(there.__contains__, differ):
            if (self.whole / name).is_dir():
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            else:
                shutil.copy2(self.whole / name, self.folder / name)
        return [name.as_posix() for name in differ]

    def draw(self, place, rng):
        """Returns (damage in words, a function that has a reader read a damaged file)."""
        name, _, reader = place.rpartition(' by ')
        path = self.folder / name
        words, change = change_of(path, rng)

        def run():
            try:
                change()
                result = text_of(self.readers[reader]())
            finally:
                changed = [other for other in self.restore() if other != name]
            whole = self.results[reader]
            if result != whole and not named(path, result, whole, sys.stderr.getvalue()):
                raise Silent('another result')
            if changed and reader not in WRITERS:
                raise Silent(f'reading it changes {changed[0]}')
        return words, run


@contextlib.contextmanager
def opening():
    """Yields a set that the paths of all files are added to that Python opens meanwhile."""
    paths, whole = set(), io.open

    def noting(file, *args, **named):
        paths.add(str(file))
        return whole(file, *args, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, 'open', noting)
        patch.setattr(builtins, 'open', noting)
        yield paths


def stamp(path):
    """Returns what changes with the content of a file; None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_mode, 0 if path.is_dir() else (status.st_size, status.st_mtime_ns)


def named(path, result, whole, warned):
    """Returns whether a warning or a result has the name of a file, or what a reader left out that of its directory."""
    if path.name in warned or result.count(path.name) > whole.count(path.name):
        return True
    left, before = (value.get('left', value.get('refused', [])) if isinstance(value, dict) else []
                    for value in map(json.loads, (result, whole)))
    return any(path.parent.name in row or 'row ' in row for row in left if row not in before)


def kinds(folder, patch):
    """Returns the [Kind] of files that lm wrote."""
    patch.setattr(points, '_check_enough', lambda *_: None)
    patch.setattr(checkpoint, 'SETTLE', 0)
    root = trained(folder)
    patch.setattr(compiler, 'cache_directory', lambda: root / 'plan')
    settings = runs.read(root / 'run')
    readers = {'run': run_readers(root / 'run', root), 'sweep': sweep_readers(root / 'sweep'),
               'cache': cache_readers(root / 'cache', settings), 'plan': plan_readers(root / 'plan'),
               'table': {'against': lambda: published.compare(root / 'table' / 'table.json')}}
    written = {name: Written(root / name, known) for name, known in readers.items()}
    places = [f'{name} {pair}' for name, part in written.items() for pair in part.pairs]
    store = Written(root / 'store', {'restore': lambda: stored(root / 'store')})

    def draw(place, rng):
        name, _, rest = place.partition(' ')
        return written[name].draw(rest, rng)
    return [Kind('written files', 22, places, draw),
            Kind('checkpoint files', 1, [f'{file} by restore' for file in store.files()], store.draw)]


def stored(directory):
    """Returns what a store restores."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), ARRAYS)
    state, meta = checkpoint.restore(directory, abstract)
    return jax.tree.map(lambda x: x.tolist(), state), meta
