"""Launchers on many command lines; what they would run is written down by stand-ins for every tool.

Run as a program it reads command lines from standard input, one a line in JSON, and starts the launcher named by its
arguments (a folder, and a module of project/launch in it) on each, in a process of its own.
"""
import json
import os
import pathlib
import subprocess
import sys

# Words that a shell, Slurm, YAML, Kubernetes or printf would make something else of. `touch canary` must never run.
HOSTILE = [
    'a  b', ' a', 'a ', "it's", '"a" "b', '$(touch canary)', '`touch canary`', ';touch canary', '& touch canary #',
    '| touch canary', 'a\ntouch canary', "'\ntouch canary\n'", 'END', 'x\nEND\ntouch canary\nEND', '<<END', '--help',
    '\n#SBATCH --wrap=touch', 'a\n%include x', '-', '-x', '--', '%d %j %t %%', '%', '$HOME', '${HOME}', '$(HOME)', '$$',
    '\\', '\\n', "\\'", '*', '~', '?', '[a]', '{a,b}', '!x', '#x', ':x', '=', '{place}', 'größe', '名前', '\u2028',
    '\xa0', '\t', 'a\rb', 'a\r\nb', '\x1b[31m', '\x7f', '\udcff', 'x' * 300, '']
# Writes down how many words it is called by, and the words; what comes on standard input too, where `-` asks for it.
RECORDER = r'''#!/bin/bash
printf '%s\0' "$(($# + 1))" "${0##*/}" "$@" >>"$RECORD"
[[ $0 != */kubectl || ${*: -1} != - ]] || printf '%s\0' 2 stdin "$(cat)" >>"$RECORD"
case ${0##*/}:$* in
    sbatch:*) echo 42 ;;
    gcloud:*describe*) [[ -e $RECORD.created ]] || { echo NOT_FOUND >&2; exit 1; }; printf 'ACTIVE\tlaunch/tpu.py\n' ;;
    gcloud:*create*) : >"$RECORD.created" ;;
    gcloud:*'tail -s'*) echo 'exit 0' ;;
esac
'''
TOOLS = ('sbatch', 'squeue', 'scancel', 'scontrol', 'srun', 'gcloud', 'kubectl', 'xpk', 'program')


def project(folder):
    """Makes a project with the launchers in a folder, and stand-ins on a PATH; returns the environment."""
    here = pathlib.Path(__file__).resolve().parents[1]
    (folder / 'project').mkdir()
    (folder / 'bin').mkdir()
    (folder / 'home' / 'lm' / 'launch').mkdir(parents=True)
    subprocess.run(['cp', '-r', here / 'launch', folder / 'project'], check=True)
    subprocess.run(['git', 'init', '-q', folder / 'project'], check=True)
    for place in [*(folder / 'bin' / tool for tool in TOOLS),
                  *(folder / there / 'launch' / 'local.sh' for there in ('project', 'home/lm'))]:
        place.write_text(RECORDER)
        place.chmod(0o755)
    return {'PATH': f'{folder}/bin:/usr/bin:/bin', 'RECORD': str(folder / 'record'), 'HOME': str(folder / 'home'),
            'JAX_PLATFORMS': 'cpu', 'LANG': 'C.UTF-8'}


def parts(record):
    """Returns the calls that stand-ins have written down, each a list of words; has them forgotten."""
    record.with_suffix('.created').unlink(missing_ok=True)
    try:
        words = os.fsdecode(record.read_bytes()).split('\0')[:-1]
    except FileNotFoundError:
        return []
    calls = []
    while words:
        count = int(words[0])
        calls.append(words[1:1 + count])
        words = words[1 + count:]
    record.unlink()
    return calls


def launch(folder, name, cases, **environ):
    """Returns [(exit code, standard output, standard error, calls of stand-ins)] of a launcher on each line."""
    lines = [json.dumps([os.fsencode(word).hex() for word in line]) for line in cases]
    done = subprocess.run([sys.executable, '-S', __file__, folder, name], text=True, check=True, env=environ,
                          input='\n'.join(lines), stdout=subprocess.PIPE)
    return [(code, *(bytes.fromhex(text).decode(errors='surrogateescape') for text in texts), calls)
            for code, *texts, calls in map(json.loads, done.stdout.splitlines())]


def sbatch_words(line):
    """Returns the words of a line after #SBATCH as sbatch reads them: quotes of two kinds, a backslash in both."""
    words, word, quote, letters = [], None, '', iter(line)
    for letter in letters:
        if letter == '\\':
            word = (word or '') + next(letters)
        elif letter in '"\'' and quote in ('', letter):
            quote, word = '' if quote else letter, word or ''
        elif quote or not (letter.isspace() or letter == '#'):
            word = (word or '') + letter
        else:
            words, word = words + [word] * (word is not None), None
            if letter == '#':
                return words
    assert not quote
    return words + [word] * (word is not None)


def main(folder, name):
    folder = pathlib.Path(folder)
    sys.path.insert(0, str(folder / 'project' / 'launch'))
    module = __import__(name)
    module.parser().format_help()  # imports what it needs, for all
    for line in sys.stdin:
        files = [open(folder / stream, 'w+b') for stream in ('out', 'err')]
        process = os.fork()
        if not process:
            sys.argv = [f'{name}.py', *(os.fsdecode(bytes.fromhex(word)) for word in json.loads(line))]
            os.chdir(folder / 'project')
            for file, number in zip(files, (1, 2)):
                os.dup2(file.fileno(), number)
            module.shell.run(module.main)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps([code, *((folder / stream).read_bytes().hex() for stream in ('out', 'err')),
                          parts(folder / 'record')]), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
