"""Documents of TensorFlow Datasets, read without TensorFlow."""

import dataclasses
import pathlib
import re

from lm import config
from lm.config import paths
from lm.config.files import require
from lm.data.sources import Source, examine

_ROWS = 1024


def _check_names(name, directory):
    """Raises config.Error where TFDS would import what is not its own: a namespace, or classes that a folder names."""
    _, colon, version = name.partition(':')
    if colon and not re.match(r'[0-9*]', version):
        raise config.Error(f'{name} is of a namespace, whose code TFDS would fetch; give the name of a set of TFDS.')
    for path in sorted(pathlib.Path(directory).rglob('features.json')) if directory else ():
        for module in re.findall(r'"pythonClassName":\s*"([^"]*)"', path.read_text(errors='replace')):
            if not module.startswith('tensorflow_datasets.'):
                raise config.Error(f'{path} names the class {module}, which is code outside TFDS; prepare the data set '
                                   'with features of TFDS.')


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """The text at `field` of a TFDS data set's `split` ('train', 'test[:10%]'), prepared where it is missing.

    It must be stored as array_record: TFDS reads no other format in full without TensorFlow. `data_dir` is the
    directory that holds it (a relative one is under $LM_DATA), by default TFDS's own, ~/tensorflow_datasets.
    """
    name: str
    split: str
    field: str = 'text'
    data_dir: str | None = None

    @property
    def label(self):
        return self.name.split(':')[0].split('/')[0]

    def records(self):
        builder = self._builder()
        rows = builder.as_data_source(self.split)
        expected = builder.info.splits[self.split].num_examples
        if len(rows) != expected:
            raise config.Error(f'{builder.info.full_name} holds {expected} documents in {self.split}, of which '
                               f'{len(rows)} can be read from {builder.data_path}; prepare it again as array_record.')
        for start in range(0, len(rows), _ROWS):
            numbers = range(start, min(start + _ROWS, len(rows)))
            for number, row in zip(numbers, rows.__getitems__(numbers)):
                yield examine(row[self.field], self.label, f'{self.name}/{self.split}:{number + 1}')

    def fingerprint(self):
        builder = self._builder()
        stored = [[name, list(split.shard_lengths), split.num_bytes] for name, split in builder.info.splits.items()]
        return config.fingerprint(['tfds', builder.info.full_name, self.split, self.field, stored])

    def _builder(self):
        require('importlib_resources', f'data set {self.name}', 'importlib_resources')
        tfds = require('tensorflow_datasets', f'data set {self.name}', 'tensorflow-datasets')
        directory = paths.locate(self.data_dir) if self.data_dir else None
        _check_names(self.name, directory)
        try:
            builder = tfds.builder(self.name, data_dir=directory, file_format='array_record')
        except ValueError as error:
            raise config.Error(self._explain(error)) from error
        if not builder.is_prepared():
            _prepare(builder)
        if self.field not in builder.info.features:
            raise config.Error(f'{self.name} has no feature {self.field!r}; '
                               f'choose field= from {", ".join(builder.info.features)}.')
        try:
            builder.info.splits[self.split]
        except (ValueError, KeyError) as error:
            splits = ', '.join(builder.info.splits)
            raise config.Error(f'{self.name} has no split {self.split!r}; '
                               f'choose from {splits}, or a part such as train[:10%].') from error
        return builder

    def _explain(self, error):
        lines = [line.strip() for line in str(error).split('\n') if line.strip()]
        if 'File format is already set' in str(error):
            return (f'{self.name} was prepared in a format that cannot be read in full without TensorFlow; '
                    'prepare it with file_format=array_record in another directory and set data_dir to that.')
        hints = [line for line in lines if '->' in line]
        return f'no data set {self.name!r}: {hints[0] if hints else lines[0]}; see tfds.list_builders().'


def _prepare(builder):
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise config.Error(f'{builder.info.full_name} is not under {builder.data_path} and could not be prepared '
                           f'({type(error).__name__}: {reason}); prepare it as array_record elsewhere and set '
                           'data_dir to its directory.') from error
