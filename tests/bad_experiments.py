"""Experiment files that are no experiments: they raise anything, return anything, and are in any encoding."""
import builtins

import damage
from bad_fields import BRACKETS, NUMBERS, TEXTS, experiments, judge
from bad_inputs import Kind, Silent

from lm import config, train
from lm.config.annotations import is_component

HEAD = '''import dataclasses, sys
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention

'''
CONFIG = '''def config():
    {before}
    return {value}
'''
WHOLE = ('train.Config(model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(heads=2))), '
         'data=data.Corpus(train=data.Synthetic(9, 99), valid=None, tokenizer=data.Bytes(), context=8, batch=4), '
         'optimizer=optim.SGD(peak=0.1, schedule=optim.Constant()), steps=4)')
ODD = '''class Odd({base}):
    def __str__(self):
        {inner}

'''
PART = '''@dataclasses.dataclass(frozen=True)
class Part(optim.SGD):
    {declared}

    def {method}(self, *args):
        {inner}

'''
VALUES = ('', 'None', '0', '-1', '1j', 'float("nan")', '"text"', 'b"x"', '()', '[]', '{}', 'set()', 'object()',
          'object', 'train', 'train.Config', 'config', 'lambda: 0', 'iter(())', '...', 'NotImplemented', 'Ellipsis',
          'range(3)', 'sys', 'print', 'dataclasses.make_dataclass("A", ())()', 'dataclasses.make_dataclass("A", ())',
          '[train.Config]', 'yield', 'type', 'Exception()', 'memoryview(b"")', 'optim.SGD(peak=0.1)', 'data.Bytes()',
          WHOLE.replace('steps=4', 'steps=None'), WHOLE.replace('steps=4', 'steps="4"'), WHOLE.replace('steps=4', ''),
          WHOLE.replace('model=', 'models='), WHOLE.replace('peak=0.1', 'peak=float("nan")'),
          WHOLE.replace('data.Bytes()', 'data.Bytes'), WHOLE.replace('valid=None', 'valid=5'),
          WHOLE.replace('9, 99', '*range(9)'), f'config() or {WHOLE}', f'({WHOLE},)', f'[{WHOLE}]', f'vars({WHOLE})')
RAISING = ('raise {error}', 'raise {error}()', 'raise {error}("a\\nb", 2)', 'raise {error}("x" * 99999)',
           'raise {error} from 3', 'raise {error}("\\ud800\\0")', 'assert False', '1 / 0', 'undefined', 'sys.exit(0)',
           'sys.exit()', 'sys.exit("a\\nb")', 'raise SystemExit(None)', 'import no_such_module',
           'from lm import nothing', 'from . import sibling', 'import experiments.nothing',
           'from experiments import tiny, none', 'open("/no/such/file")', 'config()', 'int("x")', '[][1]', '{}["k"]',
           'None.x', 'exec("1 +")', 'raise Odd', 'raise Odd("x")',
           'raise ExceptionGroup("a", [ValueError(1), KeyError(2)])', 'raise 3', '"x".encode("nothing")',
           'bytes([255]).decode()', 'eval("(" * 999)', 'compile("x = \\0", "a", "exec")', 'del sys.modules[__name__]',
           'next(iter(()))', '__import__("lm.nothing")', 'globals().clear()', 'del config', 'raise')
ENCODINGS = ('utf-16', 'utf-16-le', 'utf-32', 'utf-8-sig', 'latin-1', 'cp1252', 'utf-7', 'cp037', 'shift-jis')
COOKIES = ('latin-1', 'utf-16', 'nothing', 'utf-8', 'ascii', 'rot13', 'x' * 300, '\0', 'base64')
SOURCES = ('x = ' + '(' * 500, 'x = ' + '[' * 99 + ']' * 99, 'x = ' + '-' * 20_000 + '1', 'x = ' + '9' * 5000,
           'x = "' + 'é' * 99 + '"', 'if 1:\n\tx\n        y', 'return 1', 'yield 1', 'await x', 'break',
           'def f(x, x): pass', 'x = 1 +', 'x = "', "'''", '\\', '\x0c', '\0', '\ufeff', '#' * 70_000,
           'from __future__ import braces', 'from __future__ import annotations', 'import *', 'global x', 'nonlocal x',
           '$', '?', 'é = 1', 'ﬁ = 1', 'match 1:\n    case x, x: pass', 'class A(A): pass', 'f"{"', 'x: int: str = 1',
           'lambda: (yield)', '1 = x', '*x = 1', 'x = 0777')
SWEEPS = ('yield 3', 'yield {1: 2}', 'yield {"": 1}', 'yield None', 'return 5', 'return [{}]', 'pass',
          'while True: yield {}', 'yield {"steps": {word}}', 'yield {"model.width": {word}}', 'yield {{word}: 1}',
          'yield {}; {inner}', '{inner}')


def source(place, rng):
    """Returns the text or bytes of a file in which something is bad at a place."""
    errors = [name for name, value in vars(builtins).items() if isinstance(value, type)
              and issubclass(value, BaseException) and value is not KeyboardInterrupt]
    inner = rng.choice(RAISING).replace('{error}', rng.choice(errors))
    shown = rng.choice(('raise OSError', 'return 3', 'return "a\\nb"', 'raise SystemExit'))
    odd = ODD.format(base=rng.choice(errors), inner=shown)
    word = rng.choice([word for word in NUMBERS + TEXTS + BRACKETS if '10**10' not in word])  # which Python computes
    whole = HEAD + CONFIG.format(before='pass', value=WHOLE)
    match place:
        case 'raises at the import':
            return HEAD + odd + f'def config(): pass\n\n{inner}\n'
        case 'raises in config()':
            return HEAD + odd + CONFIG.format(before=inner, value=WHOLE)
        case 'returned':
            return HEAD + CONFIG.format(before='pass', value=rng.choice(VALUES))
        case 'parameters':
            parameters = rng.choice(('x', '*', '*, x', '/', 'x=1', '*a, **b', 'self, y=2'))
            return whole.replace('config()', f'config({parameters})')
        case 'config is no function':
            return HEAD + f'config = {rng.choice(VALUES) or 1}\n'
        case 'a part of its own':
            method = rng.choice(('__post_init__', '__init__', '__repr__', '__new__', 'rate'))
            declared = rng.choice(('pass', 'x: int = 1', 'x: "nothing" = 1', 'x: list = ()', 'x: 3 = 3',
                                   'type: int = 1', 'x: int'))
            part = PART.format(declared=declared, method=method, inner=inner)
            return HEAD + odd + part + CONFIG.format(before='pass', value=WHOLE.replace('optim.SGD(', 'Part('))
        case 'sweep()':
            body = rng.choice(SWEEPS).replace('{word}', repr(word)).replace('{inner}', inner)
            return f'{whole}\n\ndef sweep():\n    {body}\n'
        case 'source':
            line = rng.choice(SOURCES)
            return rng.choice((f'{line}\n{whole}', f'{whole}\n{line}', f'{whole}\nx = {word}\n',
                               whole.replace('steps=4', f'steps={word}'), whole.replace('peak=0.1', f'peak={word}')))
        case 'encoding':
            text = f'# coding: {rng.choice(COOKIES)}\n' * rng.randrange(2) + f'NAME = "é"\n{whole}'
            return text.encode(rng.choice(ENCODINGS), 'replace')
    file = rng.choice([path for path in experiments() if 'ablations' not in path.parts])
    return rng.choice(list(damage.damaged(file.read_bytes(), rng, 6, 20)))[1]


PLACES = ['raises at the import', 'raises in config()', 'returned', 'parameters', 'config is no function',
          'a part of its own', 'sweep()', 'source', 'encoding', 'damaged']


def kinds(folder, patch):
    """Returns the [Kind] of experiment files, written into a folder."""
    path = folder / 'experiments' / 'bad.py'
    path.parent.mkdir()

    def draw(place, rng):
        text = source(place, rng)
        content = text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass')

        def run():
            path.write_bytes(content)
            swept = place == 'sweep()' and config.sweep(path)
            loaded = config.load(path, (), train.Config)
            for changes in swept or ():
                config.override(loaded.config, changes)
            if not (is_component(loaded.config) and isinstance(loaded.config, train.Config)):
                raise Silent(f'config() returned {loaded.config!r:.80}')
            judge(loaded.config, path)
        return content.decode('utf-8', 'replace').removeprefix(HEAD)[:400], run
    return [Kind('experiment files', 8, PLACES, draw)]
