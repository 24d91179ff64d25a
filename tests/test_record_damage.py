"""Readers of runs and sweeps over damaged files: no exception but config.Error, nothing waited for, nothing in silence.

A reduced number of cases; LM_NIGHTLY=1 takes all of them.
"""
import functools
import itertools
import json
import os
import random
import shutil

import damage
import pytest
import sweeps
from simulated import report

from lm import config, records
from lm.debug import sides
from lm.report import study
from lm.scaling import points
from lm.sweep import claims, search, trials, view
from lm.train import spikes

EVERY = 1 if os.environ.get('LM_NIGHTLY') else 24  # one case of so many is tried
SPIKE = {'step': 2, 'loss': 3.0, 'median': 2.5, 'deviation': None, 'grad_norm': 1.0, 'batch': 1,
         'passages': [{'row': 0}],
         'layers': [{'name': 'a', 'layer': None, 'gradient': 1.0, 'weight': 1.0, 'update': 1.0, 'bits': [1, 2, 3]}]}


def test_damage_is_the_same_for_one_seed_and_of_every_kind():
    content, value = b'{"step": 1}\n' * 30, {'a': [1, {'b': 'c'}]}
    first, again = (list(damage.damaged(content, random.Random(7))) for _ in range(2))
    assert first == again and list(damage.damaged(content, random.Random(8))) != first
    assert sum(name.startswith('cut to') for name, _ in first) in range(15, damage.CUTS + 1)
    assert sum(name.startswith('bit ') for name, _ in first) == damage.FLIPS
    assert all(other != content for name, other in first if name.startswith(('cut', 'bit')))
    assert dict(damage.damaged(b'', random.Random(0)))
    places = damage.places(value)
    assert places == [(), ('a',), ('a', 0), ('a', 1), ('a', 1, 'b')]
    whole = list(damage.garbled(value, random.Random(0)))
    assert len(whole) == len(places) * len(damage.VALUES) + 2 * 2 and value == {'a': [1, {'b': 'c'}]}
    assert ('a.1.b: remove', {'a': [1, {}]}) in whole and ('a.1.b: rename', {'a': [1, {'b_': 'c'}]}) in whole
    assert ("a.0: str ''", {'a': ['', {'b': 'c'}]}) in whole
    assert len(list(damage.garbled(value, random.Random(0), 9))) == 9


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    """A sweep that lists 4 trials, with the runs of 3 as `lm train` leaves them and all files that readers read."""
    root = tmp_path_factory.mktemp('damage') / 'sweep'
    sweep = sweeps.begin(root, [{'optimizer.peak': peak, 'seed': seed} for peak in (0.01, 0.02) for seed in (0, 1)])
    search.begin(sweep, 'Random(trials=3)', ('optimizer.peak=1e-3..1e-1',), 0)
    about = search.read(root)
    about['asked'] = [{'point': {'optimizer.peak': 0.02}, 'trials': [sweep.trials[2].id]}]
    (root / search.RECORD).write_text(json.dumps(about))
    for number, trial in enumerate(sweep.trials[:3]):
        trial.directory.mkdir()
        (trial.directory / 'config.json').write_text(json.dumps({
            'config': config.dump(trial.settings), 'command': ['lm', 'train', 'a.py'], 'commit': 'abc', 'device': 'cpu',
            'devices': 1, 'versions': {'jax': '0.10'}}))
        rows = [{'step': step, 'bad': 0, 'loss': 3 - 0.1 * step - 0.01 * number, 'weight': 9.0, 'grad_norm': 1.0,
                 'tokens_per_second': 100.0} for step in range(1, 9)]
        (trial.directory / records.RECORD).write_text(''.join(json.dumps(row) + '\n' for row in [
            *rows, {'step': 8, 'valid/loss': 2.2 - 0.01 * number, 'valid/bits_per_byte': 3.1}]))
        (trial.directory / 'checkpoints' / '8').mkdir(parents=True)
        (trial.directory / 'sample.txt').write_text('Lorem')
        (trial.directory / 'experiment.py').write_text('"""Does it help?"""\n')
        spikes.write(trial.directory, SPIKE)
    (root / sweep.trials[2].id / records.FAILED).write_text('{"error": "boom"}\n')
    return root


def readers(root):
    """Returns {name: function} of all that reads a sweep's directory."""
    one, two, three, _ = (root / name for name in json.loads((root / records.SWEEP).read_text())['trials'])

    def compare():
        pair = [sides.Side('A', one), sides.Side('B', two)]
        agreed = sides.divergence(*(side.records for side in pair))
        return sides.provenance(*pair) + sides.compare_records(pair, *agreed)

    def search_on():
        sweep, about = sweeps.reopened(root), search.read(root)
        return search.ended(sweep) or (search._observations(sweep, about), search._sampler(sweep, about))
    return {
        'report': lambda: report(root, '--json', '--html', root / 'page.html'),
        'report run': lambda: report(one, '--json'), 'scaling': lambda: points.read([root]),
        'view': lambda: view.watch(root), 'compare': compare, 'states': lambda: trials.states(sweeps.reopened(root)),
        'search': search_on,
        'spikes': lambda: [spikes.read(one, step) for step in spikes.steps(one)],
        'reason': lambda: records.failure(three), 'claims': lambda: claims.Claims(root).newest()}


READ_BY = {'sweep.json': ('report', 'scaling', 'view', 'states'), 'search.json': ('search', 'view'),
           'config.json': ('report', 'report run', 'scaling', 'compare'), 'failed.json': ('report', 'view', 'reason'),
           'metrics.jsonl': ('report', 'report run', 'scaling', 'view', 'states', 'compare'), '2.json': ('spikes',),
           'experiment.py': ('report',), 'sample.txt': ('report',)}


def changes_of(name, path):
    """Yields (name of the damage, function that does it) for a file."""
    rng = random.Random(name)
    content = path.read_bytes()
    cases = [*damage.damaged(content, rng)]
    if path.suffix == '.json':
        cases += [(damage_name, json.dumps(value).encode()) for damage_name, value in
                  damage.garbled(json.loads(content), rng, 400)]
    if path.suffix == '.jsonl':
        *lines, last = content.splitlines()
        cases += [(damage_name, b'\n'.join([*lines, json.dumps(value).encode(), b'']))
                  for damage_name, value in damage.garbled(json.loads(last), rng)]
    rng.shuffle(cases)
    for damage_name, damaged in itertools.islice(cases, 0, None, EVERY):
        yield damage_name, functools.partial(path.write_bytes, damaged)
    for obstacle in damage.OBSTACLES:
        yield obstacle.__name__, functools.partial(obstacle, path)


@pytest.mark.parametrize('name', READ_BY)
def test_a_damaged_file_is_refused_or_named_by_all_that_read_it(swept, tmp_path, capsys, monkeypatch, name):
    # A law needs more sizes than this sweep has; what stands before that is the reading.
    monkeypatch.setattr(points, '_check_enough', lambda *_: None)
    root = shutil.copytree(swept, tmp_path / 'sweep')
    known = readers(root)
    path = min(root.rglob(name))
    if name not in (records.SWEEP, search.RECORD, records.FAILED):
        path = next((root / sweeps.reopened(root).trials[0].id).rglob(name))
    content, tried = path.read_bytes(), 0
    for damage_name, do in changes_of(name, path):
        do()
        for reader in READ_BY[name]:
            tried += 1
            try:
                known[reader]()
            except config.Error as error:
                assert '\n' not in str(error) and len(str(error)) < 2000
            except Exception as fault:
                raise AssertionError(f'{reader} of {name}, {damage_name}') from fault
        damage.absent(path)
        path.write_bytes(content)
    assert tried >= 8 and all(line.startswith('lm: ') for line in capsys.readouterr().err.splitlines())


def test_a_record_cut_anywhere_is_never_another_result(swept, tmp_path, capsys):
    root = shutil.copytree(swept, tmp_path / 'sweep')
    path = root / sweeps.reopened(root).trials[0].id / records.RECORD
    content = path.read_bytes()
    whole, step = study.read([root]), 1 if EVERY == 1 else 37
    for size in range(0, len(content) - 2, step):
        path.write_bytes(content[:size])
        left_out = dict(study.read([root]).left_out)
        assert left_out.keys() - dict(whole.left_out).keys() == {path.parent.name}
        assert left_out[path.parent.name].startswith('unfinished: ')
        assert trials.states(sweeps.reopened(root))[0][path.parent.name] in ('new', 'begun')
    assert not capsys.readouterr().err
    path.write_bytes(content[:-1])
    assert study.read([root]).left_out == whole.left_out


@pytest.mark.parametrize('name', ['a[x]b', 'a*b?', 'a\nb', b'a\xffb'.decode(errors='surrogateescape'), "a'b\"c", ' a '])
def test_any_name_of_a_directory_is_read(swept, tmp_path, name):
    try:
        root = shutil.copytree(swept, tmp_path / name)
    except OSError:
        pytest.skip('the file system does not take the name')
    decoys = [tmp_path / 'axb', tmp_path / 'ab']
    for decoy in decoys:
        shutil.copytree(swept, decoy)
        shutil.rmtree(decoy / sweeps.reopened(decoy).trials[0].id)
    known = readers(root)
    for reader in known.values():
        try:
            reader()
        except config.Error as error:
            assert 'too few N' in str(error)
    assert report(root, '--json') == 0
    shown = study.read([root])
    assert {trial.directory.parent for variant in shown.variants for trial in variant.finished} == {root}
    assert sum(len(variant.finished) for variant in shown.variants) == 2
    assert (root / 'page.html').stat().st_size > 10_000
