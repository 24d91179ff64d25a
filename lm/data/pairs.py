"""Pairs of texts, for models that read one and write the other: two sources side by side, and lines as documents."""
import dataclasses
import itertools

from lm import config
from lm.data import formats
from lm.data.files import Files
from lm.data.sources import Document, Reject, Source


@dataclasses.dataclass(frozen=True)
class Lines(Source):
    """The lines of text files, a document each, in order; `pattern` and `name` as in Files."""

    pattern: str | tuple[str, ...]
    name: str = ''

    @property
    def _files(self):
        return Files(self.pattern, name=self.name)

    @property
    def label(self):
        return self._files.label

    def records(self):
        for file in self._files.files():
            yield from formats.lines(file, self.label)

    def unchecked(self):
        return self._files.unchecked()

    def fingerprint(self):
        return config.fingerprint(['lines', self._files.fingerprint()])


@dataclasses.dataclass(frozen=True)
class Parallel(Source):
    """Pairs: document i of `source`, and of `target`, which answers it, such as its translation.

    Where one of a pair cannot be used, neither is. Raises config.Error where one source has more documents.
    """

    source: Source
    target: Source
    paired = True

    @property
    def label(self):
        return f'{self.source.label}-{self.target.label}'

    def records(self):
        for number, pair in enumerate(itertools.zip_longest(self.source.records(), self.target.records())):
            if None in pair:
                short, long = (self.source, self.target)[::1 if pair[0] is None else -1]
                raise config.Error(f'{short.label} ends after {number} documents and {long.label} goes on; '
                                   'give two sources that have one for one.')
            fault = next((record for record in pair if isinstance(record, Reject)), None)
            if fault is None:
                yield from (Document(record.text, self.label) for record in pair)
            else:
                yield fault

    def unchecked(self):
        return self.source.unchecked() + self.target.unchecked()

    def fingerprint(self):
        return config.fingerprint(['parallel', self.source.fingerprint(), self.target.fingerprint()])
