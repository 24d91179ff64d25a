"""Chips by the names that JAX and users give them, and the slices they come in."""
import pytest

from lm import backend, config, hardware


@pytest.mark.parametrize('kind, name', [
    ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v6 lite', 'v6e'), ('TPU7x', 'v7x'), ('TPU v4', 'v4'),
    ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA A100-SXM4-80GB', 'a100'), ('NVIDIA A100-SXM4-40GB', 'a100-40g'),
    ('NVIDIA L4', 'l4'),
])
def test_a_device_kind_names_its_chip(kind, name):
    assert hardware.find(kind).name == name


@pytest.mark.parametrize('kind', ['cpu', 'NVIDIA L40S'])
def test_other_devices_are_no_chip(kind):
    assert hardware.find(kind) is None


@pytest.mark.parametrize('name, shape, count, devices', [
    ('v5e-256', (16, 16), 1, 256), ('v5e-8', (2, 4), 1, 8), ('v6e-1', (1, 1), 1, 1), ('v6e-128', (8, 16), 1, 128),
    ('v5p-512', (4, 8, 8), 1, 256), ('v5p-8', (2, 2, 1), 1, 4), ('v5p-64', (2, 4, 4), 1, 32),
    ('v4-16', (2, 2, 2), 1, 8), ('v7x-8', (2, 2, 1), 1, 8), ('v5p:4x4x12', (4, 4, 12), 1, 192),
    ('2xv5e-256', (16, 16), 2, 512), ('8xh100', (8,), 1, 8), ('h100', (1,), 1, 1), ('16xH200', (8,), 2, 16),
    ('8xa100-40g', (8,), 1, 8),
])
def test_a_name_is_a_cluster(name, shape, count, devices):
    found = hardware.cluster(name)
    assert (found.shape, found.count, found.devices) == (shape, count, devices)


@pytest.mark.parametrize('name, remedy', [
    ('v5x-256', 'v5e'), ('h10', 'h100'), ('v5e-100', 'v5e-128'), ('v5e-512', '2xv5e-256'), ('12xh100', '16xh100'),
    ('v5p:4x4', 'v5p:4x4x4'), ('v5e', 'v5e-1'), ('', 'as in v5e-256'), ('v5p-16384', '2xv5p-8192'),
    ('v5p-384', 'cores, two a chip.*v5p:4x4x12'),
])
def test_a_wrong_name_is_answered_with_one_that_works(name, remedy):
    with pytest.raises(config.Error, match=remedy):
        hardware.cluster(name)


@pytest.mark.parametrize('kind, devices, shape', [
    ('TPU v5 lite', 256, (16, 16)), ('TPU v5', 256, (4, 8, 8)), ('TPU7x', 8, (2, 2, 1)), ('TPU v6 lite', 3, (3, 1)),
    ('NVIDIA H200', 4, (4,)), ('NVIDIA H200', 16, (8,))])
def test_devices_at_hand_make_the_slice_they_are_sold_as(kind, devices, shape):
    assert hardware.here(kind, devices).shape == shape


@pytest.mark.parametrize('chip', hardware.CHIPS.values(), ids=lambda chip: chip.name)
def test_numbers_are_of_the_right_size(chip):
    assert 7e13 <= chip.flops['bfloat16'] <= 3e15 and chip.flops['float32'] <= chip.flops['bfloat16']
    assert 10e9 < chip.memory < 200e9 and 1e11 < chip.bandwidth < 1e13
    assert chip.network < chip.link * max(1, 2 * chip.torus) < chip.bandwidth


def test_what_the_user_set_stays():
    given = {'XLA_FLAGS': '--xla_cpu_prefer_vector_width=256', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.5',
             'LIBTPU_INIT_ARGS': '--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=64 --xla_tpu_other=1'}
    environ = dict(given)
    backend.tune(environ)
    assert environ == given


def test_a_file_of_flags_stays_a_file():
    environ = {'XLA_FLAGS': 'flags.txt'}
    backend.tune(environ)
    assert environ['XLA_FLAGS'] == 'flags.txt'


@pytest.mark.parametrize('limit', [-1, 2 ** 31])
def test_address_space_that_is_enough(limit):
    backend.check_limits(limit)


def test_address_space_that_is_too_little():
    with pytest.raises(config.Error, match='^ulimit -v 1171875 is too little address space for XLA; try'):
        backend.check_limits(1_200_000_000)


def test_what_the_user_set_is_added_to():
    environ = {'LIBTPU_INIT_ARGS': '--xla_tpu_other=1'}
    backend.tune(environ)
    assert environ['LIBTPU_INIT_ARGS'].startswith('--xla_tpu_other=1 --xla_tpu_relayout_group')


@pytest.mark.parametrize('name, rate, value', [
    ('v6e', 'host', 32e9), ('v5e', 'host', 16e9), ('a100', 'network', 400e9 / 8 / 8), ('a100-40g', 'network', 6.25e9),
    ('h100', 'network', 3200e9 / 8 / 8), ('v5e', 'network', 2 * 100e9 / 8 / 8), ('v6e', 'network', 4 * 200e9 / 8 / 8),
    ('v4', 'bandwidth', 1200e9), ('l4', 'network', 100e9 / 8 / 8),
])
def test_rates_are_those_of_the_data_sheets(name, rate, value):
    assert getattr(hardware.CHIPS[name], rate) == value


@pytest.mark.parametrize('name, both_ways', [
    ('v4', 600e9), ('v5e', 400e9), ('v5p', 1200e9), ('v6e', 800e9), ('v7x', 1200e9 / 2)])
def test_links_are_nominal_on_every_tpu(name, both_ways):
    """A device's share of the bandwidth that Google gives for a chip: of all its links, in both directions."""
    chip = hardware.CHIPS[name]
    assert chip.link * 2 * chip.torus * 2 == both_ways


@pytest.mark.parametrize('chip', hardware.CHIPS.values(), ids=lambda chip: chip.name)
def test_no_chip_is_faster_than_its_data_sheet(chip):
    rates = hardware.REACHED[chip.platform]
    assert 0.5 < chip.efficiency < 1 and not chip.measured
    assert 0 < rates.attention < chip.efficiency and 0 < rates.links < 1
