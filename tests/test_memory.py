"""What cannot fit in the memory of a device is refused before anything is compiled, with what would fit."""
import dataclasses
import re

import jax
import pytest
from sweeps import SETTINGS

from lm import config
from lm.parallel import sharding
from lm.train import step


@pytest.fixture
def mesh():
    return sharding.make_mesh({'data': 1}, jax.devices()[:1])


@pytest.mark.parametrize('accumulate, gib', [(1, '20.0'), (4, '8.0')])
def test_a_batch_beyond_the_memory_is_refused_with_one_that_fits(mesh, monkeypatch, accumulate, gib):
    monkeypatch.setattr(sharding, 'memory', lambda mesh: 2 ** 32)
    rows = 2 ** 25  # of 16 tokens: 8 bytes a token, and of a micro-batch 2 bytes of each of 16 activations
    settings = dataclasses.replace(SETTINGS, accumulate=accumulate, data=dataclasses.replace(SETTINGS.data, batch=rows))
    with pytest.raises(config.Error) as error:
        step.program(settings, mesh)
    assert str(error.value) == (f'a batch of 33,554,432 rows of 16 tokens takes {gib} GiB or more of a device that has '
                                f'4.0; try data.batch={262144 if accumulate == 1 else 1048576}.')
    fits = int(re.search(r'data.batch=(\d+)', str(error.value))[1])
    step.program(dataclasses.replace(settings, data=dataclasses.replace(settings.data, batch=fits)), mesh)


def test_parameters_beyond_the_memory_are_refused(mesh, monkeypatch):
    monkeypatch.setattr(sharding, 'memory', lambda mesh: 2 ** 16)
    with pytest.raises(config.Error, match='parameters and state of the optimizer take 0.0 GiB of'):
        step.program(SETTINGS, mesh)


def test_the_memory_of_this_machine_is_shared_by_its_devices(mesh):
    assert 2 ** 28 < sharding.memory(sharding.make_mesh({'data': 8})) == sharding.memory(mesh) / 8
