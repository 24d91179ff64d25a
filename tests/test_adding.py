"""docs/adding.md: each addition is one class or one file, and all of them work together."""
import os
import re
import shutil
import subprocess
import sys

import guides
import jax
import pytest
from guides import ADDING, PARTS, ROOT, TOY, additions, commands, python, sections

from lm import config, records, train

place, inside = guides.place, guides.inside  # fixtures


def test_the_table_of_additions_has_a_section_for_each():
    table = re.findall(r'^\| ([a-z, -]+) \|', ADDING.read_text(encoding='utf-8'), flags=re.MULTILINE)
    kinds = [kind.partition(',')[0] for kind in table if kind != 'what']
    headings = ' '.join(sections()).lower()
    assert len(kinds) == 15 and [kind for kind in kinds if kind not in headings] == []


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
    assert len(overrides) == 10 and len(trained) == 3
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
