"""Becomes the command in the variable COMMAND, whose words are quoted as for a shell; nothing in them is expanded."""

import interrupt  # isort: skip  # noqa: F401 - first, so that Ctrl-C is one line from here on
import os
import shlex

import shell


def main(arguments):
    text = os.environ.get('COMMAND', '')
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise shell.Fault(f'COMMAND={text}: {str(error).lower()}; quote its words as for a shell.') from error
    if not words or not words[0]:
        raise shell.Fault('COMMAND is empty; say what to run, e.g. --env COMMAND="lm train experiments/quickstart.py".')
    os.execv(shell.ROOT / 'launch' / 'local.sh', ['local.sh', *words])


if __name__ == '__main__':
    shell.run(main)
