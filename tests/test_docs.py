"""README and guides: commands run or say what they need, examples run, links lead to files."""
import argparse
import re
import subprocess
import sys
import tomllib

import guides
import jax
import pytest
from guides import (
    ADDING,
    CHEAPER,
    CODES,
    DOCS,
    OPTIONS,
    QUICKSTART,
    README,
    ROOT,
    TOY,
    Command,
    as_command,
    blocks,
    commands,
    python,
)

from lm import cli, config

place, inside = guides.place, guides.inside  # fixtures


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
    if positionals and positionals[0].endswith('.py'):
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
    known = {key for name in ('tiny', 'quickstart', 'qwen3_30b_a3b', 'shakespeare_char', 'width_transfer', 'lm1b',
                             'skipgram_wikitext2')
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


def test_extras_named_in_the_readme_exist():
    text, declared = README.read_text(encoding='utf-8'), (ROOT / 'setup.py').read_text()
    named = {*re.findall(r"'\.\[(\w+)\]'", text),
             *re.findall(r'`([\w-]+)`', text[text.index('More extras:'):text.index('As a library')])}
    assert len(named) == 11 and [name for name in named if f"'{name}'" not in declared] == []
