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
import io
import os
import pathlib
import select
import signal
import sys

import lm
from lm.config.annotations import Error, close

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
    """Returns the exit code of the command line `argv`: 2 for a mistake in it, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    sys.stdout, sys.stderr = (stream or open(os.devnull, 'w') for stream in (sys.stdout, sys.stderr))  # None if closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # text of a model shows as ? where the terminal's encoding lacks it
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
    except BrokenPipeError:
        if _reader_is_gone():
            return 128 + signal.SIGPIPE
        raise


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
        backend.tune()
    if not flags.get('ACCELERATORS', True):
        backend.hide_accelerators()
    with contextlib.ExitStack() as stack:
        if flags.get('PROCESSES'):
            from lm.parallel import processes
            stack.enter_context(processes.joined())
        code = importlib.import_module(f'lm.commands.{_file(verb).stem}').main(*positionals, **options)
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


def _reader_is_gone():
    """Returns whether the reader of standard output has closed it; then also discards what is still to be written."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(events & select.POLLERR for _, events in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


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
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise Error(_unknown(unknown[0], parser, any(parameter.name == 'overrides' for parameter in parameters)))
    positionals = []
    for parameter in parameters:
        if parameter.repeated:
            positionals += getattr(values, parameter.name)
        elif parameter.default is None:
            positionals.append(getattr(values, parameter.name))
    names = {p.name for p in parameters if p.default is not None}
    return positionals, {name: value for name, value in vars(values).items() if name in names}


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
    parser.add_argument(f'--{flag}', dest=parameter.name, type=_type(parameter), metavar=flag.upper(),
                        help=help + shown, **repeat)


def _type(parameter):
    """Returns the type of an option: the first of int, float and str in its annotation."""
    words = parameter.annotation.replace('[', ' ').replace(']', ' ').replace(',', ' ').split()
    return next((TYPES[word] for word in words if word in TYPES), str)


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
