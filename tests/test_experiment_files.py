"""Experiment files: loaded, overridden, recorded, and told in one line where they are broken."""
import json
import sys
import textwrap

import pytest

from lm import config
from lm.commands import config as command


def write(folder, name, text):
    path = folder / 'experiments' / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


TINY = """
    from __future__ import annotations
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Part:
        size: int = 1

    @dataclasses.dataclass(frozen=True)
    class Config:
        part: Part = Part(2)
        steps: int = 10
        mesh: dict[str, int] = dataclasses.field(default_factory=lambda: {'data': -1})

    def config():
        return Config(steps=20)

    def sweep():
        for size in (1, 2):
            yield {'part.size': size}
"""


def test_load_tells_where_each_value_came_from(tmp_path):
    loaded = config.load(write(tmp_path, 'tiny.py', TINY), ['mesh.fsdp=2'])
    assert loaded.provenance == {'part.size': 'default', 'steps': 'file', 'mesh.data': 'default',
                                 'mesh.fsdp': 'override'}
    assert loaded.config.mesh == {'data': -1, 'fsdp': 2}
    assert config.load(loaded.file, {'part': 'Part(3)'}).provenance['part.size'] == 'override'


def test_sweep_gives_overrides_that_load_takes(tmp_path):
    path = write(tmp_path, 'tiny.py', TINY)
    assert [config.load(path, run).config.part.size for run in config.sweep(path)] == [1, 2]


def test_types_of_an_experiment_file_survive_the_record(tmp_path):
    path = write(tmp_path, 'tiny.py', TINY)
    dumped = json.loads(json.dumps(config.dump(config.load(path).config)))
    assert dumped['type'] == 'experiment:Config'
    moved = write(tmp_path, 'moved.py', TINY)
    rebuilt = config.build(dumped, moved)
    assert config.flatten(rebuilt) == config.flatten(config.load(path).config)
    assert config.fingerprint(rebuilt) == config.fingerprint(config.load(path).config)


def test_siblings_are_imported_from_the_same_repository(tmp_path):
    before = list(sys.path)
    for steps, root in enumerate(('one', 'two')):
        (tmp_path / root).mkdir()
        write(tmp_path / root, 'tiny.py', TINY.replace('steps=20', f'steps={steps}'))
        path = write(tmp_path / root, 'other.py', 'from experiments import tiny\ndef config(): return tiny.config()\n')
        loaded = config.load(path)
        assert loaded.config.steps == steps
        assert config.build(config.dump(loaded.config), path) == loaded.config
    assert sys.path == before


@pytest.mark.parametrize('text, message', [
    ('x = 1', r'has no config\(\)'),
    ('def config():\n    return {}', 'returned dict, not a dataclass'),
    ('x = 1\ndef config(:', r'bad\.py:2: SyntaxError'),
    ('def config():\n    pass\n\n    return undefined', r"bad\.py:4: NameError: name 'undefined' is not defined"),
    ('import no_such_module', r'bad\.py:1: ModuleNotFoundError'),
    ('from dataclasses import dataclass\nfrom typing import Literal\n\n@dataclass\nclass A:\n    b: Literal["c"]\n\n'
     'def config():\n    return A("d")', r'b=d is not one of c'),
    ('def config():\n    raise ValueError("a=1 is\\n  odd; try a=2.")', r'bad\.py:2: a=1 is odd; try a=2\.$'),
])
def test_a_broken_file_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(config.Error, match=message) as caught:
        config.load(write(tmp_path, 'bad.py', text))
    assert '\n' not in str(caught.value)


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path, 'shakespeare.py', TINY)
    with pytest.raises(config.Error, match=r"did you mean '.*shakespeare\.py'\?"):
        config.load(tmp_path / 'experiments' / 'shakespear.py')
    with pytest.raises(config.Error, match='is a directory'):
        config.load(tmp_path)


@pytest.mark.parametrize('override', ['steps', '=3', '--steps'])
def test_an_override_needs_a_key_and_a_value(tmp_path, override):
    with pytest.raises(config.Error, match='is no override'):
        config.load(write(tmp_path, 'tiny.py', TINY), [override])


def test_main_prints_keys_values_and_origins(tmp_path, capsys):
    path = str(write(tmp_path, 'tiny.py', TINY))
    command.main(path, 'part.size=5')
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ['part', 'Part'], ['part.size', '5', 'override'], ['steps', '20', 'file'], ['mesh.data', '-1', 'default']]
    command.main(path, 'part.size=5', diff=path)
    assert capsys.readouterr().out.split() == ['part.size', '5', '2']
