"""Every argument of every launcher holds hostile text, which arrives letter by letter in what runs, or is refused.

What would run is written down by stand-ins on PATH (launches.py): first for an ordinary word, then for a hostile one,
and the two must be equal but for the word. Texts for a shell, a batch script or a container are run by a real bash. The
options are those of the launcher's own parser, so that a new one is covered by itself.
"""
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import launches
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORD = 'plain7'  # an ordinary word, for which hostile ones are put
# What makes a launcher run to its end; an option that is tested comes after these, and replaces its like.
BASE = {'local': ['--processes=1', '--logs=logs'], 'slurm': ['--name=n', '--logs=logs', '--detach'],
        'tpu': ['v5e-16', '--name=n', '--poll=0.001'], 'gke': ['v5e-16', '--name=n', '--bucket=bucket', '--detach']}
XPK = ['v5e-16', '--name=n', '--xpk=cluster']
EVERY = 1 if os.environ.get('LM_NIGHTLY') else 13  # each word meets each launcher, and each option a share of the words
CHANGING = [(r'tmp\w{8}', 'tmp'), (r'\d{19}', '1'), (r'\d{8}-\d{6}-\d+', 'stamp')]  # names that are made anew


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    return folder, launches.project(folder)


def targets(name):
    """Returns {what is tested: a function of a word that returns the words of a command line}."""
    sys.path.insert(0, str(ROOT / 'launch'))
    launcher = importlib.import_module(name)
    sys.path.pop(0)
    base = BASE[name]
    made = {'program': lambda word: [*base, '--', word, 'a'], 'word': lambda word: [*base, '--', 'program', word]}
    for action in launcher.parser()._actions:
        if action.nargs != 0 and action.option_strings:
            option, more = action.option_strings[0], XPK if 'xpk' in action.dest else base
            begin = '--o=' if action.type is launcher.flags.option else ''
            made[option] = lambda word, option=f'{option}={begin}', more=more, index='%a'[option != '--array':]: [
                *more, f'{option}{word}', '--', 'program', index]
    if name in ('tpu', 'gke'):
        made['slice'] = lambda word: [word, *base[1:], '--', 'program']
    if name == 'gke':
        made['word through xpk'] = lambda word: [*XPK, '--', 'program', word]
        made['folder of a bucket'] = lambda word: [*base, f'--code=gs://bucket/a{word}', '--', 'program']
    return made


def refused(code, out, err, calls):
    """Whether one line refuses and nothing has run; the line before it may state a cost."""
    lines = err.splitlines()
    return (code == 2 and not out and not calls and len(lines) == 1 + ('dollars an hour' in lines[0])
            and all(re.match(r'(local|slurm|tpu|gke)\.py: .{10,1100}$', line) for line in lines))


class Bash:
    """Runs texts with the stand-ins on PATH."""

    def __init__(self, folder, environ):
        self.folder, self.environ = folder, environ

    def calls(self, *words, text='', cwd='project'):
        """Returns the calls that a command makes, which gets a text as its input, and what they contain."""
        subprocess.run(words, input=os.fsencode(text), env=self.environ, cwd=self.folder / cwd, check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.unfolded(launches.parts(self.folder / 'record'))

    def unfolded(self, calls):
        """Returns calls together with those that their texts make: batch scripts, containers, commands for workers."""
        return [[words, *self.contents(words)] for words in calls]

    def contents(self, words):
        if words[0] == 'sbatch':
            text = os.fsdecode(pathlib.Path(words[-1]).read_bytes())
            settings = re.findall('^#SBATCH (.*)$', text.split('\n# Slurm asks')[0], re.MULTILINE)
            yield [launches.sbatch_words(line) for line in settings]
            yield self.calls('bash', text=text)
        elif words[0] == 'stdin':
            made = json.loads(words.pop())
            pod = made['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
            for container in [*pod['initContainers'], *pod['containers']]:
                container['command'] = [as_kubelet(word) for word in container['command']]
            yield made
            yield self.calls(*(word.replace('ulimit -l 68719476736', '').replace('cd /lm', 'cd ~/lm')
                               for word in pod['containers'][0]['command']))
        elif words[0] == 'xpk':
            yield self.calls('bash', '-c', as_kubelet(words.pop(7).removeprefix('--command=')), cwd='home/lm')
        elif any('setsid' in word for word in words):
            run = self.folder / 'home' / 'lm.run'
            start = next(i for i, word in enumerate(words) if 'setsid' in word)
            subprocess.run(['bash', '-c', words.pop(start).removeprefix('--command=')], env=self.environ, check=True)
            while not (run / 'code').exists() or not (run / 'code').read_text():
                time.sleep(0.001)
            subprocess.run(['rm', '-r', run], check=True)
            yield launches.parts(self.folder / 'record')


def as_kubelet(word):
    """Returns a word of a container's command as Kubernetes starts it: $$ is $, and $(NAME) a variable's value."""
    return re.sub(r'\$\$|\$\(\w+\)', lambda match: '$' if match[0] == '$$' else 'REPLACED', word)


def replaced(value, new):
    """Returns a value with another text in place of the ordinary word, and names in place of Slurm's patterns."""
    if isinstance(value, str):
        value = value.replace('%%', '%') if value.startswith('--output=') else value
        for pattern, text in CHANGING:
            value = re.sub(pattern, text, value)
        return value.replace(WORD, new)
    if isinstance(value, dict):
        return {key: replaced(part, new) for key, part in value.items()}
    return [replaced(part, new) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize('mode', ['--dry-run', ''])
@pytest.mark.parametrize('name', BASE)
def test_hostile_text_arrives_letter_by_letter_or_is_refused(place, name, mode):
    folder, environ = place
    bash = Bash(folder, environ)
    cases = [(what, word, [*([mode] if mode else []), *line(word)])
             for i, (what, line) in enumerate(targets(name).items()) for j, word in enumerate([WORD, *launches.HOSTILE])
             if not j or (i + j + len(mode)) % EVERY == 0]
    results = launches.launch(folder, name, [line for _, _, line in cases], **environ)
    arrived, expected = 0, []
    for (what, word, _), (code, out, err, calls) in zip(cases, results, strict=True):
        if not refused(code, out, err, calls) and 'usage: ' not in out:
            assert code == 0, (what, word, code, err)
            calls = bash.calls('bash', text=out) if mode else bash.unfolded(calls)
            if word == WORD:
                expected = calls
            assert calls and replaced(calls, word) == replaced(expected, word), (what, word)
            arrived += 1
        assert not list(folder.rglob('canary*')), (what, word)
    assert arrived > len(launches.HOSTILE) / EVERY
