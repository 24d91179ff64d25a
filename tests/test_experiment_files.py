"""Experiment files: loaded, overridden, recorded, and told in one line where they are broken."""
import json
import os
import sys
import textwrap

import pytest

from lm import config, train
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
    ('import sys\nsys.exit(0)', r'bad\.py:2: SystemExit: 0; an experiment is imported: take sys.exit out of it\.$'),
    ('def config():\n    raise SystemExit(3)', r'bad\.py:2: SystemExit: 3; an experiment is imported'),
    ('class Odd(BaseException):\n    pass\n\ndef config():\n    raise Odd("x")', r'bad\.py:5: Odd: x$'),
    ('def config():\n    return config()', r'bad\.py:2: RecursionError: maximum recursion depth exceeded'),
    ('class Odd(Exception):\n    def __str__(self):\n        raise OSError\n\ndef config():\n    raise Odd',
     r'bad\.py:6: Odd: Odd$'),
    ('class Odd(Exception):\n    def __str__(self):\n        raise SystemExit\n\ndef config():\n    raise Odd',
     r'bad\.py:6: Odd: Odd$'),
    ('def config():\n    raise ValueError', r'bad\.py:2: ValueError$'),
    ('def config():\n    raise GeneratorExit', r'bad\.py:2: GeneratorExit: '),
    ('def config():\n    raise ValueError("x" * 100_000)', r'bad\.py:2: x+ \[\.\.\. 99,[0-9]+ more characters'),
    ('config = 3', r'has no config\(\)'),
    ('def config():\n    yield 1', 'returned generator, not a dataclass'),
    ('def config(x):\n    pass', r"TypeError: config\(\) missing 1 required positional argument: 'x'"),
    ('from lm import train\n\ndef config():\n    return train.Config', 'returned the class Config, not a dataclass'),
    ('from lm import optim, train\n\ndef config():\n    return train.Config(None, None, optim.AdamW(), 1)',
     r'bad\.py:4: model=None is not a Model; try model=Decoder\. Change the file: overrides come after it\.$'),
    ('x = 1\0', r'bad\.py: SyntaxError: source code string cannot contain null bytes|ValueError'),
    ('x = ' + '[' * 1000, r'bad\.py:1: SyntaxError: too many nested parentheses'),
    ('x = ' + '-' * 100_000 + '1', r'bad\.py: (MemoryError|RecursionError)'),
])
def test_a_broken_file_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(config.Error, match=message) as caught:
        config.load(write(tmp_path, 'bad.py', text))
    assert '\n' not in str(caught.value)


def test_what_an_experiment_raises_as_the_user_interrupts_is_no_fault_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        config.load(write(tmp_path, 'bad.py', 'raise KeyboardInterrupt'))


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = write(tmp_path, 'bad.py', '')
    path.write_bytes(b'x = "\xe9"')
    with pytest.raises(config.Error, match=r"bad\.py:1: SyntaxError: .*'utf-8' codec can't decode byte 0xe9"):
        config.load(path)
    os.mkfifo(tmp_path / 'pipe.py')
    with pytest.raises(config.Error, match=r"pipe\.py' is no regular file"):
        config.load(tmp_path / 'pipe.py')


@pytest.mark.parametrize('text, message', [
    ('yield 3', r'sweep\(\) yields 3, not a dict of overrides; yield'),
    ('yield {1: 2}', r'sweep\(\) yields \{1: 2\}, not a dict of overrides'),
    ('while True:\n        yield {}', r'sweep\(\) yields more than 10,000 trials; yield fewer'),
    ('yield {}\n    raise KeyError("a")', r"bad\.py:3: KeyError: 'a'"),
    ('raise SystemExit(0)', r'bad\.py:2: SystemExit: 0; an experiment is imported'),
    ('pass', "TypeError: 'NoneType' object is not iterable"),
])
def test_a_broken_sweep_is_told_in_one_line(tmp_path, text, message):
    with pytest.raises(config.Error, match=message):
        config.sweep(write(tmp_path, 'bad.py', f'def sweep():\n    {text}'))


def test_a_verb_says_which_dataclass_it_wants(tmp_path):
    path = write(tmp_path, 'tiny.py', TINY)
    assert config.load(path).config.steps == 20
    with pytest.raises(config.Error, match=r'config\(\) returned Config, not the Config of lm\.train; return train'):
        config.load(path, (), train.Config)


def test_what_a_component_of_the_file_raises_over_an_override_is_told(tmp_path):
    path = write(tmp_path, 'own.py', """
        import dataclasses

        @dataclasses.dataclass(frozen=True)
        class Config:
            count: int = 1

            def __post_init__(self):
                1 / self.count

        def config():
            return Config()
    """)
    with pytest.raises(config.Error, match='^ZeroDivisionError: division by zero$'):
        config.load(path, ['count=0'])


def test_a_name_that_no_file_system_takes_is_a_missing_file(tmp_path):
    with pytest.raises(config.Error, match="^no experiment file '.*x'; "):
        config.load(tmp_path / ('x' * 300))


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path, 'shakespeare.py', TINY)
    with pytest.raises(config.Error, match=r"did you mean '.*shakespeare\.py'\?"):
        config.load(tmp_path / 'experiments' / 'shakespear.py')
    write(tmp_path, 'setup.py', 'import setuptools')
    folder = tmp_path / 'experiments'
    with pytest.raises(config.Error, match=rf"^'{folder}' is a directory; give one of {folder}/shakespeare\.py\.$"):
        config.load(folder)


@pytest.mark.parametrize('override', ['steps', '=3', '--steps'])
def test_an_override_needs_a_key_and_a_value(tmp_path, override):
    with pytest.raises(config.Error, match='is no override'):
        config.load(write(tmp_path, 'tiny.py', TINY), [override])


def test_of_an_override_that_is_set_twice_the_last_is_used_and_named(tmp_path, capsys):
    path = write(tmp_path, 'tiny.py', TINY)
    assert config.load(path, ['steps=1', 'steps=1']).config.steps == 1 and not capsys.readouterr().err
    assert config.load(path, ['steps=1', 'steps=2']).config.steps == 2
    assert capsys.readouterr().err == 'lm: steps is set twice; 2 is used, and not 1.\n'


def test_main_prints_keys_values_and_origins(tmp_path, capsys):
    path = str(write(tmp_path, 'tiny.py', TINY))
    command.main(path, 'part.size=5')
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ['part', 'Part'], ['part.size', '5', 'override'], ['steps', '20', 'file'], ['mesh.data', '-1', 'default']]
    command.main(path, 'part.size=5', diff=path)
    assert capsys.readouterr().out.split() == ['part.size', '5', '2']
