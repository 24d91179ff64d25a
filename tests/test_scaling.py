"""The law of a sweep of sizes: found again from points drawn out of it, and honest about what it cannot know."""
import json

import numpy as np
import pytest
import simulated
from browsers import opened
from scipy import optimize, special

from lm import cli, config
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import Attention, Learned, NoPE
from lm.scaling import laws, points

HOFFMANN = laws.Law(1.69, 406.4, 0.34, 410.7, 0.28)
BESIROGLU = laws.Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(4e7, 1.6e10, 5), np.geomspace(1e9, 4e11, 5)))
TEXT = {'data.train': {'type': 'lm.data.sources:Synthetic', 'count': 300, 'length': 100}, 'data.valid': None}
SMALL = laws.Law(1.2, 40.0, 0.35, 300.0, 0.4)


@pytest.mark.parametrize('law', [HOFFMANN, BESIROGLU])
def test_published_coefficients_are_found_again(law):
    found = laws.fit(N, D, law.loss(N, D), resamples=20)
    np.testing.assert_allclose(found.law, law, rtol=1e-6)
    assert found.noise < 1e-9


def test_the_least_loss_is_what_scipy_finds():
    noise = 0.003 * np.random.default_rng(3).normal(size=len(N))
    target, sizes = np.log(HOFFMANN.loss(N, D)) + noise, (np.log(N / 8e8), np.log(D / 2e10))

    def cost(theta):
        e, a, b, alpha, beta = theta
        off = special.logsumexp([np.full(len(N), e), a - alpha * sizes[0], b - beta * sizes[1]], 0) - target
        return special.huber(laws.DELTA, off).sum() / laws.DELTA ** 2
    ours, least = laws._descend(laws._starts(target), sizes, np.tile(target, (192, 1)), laws.DELTA)
    theirs = optimize.minimize(cost, ours[np.argmax(least)] + 0.02, method='Nelder-Mead',
                               options={'maxiter': 4000, 'maxfev': 4000, 'xatol': 1e-9, 'fatol': 1e-9})
    assert theirs.fun == pytest.approx(least.min(), rel=1e-5)
    assert np.median(least) == pytest.approx(least.min(), rel=1e-4)


def test_an_outlier_hardly_moves_the_law():
    loss = BESIROGLU.loss(N, D) * np.exp(0.002 * np.random.default_rng(0).normal(size=len(N)))
    loss[7] *= 1.3
    found = laws.fit(N, D, loss, resamples=20)
    assert found.law.loss(1e11, 2e12) == pytest.approx(BESIROGLU.loss(1e11, 2e12), rel=0.01)


def test_the_best_of_a_budget_is_the_least_on_a_grid():
    n, d = BESIROGLU.optimum(1e21)
    assert n * d * laws.FLOPS == pytest.approx(1e21)
    sizes = np.geomspace(n / 10, n * 10, 4001)
    losses = BESIROGLU.loss(sizes, 1e21 / laws.FLOPS / sizes)
    assert sizes[np.argmin(losses)] == pytest.approx(n, rel=2e-3)


def test_parameters_are_counted_without_padding():
    model = Decoder(vocab=65, depth=2, width=32, layer=Layer(Attention(heads=2, position=NoPE())),
                    embedding=Embedding(Learned(64)), head=Head(tied=False))
    blocks = 2 * (4 * 32 * 32 + 2 * 4 * 32 * 32 + 2 * 32) + 32
    assert points.count(model, non_embedding=True) == blocks
    assert points.count(model) == blocks + 2 * 65 * 32 + 64 * 32


def decoder(width):
    return Decoder(vocab=258, depth=2, width=width, layer=Layer(Attention(heads=2)))


def sizes(directory, widths=(32, 64, 128, 256), lengths=(200, 400, 800, 1600), noise=0.003, law=SMALL, name='', seed=0,
          **how):
    """Writes runs of a law, one for each width and length."""
    draw = np.random.default_rng(seed)
    for width in widths:
        n = points.count(decoder(width))
        for steps in lengths:
            loss = law.loss(n, steps * 1024) * np.exp(noise * draw.normal())
            changes = {'model.width': width, 'steps': steps, **TEXT}
            simulated.write(directory / f'{width}-{steps}{name}', changes, loss, seed, **how)
    return directory


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    folder = sizes(tmp_path_factory.mktemp('sizes'))
    simulated.write(folder / 'worse', {'model.width': 64, 'steps': 400, 'optimizer.peak': 1.0, **TEXT}, 9.0)
    simulated.write(folder / 'broken', {'model.width': 64, 'steps': 3200, **TEXT}, 3.0, bad=True)
    return folder


def test_the_shell_says_the_law_and_what_follows_from_it(swept, capsys):
    assert cli.main(['scaling', str(swept), '--at=N=1e8,D=1e9', '--budget=1e17', '--json',
                     '--predict=model.width=512 steps=3200']) == 0
    about = json.loads(capsys.readouterr().out)
    for name, true in zip(laws.Law._fields, SMALL, strict=True):
        low, high = about['coefficients'][name]['interval']
        assert low - (high - low) < true < high + (high - low)
    assert dict(about['left']).keys() == {'worse', 'broken'} and len(about['runs']) == 16
    at, described = about['predicted']
    assert at['interval'][0] < SMALL.loss(1e8, 1e9) < at['interval'][1]
    assert described['d'] == 3200 * 1024 and described['n'] == points.count(decoder(512))
    (advice,) = about['budgets']
    assert advice['n_interval'][0] < SMALL.optimum(1e17)[0] < advice['n_interval'][1]
    assert [test['fitted'] for test in about['backtests']] == [10, 14, 15]
    assert all(abs(error) < 0.02 for test in about['backtests'] for error in test['errors'])
    assert at['times'] == pytest.approx(1e17 / (points.count(decoder(256)) * 1600 * 1024))
    assert not any(run['outlier'] for run in about['runs']) and about['drift'] == laws.DRIFT
    (note,) = (note for note in about['notes'] if 'itself errs' in note)
    assert 'backtested up to 7.12 times' in note
    assert 5.5 < about['flops_per_parameter_and_token'][0] < 8


def test_the_text_has_all_of_it_too(swept, capsys):
    assert cli.main(['scaling', str(swept), '--at=N=1e8,D=1e9', '--budget=1e17', '--non-embedding']) == 0
    text = capsys.readouterr().out
    for said in ('over 16 finished runs', 'between embedding and output', 'alpha', 'fitted up to FLOPs', '100M',
                 '1e+17', 'left out', 'other settings of the same N and D', 'largest run: there the law itself errs'):
        assert said in text


def test_outliers_and_what_they_change_are_named(tmp_path, capsys):
    folder = sizes(tmp_path / 'sizes')
    simulated.write(folder / 'far', {'model.width': 96, 'steps': 200, **TEXT}, 9.0)
    assert cli.main(['scaling', str(folder)]) == 0
    text = capsys.readouterr().out
    assert 'Outliers, too far from the law to be of it: far (+' in text
    without = laws.fit(*points.read([sizes(tmp_path / 'clean')])[1:4], resamples=1).law
    assert f'Without them E is {without.E:.3g}' in text
    assert 'runs deviate 0.1' in text
    assert 'itself errs' not in text


def test_a_lucky_seed_does_not_beat_more_seeds(tmp_path, capsys):
    for seed in range(3):
        sizes(tmp_path / 'sweep', seed=seed, name=f'-{seed}')
    for steps in (200, 400):
        lucky = {'model.width': 32, 'steps': steps, 'optimizer.peak': 0.03, **TEXT}
        simulated.write(tmp_path / 'sweep' / f'lucky-{steps}', lucky, 1.5, seed=7)
    runs = points.read([tmp_path / 'sweep'])
    assert len(runs.n) == 48 and dict(runs.left_out) == {f'lucky-{steps}': points.BETTER for steps in (200, 400)}
    assert cli.main(['scaling', str(tmp_path / 'sweep')]) == 0
    assert '2 runs left out are of lower loss than the settings taken' in capsys.readouterr().out


def test_one_directory_under_two_names_counts_once(swept):
    runs = points.read([swept, f'{swept}/../{swept.name}', swept / '256-1600'])
    assert len(runs.n) == 16 and [name for name, _ in runs.left_out] == ['broken', 'worse']


@pytest.mark.parametrize('value, why', [
    *((value, 'failed: loss not finite at step 400') for value in ('NaN', 'Infinity', 'null', '"x"')),
    ('-1.5', 'valid/loss is -1.5 at its end; the law is of the log'),
    ('0.0', 'valid/loss is 0 at its end; the law is of the log'),
])
def test_odd_losses_are_left_out_by_name(tmp_path, capsys, value, why):
    metrics = sizes(tmp_path / 'sweep') / '128-400' / 'metrics.jsonl'
    *rows, last = metrics.read_text().splitlines()
    last = json.dumps(json.loads(last) | {'valid/loss': '@'}).replace('"@"', value)
    metrics.write_text('\n'.join([*rows, last, '']))
    assert cli.main(['scaling', str(tmp_path / 'sweep'), '--json']) == 0
    ((name, reason),) = json.loads(capsys.readouterr().out)['left']
    assert name == '128-400' and reason.startswith(why)


def test_losses_that_rise_with_size_have_no_best(tmp_path, capsys):
    folder, rising = tmp_path / 'sweep', laws.Law(6, -40, 0.35, -300, 0.4)
    assert cli.main(['scaling', str(sizes(folder, law=rising)), '--budget=1e16', f'--html={tmp_path}/x.html']) == 0
    text = capsys.readouterr().out
    assert text.count('1e+16 FLOPs have no compute-optimal N and D by this law') == 1


@pytest.mark.parametrize('asked, noted', [
    ('N=100,D=100', ['The smallest N of the runs is 330 times', 'The smallest D of the runs is 2.05e+03 times']),
    ('N=1e9,D=1e3', ['610 times the largest N of the runs', 'The smallest D of the runs is 205 times']),
    ('N=2e5,D=1e6', []),
])
def test_what_no_run_is_near_is_noted(swept, capsys, asked, noted):
    assert cli.main(['scaling', str(swept), f'--at={asked}', '--json']) == 0
    notes = [note for note in json.loads(capsys.readouterr().out)['notes'] if 'no run tells of the law there' in note]
    assert len(notes) == len(noted) and all(map(str.startswith, notes, noted))


def test_seeds_do_not_make_up_for_sizes(tmp_path):
    for width, steps in ((32, 200), (32, 400), (32, 800), (64, 200), (64, 400), (64, 800), (128, 200)):
        for seed in range(3):
            changes = {'model.width': width, 'steps': steps, **TEXT}
            simulated.write(tmp_path / f'{width}-{steps}-{seed}', changes, 3.0, seed)
    with pytest.raises(config.Error, match='runs of 7 different N and D do not determine 5 coefficients; add 1'):
        points.read([tmp_path])


@pytest.mark.parametrize('made, message', [
    ({'widths': (64,)}, 'the 4 usable runs are of too few N, parameters: .*; a law needs 3 different or more: add 2'),
    ({'lengths': (400,)}, 'too few D, tokens: 409,600; .*--over steps'),
    ({'widths': (32, 64, 128), 'lengths': (200, 400)}, 'the 6 .* of too few D, tokens: 204,800 and 409,600'),
    ({'bad': True}, 'no run is finished'),
])
def test_what_is_missing_is_one_line(tmp_path, made, message):
    with pytest.raises(config.Error, match=message):
        points.read([sizes(tmp_path, **made)])


def test_runs_that_do_not_compare_are_refused(swept, tmp_path):
    for name, width in (('a', 32), ('b', 64), ('c', 128)):
        for i in range(3):
            changes = {'model.width': width, 'steps': (width // 32) ** 2 * 100}
            simulated.write(tmp_path / 'ray' / f'{name}{i}', changes, 3.0, seed=i)
    with pytest.raises(config.Error, match='grow together'):
        points.read([tmp_path / 'ray'])
    simulated.write(tmp_path / 'other' / 'x', {'data.tokenizer': {'type': 'lm.data.tokenizers:Chars'}, **TEXT}, 3.0)
    with pytest.raises(config.Error, match='different data.tokenizer.*give --metric=valid/bits_per_byte'):
        points.read([swept, tmp_path / 'other'])
    with pytest.raises(config.Error, match='has recorded .valid/los. at its end; there are valid/bits_per_byte'):
        points.read([swept], 'valid/los')


@pytest.mark.parametrize('word, message', [
    ('--at=N=1e9', 'is no size and length; write it as N=1e9,D=2e10'),
    ('--at=N=1e9,D=-1', 'is no size and length'),
    ('--predict=model.width', 'is no list of overrides'),
    ("--predict=model.width='512", 'is no list of overrides'),
    ('--at=N=1e200,D=1e200', 'is no size and length'),
    ('--at=N=1e-300,D=1e9', 'is no size and length'),
    ('--at=N=1e9,N=1e8,D=1e9', 'is no size and length'),
    ('--budget=1', 'is no number of FLOPs'),
    ('--predict=model.widht=3', "did you mean 'model.width'"),
    ('--budget=-1', 'is no number of FLOPs'),
    ('--html=/nowhere/x.html', 'cannot write /nowhere/x.html: No such file or directory; give another --html'),
])
def test_mistakes_in_what_is_asked_are_one_line(swept, capsys, word, message):
    assert cli.main(['scaling', str(swept), word]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1


def test_a_browser_draws_the_page(swept, browser, tmp_path):
    out = tmp_path / 'scaling.html'
    assert cli.main(['scaling', str(swept), '--budget=1e15', '--at=N=1e7,D=1e8', f'--html={out}']) == 0
    document, console = opened(browser, out, tmp_path / 'profile')
    assert console == [] and 'data-drawn="2"' in document and len(out.read_text()) < 1e6
    for said in ('Compute-optimal budgets', 'Predictions', 'Backtests', 'other settings of the same'):
        assert said in document
