"""The record of a run, metrics.jsonl and TensorBoard, and the line of `lm train` from the same values."""
import errno
import functools
import json
import os
import sys
import time
from pathlib import Path

from lm.config import Error, files, first_line
from lm.pages.text import clock, short
from lm.records import COMPARED, RECORD, finite

# What a training line shows first, in this order, and how each value is written.
FIELDS = {
    'loss': lambda value: f'loss {value:.4f}',
    'tokens_per_second': lambda value: f'{short(value)} tok/s',
    'rate': lambda value: f'lr {value:.1e}',
    'grad_norm': lambda value: f'|g| {value:#.3g}'.rstrip('.'),
}
KEPT_FIRST = ('step', 'loss', 'skipped', 'eta', 'tokens_per_second', 'rate', 'grad_norm', 'elapsed')  # on few columns
# On record only; `bad` and `offset` have words of their own.
HIDDEN = ('bad', 'offset', 'weight', 'valid/tokens', COMPARED)
BAR = 24  # columns of the progress bar at most; a quarter of that at least


def _raises_config_error(write):
    """Wraps a method of Writer: a disk that is full or read-only becomes a config.Error."""
    @functools.wraps(write)
    def wrapped(self, *args):
        try:
            return write(self, *args)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Error(f'cannot write to {self.directory}: {error.strerror}; free some space and run the same '
                        'command again.') from error
    return wrapped


class Writer:
    """Appends records to a directory; shows a live line with a progress bar on a terminal, else prints one a record."""

    def __init__(self, directory, steps, start=0):
        self.directory = Path(directory)
        self.board, self.line, self.live = None, Line(steps, start), None
        self._open()
        self._add(lambda: _tensorboard(self.directory / 'tensorboard', start))
        if sys.stdout.isatty():
            self.live = _live(self.line)

    @_raises_config_error
    def _open(self):
        self.file = open(self.directory / RECORD, 'ab', buffering=0, opener=files.unblocked)

    @_raises_config_error
    def write(self, step, values):
        """Records {name: number} at `step`; a number that is not finite becomes null."""
        values = finite(values)
        line = files.sealed(json.dumps({'step': step, **values})).encode() + b'\n'
        if self.file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._add(lambda: self.board and self.board.add_scalars(step, values))
        if 'loss' not in values:
            if fields := other_fields(values):
                self.tell('  '.join([self.line.position(step), *fields.values()]))
            return
        self.line.update(step, values)
        if not self.live:
            self.tell('  '.join(self.line.fields().values()))
        elif step == self.line.steps:
            self.live.stop()  # draws the last line; while it is live, rich would break the sample that follows

    def tell(self, text):
        """Prints a line, above the live one on a terminal."""
        if self.live and self.live.is_started:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def advance(self, step):
        """Tells the live line that `step` is done."""
        self.line.advance(step)

    @_raises_config_error
    def close(self):
        """Closes the files and ends the live line."""
        self.file.close()
        self._add(lambda: self.board and self.board.close())
        if self.live:
            self.live.stop()

    def _add(self, write):
        """Sets the board to what write() returns, to None with a warning where it fails: it decides over no run."""
        try:
            self.board = write()
        except Exception as error:  # tensorboardX and protobuf raise many kinds
            self.board = None
            files.warn(f'{self.directory / "tensorboard"}: {first_line(error)}; TensorBoard files end here, {RECORD} '
                       'goes on.')


class Line:
    """The line that shows how training goes: position, newest metrics and the time left."""

    def __init__(self, steps, start):
        self.steps, self.step, self.values = steps, start, {}
        self.begun = self.first = start, time.monotonic()

    def advance(self, step):
        """Takes the number of a step that is done."""
        if self.first is self.begun:
            self.first = step, time.monotonic()  # what comes before it is mostly compiling, which the ETA leaves out
        self.step = step

    def update(self, step, values):
        """Takes the metrics of a step."""
        self.step, self.values = step, values

    def position(self, step):
        """Returns a step of how many, as text."""
        return f'step {step:,}/{self.steps:,}'

    def eta(self):
        """Returns the time left at the mean pace until now as text."""
        step, since = self.first if self.step > self.first[0] else self.begun
        if self.step == step:
            return 'eta -:--:--'
        return f'eta {clock((time.monotonic() - since) / (self.step - step) * (self.steps - self.step))}'

    def fields(self):
        """Returns {name: text} of the whole line."""
        known = {name: write(self.values[name]) if self.values[name] is not None else f'{name} not finite'
                 for name, write in FIELDS.items() if name in self.values}
        return {'step': self.position(self.step), **known, 'eta': self.eta(), **other_fields(self.values)}

    def fitted(self, width):
        """Returns the line in at most `width` columns, of whole fields, and how many columns the bar has, 0 for none.
        """
        elapsed = {'elapsed': f'elapsed {clock(time.monotonic() - self.begun[1])}'}
        fields, kept = self.fields() | elapsed, {}
        for name in sorted(fields, key=lambda name: [*KEPT_FIRST, name].index(name)):
            if len('  '.join([*kept.values(), fields[name]])) > width:
                break
            kept[name] = fields[name]
        text = '  '.join(kept[name] for name in fields if name in kept)
        columns = min(width - len(text) - 2, BAR)
        return text, columns if columns >= BAR // 4 else 0

    def __rich_console__(self, console, options):
        from rich.text import Text
        text, columns = self.fitted(options.max_width)
        done, mark = round(columns * self.step / self.steps), '-' if options.ascii_only else '━'
        bar = [('  ' + mark * done, 'green'), (mark * (columns - done), 'bright_black')] if columns else []
        yield Text.assemble(text, *bar, no_wrap=True, overflow='crop', end='')


def other_fields(values):
    """Returns {name: text} of the metrics that FIELDS lacks; scores on held-out text are without the word valid/."""
    skipped = {'skipped': f'skipped {values["bad"]:,}'} if values.get('bad') else {}
    shifted = {'offset': f'data moved on by {values["offset"]:,} batches'} if values.get('offset') else {}
    scores = {'valid': 'validation'} if any(name.startswith('valid/') for name in values) else {}
    return skipped | shifted | scores | {name: f'{name.removeprefix("valid/")} {_number(name, value)}'
                                         for name, value in values.items() if name not in {*FIELDS, *HIDDEN}}


def _number(name, value):
    if value is None:
        return 'not finite'
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:.4f}' if 'loss' in name else f'{value:.4g}'


def _live(line):
    from rich.live import Live
    live = Live(line, refresh_per_second=2)
    live.start()
    return live


class NullWriter:
    """No-op writer for non-primary processes."""

    def write(self, step, values):
        """Does nothing."""

    def tell(self, text):
        """Does nothing."""

    def advance(self, step):
        """Does nothing."""

    def close(self):
        """Does nothing."""


def _tensorboard(directory, start):
    """Returns a Board, or None where tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        print(f'tensorboardX is not installed: {RECORD} is written, TensorBoard files are not.', file=sys.stderr)
        return None
    return Board(directory, start)


class Board:
    """Writes TensorBoard events synchronously.

    tensorboardX's own writer has a thread, and its close() blocks forever once the disk was full for a moment.
    """

    def __init__(self, directory, start):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
        directory.mkdir(exist_ok=True)
        self.event, self.scalar = event_pb2.Event, summary.scalar
        self.writer = event_file_writer.EventsWriter(str(directory / 'events'))
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.add(step=start + 1, session_log=began)  # TensorBoard drops what an earlier start wrote after this step

    def add(self, **event):
        """Writes an event."""
        self.writer.write_event(self.event(wall_time=time.time(), **event))
        self.writer.flush()

    def add_scalars(self, step, values):
        """Writes {name: number} but for None, and returns the board."""
        for name, value in values.items():
            if value is not None:
                self.add(step=step, summary=self.scalar(name, value))
        return self

    def close(self):
        """Closes the file."""
        self.writer.close()
