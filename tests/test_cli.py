import ast
import dataclasses
import importlib
import io
import pathlib
import re
import signal
import subprocess
import sys

import pytest

import lm.commands
from lm import backend, cli, generate
from lm.console import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[1]

DRAW = '''
import no_such_module_before_main_is_called

def main(run: str, *overrides: str, workdir: str = '', count: int = 3, heat: float | None = None, raw: bool = False,
         cached: bool = True, stop_at: tuple[str, ...] = ()):
    """Draws a picture.

    It has two sentences, 100% of them here.

    Args:
        run: where the colours
            come from
        workdir: folder to write to
    """
'''
ECHO = '''
JAX = False
from lm.config.annotations import Error

def main(kind: str, *rest: str, **unused):
    """Does what it is told.

    Args:
        kind: what to do
    """
    match kind:
        case 'code':
            return 7
        case 'mistake':
            raise Error('a=1 is odd; try a=2.')
        case 'crash':
            raise ValueError('inside')
        case 'interrupt':
            raise KeyboardInterrupt
        case 'memory':
            raise MemoryError
        case 'runtime':
            raise RuntimeError(' '.join(rest))
        case 'exit':
            raise SystemExit(75)
    print(kind, *rest)
'''


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    """Puts two verbs, draw and echo, in the place of the real ones."""
    (tmp_path / 'commands').mkdir()
    (tmp_path / 'commands' / 'draw.py').write_text(DRAW)
    (tmp_path / 'commands' / 'echo.py').write_text(ECHO)
    monkeypatch.setattr(lm, '__file__', str(tmp_path / '__init__.py'))
    monkeypatch.setattr(lm.commands, '__path__', [str(tmp_path / 'commands')])
    importlib.invalidate_caches()
    yield
    for name in ('lm.commands.draw', 'lm.commands.echo'):
        sys.modules.pop(name, None)


def test_arguments_become_those_of_main(verbs):
    assert cli._parse('draw', ['r']) == (['r'], {})
    argv = ['r', '--workdir=w', 'a.b=1', '--count', '5', 'c=-2', '--heat=1e-3', '--raw', '--no-cached',
            '--stop-at=x', '--stop-at=y z', 'd=--e']
    assert cli._parse('draw', argv) == (['r', 'a.b=1', 'c=-2', 'd=--e'], {
        'workdir': 'w', 'count': 5, 'heat': 1e-3, 'raw': True, 'cached': False, 'stop_at': ['x', 'y z']})


@pytest.mark.parametrize('argv, message', [
    (['drew'], "lm: no verb 'drew'; did you mean 'draw'?"),
    (['xyz'], "lm: no verb 'xyz'; there are draw, echo."),
    (['draw', 'r', '--wrokdir=w'], "lm: no option '--wrokdir'; did you mean '--workdir'?"),
    (['draw', 'r', '--stop_at=w'], "lm: no option '--stop_at'; did you mean '--stop-at'?"),
    (['draw', 'r', '--count=--'], 'lm: --count=-- has no value; leave it out, or see lm draw --help.'),
    (['draw', 'r', '--work=w'], "lm: no option '--work'; did you mean '--workdir'?"),
    (['draw', 'r', '--patience=3'], "lm: no option '--patience'; overrides have no dashes: patience=3"),
    (['draw', 'r', '--model.depth=3'], "lm: no option '--model.depth'; overrides have no dashes: model.depth=3"),
    (['draw', 'r', '--count=x'], 'lm: --count=x is not an int; try --count=3.'),
    (['draw', 'r', '--count=99999999999999999999'],
     'lm: --count=99999999999999999999 is not an int of 64 bits; try --count=3.'),
    (['draw', 'r', '--heat=nan'], 'lm: --heat=nan is no number in float32; try --heat=0.1.'),
    (['draw'], 'lm: the following arguments are required: run; see lm draw --help.'),
    (['echo', 'mistake'], 'lm: a=1 is odd; try a=2.'),
])
def test_a_mistake_is_one_line_and_exit_2(verbs, capsys, argv, message):
    assert cli.main(argv) == 2
    assert capsys.readouterr() == ('', message + '\n')


def test_exit_codes(verbs, capsys):
    assert cli.main(['echo', 'hello', 'you']) == 0
    assert capsys.readouterr().out == 'hello you\n'
    assert cli.main(['echo', 'code']) == 7
    assert cli.main(['echo', 'interrupt']) == 130
    with pytest.raises(SystemExit) as left:
        cli.main(['echo', 'exit'])
    assert left.value.code == 75
    with pytest.raises(ValueError, match='inside'):
        cli.main(['echo', 'crash'])


@pytest.mark.parametrize('argv, message', [
    (['memory'], 'out of memory (MemoryError); try a smaller data.batch, a larger accumulate, or lm plan --search.'),
    (['runtime', 'RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore'], 'out of memory (RESOURCE_EXHAUSTED: '
     'Out of memory allocating 9 bytes.); try a smaller data.batch, a larger accumulate, or lm plan --search.'),
    (['runtime', "Unable to initialize backend 'bogus': no such"], "JAX_PLATFORMS=bogus does not start here (Unable to "
     "initialize backend 'bogus': no such); try JAX_PLATFORMS=cpu."),
])
def test_what_the_machine_lacks_is_one_line_and_exit_1(verbs, capsys, monkeypatch, argv, message):
    monkeypatch.setenv('JAX_PLATFORMS', 'bogus')
    assert cli.main(['echo', *argv]) == 1
    assert capsys.readouterr() == ('', f'lm: {message}\n')
    with pytest.raises(RuntimeError, match='^a bug$'):
        cli.main(['echo', 'runtime', 'a bug'])


def test_text_that_standard_output_cannot_spell_shows_as_question_marks(verbs, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding='latin-1', newline='\n')
    monkeypatch.setattr('sys.stdout', out)
    assert cli.main(['echo', 'é', '€']) == 0
    assert out.buffer.getvalue() == b'\xe9 ?\n'


def test_help_is_read_from_the_source_alone(verbs, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(['draw', '--help'])
    out = capsys.readouterr().out
    assert left.value.code == 0 and 'lm.commands.draw' not in sys.modules
    for text in ('usage: lm draw', 'Draws a picture.', '100% of them', 'where the colours come from',
                 '--workdir WORKDIR', '(default: 3)', '--no-cached', '--stop-at'):
        assert text in out
    assert cli.main(['--help']) == 0
    assert re.search(r'\n  draw +Draws a picture\.\n', capsys.readouterr().out)
    assert cli.main([]) == 2


def test_hardware_is_tuned_before_a_verb_that_needs_jax_is_imported(verbs, monkeypatch):
    calls = []
    monkeypatch.setattr(backend, 'tune', lambda: calls.append('lm.commands.draw' in sys.modules), raising=False)
    assert cli.main(['echo', 'hello']) == 0 and calls == []
    with pytest.raises(ModuleNotFoundError, match='no_such_module_before'):
        cli.main(['draw', 'r'])
    assert calls == [False]


@pytest.mark.parametrize('verb', cli.verbs())
def test_every_verb_documents_itself_and_every_argument(verb):
    parameters, docstring = cli.signature(verb)
    assert docstring.partition('\n')[0].endswith('.')
    assert [p.name for p in parameters if not p.help] == []


@pytest.mark.parametrize('verb', cli.verbs())
def test_help_shows_the_default_of_every_option_as_a_value(verb):
    for parameter in cli.signature(verb)[0]:
        assert isinstance(parameter.default, ast.Constant | ast.Tuple | None)


def test_options_of_translate_are_those_of_beams():
    defaults = {parameter.name: parameter.default for parameter in cli.signature('translate')[0]}
    assert {field.name: ast.literal_eval(defaults[field.name]) for field in dataclasses.fields(generate.Beams)} == \
        dataclasses.asdict(generate.Beams())


@pytest.mark.parametrize('argv', [['--help'], *([verb, '--help'] for verb in cli.verbs())])
def test_help_needs_no_jax(argv):
    code = f"""
import sys
from lm import cli
try:
    cli.main({argv})
finally:
    print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.strip() == '[]', done.stderr


def test_module_is_the_command():
    done = subprocess.run([sys.executable, '-m', 'lm', 'trian'], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "lm: no verb 'trian'; did you mean 'train'?\n")


@pytest.mark.parametrize('command, code, out, err', [
    ('{lm} --version >/dev/full', 1, '', 'lm: standard output takes no more (No space left on device); send it to '
     'another file.\n'),
    ('{lm} --version >&-', 0, '', ''),
    ('{lm} trian >&- 2>&- <&-', 2, '', ''),
    ('{lm} trian 2>/dev/full', 2, '', ''),
    ('{lm} trian >/dev/full', 2, '', "lm: no verb 'trian'; did you mean 'train'?\n"),
    ('PYTHONIOENCODING=ascii {lm} é', 2, '', "lm: no verb '\\xe9'; there are {verbs}.\n"),
    ('PYTHONIOENCODING=latin-1 {lm} €', 2, '', "lm: no verb '\\u20ac'; there are {verbs}.\n"),
])
def test_standard_streams_that_are_closed_full_or_of_few_letters(command, code, out, err):
    command = command.replace('{lm}', f'{sys.executable} -m lm')
    done = subprocess.run(['bash', '-c', command], capture_output=True, cwd=ROOT)
    err = err.replace('{verbs}', ', '.join(cli.verbs()))
    assert (done.returncode, done.stdout.decode(), done.stderr.decode('latin-1')) == (code, out, err)


def test_a_file_that_a_closed_stream_would_have_taken_is_not_written_to(tmp_path):
    code = ('import os, sys\nfrom lm.console import streams\nstreams.open_all()\n'
            f'file = open({str(tmp_path / "own")!r}, "w")\nprint(file.fileno(), flush=True)\nsys.exit(file.fileno())')
    command = f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' >&- 2>&- <&-"
    done = subprocess.run(['bash', '-c', command], cwd=ROOT)
    assert done.returncode > 2 and (tmp_path / 'own').read_text() == ''


def test_an_experiment_that_closes_the_standard_streams_closes_nothing(tmp_path):
    text = (ROOT / 'experiments' / 'tiny.py').read_text().replace(
        'def config():', 'def config():\n    import sys\n    sys.stdout.close()\n    sys.stderr.close()', 1)
    (tmp_path / 'closing.py').write_text(text)
    command = [sys.executable, '-m', 'lm', 'config', tmp_path / 'closing.py']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, '') and 'model.depth' in done.stdout
    done = subprocess.run([*command, 'steps=x'], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, '') and done.stderr.startswith('lm: steps=x is not an int; try ')


@pytest.mark.parametrize('code', [
    'interrupts.leave_at_once()\nsignal.raise_signal(2)',
    'interrupts.leave_at_once()\ntry:\n    signal.raise_signal(2)\nexcept BaseException:\n    pass',
])
def test_an_interrupt_while_modules_are_imported_is_one_line(code):
    code = f'import signal\nfrom lm.console import interrupts\n{code}'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, 'lm: interrupted\n')


def test_an_interrupt_is_an_exception_again_once_a_verb_runs_and_stays_ignored_in_the_background(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in signal.default_int_handler, signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)
            interrupts.leave_at_once()
            assert (signal.getsignal(signal.SIGINT) is interrupts.leave) == (handler is not signal.SIG_IGN)
            interrupts.raise_again()
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closed_pipe_is_quiet(tmp_path):
    path = tmp_path / 'long.py'
    path.write_text('import dataclasses\n\n'
                    '@dataclasses.dataclass(frozen=True)\n'
                    'class C:\n'
                    '    mesh: dict\n\n'
                    'def config():\n'
                    '    return C({f"axis{i}": i for i in range(9999)})\n')
    command = f'{sys.executable} -m lm config {path} | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ['mesh.axis0', '0', 'file', '141'] and done.stderr == ''


@pytest.mark.parametrize('code', ['sys.exit(0)', 'sys.exit()', 'sys.exit("done")', 'raise SystemExit(3)'])
def test_code_of_an_experiment_cannot_end_the_command_as_if_it_were_done(tmp_path, capsys, code):
    """In a part that is called long after the experiment was imported."""
    file = tmp_path / 'mine.py'
    file.write_text('import sys\nfrom experiments import tiny\nfrom lm import data\n\nclass Ends(data.Synthetic):\n'
                    f'    def records(self):\n        {code}\n\ndef config():\n    return tiny.config()\n')
    (tmp_path / 'experiments').mkdir()
    (tmp_path / 'experiments' / 'tiny.py').write_text((ROOT / 'experiments' / 'tiny.py').read_text())
    argv = ['train', str(file), 'data.train=Ends', f'--workdir={tmp_path / "run"}', f'--cache={tmp_path / "cache"}']
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert 'ended the command by sys.exit(' in err and err.count('\n') == 1
