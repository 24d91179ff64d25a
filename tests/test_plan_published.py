"""Predicted beside published step times, the constants fitted to them, and the efficiency that `lm bench` keeps."""
import dataclasses
import json
import os
import pathlib
import types

import numpy as np
import pytest

from lm import bench, config, hardware
from lm.commands import plan as command
from lm.config import paths
from lm.plan import calibration, fit, published, roofline

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = {  # Llama 3.1 8B on Trillium: AI-Hypercomputer/tpu-recipes@c8cfe2f, training/trillium/Llama3.1-8B-MaxText
    'id': 'v6e-256 llama3.1-8b', 'model': 'llama3.1-8b', 'on': 'v6e-256', 'batch': 1024, 'seq': 8192,
    'mesh': {'fsdp': 256}, 'remat_lm': 'full', 'measured_step_s': 4.546, 'published_by': 'a field that is not read',
    'shape': {'vocab': 128256, 'depth': 32, 'heads': 32, 'width': 4096, 'ff': 14336, 'kv_heads': 8}}


@pytest.fixture(scope='module')
def steps():
    path = paths.locate('plan_measurements.json')
    if not os.path.exists(path):
        pytest.skip(f'{path} is absent; docs/planning.md describes it')
    return fit.steps_of(published.read(path)[0])


def of_platform(steps, platform):
    return [step for step in steps if step.chip.platform == platform]


def test_a_published_step_of_the_readmes_own_cell_is_predicted_within_15_percent(tmp_path, capsys):
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps([RECIPE]))
    assert command.main(against=str(path), json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed['rows']
    assert row['measured_step_s'] == 4.546 and abs(row['predicted_step_s'] / 4.546 - 1) < 0.15
    assert row['floor_s'] < 0.6 * row['predicted_step_s'] and row['inside']
    assert printed['chips']['v6e'] == printed['chips']['all']
    command.main(against=str(path))
    text = capsys.readouterr().out
    assert 'v6e-256 llama3.1-8b' in text and 'median error' in text and '100%' in text


@pytest.mark.parametrize('change, remedy', [
    ({'shape': {'vocab': 8}}, "shape has no 'depth'"), ({'precision': 'fp8'}, 'precision'),
    ({'remat_lm': 'zz'}, 'remat_lm'),
    ({'shape': {'widht': 8}}, "'widht' is no field of shape; did you mean 'width'?"),
    ({'on': 'v6z-8'}, 'no known chip'), ({'seq': 1.5}, 'seq'),
    ({'mesh': {'fsdp': 100}}, '100'), ({'measured_step_s': 0}, 'measured_step_s=0 is not a float above 0'),
    ({'shape': 5}, 'shape is 5'),
    ({'measured_step_s': 'one'}, 'measured_step_s=one is not a float'),
    ({'measured_step_s': float('nan')}, 'measured_step_s=nan'),
    ({'batch': 7}, 'batch=7 does not divide'), ({'flops_exact': {'products': 1.0}}, 'flops_exact'),
    ({'shape': RECIPE['shape'] | {'experts': {'count': 8, 'top_k': 2}}}, "experts has no 'ff'"),
])
def test_a_row_that_cannot_be_planned_is_named_and_the_others_are(change, remedy, tmp_path, capsys):
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps([RECIPE, RECIPE | change | {'id': 'odd'}]))
    assert command.main(against=str(path)) == 1
    printed = capsys.readouterr().out
    assert 'v6e-256 llama3.1-8b ' in printed and remedy in printed.partition('not planned: row 2 (odd): ')[2]
    path.write_text(json.dumps([RECIPE | change]))
    with pytest.raises(config.Error, match='no row of'):
        command.main(against=str(path))


def test_a_table_and_an_experiment_are_not_planned_together(tmp_path):
    with pytest.raises(config.Error, match='leave one of the two away'):
        command.main('experiments/tiny.py', against='rows.json')
    with pytest.raises(config.Error, match='no table of measured steps'):
        command.main(against=str(tmp_path / 'absent.json'))


def test_experts_of_a_row_work_on_the_tokens_they_get(tmp_path):
    mixture = RECIPE['shape'] | {'experts': {'count': 64, 'top_k': 8, 'ff': 1792}}
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps([RECIPE, RECIPE | {'shape': mixture}]))
    dense, cost = (published.cost_of(row)[-1] for row in published.read(path)[0])
    assert cost['flops'] == pytest.approx(dense['flops'], rel=0.1)  # 8 experts of an eighth of F
    assert cost['collectives']['all-gather', 'fsdp'] > 5 * dense['collectives']['all-gather', 'fsdp']


def test_published_steps_are_predicted(steps):
    """Every constant of hardware.py at once, on the steps that they were fitted to."""
    pairs = [(step, step.roofline(step.chip.efficiency, hardware.REACHED[step.chip.platform])) for step in steps]
    for platform in fit.PRIORS:
        error, inside = fit.summary([pair for pair in pairs if pair[0].chip.platform == platform])
        assert error <= 0.08 and inside >= 0.9
    assert all(step.nominal['products'] / step.row.measured_step_s < 1 for step in steps)


@pytest.mark.parametrize('platform', fit.PRIORS)
def test_the_constants_are_those_of_the_fit(platform, steps):
    efficiency, mean, reached = fit.fit(of_platform(steps, platform), platform)
    for name, value in efficiency.items():
        assert hardware.CHIPS[name].efficiency == pytest.approx(value, rel=0.03)
    assert hardware.UNPUBLISHED[platform] == pytest.approx(mean, rel=0.03)
    for name, value in vars(hardware.REACHED[platform]).items():
        assert value == pytest.approx(getattr(reached, name), rel=0.05)


@pytest.mark.skipif('LM_NIGHTLY' not in os.environ, reason='some thirty fits')
@pytest.mark.parametrize('platform, of_framework', [('tpu', 0.25), ('cuda', 0.2)])
def test_a_step_is_predicted_without_its_model_or_its_framework_in_the_fit(platform, of_framework, steps):
    error, inside = fit.summary(fit.left_out(steps, platform, lambda row: row.model))
    assert error <= 0.1 and inside >= 0.8
    error, _ = fit.summary(fit.left_out(steps, platform, fit.framework))
    assert error <= of_framework


def test_a_fit_finds_the_constants_that_made_the_steps(steps):
    """Steps computed with known constants, on the shapes and meshes of the published ones."""
    known = hardware.Reached(attention=0.3, memory=0.9, links=0.3, network=3.0)
    made = [dataclasses.replace(step, row=dataclasses.replace(
        step.row, measured_step_s=step.roofline(0.7, known).seconds)) for step in of_platform(steps, 'tpu')]
    efficiency, _, reached = fit.fit(made, 'tpu')
    assert list(efficiency.values()) == pytest.approx([0.7] * 4, rel=0.05)
    assert vars(reached) == pytest.approx(vars(known), rel=0.25)


@pytest.fixture
def roof():
    nominal = {'products': 1.0, 'attention': 0.1, 'memory': 0.2, 'links': 0.0, 'network': 0.0, 'host': 0.0}
    chip = hardware.CHIPS['h100']
    return roofline.Roofline(nominal, roofline.added(chip, nominal, {128: 1e12}, hardware.REACHED['cuda']))


def test_a_measured_step_replaces_the_efficiency_of_its_chip(roof, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    cluster = hardware.cluster('8xh100')
    assert calibration.calibrated(cluster) == cluster
    rest = roof.seconds - roof.parts['products']
    assert calibration.record(cluster.chip, roof, rest + 2.0) == pytest.approx(0.5)
    chip = calibration.calibrated(cluster).chip
    assert chip.efficiency == pytest.approx(0.5) and chip.measured
    assert calibration.calibrated(hardware.cluster('v5e-8')).chip.measured is False
    again = roofline.added(chip, roof.nominal, {128: 1e12}, hardware.REACHED['cuda'])
    assert sum(again.values()) == pytest.approx(rest + 2.0)


def test_a_step_with_few_products_tells_no_efficiency(roof, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    small = roofline.Roofline(roof.nominal | {'products': 0.05}, roof.parts | {'products': 0.05 / 0.64})
    assert calibration.record(hardware.CHIPS['h100'], small, 1.0) is None
    assert not calibration.calibrated(hardware.cluster('8xh100')).chip.measured


def test_bench_prints_the_plan_beside_the_step_and_keeps_what_it_shows(tmp_path, monkeypatch):
    """A step of one product on a device that calls itself an H100."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    settings = config.load(ROOT / 'experiments' / 'tiny.py', {'model.execution.dtype': 'float32'}).config
    device = types.SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3')
    mesh = types.SimpleNamespace(devices=np.array([device]), size=1, shape={'data': 1})
    text = """ENTRY %main (a: f32[4096,4096], b: f32[4096,4096]) -> f32[4096,4096] {
  %a = f32[4096,4096]{1,0} parameter(0)
  %b = f32[4096,4096]{1,0} parameter(1)
  ROOT %c = f32[4096,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}"""
    products, memory = 2 * 4096 ** 3 / 494.5e12, 3 * 4 * 4096 ** 2 / 3350e9
    rest = hardware.REACHED['cuda'].memory * memory
    printed = bench._prediction(settings, mesh, types.SimpleNamespace(as_text=lambda: text), rest + 4 * products)
    assert printed['predicted_step_seconds'] == pytest.approx(products / 0.64 + rest, abs=1e-6)
    assert printed['predicted_floor_seconds'] == pytest.approx(products, abs=1e-6)
    assert printed['product_efficiency'] == pytest.approx(0.25)
    assert calibration.calibrated(hardware.cluster('8xh100')).chip.efficiency == pytest.approx(0.25)
