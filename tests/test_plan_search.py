"""Layouts, the search among them, and its messages where none fits."""
import ast
import contextlib
import dataclasses
import gzip
import json
import pathlib
import random
import types

import damage
import numpy as np
import pytest

from lm import config, hardware
from lm.commands import plan
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, LatentAttention
from lm.parallel import sharding
from lm.plan import analytic, compiler, planner, search, shape
from lm.plan.layout import Layout, all_layouts, layout_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = str(ROOT / 'experiments' / 'tiny.py')


def settings_of(name, **overrides):
    return config.load(ROOT / 'experiments' / f'{name}.py', overrides).config


def test_a_shape_has_the_sizes_of_the_model_that_is_trained():
    model = shape.shape_of(settings_of('qwen3_30b_a3b').model)
    assert model.experts == shape.ExpertShape(count=128, top_k=8, ff=768, shared=0, capacity_factor=2.0)
    assert (model.heads, model.kv_heads, model.head_dim, model.vocab, model.up_projections) == (32, 4, 128, 151_936, 2)
    assert (model.itemsize, tuple(a.window for a in model.attentions), model.remat, model.vocab_chunks) == (
        2, (0,) * 48, 'full', 32)
    dense = shape.shape_of(settings_of('gpt2_124m').model)
    assert (dense.experts, dense.ff, dense.up_projections, dense.tied) == (None, 3072, 1, True)
    assert shape.shape_of(settings_of('shakespeare_char').model).vocab == 128  # 65 rows, padded


def test_a_model_that_the_formulas_cannot_count_is_refused():
    with pytest.raises(config.Error, match='SimpleNamespace has no stack; give it'):
        shape.shape_of(types.SimpleNamespace(depth=2))
    latent, plain = Layer(LatentAttention(4, head_dim=8, rotary=4)), Layer(Attention(4))
    for pattern in ((latent, latent), (plain, Layer(Attention(4), MLP(24)))):
        with pytest.raises(config.Error, match='^lm plan counts layers of one shape, with keys and values of'):
            shape.shape_of(Decoder(50, 2, 16, pattern=pattern))


@pytest.mark.parametrize('file', sorted((ROOT / 'lm' / 'plan').glob('*.py')), ids=lambda file: file.name)
def test_only_shape_reads_fields_of_a_model(file):
    fields = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
              and isinstance(node.value, ast.Attribute) and node.value.attr == 'model'}
    assert fields <= {'init', 'axes', 'flops'}


def test_every_layout_can_be_trained():
    settings, cluster = settings_of('llama_1b'), hardware.cluster('v5e-16')
    found = list(all_layouts(settings, cluster))
    assert len(found) == len({str(layout) for layout in found}) > 500
    staged = [layout for layout in found if layout.stages > 1]
    assert {layout.stages for layout in staged} == {2, 4, 8, 16}
    for layout in [*found[::37], *staged[::37]]:
        tried = layout.applied_to(settings)
        if layout.stages > 1:
            rows = tried.data.batch // tried.accumulate
            batches = tried.model.execution.pipeline.over(layout.stages, tried.model.depth, rows)
            assert rows // batches % np.prod([tried.mesh.get(axis, 1) for axis in analytic.ROW_AXES]) == 0
        assert np.prod(list(tried.mesh.values())) == 16
        sharding.check_rows(tried.data.batch, tried.accumulate, type('Mesh', (), {'shape': tried.mesh}))


def test_the_best_fits_and_what_fits_comes_first():
    cluster = hardware.cluster('v5e-16')
    found = search.ranked(settings_of('llama_1b'), cluster)
    fits = [c.peak <= search.MARGIN * cluster.chip.memory for c in found]
    assert fits[0] and not fits[-1] and fits == sorted(fits, reverse=True)
    assert found[0].seconds <= found[1].seconds


def test_remedies_change_little_and_fit():
    settings, cluster = settings_of('llama_1b', **{'model.execution.remat': 'none'}), hardware.cluster('v5e-16')
    own = layout_of(settings, 16)
    found = search.remedies(settings, cluster)
    assert len(found) == 3 and all(c.peak < cluster.chip.memory for c in found)
    assert len(found[0].layout.changes(own)) <= 2
    assert search.candidate_of(own, analytic.workload_of(settings), cluster).peak > cluster.chip.memory


def test_what_no_layout_helps_is_told_how_many_chips_would_do():
    settings, cluster = settings_of('llama_70b'), hardware.cluster('8xh100')
    assert not search.remedies(settings, cluster)
    name = search.smallest_cluster(settings, cluster)
    assert name.endswith('xh100') and hardware.cluster(name).devices > 8


def test_more_sharding_and_more_recomputation_never_take_more_memory():
    settings = settings_of('llama_1b')
    workload = analytic.workload_of(settings)

    def peak(sizes, remat, accumulate):
        return sum(analytic.peak_memory(Layout(sizes, remat, accumulate, 1), workload).values())
    by_remat = [peak({'fsdp': 16}, remat, 1) for remat in ('none', 'dots', 'full', 'offload')]
    assert by_remat == sorted(by_remat, reverse=True)
    assert peak({'data': 16}, 'full', 4) > peak({'data': 4, 'fsdp': 4}, 'full', 4) > peak({'fsdp': 16}, 'full', 4)
    assert peak({'fsdp': 16}, 'none', 1) > peak({'fsdp': 16}, 'none', 4)


def took(candidate, times):
    """Returns the outcome of a Candidate of which the compiler takes `times` as much as the formulas."""
    return {'peak': times * candidate.peak, 'formula': candidate.peak, 'capacity': hardware.CHIPS['v5e'].memory,
            'fits': times * candidate.peak <= hardware.CHIPS['v5e'].memory}


def test_what_the_compiler_takes_more_than_the_formulas_holds_for_all_layouts():
    cluster = hardware.cluster('v5e-16')
    found, asked = search.ranked(settings_of('llama_1b'), cluster), []
    times = 1.2 * cluster.chip.memory / found[0].peak

    def compiled(candidate):
        asked.append(candidate)
        return took(candidate, times)
    chosen, outcome = planner.first_that_fits(found, cluster, compiled, check=9)
    assert outcome['fits'] and asked == [found[0], chosen] and times * chosen.peak <= cluster.chip.memory


def test_no_more_are_compiled_than_asked_for():
    cluster, asked = hardware.cluster('v5e-16'), []

    def compiled(candidate):
        asked.append(candidate)
        return took(candidate, 1) | {'fits': False}
    candidates = search.ranked(settings_of('llama_1b'), cluster)
    chosen, plan = planner.first_that_fits(candidates, cluster, compiled, check=3)
    assert chosen is None and not plan['fits'] and len(asked) == 3
    assert len({(str(c.layout.mesh), c.layout.remat) for c in asked}) == 3


TEXT = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} add(%x, %x)
}"""


@pytest.fixture
def fake_compiler(monkeypatch):
    """Returns a dict of what the compiler is made to answer; {'times': 2} is twice what the formulas say."""
    says = {'times': 1}

    def compile_step(settings, cluster, file):
        memory = analytic.peak_memory(layout_of(settings, cluster.devices), analytic.workload_of(settings))
        return compiler.CompiledStep(TEXT, {'arguments': says['times'] * sum(memory.values())}, 0, 0, 1, True)
    monkeypatch.setattr(compiler, 'compile_step', compile_step)
    return says


def test_a_search_has_the_price_it_is_given(fake_compiler, capsys):
    assert plan.main(TINY, on='v5e-8', search=True, price=2.5, json=True) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)['plan']['prediction']['price'] == 2.5
    assert 'layouts ranked by formula' in said.err


def test_a_search_prints_lines_that_make_the_layout(fake_compiler, capsys):
    assert plan.main(TINY, on='v5e-8', search=True) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    model, whole = (eval(f'dict({line})') for line in lines)
    assert Layout(whole['mesh'], model['remat'], whole['accumulate'], model['vocab_chunks']).lines() == [
        line.strip() for line in lines]


def test_a_search_in_which_none_fits_says_by_how_much_and_what_would(fake_compiler, capsys):
    assert plan.main(str(ROOT / 'experiments' / 'llama_70b.py'), on='v5e-16', search=True) == 1
    said = capsys.readouterr().out
    assert 'None fits v5e-16: the least takes' in said and 'more than the 15.75 of v5e' in said
    assert 'is enough by formula' in said


def test_a_search_whose_compiles_do_not_fit_says_what_the_compiler_takes(fake_compiler, capsys):
    fake_compiler['times'] = 1e9
    assert plan.main(TINY, on='v5e-8', search=True) == 1
    said = capsys.readouterr().out
    assert 'compiling' in said and 'None fits' in said and 'more than the 15.75 of v5e' in said


@pytest.mark.parametrize('options, remedy', [
    ({'check': 0}, '--check=1'), ({'price': -1.0}, '--price=2.5'), ({'price': float('nan')}, '--price=2.5'),
    ({'check': 5, 'search': False}, '--check changes nothing without --search; add that'),
    ({'check': 0, 'search': False, 'on': '', 'against': 'a.json'}, '--check=0 compiles nothing'),
    ({'against': 'a.json', 'search': False}, '--against reads a table, in which --on changes nothing'),
    ({'against': 'a.json', 'on': ''}, 'in which --search changes nothing'),
    ({'against': 'a.json', 'on': '', 'search': False, 'price': 2.0}, 'in which --price changes nothing'),
    ({'against': 'a.json', 'on': '', 'search': False, 'check': 2}, 'in which --check changes nothing')])
def test_options_must_make_sense_and_change_something(options, remedy):
    with pytest.raises(config.Error, match=remedy):
        plan.main(TINY, **{'on': 'v5e-8', 'search': True, **options})


KEPT = {'text': 'HloModule', 'memory': {'arguments': 1, 'temporaries': 2, 'outputs': 3}, 'needed': 0, 'warnings': 0,
        'seconds': 1.5}


def test_a_compiled_step_in_the_cache_is_whole_or_compiled_again(tmp_path, monkeypatch):
    settings, cluster = settings_of('tiny'), hardware.cluster('8xh100')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(compiler, 'lower_step', lambda *_: None)
    monkeypatch.setattr(compiler, 'cache_key', lambda *_: 'key')
    monkeypatch.setattr(compiler, '_compile', lambda _: KEPT)
    monkeypatch.setattr(compiler.topology, 'devices', lambda cluster: [])
    request = {'settings': config.dump(settings), 'cluster': cluster.name, 'file': None}
    path = tmp_path / 'lm' / 'plan' / 'key.json.gz'
    answer = {'path': str(path), 'cached': False, 'damaged': ''}
    assert compiler._answer(request) == answer and compiler._answer(request) == {**answer, 'cached': True}
    content = path.read_bytes()
    rng = random.Random(0)
    cases = [other for _, other in damage.damaged(content, rng, 8, 12)]
    cases += [gzip.compress(json.dumps(value).encode()) for _, value in damage.garbled(KEPT, rng, 40)]
    for other in cases:
        path.write_bytes(other)
        response = compiler._answer(request)
        if not response['cached']:
            assert response['damaged'].startswith(f'{path} is damaged (')
        assert compiler._kept(path).keys() == KEPT.keys()
    for obstacle in damage.OBSTACLES[1:]:
        obstacle(path)
        with pytest.raises(config.Error) if obstacle != damage.dangling else contextlib.nullcontext():
            compiler._kept(path)


def test_what_is_wrong_with_settings_is_said_as_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(compiler.topology, 'require_compiler', lambda cluster: None)
    cluster = dataclasses.replace(hardware.cluster('v5e-256'), name='v5e-257')
    with pytest.raises(config.Error, match="^'v5e-257' is no slice"):
        compiler.compile_step(settings_of('tiny'), cluster)


def test_where_a_kernel_lies_in_memory_makes_no_other_program():
    def key(place):
        text = f'stablehlo.custom_call @CustomSPMDPartitioning(%1) {{backend_config = "{place}", api_version = 2}}'
        return compiler.cache_key(types.SimpleNamespace(as_text=lambda: text), hardware.cluster('8xh100'))
    assert key(139660575054432) == key(139862505880320)


def test_where_nothing_can_be_kept_is_known_before_compiling(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(config.Error, match='XDG_CACHE_HOME'):
        compiler.cache_directory()
