"""The record of a run and the line of `lm train`: as text, and live on terminals of 80 and of 120 columns."""
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import damage
import pytest

from lm import config, records
from lm.train import metrics

VALUES = {'bad': 0, 'grad_norm': 0.41, 'loss': 1.8342, 'weight': 1024.0, 'rate': 3e-4, 'tokens_per_second': 52310.4}
TIME = r'\d+:\d\d:\d\d'


def printed(capsys, directory, values, step=1200, steps=5000):
    """Returns the line that a Writer prints for a record where standard output is no terminal."""
    writer = metrics.Writer(directory, steps)
    writer.write(step, values)
    writer.close()
    return capsys.readouterr().out


def test_a_line_says_first_what_is_looked_for_first(tmp_path, capsys):
    assert re.fullmatch(rf'step 1,200/5,000  loss 1\.8342  52\.3k tok/s  lr 3\.0e-04  \|g\| 0\.410  eta {TIME}\n',
                        printed(capsys, tmp_path, VALUES))
    assert records.read(tmp_path) == [{'step': 1200, **VALUES}]


def test_skipped_updates_and_other_metrics_come_after(tmp_path, capsys):
    line = printed(capsys, tmp_path, {**VALUES, 'bad': 3, 'loss': float('nan'), 'load': 1.25, 'noise_scale': 54321.0})
    assert re.fullmatch(rf'step 1,200/5,000  loss not finite  52\.3k .* eta {TIME}  skipped 3  load 1\.25  '
                        r'noise_scale 5\.432e\+04\n', line)
    assert json.loads((tmp_path / 'metrics.jsonl').read_text())['loss'] is None


def test_scores_are_a_line_of_their_own(tmp_path, capsys):
    scores = {'valid/loss': 1.9, 'valid/perplexity': 6.686, 'valid/bits_per_byte': 1.37, 'valid/tokens': 56000}
    assert printed(capsys, tmp_path, scores) == \
        'step 1,200/5,000  validation  loss 1.9000  perplexity 6.686  bits_per_byte 1.37\n'


@pytest.mark.parametrize('offset, shown', [(0, ''), (7, 'step 1,200/5,000  data moved on by 7 batches\n')])
def test_an_offset_is_a_line_where_it_is_one(tmp_path, capsys, offset, shown):
    assert printed(capsys, tmp_path, {'offset': offset}) == shown


def test_the_time_left_is_by_the_pace_after_the_first_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    line = metrics.Line(steps=11, start=0)
    assert line.eta() == 'eta -:--:--'
    now[0] = 160.0  # a minute of compiling
    line.advance(1)
    assert line.eta() == 'eta 0:10:00', 'nothing better is known yet'
    now[0] = 164.0
    line.advance(3)
    assert line.eta() == 'eta 0:00:16'


WHOLE = ('step 999/1,000,000', 'loss 1.8342', '52.3k tok/s', 'lr 3.0e-04', '|g| 0.410', 'eta 0:00:00',
         'noise_scale 5.432e+04', 'elapsed 0:00:00')


@pytest.mark.parametrize('width, lacking, bar', [
    (200, (), 24), (120, (), 0), (119, ('noise_scale',), 20), (97, ('noise_scale',), 0),
    (96, ('noise_scale', 'elapsed'), 14), (80, ('noise_scale', 'elapsed'), 0),
    (79, ('noise_scale', 'elapsed', '|g|'), 8), (57, ('noise_scale', 'elapsed', '|g|', 'lr'), 0),
    (43, ('noise_scale', 'elapsed', '|g|', 'lr', 'tok/s', 'eta'), 10)])
def test_whole_fields_give_way_on_few_columns(monkeypatch, width, lacking, bar):
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: 5.0)
    line = metrics.Line(steps=1_000_000, start=0)
    line.update(999, {**VALUES, 'noise_scale': 54321.0})
    kept = [field for field in WHOLE if not any(word in field for word in lacking)]
    assert line.fitted(width) == ('  '.join(kept), bar)


DRIVEN = f'''
import sys
from lm.train import metrics
writer = metrics.Writer(sys.argv[1], 5000)
for step in (1, 600, 1200):
    writer.advance(step)
    writer.write(step, {VALUES} | {{'loss': 4.0 - step / 600, 'noise_scale': 54321.0}})
    writer.live.refresh()
writer.write(1200, {{'valid/loss': 1.9, 'valid/perplexity': 6.686}})
writer.tell('a [bold] line of a model: ' + 150 * 'x')
writer.write(5000, {VALUES})
print('the sample')
writer.close()
'''


def on_terminal(columns, *command):
    """Returns what a command writes to a terminal of so many columns, 24 lines high."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    about = {name: value for name, value in os.environ.items() if name not in ('COLUMNS', 'LINES', 'NO_COLOR')}
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
                          env={**about, 'TERM': 'xterm-256color', 'PYTHONIOENCODING': 'utf-8'}) as process:
        os.close(terminal)
        parts = []
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # Linux: every writer has closed the terminal
                break
            parts.append(part)
        assert process.wait() == 0, process.stderr.read().decode()
    os.close(main)
    return b''.join(parts).decode()


@pytest.mark.parametrize('columns', [80, 120])
def test_a_live_line_is_whole_on_a_terminal(tmp_path, columns):
    text = on_terminal(columns, sys.executable, '-c', DRIVEN, str(tmp_path))
    lines = [re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', line).rstrip() for line in re.split(r'[\r\n]+', text)]
    live = [line for line in lines if re.match(r'step .* tok/s', line)]
    assert {line.partition('  ')[0] for line in live} >= {'step 600/5,000', 'step 1,200/5,000', 'step 5,000/5,000'}
    for line in live:
        assert len(line) <= columns
        fields = r'  loss \d\.\d{4}  52\.3k tok/s  lr 3\.0e-04  \|g\| 0\.410  eta (\d+:\d\d:\d\d|-:--:--)'
        more = r'(  noise_scale 5\.432e\+04)?  elapsed \d+:\d\d:\d\d(  ━+)?' if columns == 120 else '(  ━+)?'
        assert re.fullmatch(rf'step [\d,]+/5,000{fields}{more}', line), line
    assert any('noise_scale' in line for line in live) == (columns == 120)
    assert 'step 1,200/5,000  validation  loss 1.9000  perplexity 6.686' in lines
    assert f'a [bold] line of a model: {150 * "x"}' in ''.join(lines)
    assert lines.index('the sample') > lines.index(live[-1]), 'nothing is drawn over what follows training'
    assert not [line for line in lines[lines.index('the sample'):] if 'tok/s' in line]
    assert '…' not in text


class Board:
    """A TensorBoard writer whose disk is full from a number of writes on."""

    def __init__(self, writes):
        self.writes = writes

    def add_scalars(self, step, values):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(28, 'No space left on device')
        return self

    def close(self):
        self.add_scalars(0, {})


@pytest.mark.parametrize('writes', [0, 1, 2])
def test_tensorboard_decides_over_no_run(tmp_path, monkeypatch, capsys, writes):
    monkeypatch.setattr(metrics, '_tensorboard', lambda directory, start: Board(writes))
    writer = metrics.Writer(tmp_path, 5)
    writer.write(1, {'loss': 3.0})
    writer.write(2, {'loss': 2.0})
    writer.close()
    assert records.read(tmp_path) == [{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 2.0}]
    assert capsys.readouterr().err == (f'lm: {tmp_path}/tensorboard: [Errno 28] No space left on device; TensorBoard '
                                       'files end here, metrics.jsonl goes on.\n')


def test_tensorboard_that_cannot_begin_decides_over_no_run(tmp_path, capsys):
    (tmp_path / 'tensorboard').write_text('')
    assert printed(capsys, tmp_path, VALUES).startswith('step 1,200/5,000')
    assert len(records.read(tmp_path)) == 1


@pytest.mark.parametrize('obstacle', [damage.directory, damage.fifo, damage.loop])
def test_a_record_that_cannot_be_written_is_one_line(tmp_path, obstacle):
    obstacle(tmp_path / 'metrics.jsonl')
    with pytest.raises(config.Error, match=f'cannot write to {tmp_path}: .*; free some space'):
        metrics.Writer(tmp_path, 5)


def test_a_disk_that_fills_up_is_one_line_and_the_record_stays_readable(tmp_path):
    """A limit on the size of files stands for the full disk: the third line does not fit."""
    code = ('import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
            'from lm.train import metrics; metrics._tensorboard = lambda *_: None; from lm import config\n'
            'writer = metrics.Writer(sys.argv[1], 5)\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (110, 110))\n'
            'try:\n    for step in range(1, 6): writer.write(step, {"loss": 2.5})\n'
            'except config.Error as error: print(error)\n'
            'writer.close()')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f'cannot write to {tmp_path}: ' in done.stdout.splitlines()[-1] and not done.stderr
    assert records.intact(tmp_path) == [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': 2.5}]
    assert (tmp_path / 'metrics.jsonl').stat().st_size == 110
