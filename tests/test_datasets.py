"""TFDS without TensorFlow: a data set prepared here is read in full."""

import pytest

from lm import config, data


def texts(source):
    return [document.text for document in source.documents()]


def rejects(source):
    found = [record for record in source.records() if isinstance(record, data.Reject)]
    return [(reject.reason, reject.place.rpartition('/')[2]) for reject in found]


@pytest.fixture(scope='module')
def builder():
    pytest.importorskip('importlib_resources')
    tfds = pytest.importorskip('tensorflow_datasets')

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'title': tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {'train': self._generate_examples(1000), 'test': self._generate_examples(3)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {'text': f'Text {number} über alles', 'title': '' if number else 'first'}

    return TinyText


def test_tfds_reads_a_prepared_data_set_in_full(builder, tmp_path):
    builder(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
    source = data.Tfds('tiny_text', 'train', data_dir=str(tmp_path))
    assert sorted(texts(source)) == sorted(f'Text {number} über alles' for number in range(1000))
    assert texts(source) == texts(source) and source.label == 'tiny_text'
    assert len(texts(data.Tfds('tiny_text', 'train[:10%]', data_dir=str(tmp_path)))) == 100
    titles = data.Tfds('tiny_text', 'test', field='title', data_dir=str(tmp_path))
    assert texts(titles) == ['first'] and [reason for reason, _ in rejects(titles)] == ['empty document'] * 2
    assert source.fingerprint() != data.Tfds('tiny_text', 'test', data_dir=str(tmp_path)).fingerprint()


def test_tfds_prepares_what_is_missing(builder, tmp_path):
    assert len(texts(data.Tfds('tiny_text', 'test', data_dir=str(tmp_path)))) == 3


def test_tfds_faults_are_one_line(builder, tmp_path):
    builder(data_dir=str(tmp_path / 'a'), file_format='array_record').download_and_prepare()
    builder(data_dir=str(tmp_path / 'p'), file_format='parquet').download_and_prepare()
    cases = [(data.Tfds('tiny_text', 'train', field='body', data_dir=str(tmp_path / 'a')), "no feature 'body'"),
             (data.Tfds('tiny_text', 'dev', data_dir=str(tmp_path / 'a')), "no split 'dev'"),
             (data.Tfds('tiny_txt', 'train', data_dir=str(tmp_path / 'a')), "no data set 'tiny_txt'"),
             (data.Tfds('tiny_text', 'train', data_dir=str(tmp_path / 'p')), 'array_record')]
    for source, message in cases:
        with pytest.raises(config.Error, match=message) as error:
            texts(source)
        assert '\n' not in str(error.value)
