"""The record of a run: metrics.jsonl, and TensorBoard and the console from the same values."""
import functools
import json
import sys
import time
from pathlib import Path

from lm.config import Error
from lm.records import RECORD, finite


def _one_line(write):
    """Returns a method of a Writer that raises config.Error where the directory takes no more."""
    @functools.wraps(write)
    def told(self, *given):
        try:
            return write(self, *given)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Error(f'cannot write to {self.directory}: {error.strerror}; free some space and run the same line '
                        'again.') from error
    return told


class Writer:
    """Appends records to a directory; on a terminal shows a progress bar over `steps`, elsewhere one line a record."""

    def __init__(self, directory, steps, start=0):
        self.directory = Path(directory)
        self.file = open(self.directory / RECORD, 'a', buffering=1)
        self.board = _tensorboard(self.directory / 'tensorboard', start)
        self.bar = _progress(steps, start) if sys.stdout.isatty() else None
        self.steps, self.start, self.began = steps, start, time.monotonic()

    @_one_line
    def write(self, step, values):
        """Records {name: number} at `step`; a number that is not finite becomes null."""
        values = finite(values)
        self.file.write(json.dumps({'step': step, **values}) + '\n')
        if self.board:
            for name, value in values.items():
                if value is not None:
                    self.board.add_scalar(name, value, step)
        self._say(step, '  '.join(f'{name} {_short(value)}' for name, value in values.items()))

    def _say(self, step, text):
        if self.bar:
            self.bar.print(f'step {step}  {text}') if 'valid/' in text else self.bar.update(0, said=text)
        else:
            left = (time.monotonic() - self.began) / max(step - self.start, 1) * (self.steps - step)
            print(f'step {step}/{self.steps}  {text}  eta {clock(left)}', flush=True)

    def tell(self, text):
        """Prints a line, above the progress bar where there is one."""
        if self.bar:
            self.bar.print(text)
        else:
            print(text, flush=True)

    def advance(self, step):
        """Moves the progress bar to `step`."""
        if self.bar:
            self.bar.update(0, completed=step)

    @_one_line
    def close(self):
        """Closes the files and the progress bar."""
        self.file.close()
        if self.board:
            self.board.close()
        if self.bar:
            self.bar.stop()


class NullWriter:
    """No-op Writer for the processes that are not the first."""

    def write(self, step, values):
        """Writes nothing."""

    def tell(self, text):
        """Prints nothing."""

    def advance(self, step):
        """Moves nothing."""

    def close(self):
        """Closes nothing."""


def _tensorboard(directory, start):
    """Returns a TensorBoard writer, or None where tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        print(f'tensorboardX is not installed: {RECORD} is written, TensorBoard files are not.', file=sys.stderr)
        return None
    return Board(directory, start)


class Board:
    """Writes TensorBoard's events at once: tensorboardX's own writer has a thread, and waits for it forever after the
    disk was full for a moment.
    """

    def __init__(self, directory, start):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
        directory.mkdir(exist_ok=True)
        self.event, self.scalar = event_pb2.Event, summary.scalar
        self.writer = event_file_writer.EventsWriter(str(directory / 'events'))
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.add(step=start + 1, session_log=began)  # what an earlier start wrote after it counts no more

    def add(self, **event):
        """Writes an event."""
        self.writer.write_event(self.event(wall_time=time.time(), **event))
        self.writer.flush()

    def add_scalar(self, name, value, step):
        """Writes a number."""
        self.add(step=step, summary=self.scalar(name, value))

    def close(self):
        """Closes the file."""
        self.writer.close()


def _progress(steps, start):
    from rich import progress
    bar = progress.Progress(progress.TextColumn('{task.completed}/{task.total}'), progress.BarColumn(24),
                            progress.TimeElapsedColumn(), progress.TextColumn('eta'), progress.TimeRemainingColumn(),
                            progress.TextColumn('{task.fields[said]}'))
    bar.print = bar.console.print
    bar.add_task('', total=steps, completed=start, said='')
    bar.start()
    return bar


def _short(value):
    if value is None:
        return 'not finite'
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def clock(seconds):
    """Returns seconds as hours:minutes:seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
