#!/usr/bin/env python3
"""Submits a command to Slurm, follows it, and brings it back when it is preempted or runs into its time limit.

    launch/slurm.py --nodes=2 --gpus=8 --time=4:00:00 -- lm train experiments/llama_1b.py --workdir=/shared/run
    launch/slurm.py --array=0-3 -- lm train experiments/x.py seed=%a --workdir=/shared/seed%a

One process runs for each GPU, or for each node where there are none; jax finds the others from Slurm's variables.
Slurm asks the command to stop (SIGTERM) some time before the limit, and when it takes the nodes away. A command that
then ends with code 75 has saved: the same job is queued again. --logs must be a folder that all nodes see.
"""

import os
import re
import shlex
import sys
import time

import shell

LONGEST = 2 ** 20  # bytes of a batch script: Slurm refuses a longer line of srun (max_submit_line_size)
ENDED = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY', 'BOOT_FAIL', 'DEADLINE',
         'PREEMPTED'}
BODY = r'''
# Slurm asks this shell to stop together with the tasks, which need the time to save.
trap : TERM
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
cd {place} || exit
{prepare}srun --kill-on-bad-exit=0 --wait=60 --open-mode=append --output={output} {command}
code=$?
if [ $code = {stopped} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    echo "stopped and saved; queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
'''


def main(arguments):
    options, command = shell.parse(parser(), arguments)
    check(options, command)
    logs = shell.folder(options.logs, 'slurm')
    text = script(options, command, logs)
    words = ['sbatch', '--parsable', logs / 'job.sh']
    if options.dry_run:
        print(f'cat >{shell.shown([logs / "job.sh"])} <<"END"\n{text}END\n{shell.shown(words)}')
        return 0
    for tool in ('sbatch', 'squeue', 'scancel'):
        shell.need(tool, 'run this where Slurm is installed (a login node), or try launch/local.py.')
    shell.make(logs)
    (logs / 'job.sh').write_text(text, encoding='utf-8')
    job = submit(words)
    shell.say(f'job {job} is submitted, logs in {logs}; to stop it: scancel {job}')
    if options.detach:
        print(job)
        return 0
    try:
        return follow(job, logs, options.poll)
    except KeyboardInterrupt:
        shell.say(f'no longer watching job {job}, which goes on; to stop it: scancel {job}')
        return 130


def parser():
    made = shell.Parser(prog='slurm.py', description=__doc__, usage='slurm.py [options] -- command ...')
    made.add_argument('--nodes', type=shell.count, default=1, metavar='N', help='nodes (%(default)s)')
    made.add_argument('--gpus', type=shell.count, metavar='N', help='GPUs of each node; by default none')
    made.add_argument('--time', help='time limit, e.g. 30, 4:00:00 or 2-00; by default the partition decides')
    made.add_argument('--array', help='indices of a job array, e.g. 0-3; %%a in the command stands for the index')
    made.add_argument('--partition', help='by default the one that Slurm chooses')
    made.add_argument('--name', default='lm', help='name of the job (%(default)s)')
    made.add_argument('--sbatch', action='append', default=[], metavar='OPTION',
                      help='any other option of sbatch, e.g. --sbatch=--account=me; may be repeated')
    made.add_argument('--logs', metavar='DIR', help='folder of the logs; by default a new one under runs/slurm')
    made.add_argument('--notice', type=shell.count, default=120, metavar='SECONDS',
                      help='how long before the limit the command is asked to stop (%(default)s)')
    made.add_argument('--requeues', type=shell.count, default=100, metavar='N',
                      help='how often a job that stopped and saved is queued again (%(default)s)')
    made.add_argument('--detach', action='store_true', help='print the number of the job and return')
    made.add_argument('--poll', type=shell.positive, default=5, metavar='SECONDS',
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
    for option in options.sbatch:
        if not option.startswith('-'):
            raise shell.Fault(f'--sbatch={option} is not an option of sbatch; try --sbatch=--{option}.')


def script(options, command, logs):
    """Returns the text of the batch script; its tasks write to <logs>/<job>.<task>.log."""
    job = '%A_%a' if options.array else '%j'
    settings = {'job-name': options.name, 'nodes': options.nodes, 'ntasks-per-node': options.gpus or 1,
                'gpus-per-node': options.gpus, 'time': options.time, 'array': options.array,
                'partition': options.partition, 'signal': f'TERM@{options.notice}', 'open-mode': 'append',
                'output': logs / f'{job}.out'}
    lines = ['#!/bin/bash', *(f'#SBATCH --{name}={value}' for name, value in settings.items() if value),
             '#SBATCH --requeue', *(f'#SBATCH {option}' for option in options.sbatch)]
    words = shell.wrapped(command)
    prepare = '' if words == command else f'{shell.shown([words[0], "true"])} || exit  # installs once, for all tasks\n'
    text = '\n'.join(lines) + BODY.format(
        place=shell.shown([os.getcwd()]), prepare=prepare, output=shell.shown([logs / f'{job}.%t.log']),
        command=' '.join('"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else '' for part in word.split('%a'))
                         or "''" for word in words), stopped=shell.STOPPED, requeues=options.requeues)
    size = len(os.fsencode(text))
    if size > LONGEST:
        raise shell.Fault(f'the batch script takes {size:,} bytes, and Slurm takes {LONGEST:,}; move settings from the '
                          'command into the experiment file.')
    return text


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
        now = states_of(job) or dict.fromkeys(states, ('COMPLETED', 0, 'None'))
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
    rows = [line.split() for line in out.splitlines() if line.split()]
    return {row[0]: (row[1], code_of(row[2]), ' '.join(row[3:]) or 'None') for row in rows}


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
    for line in text.decode('utf-8', 'replace').splitlines():
        print(prefix + line, flush=True)


def explain(name, logs):
    """Shows the end of the log of the first task that failed, or of the job itself."""
    path = logs / f'{name}.out'
    output = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    failed = [match for match in re.finditer(r'srun: error: (\S+): tasks? (\d+)\S*: (.*)', output)
              if f'exit code {shell.STOPPED}' not in match[3]]
    place = f', task {failed[0][2]} on {failed[0][1]}: {failed[0][3]}' if failed else ''
    log = logs / f'{name}.{failed[0][2]}.log' if failed else path
    shell.say(f'job {name}{place}. The end of {log}:')
    for line in shell.last_lines(log) if log.exists() else ():
        print(f'[{name}] {line}', file=sys.stderr)


if __name__ == '__main__':
    shell.run(main)
