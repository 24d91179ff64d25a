"""The command `lm VERB`: each verb is the function `main` of a file in lm/commands, whose help is read from its source.

A command's file may set three flags: JAX = False for a verb that needs none, PROCESSES = True for one that several
processes run together, ACCELERATORS = False for one that must leave this machine's free.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import os
import pathlib
import re
import signal
import sys
import traceback

import lm
from lm.config.annotations import Error, close, first_line
from lm.config.values import Text, fit
from lm.console import interrupts, streams

EXITS = (75, 76, 130)  # by which lm ends itself: stopped and saved, a host lost, interrupted
TYPES = {'int': int, 'float': float, 'str': str}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a verb as its source declares it; `default` is None where a value is required."""

    name: str
    annotation: str
    default: ast.expr | None
    repeated: bool
    help: str


def main(argv=None):
    """Returns the exit code of the command line `argv`: 2 for a mistake in it, 130 when interrupted.

    It is 1 where the machine lacks what it needs. Any other exception is a bug of lm and stays.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    streams.open_all()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except Error as error:
        print(f'lm: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('lm: interrupted', file=sys.stderr)
        return 130
    except streams.Gone:
        streams.discard_output()
        return 128 + signal.SIGPIPE
    except streams.Full as error:
        streams.discard_output()
        print(f'lm: standard output takes no more ({error.strerror}); send it to another file.', file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError, AssertionError) as error:
        if not (lack := _lack(error)):
            raise
        print(f'lm: {lack}', file=sys.stderr)
        return 1


def _lack(error):
    """Returns what the machine lacks by an exception of Python's or JAX's, '' where it says none of that."""
    text = first_line(error)
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text:
        return f'out of memory ({text}); try a smaller data.batch, a larger accumulate, or lm plan --search.'
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    if 'Unable to initialize backend' in text or place.endswith('jax/_src/xla_bridge.py'):
        platforms = os.environ.get('JAX_PLATFORMS', '')
        return f'JAX_PLATFORMS={platforms} does not start here ({text}); try JAX_PLATFORMS=cpu.'
    return ''


def _run(argv):
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == '--version':
        print(f'lm {lm.__version__}')
        return 0
    verb, *rest = argv
    if verb not in verbs():
        raise Error(f'no verb {verb!r}; {_suggestion(verb, verbs())}')
    positionals, options = _parse(verb, rest)
    flags = _flags(verb)
    if flags.get('JAX', True):
        from lm import backend
        backend.check_limits()
        backend.tune()
    if not flags.get('ACCELERATORS', True):
        backend.hide_accelerators()
    with contextlib.ExitStack() as stack:
        if flags.get('PROCESSES'):
            from lm.parallel import processes
            stack.enter_context(processes.joined())
        main_of_verb = importlib.import_module(f'lm.commands.{_file(verb).stem}').main
        interrupts.raise_again()
        try:
            code = main_of_verb(*positionals, **options)
        except SystemExit as error:
            if error.code not in EXITS:
                raise Error(f'the code of an experiment ended the command by sys.exit({error.code!r}); '
                            'remove that.') from error
            raise
    return code if isinstance(code, int) else 0


def verbs():
    """Returns the verbs, a list: the files of lm/commands, a dash for each underscore of their names."""
    files = pathlib.Path(lm.__file__).parent.joinpath('commands').glob('*.py')
    return sorted(file.stem.replace('_', '-') for file in files if not file.stem.startswith('_'))


def _file(verb):
    return pathlib.Path(lm.__file__).parent / 'commands' / f'{verb.replace("-", "_")}.py'


def _parsed(verb):
    return ast.parse(_file(verb).read_text(encoding='utf-8'))


def _flags(verb):
    """Returns {name: constant} of the top-level assignments of a command's file."""
    return {node.targets[0].id: node.value.value for node in _parsed(verb).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)}


def _overview():
    lines = [f'  {verb:<13}{_description(signature(verb)[1]).partition(chr(10))[0]}' for verb in verbs()]
    return '\n'.join(['usage: lm VERB ...', '', *lines, '', '`lm VERB --help` shows the arguments of a verb.'])


def signature(verb):
    """Returns ([Parameter], docstring) of a verb's `main`, from the source of its file."""
    function = next(node for node in _parsed(verb).body if isinstance(node, ast.FunctionDef) and node.name == 'main')
    docstring = ast.get_docstring(function)
    helps = _helps(docstring)
    args = function.args
    required = [None] * (len(args.posonlyargs + args.args) - len(args.defaults))
    declared = [*zip(args.posonlyargs + args.args, [*required, *args.defaults], strict=True),
                *([(args.vararg, None)] if args.vararg else []), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return [Parameter(arg.arg, ast.unparse(arg.annotation) if arg.annotation else 'str', default,
                      arg is args.vararg, helps.get(arg.arg, '')) for arg, default in declared], docstring


def _helps(docstring):
    """Returns {parameter: text} of the lines `name: text` under `Args:`; continuation lines are indented more."""
    helps, name, depth = {}, None, 0
    for line in docstring.partition('Args:\n')[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or not indent:
            break
        if name is None or indent <= depth:
            name, _, text = line.strip().partition(':')
            helps[name], depth = text.strip(), indent
        else:
            helps[name] += f' {line.strip()}'
    return helps


def _description(docstring):
    return docstring.partition('Args:\n')[0].strip()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Error(f'{message}; see {self.prog} --help.')


def _parse(verb, argv):
    """Returns (positional values, {option: value}) for `main`; the defaults of absent options are left to it."""
    parameters, docstring = signature(verb)
    parser = _Parser(f'lm {verb}', description=_description(docstring), allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    for parameter in parameters:
        _add(parser, parameter)
    if empty := next((word for word in argv if word.startswith('--') and word.endswith('=--')), None):
        raise Error(f'{empty} has no value; leave it out, or see {parser.prog} --help.')  # argparse makes it a list
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise Error(_unknown(unknown[0], parser, any(parameter.name == 'overrides' for parameter in parameters)))
    positionals = []
    for parameter in parameters:
        if parameter.repeated:
            positionals += getattr(values, parameter.name)
        elif parameter.default is None:
            positionals.append(getattr(values, parameter.name))
    return positionals, {p.name: _option(p, getattr(values, p.name)) for p in parameters
                         if p.default is not None and hasattr(values, p.name)}


def _add(parser, parameter):
    help = parameter.help.replace('%', '%%')
    if parameter.default is None:
        count = {'nargs': '*', 'default': []} if parameter.repeated else {}
        parser.add_argument(parameter.name, help=help, **count)
        return
    flag, default = parameter.name.replace('_', '-'), ast.unparse(parameter.default)
    if default in ('True', 'False'):
        name, action = (f'--no-{flag}', 'store_false') if default == 'True' else (f'--{flag}', 'store_true')
        parser.add_argument(name, dest=parameter.name, action=action, help=help)
        return
    shown = '' if default in ("''", 'None', '()') else f' (default: {default.strip(chr(39))})'
    repeat = {'action': 'append'} if default == '()' else {}
    parser.add_argument(f'--{flag}', dest=parameter.name, metavar=flag.upper(), help=help + shown, **repeat)


def _option(parameter, value):
    """Returns the value of an option as the first of int, float and str in its annotation, or a list of such."""
    words, key = re.findall(r'\w+', parameter.annotation), f'--{parameter.name.replace("_", "-")}'
    kind = next((TYPES[word] for word in words if word in TYPES), str)
    if isinstance(value, list):
        return [fit(Text(item), kind, key) for item in value]
    return value if isinstance(value, bool) else fit(Text(value), kind, key, ast.literal_eval(parameter.default))


def _unknown(argument, parser, overridable):
    name, _, value = argument.partition('=')
    if not name.startswith('-'):
        return f'unexpected argument {argument!r}; see {parser.prog} --help.'
    flags = [flag for flag, action in parser._option_string_actions.items()
             if flag.startswith('--') and not (value and action.nargs == 0)]
    if overridable and value and not close(name, flags):
        return f'no option {name!r}; overrides have no dashes: {name.lstrip("-")}={value}'
    return f'no option {name!r}; {_suggestion(name, flags)}'


def _suggestion(word, known):
    near = close(word, known)
    return f'did you mean {near[0]!r}?' if near else f'there are {", ".join(known)}.'
