"""Starts: what another run learned is taken by name, read at step 0 alone; and what older versions recorded is read."""
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lm import config, data, optim, records, train, trees
from lm.config.overrides import with_traced_fields
from lm.models import Decoder, Head, Layer
from lm.nn import Attention
from lm.parallel import sharding
from lm.train import loop, runs
from lm.train.monitor import Monitor

FILE = pathlib.Path(__file__)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(heads=2))),
    data=data.Corpus(train=data.Synthetic(count=20, length=400), valid=None, tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Constant(), ema=0.9), steps=4, mesh={'data': 1},
    cadence=train.Cadence(log=1, save=2))


def mesh():
    return sharding.make_mesh({'data': 1}, jax.devices()[:1])


def go(directory, settings, cache, stop_after=None):
    """Trains in a directory, asked to stop after some step, and returns {step: loss}."""
    run = runs.Run(directory, config.Experiment(settings, {}, FILE))
    reached = run.stop.reached
    run.stop.reached = lambda step: reached(step) or step == stop_after
    try:
        loop.fit(train.program(settings, mesh()), [Monitor(settings, run, settings.data.open(cache, 'train'))])
    except loop.Preempted:
        assert stop_after
    finally:
        run.close()
    return {record['step']: record['loss'] for record in records.read(directory) if 'loss' in record}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def source(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp('source') / 'run'
    go(directory, SETTINGS, cache)
    return directory


def begun(start, **model):
    """Returns {name: array} of the first parameters of a run that begins there."""
    settings = dataclasses.replace(SETTINGS, start=start, seed=1, model=dataclasses.replace(SETTINGS.model, **model))
    return trees.flatten(train.program(settings, mesh()).init().params)


def averaged(directory, step):
    return trees.flatten(runs.saved(SETTINGS, directory, step, mesh())[0])


def test_a_start_takes_the_averaged_parameters_of_the_last_step(source):
    taken = begun(train.From(str(source)))
    jax.tree.map(np.testing.assert_array_equal, taken, averaged(source, 4))
    assert not np.array_equal(taken['tokens'], averaged(source, 2)['tokens'])
    np.testing.assert_array_equal(begun(train.From(str(source), step=2))['tokens'], averaged(source, 2)['tokens'])


def test_a_regex_chooses_what_is_taken_and_the_rest_is_fresh(source):
    taken, fresh = begun(train.From(str(source), '^blocks/attention/')), begun(train.Fresh())
    known = averaged(source, 4)
    for name, value in taken.items():
        np.testing.assert_array_equal(value, (known if name.startswith('blocks/attention/') else fresh)[name])


def test_what_does_not_fit_is_refused_by_name(source):
    with pytest.raises(config.Error, match=r"tokens is \[384, 16\] in .* and \[512, 16\] here; set the sizes of .*, or "
                                           r"try start.where='\^\(\?!tokens\$\)'"):
        begun(train.From(str(source)), vocab=400)
    assert begun(train.From(str(source), '^(?!tokens$)'), vocab=400)['tokens'].shape == (512, 16)
    with pytest.raises(config.Error, match='has no parameter output; try start.where='):
        begun(train.From(str(source)), head=Head(tied=False))
    with pytest.raises(config.Error, match='checkpoint 3 in .* cannot be read'):
        begun(train.From(str(source), step=3))
    with pytest.raises(config.Error, match="regex 'nothing' matches none"):
        begun(train.From(str(source), 'nothing'))
    with pytest.raises(config.Error, match=f'holds no run of its own; give one of .*{source}'):
        begun(train.From(str(source.parent)))


def test_a_resumed_run_asks_its_start_no_more(source, tmp_path, cache):
    other = shutil.copytree(source, tmp_path / 'other')
    settings = dataclasses.replace(SETTINGS, start=train.From(str(other)))
    straight = go(tmp_path / 'straight', settings, cache)
    go(tmp_path / 'stopped', settings, cache, stop_after=2)
    shutil.rmtree(other)
    assert go(tmp_path / 'stopped', settings, cache) == straight
    assert abs(straight[1] - records.read(source)[-1]['loss']) < 0.3 * records.read(source)[0]['loss']


def test_trials_in_one_program_begin_there_too(source):
    settings = dataclasses.replace(SETTINGS, start=train.From(str(source)))
    state = jax.jit(lambda seed: train.parts(with_traced_fields(settings, {'seed': seed})).init())(3)
    jax.tree.map(np.testing.assert_array_equal, trees.flatten(state.params), averaged(source, 4))


@dataclasses.dataclass(frozen=True)
class Probe(train.Start):
    """Fresh values, of which the last norm alone learns."""

    frozen = '^(?!final_norm)'


def test_what_a_start_freezes_does_not_learn_and_has_no_state():
    settings = dataclasses.replace(SETTINGS, start=Probe())
    parts = train.parts(settings)
    state = parts.init()
    assert trees.flatten(state.optimizer.average.params).keys() == {'final_norm_scale'}
    new, _ = jax.jit(parts.step)(state, {name: value + 7 for name, value in settings.data.example().items()})
    changed = {name for name, value in trees.flatten(new.params).items()
               if not np.array_equal(value, trees.flatten(state.params)[name])}
    assert changed == {'final_norm_scale'}


def test_a_run_of_an_older_version_is_read_and_differs_in_nothing(tmp_path):
    old = config.dump(SETTINGS)
    cadence, diagnosis, objective = (old.pop(name) for name in ('cadence', 'diagnosis', 'objective'))
    old |= {'log_every': 7, 'eval_every': 1, 'eval_batches': 2, 'save_every': cadence['save'], 'keep': cadence['keep'],
            'spike': 5.0, 'noise_scale': diagnosis['noise_scale'], 'sample': 'B', 'baselines': True}
    old['model'] = {'type': 'lm.models.decoder:Decoder', 'vocab': 258, 'depth': 1, 'width': 16, 'heads': 2,
                    'z_loss': 1e-4, 'smoothing': objective['smoothing']}
    del old['start']
    (tmp_path / 'config.json').write_text(json.dumps({'config': old}))
    read = runs.read(tmp_path)
    assert read == dataclasses.replace(
        SETTINGS, cadence=train.Cadence(7, 1, 2, 2, 2), diagnosis=train.Diagnosis(5.0),
        objective=train.NextToken(z_loss=1e-4, sample='B', baselines=True))
    assert runs.differences(read, SETTINGS) == 'objective.z_loss (0.0001 there, 0.0 here)'
    with pytest.raises(config.Error, match="^no field 'log_every'; it is cadence.log now.$"):
        config.override(SETTINGS, {'log_every': 1})
    with pytest.raises(config.Error, match="^no field 'model.z_loss'; it is objective.z_loss now.$"):
        config.override(SETTINGS, {'model.z_loss': 1e-4})
