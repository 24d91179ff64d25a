#!/usr/bin/env python3
"""Submits a command to Slurm, follows it, and brings it back when it is preempted or runs into its time limit.

    launch/slurm.py --nodes=2 --gpus=8 --time=4:00:00 -- lm train experiments/llama_1b.py --workdir=/shared/run
    launch/slurm.py --array=0-3 -- lm train experiments/x.py seed=%a --workdir=/shared/seed%a

One process runs for each GPU, or for each node where there are none; jax finds the others from Slurm's variables.
Slurm asks the command to stop (SIGTERM) some time before the limit, and when it takes the nodes away. A command that
then ends with code 75 has saved: the same job is queued again. --logs must be a folder that all nodes see.
"""

import interrupt  # isort: skip  # noqa: F401 - first, so that Ctrl-C is one line from here on
import os
import re
import shlex
import time

import flags
import shell

LONGEST = 2 ** 20  # bytes of a batch script: Slurm refuses a longer line of srun (max_submit_line_size)
WRITTEN = '# Written by launch/slurm.py, which may replace this file.'
# Variables that programs of Slurm need; the other SLURM_* are of a job that this may be started in.
CLIENT = {'SLURM_CONF', 'SLURM_CONF_SERVER', 'SLURM_CLUSTERS', 'SLURM_JWT', 'SLURM_TIME_FORMAT'}
ENDED = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY', 'BOOT_FAIL', 'DEADLINE',
         'PREEMPTED', 'FORGOTTEN'}
BODY = r'''
# Slurm asks this shell to stop together with the tasks, which need the time to save.
trap : TERM
unset LM_COORDINATOR LM_PROCESSES LM_PROCESS
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
cd {place} || exit
{prepare}srun --kill-on-bad-exit=0 --wait=60 --open-mode=append --output={output} -- {command}
code=$?
if [ $code = {stopped} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    echo "stopped and saved; queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code'''


def main(arguments):
    options, command = flags.parse(parser(), arguments)
    check(options, command)
    logs = shell.folder(options.logs, 'slurm')
    text, file = script(options, command, logs), logs / 'job.sh'
    words = ['sbatch', '--parsable', file]
    if options.dry_run:
        shell.result(f'mkdir -p {shell.shown([logs])}\ncat >{shell.shown([file])} {shell.document(text)}\n'
                     f'{shell.shown(words)}')
        return 0
    for tool in ('sbatch', 'squeue', 'scancel'):
        shell.need(tool, 'run this where Slurm is installed (a login node), or try launch/local.py.')
    shell.make(logs)
    if os.path.lexists(file) and not (file.is_file() and WRITTEN in shell.lines(file)[:2]):
        raise shell.Fault(f'{file} exists and was not written by slurm.py; choose another folder with --logs=DIR.')
    file.write_bytes(os.fsencode(f'{text}\n'))
    for name in overriding(options):
        del os.environ[name]
    job = submit(words)
    shell.say(f'job {job} is submitted, logs in {logs}; to stop it: scancel {job}')
    if options.detach:
        shell.result(job)
        return 0
    try:
        return follow(job, logs, options.poll)
    except KeyboardInterrupt:
        shell.say(f'no longer watching job {job}, which goes on; to stop it: scancel {job}')
        return 130


def parser():
    made = flags.Parser(prog='slurm.py', description=__doc__, usage='slurm.py [options] -- command ...')
    made.add_argument('--nodes', type=flags.count, default=1, metavar='N', help='nodes (%(default)s)')
    made.add_argument('--gpus', type=flags.count, metavar='N', help='GPUs of each node; by default none')
    made.add_argument('--time', help='time limit, e.g. 30, 4:00:00 or 2-00; by default the partition decides')
    made.add_argument('--array', help='indices of a job array, e.g. 0-3; %%a in the command stands for the index')
    made.add_argument('--partition', help='by default the one that Slurm chooses')
    made.add_argument('--name', default='lm', help='name of the job (%(default)s)')
    made.add_argument('--sbatch', type=flags.option, action='append', default=[], metavar='OPTION',
                      help='any other option of sbatch, e.g. --sbatch=--account=me; may be repeated')
    made.add_argument('--logs', metavar='DIR', help='folder of the logs; by default a new one under runs/slurm')
    made.add_argument('--notice', type=flags.count, default=120, metavar='SECONDS',
                      help='how long before the limit the command is asked to stop (%(default)s)')
    made.add_argument('--requeues', type=flags.count, default=100, metavar='N',
                      help='how often a job that stopped and saved is queued again (%(default)s)')
    made.add_argument('--detach', action='store_true', help='print the number of the job and return')
    made.add_argument('--poll', type=flags.positive, default=5, metavar='SECONDS',
                      help='how often to ask Slurm (%(default)s)')
    made.add_argument('--dry-run', action='store_true', help='print the job and submit nothing')
    return made


def check(options, command):
    """Raises a Fault for options that Slurm accepts, but that do not do what is meant."""
    indexed = any('%a' in word for word in command)
    if options.array and not indexed:
        raise shell.Fault(f'--array={options.array} would run the same line several times at once; put %a where they '
                          'differ, e.g. seed=%a --workdir=runs/seed%a.')
    if indexed and not options.array:
        raise shell.Fault('%a stands for the index of an array, and there is none; try --array=0-3.')


def script(options, command, logs):
    """Returns the text of the batch script; its tasks write to <logs>/<job>.<task>.log."""
    if '\\' in str(logs) or not str(logs).isprintable():
        raise shell.Fault(f'the log folder {logs} has a backslash or a character that cannot be printed, with which '
                          'Slurm writes elsewhere; choose another with --logs=DIR.')
    pattern = str(logs).replace('%', '%%') + ('/%A_%a' if options.array else '/%j')
    settings = {'job-name': options.name, 'nodes': options.nodes, 'ntasks-per-node': options.gpus or 1,
                'gpus-per-node': options.gpus, 'time': options.time, 'array': options.array,
                'partition': options.partition, 'signal': f'TERM@{options.notice}', 'open-mode': 'append',
                'output': f'{pattern}.out'}
    lines = ['#!/bin/bash', WRITTEN, *(f'#SBATCH {quoted(word)}' for word in [
        *(f'--{name}={value}' for name, value in settings.items() if value), '--requeue', *options.sbatch])]
    words = shell.wrapped(command)
    prepare = '' if words == command else f'{shell.shown([words[0], "true"])} || exit  # installs once, for all tasks\n'
    text = '\n'.join(lines) + BODY.format(
        place=shell.shown([os.getcwd()]), prepare=prepare, output=shell.shown([f'{pattern}.%t.log']),
        command=' '.join('"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else '' for part in word.split('%a'))
                         or "''" for word in words), stopped=shell.STOPPED, requeues=options.requeues)
    size = len(os.fsencode(text)) + 1
    if size > LONGEST:
        raise shell.Fault(f'the batch script takes {size:,} bytes, and Slurm takes {LONGEST:,}; move settings from the '
                          'command into the experiment file.')
    if '\r\n' in text:
        raise shell.Fault('the command has a line break of DOS (\\r\\n), which Slurm refuses; leave the \\r out.')
    return text


def quoted(word):
    """Returns a word as sbatch reads it in a script: within quotes, where a backslash keeps the letter after it."""
    return word if re.fullmatch(r'[\w./:=@%+,-]+', word, re.ASCII) else '"' + re.sub(r'(["\\])', r'\\\1', word) + '"'


def overriding(options):
    """Returns the names of variables that programs of Slurm would follow where they should follow the script."""
    stated = {'JOB_NAME', 'OPEN_MODE', 'SIGNAL', 'OUTPUT', 'NO_REQUEUE', 'ARRAY_INX',
              'TIMELIMIT' if options.time else '', 'PARTITION' if options.partition else '',
              'GPUS_PER_NODE' if options.gpus else '',
              *(option.lstrip('-').partition('=')[0].replace('-', '_').upper() for option in options.sbatch)}
    return [name for name in os.environ if name.startswith('SQUEUE_') or name.removeprefix('SBATCH_') in stated
            or (name.startswith('SLURM_') and name not in CLIENT)]


def submit(words):
    """Returns the number of the submitted job."""
    code, out, err = shell.ask(words)
    if not code:
        return out.strip().split(';')[0]
    lines = [re.sub(r'^sbatch: (error|fatal): ', '', line) for line in err.splitlines()] or [f'code {code}']
    if re.search('configuration source|contact slurm controller', err):
        raise shell.Fault(f'no Slurm answers here ({lines[-1]}); run this on a login node of the cluster, or try '
                          'launch/local.py.')
    reason = next((line for line in lines if 'Batch job submission failed' not in line), lines[0])
    if 'partition' in reason:
        names = ', '.join(sorted(set(shell.ask(['sinfo', '-h', '-o', '%R'])[1].split())))
        raise shell.Fault(f'Slurm refuses the job: {reason}; its partitions are {names}.')
    raise shell.Fault(f'Slurm refuses the job: {reason}; see sinfo, and {shell.shown([words[-1]])}.')


def follow(job, logs, poll):
    """Shows the output of task 0 until the job has ended; returns its exit code, the largest one of an array."""
    shown, states = {}, {}
    while True:
        now = states_of(job) or dict.fromkeys(states or [job], ('FORGOTTEN', 1, 'None'))
        for name, (state, _, reason) in now.items():
            if (state, reason) != states.get(name, ('', 0, ''))[::2]:
                shell.say(f'job {name} is {state.lower()}{"" if reason == "None" else f" ({reason})"}')
        states = now
        for name in states:
            show(logs / f'{name}.0.log', shown, f'[{name}] ' if '_' in name else '')
        if all(state in ENDED for state, _, _ in states.values()):
            break
        time.sleep(poll)
    for name, (state, code, _) in states.items():
        if state != 'COMPLETED' and code != shell.STOPPED:
            explain(name, logs)
    return max(code or state != 'COMPLETED' for state, code, _ in states.values()) + 0


def states_of(job):
    """Returns {name of a job or of an array's job: (state, exit code, reason)}; nothing once Slurm has forgotten it."""
    code, out, err = shell.ask(['squeue', '--noheader', '--array', f'--jobs={job}', '--states=all',
                                '--Format=JobArrayID:.40,State:.20,exit_code:.12,Reason:.60'])
    if code and 'Invalid job id' not in err:
        shell.say(f'squeue does not answer ({err.strip().splitlines()[-1] if err.strip() else code}); asking again')
        return {job: ('UNKNOWN', 0, 'None')}
    rows = [re.fullmatch(r'\s*(\S+)\s+(\S+)\s+([0-9]+(?::[0-9]+)?)\s*(.*?)\s*', line) for line in out.splitlines()
            if line.strip()]
    if not all(rows):
        raise shell.Fault(f'squeue answers what is not understood ({out.strip()}); see scontrol show job {job}.')
    return {row[1]: (row[2], code_of(row[3]), row[4] or 'None') for row in rows}


def code_of(status):
    """Returns the exit code of a shell for Slurm's: the status of wait (768), or code:signal (3:0)."""
    code, number = map(int, status.split(':')) if ':' in status else (int(status) >> 8, int(status) & 127)
    return code or (128 + number if number else 0)


def show(path, shown, prefix):
    """Prints the whole lines that were added to a log since the last look."""
    if not path.exists():
        return
    with open(path, 'rb') as log:
        log.seek(shown.get(path, 0))
        text = log.read()
    text = text[:text.rfind(b'\n') + 1]
    shown[path] = shown.get(path, 0) + len(text)
    for line in text.splitlines():
        shell.show(prefix + os.fsdecode(line))


def explain(name, logs):
    """Shows the end of the log of the first task that failed, or of the job itself."""
    path = logs / f'{name}.out'
    output = '\n'.join(shell.lines(path)) if path.exists() else ''
    failed = [match for match in re.finditer(r'srun: error: (\S+): tasks? (\d+)\S*: (.*)', output)
              if f'exit code {shell.STOPPED}' not in match[3]]
    place = f', task {failed[0][2]} on {failed[0][1]}: {failed[0][3]}' if failed else ''
    log = logs / f'{name}.{failed[0][2]}.log' if failed else path
    shell.say(f'job {name}{place}. The end of {log}:')
    for line in shell.last_lines(log) if log.exists() else ():
        shell.tell(f'[{name}] {line}')


if __name__ == '__main__':
    shell.run(main)
