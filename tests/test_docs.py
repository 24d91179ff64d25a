"""README and guides: commands run or say what they need, examples run, links lead to files, an addition is one file."""
import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import jax
import pytest

from lm import cli, config, records, train

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


def test_every_form_of_command_is_seen():
    text = ('# T\n\n    A=1 lm train x.py \\\n        b=2   # needs 8 GPUs\n\n    launch/tpu.py v5e-16 -- lm eval r\n\n'
            '```sh\nlaunch/local.sh pytest -n 0   # fast\n```\n\n    notes.txt   no command\n\n'
            "    sky jobs --env C='lm data x.py'\n")
    assert commands(text) == [
        Command(('lm', 'train', 'x.py', 'b=2'), (), 'needs 8 GPUs'),
        Command(('lm', 'eval', 'r'), ('launch/tpu.py', 'v5e-16')),
        Command(('pytest', '-n', '0'), ('launch/local.sh',)),
        Command(('lm', 'data', 'x.py'), ('sky', 'jobs', '--env', 'C=lm data x.py'))]


def test_the_readme_is_short_and_names_every_verb():
    text = README.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 130
    assert [verb for verb in cli.verbs() if f'`{verb}`' not in text] == []


@pytest.mark.parametrize('doc', DOCS, ids=lambda doc: doc.stem)
def test_links_lead_to_files(doc):
    text = doc.read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', re.sub(r'`[^`\n]*`', '', text))
    local = [link.partition('#')[0] for pair in links for link in pair if link and not link.startswith('http')]
    assert [link for link in local if not (doc.parent / link).exists()] == []


def test_the_readme_links_every_guide():
    text = README.read_text(encoding='utf-8')
    assert [doc.name for doc in DOCS[1:] if f'docs/{doc.name}' not in text] == []


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


def parsed(command):
    """Asserts that a command's verb, options and overrides exist."""
    if command.words[0] == 'ruff':
        assert command.words == ('ruff', 'check', '.')
        return
    if command.words[0] == 'pytest':
        parser = argparse.ArgumentParser()
        parser.add_argument('files', nargs='*')
        for option in '-n', '-m':
            parser.add_argument(option, default='')
        values = parser.parse_args(command.words[1:])
        markers = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['pytest']['ini_options']['markers']
        assert all((ROOT / file).exists() for file in values.files)
        assert values.m in {'', *(marker.partition(':')[0] for marker in markers)} and values.n in ('', '0')
        return
    assert command.words[0] == 'lm'
    if command.verb == 'losses':  # of docs/adding.md, run by the test of additions
        return
    positionals, options = cli._parse(command.verb, command.words[2:])
    if positionals[0].endswith('.py'):
        loaded = config.load(positionals[0], [word for word in positionals[1:] if word != 'data.packing=beginnings'])
        for over in options.get('over', ()):
            key, _, values = over.partition('=')
            assert ',' in values or '..' in values
            assert key in dict(config.overrides.branches(loaded.config))


@pytest.mark.parametrize('doc', DOCS, ids=lambda doc: doc.stem)
def test_commands_have_verbs_options_and_fields_that_exist(doc, inside):
    text = doc.read_text(encoding='utf-8')
    inline = [as_command(code) for code in re.findall(r'`(lm [^`\n]*experiments/[a-z]\w*\.py[^`\n]*)`', text)]
    for command in commands(text) + inline:
        parsed(command)


@pytest.mark.parametrize('doc', DOCS, ids=lambda doc: doc.stem)
def test_overrides_name_fields_that_exist(doc, inside):
    text = doc.read_text(encoding='utf-8')
    lines = [line for language, code in blocks(text) if not language for line in code.split('\n')]
    for override in (match[1] for line in lines if (match := re.match(r'([a-z][a-z_.]*=\S+)  ', line))):
        config.load('experiments/tiny.py', [override] if 'noise_scale' not in override else [override, 'accumulate=2'])
    known = {key for name in ('tiny', 'quickstart', 'qwen3_30b_a3b', 'shakespeare_char', 'width_transfer', 'lm1b')
             for key, _ in config.overrides.branches(config.load(f'experiments/{name}.py').config)}
    named = re.findall(r'(?<![\w.])((?:model|data|optimizer|cadence|diagnosis|objective|start)\.[a-z_.]+[a-z])=', text)
    assert set(named) - known == set()


def cheap(command):
    """Returns the words of an `lm` command that cost little and do the same."""
    words = [CHEAPER.get(word, word) for word in command.words] + OPTIONS.get(command.verb, [])
    if command.verb not in ('train', 'sweep') or not words[2].endswith('.py'):
        return words
    small = {**TOY, **(QUICKSTART if 'quickstart' in words[2] else {})}
    varied = {word.partition('=')[0] for word in words}
    return [*words, *(f'{key}={value}' for key, value in small.items() if key not in varied or key in TOY)]


def run(command, all_devices):
    """Runs a command of a guide and asserts its exit code; launchers say what they would run."""
    if command.words[0] in ('pytest', 'ruff'):  # this run, and a test of its own would run the tests again
        return
    if command.launcher and command.launcher[0] != 'launch/local.sh':
        done = subprocess.run([sys.executable, ROOT / command.launcher[0], *command.launcher[1:], '--dry-run', '--',
                               *command.words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert command.words[2] in done.stdout
        return
    if any(word.startswith('mesh={') for word in command.words):
        all_devices()
    assert cli.main(cheap(command)[1:]) in CODES.get(command.verb, {0}), command


def test_the_readme_runs(inside, place):
    text = README.read_text(encoding='utf-8')
    for command in commands(text):
        if not command.needs:
            run(command, inside)
    (tree,) = [code for language, code in blocks(text) if code.startswith('runs/quickstart/')]
    names = [line.split()[0].split('/')[0] for line in tree.split('\n')[1:]]
    assert {path.name for path in (place / 'runs/quickstart').iterdir()} - {'lock'} == {*names} - {'spikes'}
    for number, code in enumerate(python(text)):
        execute(place / f'experiments/readme_{number}.py', code)


@pytest.mark.parametrize('doc', [doc for doc in DOCS if doc not in (README, ADDING)], ids=lambda doc: doc.stem)
def test_the_commands_of_a_guide_run(doc, inside):
    for command in commands(doc.read_text(encoding='utf-8')):
        if not command.needs:
            run(command, inside)


def execute(path, code):
    """Returns the module of a Python example, executed as an experiment file is."""
    path.write_text(code)
    return config.open_file(path)


@pytest.mark.parametrize('doc', [doc for doc in DOCS if doc not in (README, ADDING)], ids=lambda doc: doc.stem)
def test_python_examples_run(doc, inside, place):
    for number, code in enumerate(python(doc.read_text(encoding='utf-8'))):
        module = execute(place / f'experiments/{doc.stem.replace("-", "_")}_{number}.py', code)
        if hasattr(module, 'sweep'):
            trials = module.sweep()
            assert len(trials) == 45
            assert all(config.load('experiments/tiny.py', trial) for trial in trials[::7])
        if hasattr(module, 'model'):
            own = jax.eval_shape(module.model.init, jax.random.key(0))
            assert [shapes['tokens'].shape[1] for shapes in (module.model.base_shapes(), own)] == [64, 512]


def sections():
    """Returns {heading: text} of docs/adding.md."""
    heads = re.split(r'^## (.*)$', ADDING.read_text(encoding='utf-8'), flags=re.MULTILINE)
    return dict(zip(heads[1::2], heads[2::2], strict=True))


PARTS = ('Activation', 'Norm', 'Position', 'Residual', 'Data source and filter', 'Objective', 'Start')


def additions():
    """Returns {file: text} of the files that docs/adding.md adds."""
    section = sections()
    opening = python(ADDING.read_text(encoding='utf-8'))[0]
    mine = '\n\n'.join([opening, *(python(section[name])[0] for name in PARTS)])
    return {'experiments/mine.py': mine, 'experiments/bigram.py': python(section['Model'])[0],
            'experiments/synthetic.py': python(section['Experiment'])[0],
            'lm/data/packing/beginnings.py': python(section['Packing'])[0],
            'lm/commands/losses.py': python(section['Verb'])[0]}


def test_the_table_of_additions_has_a_section_for_each():
    table = re.findall(r'^\| ([a-z, ]+) \|', ADDING.read_text(encoding='utf-8'), flags=re.MULTILINE)
    kinds = [kind.partition(',')[0] for kind in table if kind != 'what']
    headings = ' '.join(sections()).lower()
    assert len(kinds) == 13 and [kind for kind in kinds if kind not in headings] == []


@pytest.fixture
def mine(place):
    """Returns the experiment file of docs/adding.md, to be written anew; it is as before after the test."""
    file = place / 'experiments/mine.py'  # always this one: of two files with a class of one name neither is meant
    yield file
    file.write_text(additions()['experiments/mine.py'])


@pytest.mark.parametrize('part', PARTS)
def test_a_class_in_the_experiment_file_is_all_an_addition_takes(part, inside, mine):
    text, (code,) = sections()[part], python(sections()[part])
    mine.write_text(f'{python(ADDING.read_text(encoding="utf-8"))[0]}\n\n{code}')
    (command,) = commands(text)
    overrides = [word for word in command.words[3:] if not word.startswith('--')]
    name = re.search(r'^class (\w+)', code, flags=re.MULTILINE)[1]
    settings = config.load(mine, overrides).config
    dumped = config.dump(settings)
    assert f"'experiment:{name}'" in str(dumped)
    assert config.fingerprint(config.build(dumped, mine)) == config.fingerprint(settings)
    parts = train.parts(settings)
    state, metrics = jax.eval_shape(parts.step, jax.eval_shape(parts.init), settings.data.example())
    assert metrics['loss'].shape == () and state.step.shape == ()


SCRIPT = """
import sys
from lm import cli
for argv in {argvs}:
    code = cli.main(argv)
    if code:
        sys.exit(code)
"""


def test_all_additions_work_together_and_touch_no_other_file(tmp_path):
    shutil.copytree(ROOT / 'lm', tmp_path / 'lm', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'experiments').mkdir()
    shutil.copy(ROOT / 'experiments/tiny.py', tmp_path / 'experiments')
    for name, code in additions().items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(code)
    optimizer = python((ROOT / 'docs/optimizers.md').read_text(encoding='utf-8'))[0]
    with open(tmp_path / 'experiments/mine.py', 'a') as file:
        file.write(f'\n\n{optimizer}')
    every = [command for text in sections().values() for command in commands(text)]
    overrides = [word for command in every if command.words[2] == 'experiments/mine.py' for word in command.words[3:]
                 if not word.startswith('--')]
    toy = [f'{key}={value}' for key, value in TOY.items()]
    trained = [['train', 'experiments/mine.py', *overrides, 'optimizer=Signum', *toy],
               *(['train', *command.words[2:], 'steps=20', 'data.context=16'] for command in every
                 if command.words[2] in ('experiments/bigram.py', 'experiments/synthetic.py'))]
    assert len(overrides) == 8 and len(trained) == 3
    (verb,) = [command for command in every if command.verb == 'losses']
    argvs = [*trained, [*verb.words[1:2], 'runs/mine', 'runs/bigram', *verb.words[-1:]]]
    environ = {**os.environ, 'PYTHONPATH': str(tmp_path), 'LM_CACHE': str(tmp_path / 'cache'),
               'XLA_FLAGS': '--xla_backend_optimization_level=0'}
    done = subprocess.run([sys.executable, '-c', SCRIPT.format(argvs=argvs)], cwd=tmp_path, env=environ,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = {run: [record['loss'] for record in records.read(tmp_path / run) if 'loss' in record][-1]
              for run in ('runs/mine', 'runs/bigram')}
    assert done.stdout.split('\n')[-3:-1] == [f'{loss:.2f}  {run}' for run, loss in losses.items()]


def test_extras_named_in_the_readme_exist():
    text, declared = README.read_text(encoding='utf-8'), (ROOT / 'setup.py').read_text()
    named = {*re.findall(r"'\.\[(\w+)\]'", text),
             *re.findall(r'`([\w-]+)`', text[text.index('More extras:'):text.index('As a library')])}
    assert len(named) == 11 and [name for name in named if f"'{name}'" not in declared] == []
