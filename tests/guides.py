"""README and guides as data: their commands, Python examples and additions, and a place to run them in."""
import dataclasses
import os
import pathlib
import re
import shlex
import shutil

import jax
import pytest

from lm import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
README, ADDING = ROOT / 'README.md', ROOT / 'docs/adding.md'
DOCS = [README, *sorted((ROOT / 'docs').glob('*.md'))]
COMMAND = re.compile(r'((?:[A-Z_]+=\S+ +)*)((?:lm|launch/\S+|python3?|sky) .*)')
# What makes a command cheap: words in place of others, options of a verb, and values of every training.
CHEAPER = {'--seeds=5': '--seeds=2', '--step=150': '--step=20',
           '--sample=Random(trials=6)': '--sample=Random(trials=1)'}
OPTIONS = {'coord-check': ['--widths=32,64', '--steps=1', '--seeds=1'], 'generate': ['--length=4']}
TOY = {'steps': '20', 'model.depth': '1', 'model.width': '16', 'data.context': '16', 'data.valid.start': '0.99'}
QUICKSTART = {'data.context': '80', 'data.tokenizer.size': '512', 'model.vocab': '512', 'objective.baselines': 'false',
              'data.train.stop': '0.01', 'data.valid.start': '0.998'}
CODES = {'bisect': {1}, 'coord-check': {0, 1}}  # exit codes, where the guides say that it is not 0 alone


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a guide: `words` without the launcher, which may stand before; `needs` is what its comment says."""

    words: tuple
    launcher: tuple = ()
    needs: str = ''

    @property
    def verb(self):
        return self.words[1] if self.words[:1] == ('lm',) else ''


def blocks(text):
    """Yields (language, code) of every fenced block, and ('', code) of every indented one."""
    fence, lines = None, []
    for line in [*text.split('\n'), 'end']:
        if fence is None and line.startswith('    '):
            lines.append(line[4:])
        elif fence is not None and not line.startswith('```'):
            lines.append(line)
        elif line:
            if lines:
                yield fence or '', '\n'.join(lines)
            fence, lines = (line[3:] if fence is None and line.startswith('```') else None), []


def python(text):
    return [code for language, code in blocks(text) if language == 'python']


def commands(text):
    """Returns the Commands of a text's blocks."""
    lines = [line for language, code in blocks(text) if language in ('', 'sh', 'bash')
             for line in re.sub(r'\\\n\s*', '', code).split('\n')]
    return [as_command(match[2]) for match in map(COMMAND.fullmatch, lines) if match]


def as_command(line):
    needs = re.search(r'\s# .*?(needs .*)', line)
    words = tuple(shlex.split(line, comments=True))
    launcher = ()
    if words[0] == 'launch/local.sh':
        launcher, words = words[:1], words[1:]
    elif words[0].startswith('launch/'):
        launcher, words = words[:words.index('--')], words[words.index('--') + 1:]
    elif words[0] == 'sky':
        launcher, words = words, tuple(shlex.split(next(word for word in words if 'lm ' in word).partition('=')[2]))
    return Command(words, launcher, needs[1] if needs else '')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Returns a directory with the experiments, those of docs/adding.md among them, to run commands in."""
    folder = tmp_path_factory.mktemp('docs')
    shutil.copytree(ROOT / 'experiments', folder / 'experiments', ignore=shutil.ignore_patterns('*.html', '*.png'))
    for name, code in additions().items():
        if name.startswith('experiments/'):
            (folder / name).write_text(code)
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    """Runs a test in `place`, on one device and with a token cache of its own; the environment is as before after it.
    """
    monkeypatch.chdir(place)
    monkeypatch.setenv('LM_CACHE', str(place / 'cache'))
    for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'XLA_PYTHON_CLIENT_MEM_FRACTION'):  # `lm` sets these
        monkeypatch.setenv(name, os.environ.get(name, ''))
    # each run would compile the sampler for its last line; `lm generate` runs it
    monkeypatch.setattr(train.NextToken, 'show', lambda *args: 'a sample')
    devices = jax.devices()
    monkeypatch.setattr(jax, 'devices', lambda: devices[:1])
    return lambda: monkeypatch.setattr(jax, 'devices', lambda: devices)


def sections():
    """Returns {heading: text} of docs/adding.md."""
    heads = re.split(r'^## (.*)$', ADDING.read_text(encoding='utf-8'), flags=re.MULTILINE)
    return dict(zip(heads[1::2], heads[2::2], strict=True))


PARTS = ('Activation', 'Norm', 'Position', 'Residual', 'Feed-forward sublayer', 'Data source and filter', 'Objective',
         'Start')


def additions():
    """Returns {file: text} of the files that docs/adding.md adds."""
    section = sections()
    opening = python(ADDING.read_text(encoding='utf-8'))[0]
    mine = '\n\n'.join([opening, *(python(section[name])[0] for name in PARTS)])
    return {'experiments/mine.py': mine, 'experiments/bigram.py': python(section['Model'])[0],
            'experiments/synthetic.py': python(section['Experiment'])[0],
            'lm/data/packing/beginnings.py': python(section['Packing'])[0],
            'lm/commands/losses.py': python(section['Verb'])[0]}
