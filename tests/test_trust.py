"""What a run's directory may make this process execute: nothing, unless it is trusted."""
import json
import sys

import pytest

from lm import config, data, train
from lm.config import files
from lm.train import runs

MODELS = '''
import dataclasses
from lm.models import Decoder
from sizes import DEPTH

@dataclasses.dataclass(frozen=True)
class Mine(Decoder):
    """A model of one experiment."""
    depth: int = DEPTH
'''
TINY = '''
from lm import data, optim, train
{imports}

def config():
    text = data.Synthetic(count=20, length=400)
    return train.Config(model={model}(vocab=258, width=24), optimizer=optim.AdamW(peak=1e-3), steps=2,
                        data=data.Corpus(train=text, valid=None, tokenizer=data.Bytes(), context=16, batch=8))
'''


def begin(folder, directory, **parts):
    """Returns the settings of a run begun by an experiment in a folder, in a directory."""
    folder.mkdir(exist_ok=True)
    (folder / 'tiny.py').write_text(TINY.format(**parts))
    loaded = config.load(folder / 'tiny.py')
    runs.Run(directory, loaded).close()
    return loaded.config


def test_a_class_beside_the_experiment_is_kept_with_the_run(tmp_path):
    for depth in (1, 2):
        folder, directory = tmp_path / f'lab{depth}', tmp_path / f'run{depth}'
        folder.mkdir()
        (folder / 'mymodels.py').write_text(MODELS)
        (folder / 'sizes.py').write_text(f'DEPTH = {depth}')
        begin(folder, directory, imports='from mymodels import Mine', model='Mine')
        for name in ('mymodels', 'sizes'):
            del sys.modules[name]
        with pytest.raises(config.Error, match='mymodels:Mine is code beside lm, .* add --trust where you trust'):
            runs.read(directory)
        for file in folder.glob('*.py'):
            file.unlink()
    assert [runs.read(tmp_path / f'run{depth}', runs.trusted(tmp_path / f'run{depth}', True)).model.depth
            for depth in (1, 2)] == [1, 2]
    assert 'mymodels' not in sys.modules


def test_a_class_from_elsewhere_is_refused_at_the_start(tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'faraway.py').write_text(MODELS.replace('from sizes import DEPTH', 'DEPTH = 3'))
    path = f'import sys\nsys.path.append({str(elsewhere)!r})\n'
    with pytest.raises(config.Error, match='model is a Mine of .*faraway.py, which would not be kept with the run; '
                                           'put that file beside tiny.py, install it, or set PYTHONPATH'):
        begin(tmp_path / 'lab', tmp_path / 'run', imports=f'{path}from faraway import Mine', model='Mine')
    sys.path.remove(str(elsewhere))


def test_a_class_in_the_experiment_is_read_where_it_is_trusted(tmp_path):
    settings = begin(tmp_path / 'lab', tmp_path / 'run', model='Mine',
                     imports=MODELS.replace('from sizes import DEPTH', 'DEPTH = 3'))
    with pytest.raises(config.Error, match='experiment:Mine is code beside lm'):
        runs.read(tmp_path / 'run')
    read = runs.read(tmp_path / 'run', runs.trusted(tmp_path / 'run', True))
    assert config.flatten(read) == config.flatten(settings) and read.model.depth == 3
    runs.Run(tmp_path / 'run', config.load(tmp_path / 'lab' / 'tiny.py')).close()  # its own experiment is trusted


@pytest.fixture
def hostile(tmp_path):
    """A run of shipped types whose folder has code under many names, each of which leaves a mark."""
    begin(tmp_path / 'lab', tmp_path / 'run', imports='from lm.models import Decoder', model='Decoder')
    mark = f'import pathlib\npathlib.Path({str(tmp_path / "executed")!r}).write_text(__name__)\n'
    for name in ('experiment', 'evil', 'json', 'numpy', 'tokenizers', 'sentencepiece', 'rich'):
        (tmp_path / 'run' / f'{name}.py').write_text(mark)
    return tmp_path / 'run'


@pytest.mark.parametrize('key, value, message', [
    ('optimizer', {'type': 'evil:AdamW'}, 'evil:AdamW is code beside lm'),
    ('optimizer', {'type': 'experiment:AdamW'}, 'experiment:AdamW is code beside lm'),
    ('optimizer', {'type': 'object', 'value': 'os:system'}, 'os:system is code beside lm'),
    ('optimizer', {'type': 'object', 'value': 'lm.config:open_file'}, 'is a function or class'),
    ('optimizer', {'type': 'lm.train.checkpoint:Store', 'directory': 'written'}, 'is no component of an experiment'),
    ('optimizer', {'type': 'lm.cli:sys.exit'}, 'is not a dataclass'),
    ('optimizer', {'type': 'lm.no:Such'}, 'does not exist here'),
    ('start', {'type': 'lm.train:From', 'run': 'elsewhere', 'where': '', 'step': 0, 'trust': True},
     'start.trust=true, which a record alone does not choose'),
    ('optimizer', {'type': ':'}, 'is nothing that lm records'),
])
def test_a_hostile_record_executes_nothing(hostile, monkeypatch, key, value, message):
    monkeypatch.chdir(hostile)
    about = files.parse_json((hostile / 'config.json').read_bytes(), dict)
    about['config'][key] = value
    (hostile / 'config.json').write_text(json.dumps(about))
    before = sorted(hostile.rglob('*'))
    with pytest.raises(config.Error, match=message):
        runs.read(hostile)
    assert sorted(hostile.rglob('*')) == before and not (hostile.parent / 'executed').exists()


def test_reading_a_run_imports_nothing_from_its_folder(hostile, monkeypatch):
    monkeypatch.chdir(hostile)
    assert isinstance(runs.read(hostile), train.Config)
    assert str(hostile) not in sys.path and not (hostile.parent / 'executed').exists()


def test_reading_a_run_makes_no_tokenizer_and_opens_no_file_for_one(hostile, tmp_path):
    secret, about = tmp_path / 'secret', files.parse_json((hostile / 'config.json').read_bytes(), dict)
    secret.write_text('a secret')
    for tokenizer in ({'type': 'lm.tokenizers:HuggingFace', 'file': str(secret), 'eos': '', 'bos': ''},
                      {'type': 'lm.tokenizers:SentencePiece', 'size': 300, 'model': str(secret)}):
        about['config']['data']['tokenizer'] = tokenizer
        (hostile / 'config.json').write_text(json.dumps(about))
        with pytest.raises(config.Error, match='tokenizer/.* is missing'):
            runs.read(hostile).data.tokenizer.fit(None, hostile / 'tokenizer')
        assert not (hostile / 'tokenizer').exists()


@pytest.mark.parametrize('name', ['huggingface:evil/x', 'theirs'])
def test_a_data_set_of_tfds_that_names_other_code_is_refused(tmp_path, name):
    folder = tmp_path / 'theirs' / '1.0.0'
    folder.mkdir(parents=True)
    (folder / 'features.json').write_text('{"pythonClassName": "evil.Feature", "jsonFeature": {"json": "{}"}}')
    with pytest.raises(config.Error, match='is of a namespace|names the class evil.Feature, which is code outside'):
        data.Tfds(name, 'train', data_dir=str(tmp_path)).fingerprint()
