"""What a finished trial has lost: named by the report and the view, and made again by the command of its sweep."""
import json
import shutil

import pytest
from sweeps import FILE, TEXT

from lm import cli, config, records
from lm.config import files
from lm.report import show, study, trials
from lm.train import runs

WORDS = 2 + len({word for number, doc in enumerate(TEXT.documents()) for word in doc.text.replace('\n', ' ').split()
                 if config.hashing.fraction(number) < 0.8})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished sweep of two trials, of a tokenizer that is learned, and the words of its command."""
    root = tmp_path_factory.mktemp('repairs')
    (root / 'pairs.py').write_text(FILE)
    words = ['sweep', str(root / 'pairs.py'), '--over=optimizer.peak=1e-3,3e-3', 'data.tokenizer=Words()',
             f'model.vocab={WORDS}', f'--cache={root / "cache"}', 'steps=4']
    assert cli.main([*words, f'--workdir={root / "sweep"}']) == 0
    return root / 'sweep', words


@pytest.fixture
def swept(trained, tmp_path):
    sweep, words = trained
    copy = shutil.copytree(sweep, tmp_path / 'sweep')
    files.warn.cache_clear()
    return copy, min(json.loads((copy / 'sweep.json').read_text())['trials']), [*words, f'--workdir={copy}']


DAMAGES = {'is damaged (no JSON at line ': lambda path: path.write_bytes(path.read_bytes()[:300]),
           'is missing': lambda path: path.unlink()}


@pytest.mark.parametrize('fault', DAMAGES)
def test_damaged_settings_are_named_and_written_again_from_the_sweep(swept, capsys, fault):
    sweep, trial, command = swept
    path = sweep / trial / 'config.json'
    known = runs.read(path.parent, sweep / 'experiment.py')
    DAMAGES[fault](path)
    capsys.readouterr()
    left_out = dict(study.read([sweep], study.Options(trust=True)).left_out)
    assert list(left_out) == [trial] and fault in left_out[trial] and left_out[trial].endswith(trials.MEND)
    assert cli.main(['sweep', str(sweep), '--watch', '--trust']) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'lm: {path} {fault}') and line.endswith('again, which writes its settings again.')
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith(f'lm: {path} {fault}') and '; its settings are written again from sweep.json' in line
    assert '2 finished' in out and 'step' not in out
    assert not config.diff(runs.read(path.parent, sweep / 'experiment.py'), known)
    assert study.read([sweep], study.Options(trust=True)).left_out == []
    assert path.with_name('config.json.damaged').exists() == (fault != 'is missing')


def test_a_trial_whose_settings_are_damaged_counts_as_damaged_in_a_verdict(swept):
    sweep, trial, _ = swept
    other = max(json.loads((sweep / 'sweep.json').read_text())['trials'])
    about = json.loads((sweep / 'sweep.json').read_text())
    del about['crc32']
    about['trials'] = {trial: {'seed': 1}, other: {'seed': 0}}
    (sweep / 'sweep.json').write_text(json.dumps(about))
    (sweep / trial / 'config.json').write_text('{')
    family = study.read([sweep], study.Options(trust=True)).families['tokens']
    [note] = [note for note in show.notes(family) if 'no verdict' in note]
    assert f'no verdict: {trial} (damaged: {sweep}/{trial}/config.json is damaged (no JSON at line 1' in note
    assert note.endswith(f'{trials.MEND}) is missing; mend it')


def test_a_tokenizer_of_a_finished_trial_is_made_again(swept, capsys):
    sweep, trial, command = swept
    words = (sweep / trial / 'tokenizer' / 'words.json').read_text()
    shutil.rmtree(sweep / trial / 'tokenizer')
    capsys.readouterr()
    assert cli.main(command) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line == f'lm: {sweep}/{trial}/tokenizer/words.json is missing; it is made again.'
    assert (sweep / trial / 'tokenizer' / 'words.json').read_text() == words


def test_a_damaged_trial_that_is_not_finished_trains_on(swept, capsys):
    sweep, trial, command = swept
    (sweep / trial / 'config.json').write_text('{')
    shutil.rmtree(sweep / trial / 'checkpoints' / '4')
    assert cli.main(command) == 0
    assert not (sweep / trial / records.FAILED).exists() and (sweep / trial / 'checkpoints' / '4').is_dir()
    assert 'its settings are written again' in capsys.readouterr().err


EXITS = ('''
class Exits(train.NextToken):
    def loss(self, *args):
        raise SystemExit(0)
''', '''
class Exits(train.NextToken):
    def show(self, *args):
        raise SystemExit(3)
''')


@pytest.mark.parametrize('code', EXITS)
def test_an_exit_in_the_code_of_a_trial_fails_that_trial_alone(code, tmp_path, capsys):
    (tmp_path / 'pairs.py').write_text(FILE + code)
    words = ['sweep', str(tmp_path / 'pairs.py'), '--over=objective=Exits,NextToken', 'steps=2',
             f'--workdir={tmp_path / "sweep"}', f'--cache={tmp_path / "cache"}']
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    told = f'the code of the experiment called sys.exit({code[-3]}); remove that.'
    assert f' failed: {told}\n' in out and '1 finished, 1 failed' in out and 'Traceback' not in err
    [note] = (tmp_path / 'sweep').glob('*/failed.json')
    assert records.failure(note.parent) == told
