"""Checkpoints: saved and restored with their checksums; damage, removal and unreadable files are told, none is lost."""
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.train import checkpoint

STATE = {'params': {'query': jnp.arange(6.0).reshape(2, 3), 'out': jax.random.normal(jax.random.key(0), (40, 40))},
         'step': jnp.int32(3)}
META = {'offset': 0, 'losses': [1.5, 2.0]}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


@pytest.fixture
def store(tmp_path):
    store = checkpoint.Store(tmp_path / 'checkpoints')
    store.save(3, STATE, META)
    yield store
    store.close()


@pytest.fixture
def directory(tmp_path):
    """Two saved steps, 3 and 4, that no process has open."""
    store = checkpoint.Store(tmp_path / 'checkpoints')
    for step in (3, 4):
        store.save(step, STATE, META)
    store.close()
    return store.directory


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(checkpoint, 'SETTLE', 0.1)


def parts(folder):
    return sorted(path for path in folder.rglob('*') if path.is_file())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in parts(folder)}


def data_file(folder):
    """Returns the file that holds the largest array."""
    return max(parts(folder), key=lambda path: path.stat().st_size)


def test_what_is_being_saved_is_restored(store):
    state, meta = store.restore(ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    assert meta == META
    part, _ = checkpoint.restore(store.directory, {'params': {'out': ABSTRACT['params']['out']}})
    np.testing.assert_array_equal(part['params']['out'], STATE['params']['out'])


def test_a_step_that_is_not_there_is_refused(store):
    store.wait()
    with pytest.raises(config.Error, match=r'checkpoint 5 .*: it is not there; the steps there are \[3\]'):
        checkpoint.restore(store.directory, ABSTRACT, 5)
    assert checkpoint.restore(store.directory.parent / 'none', ABSTRACT) is None


def test_no_flipped_bit_is_restored_as_other_values(directory):
    dice = random.Random(0)
    for path in parts(directory / '4'):
        content = bytearray(path.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        kept = path.read_bytes()
        path.write_bytes(content)
        try:
            state, meta = checkpoint.restore(directory, ABSTRACT)
        except config.Error as refusal:
            assert 'checkpoint 4 in' in str(refusal) and str(refusal).endswith('the steps there are [3, 4], try 3.')
        else:
            jax.tree.map(np.testing.assert_array_equal, state, STATE)
            assert meta == META
        path.write_bytes(kept)


def test_values_that_are_read_and_wrong_are_known_by_their_checksum(directory):
    path = data_file(directory / '4')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(config.Error, match='params/out is not what was saved, by its checksum'):
        checkpoint.restore(directory, ABSTRACT)


def test_only_a_run_puts_a_damaged_checkpoint_aside_and_says_so_once(directory, capfd, caplog):
    data_file(directory / '4').unlink()
    before = contents(directory)
    with pytest.raises(config.Error, match='checkpoint 4 .* cannot be read'):
        checkpoint.restore(directory, ABSTRACT)
    assert contents(directory) == before and not (directory.parent / 'unreadable').exists()
    store = checkpoint.Store(directory)
    state, _ = store.restore(ABSTRACT)
    store.close()
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    assert checkpoint.steps(directory) == [3] and checkpoint.steps(directory.parent / 'unreadable') == [4]
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f'lm: checkpoint 4 in {directory} cannot be read (') and not caplog.text
    assert line.endswith(f'); it is moved to {directory.parent}/unreadable/4, and the run goes on from '
                         'step 3.')


@pytest.mark.parametrize('name, damage, fault', [
    ('state/manifest.ocdbt', None, 'FILE is missing'), ('meta/metadata', b'', 'FILE is no JSON (Expecting value'),
    ('state/manifest.ocdbt', b'', 'FILE: Error decoding manifest: '), ('state/d/*', None, 'FILE is missing'),
    ('state/d/*', b'', 'FILE: Requested byte range'), ('state/_METADATA', b'{', 'FILE is no JSON (')])
def test_a_damaged_file_is_named_with_what_is_wrong(directory, name, damage, fault):
    path = max((directory / '4').glob(name))
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(config.Error) as error:
        checkpoint.restore(directory, ABSTRACT)
    message = f'checkpoint 4 in {directory} cannot be read: {fault}'.replace('FILE', str(path))
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 600 and str(error.value).endswith('; the steps there are [3, 4], try 3.')


def test_what_cannot_be_read_for_the_moment_is_no_damage(directory, monkeypatch):
    path = data_file(directory / '4')
    path.rename(path.with_suffix('.kept'))
    path.symlink_to(path)
    monkeypatch.setattr(type(path), 'is_file', lambda self: self.suffix != '.kept' and not os.path.isdir(self))
    store = checkpoint.Store(directory)
    with pytest.raises(config.Error, match='Too many levels of symbolic links; the steps there are'):
        store.restore(ABSTRACT)
    store.close()
    assert checkpoint.steps(directory) == [3, 4]


def test_a_reader_takes_the_next_where_its_run_deletes_the_one_it_reads(directory, monkeypatch):
    read = checkpoint._read

    def deleted_meanwhile(folder, abstract):
        if folder.name == '4':
            shutil.copytree(directory / '3', directory / '5')
            shutil.rmtree(folder)
        return read(folder, abstract)
    monkeypatch.setattr(checkpoint, '_read', deleted_meanwhile)
    assert checkpoint.restore(directory, ABSTRACT)[1] == META
    assert checkpoint.steps(directory) == [3, 5]


def test_nothing_is_deleted_before_the_first_save_is_read_back(tmp_path):
    store = checkpoint.Store(tmp_path / 'checkpoints', keep=1)
    for step in (3, 4):
        store.save(step, STATE, META)
    data_file(store.directory / '3').write_bytes(b'')
    store.wait()
    with pytest.raises(config.Error, match='checkpoint 3 .* just saved, cannot be read: .*; nothing older was deleted'):
        store.save(5, STATE, META)
    assert store.steps() == [3, 4]


def test_arrays_of_the_host_are_saved_and_read_back_as_those_of_devices_are(tmp_path):
    store = checkpoint.Store(tmp_path / 'checkpoints', keep=1)
    for step in (3, 4, 5):
        store.save(step, jax.device_get(STATE), META)
    jax.tree.map(np.testing.assert_array_equal, store.restore(ABSTRACT)[0], STATE)
    store.close()
    assert store.proved and store.steps() == [4, 5]


def test_a_checkpoint_removed_under_a_run_is_told_at_the_next_save(store):
    store.wait()
    shutil.rmtree(store.directory / '3')
    with pytest.raises(config.Error, match='checkpoint 3 was removed from .* while the run trained'):
        store.save(4, STATE, META)


@pytest.mark.parametrize('damage', [lambda path: path.write_text('"text"'), lambda path: path.write_text('[' * 100_000),
                                    lambda path: (path.unlink(), os.mkfifo(path))])
def test_what_orbax_notes_of_a_step_may_be_damaged(tmp_path, damage, capfd):
    store = checkpoint.Store(tmp_path / 'all')
    for step in (3, 5):
        store.save(step, STATE, META)
    store.close()
    damage(tmp_path / 'all' / '3' / '_CHECKPOINT_METADATA')
    store = checkpoint.Store(tmp_path / 'all')
    assert store.steps() == [3, 5] and store.restore(ABSTRACT)[1] == META
    (tmp_path / 'all' / '5' / 'meta' / 'metadata').write_text('{"a": 1}')
    assert store.restore(ABSTRACT)[1] == META and store.steps() == [3]
    store.save(5, STATE, META)
    store.close()
    assert checkpoint.steps(tmp_path / 'all') == [3, 5] and 'Metadata file' not in capfd.readouterr().err


def test_nothing_is_waited_for_that_is_no_file(tmp_path, directory):
    for path in (directory / '4' / 'state' / 'd').iterdir():
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(config.Error, match='checkpoint 4 in .* cannot be read: .* is no file; the steps there are '):
        checkpoint.restore(directory, ABSTRACT)
    store = checkpoint.Store(directory)
    assert store.restore(ABSTRACT)[1] == META and store.steps() == [3]
    store.close()
