"""HLO text is counted right for programs of known size; and plans as text."""
import pathlib

import jax
import jax.numpy as jnp
import pytest

from lm import config, hardware
from lm.commands import plan as command
from lm.parallel import sharding
from lm.plan import compiler, costs, hlo, topology
from lm.plan.text import as_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
GIB = 2 ** 30


def compiled_text(function, *shapes, specs, mesh):
    placed = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, jax.P(*spec)))
              for shape, spec in zip(shapes, specs)]
    return jax.jit(function).lower(*placed).compile().as_text()


def test_products_in_loops_count_as_often_as_they_turn():
    def chain(x, weights):
        def turn(x, w):
            return jnp.tanh(x @ w), None
        return jax.lax.scan(turn, x, weights)[0]
    mesh = sharding.make_mesh({'data': 8})
    text = compiled_text(chain, (64, 32), (5, 32, 32), specs=[('data',), ()], mesh=mesh)
    assert costs.measure(text, {'data': 8})['flops'] == 5 * 2 * 8 * 32 * 32


def test_collectives_are_known_by_the_axes_they_go_along():
    mesh = sharding.make_mesh({'data': 2, 'tensor': 4})
    text = compiled_text(lambda x, w: x @ w, (16, 32), (32, 24), specs=[('data', 'tensor'), ('tensor',)], mesh=mesh)
    found = costs.measure(text, {'data': 2, 'tensor': 4})
    assert found['collectives'] == {('all-reduce', 'tensor'): 2 * 3 / 4 * 4 * 8 * 24}
    assert found['flops'] == 2 * 8 * 8 * 24


TPU_LOOP = """
HloModule jit_step
%begin (x: f32[8]) -> f32[32] {
  %x = f32[8]{0:T(128)} parameter(0)
  ROOT %ag = f32[32]{0:T(128)} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%end (x: f32[8]) -> f32[32] {
  %x = f32[8]{0:T(128)} parameter(0)
  ROOT %ag = f32[32]{0:T(128)} all-gather(%x), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %gte = s32[]{:T(128)} get-tuple-element(%p), index=0
  %bound = s32[]{:T(128)} constant(13)
  ROOT %lt = pred[]{:T(512)} compare(%gte, %bound), direction=LT, metadata={op_name="with
a line break"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %x = f32[8]{0:T(128)} get-tuple-element(%p), index=1
  %begun = f32[32]{0:T(128)} fusion(%x), kind=kLoop, calls=%begin
  %ended = f32[32]{0:T(128)} fusion(%x), kind=kLoop, calls=%end
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%at, %two)
  ROOT %t = (s32[], f32[8]) tuple(%next, %x)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %init = (s32[], f32[8]) tuple(%one, %a)
  %loop = (s32[], f32[8]) while(%init), condition=%cond, body=%body
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_without_a_note_is_counted_by_its_bound_its_start_and_its_step():
    program = hlo.parse(TPU_LOOP)
    assert hlo.runs(program) == {'main': 1, 'cond': 6, 'body': 6, 'begin': 6, 'end': 6}


SCATTER = """
HloModule jit_step
%all-reduce-scatter.1 (input: bf16[16,8]) -> bf16[4,8] {
  %input = bf16[16,8]{1,0} parameter(0)
  %sum = bf16[16,8]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %at = u32[] constant(0)
  ROOT %cut = bf16[4,8]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={4,8}
}

ENTRY %main (x: bf16[16,8]) -> bf16[4,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  ROOT %fusion = bf16[4,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_sum_that_a_tpu_cuts_in_the_same_kernel_is_scattered():
    found = costs.measure(SCATTER, {'data': 2, 'fsdp': 4})['collectives']
    assert found == {('reduce-scatter', 'fsdp'): 2 * 16 * 8 * 3 / 4}
    apart = costs.measure(SCATTER.replace('all-reduce-scatter', 'fused_computation'), {'data': 2, 'fsdp': 4})
    assert apart['collectives'] == {('all-reduce', 'fsdp'): 2 * 2 * 16 * 8 * 3 / 4}


RAGGED = """
%dot (x: bf16[3,256,64], w: bf16[3,64,32]) -> bf16[3,256,32] {
  %x = bf16[3,256,64] parameter(0)
  %w = bf16[3,64,32] parameter(1)
  ROOT %y = bf16[3,256,32] convolution(%x, %w), window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf
}

ENTRY %main (sizes: s32[3], rows: bf16[256,64], v: bf16[3,64,32]) -> bf16[256,32] {
  %sizes = s32[3] parameter(0)
  %rows = bf16[256,64] parameter(1)
  %v = bf16[3,64,32] parameter(2)
  ROOT %ragged-dot-none.1 = bf16[256,32] custom-call(%sizes, %rows, %v), custom_call_target="tpu_custom_call"
}
"""


def test_a_row_of_a_ragged_product_meets_one_matrix_whichever_kernel_computes_it():
    once = 2 * 256 * 64 * 32
    assert costs.measure(RAGGED, {'data': 1})['flops'] == once
    body = hlo.parse(RAGGED).computations['dot']
    assert costs.convolution_flops(body, body['y']) == 3 * once
    marked = hlo.parse(RAGGED.replace('->0bf\n', '->0bf, metadata={op_name="ragged_dot_general"}\n'))
    assert costs.convolution_flops(marked.computations['dot'], marked.computations['dot']['y']) == once


def test_parts_of_one_asynchronous_collective_count_once():
    found = costs.measure(TPU_LOOP, {'a': 2, 'b': 4})
    assert found['collectives'] == {('all-gather', 'b'): 6 * 3 * 8 * 4}


def test_copies_of_a_collective_that_share_its_channel_count_each():
    copy = "all-gather(%a), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}"
    text = TPU_LOOP.replace('  %one =', f'  %this = f32[32] {copy}\n  %that = f32[32] {copy}\n  %one =')
    assert costs.measure(text, {'a': 2, 'b': 4})['collectives'] == {('all-gather', 'b'): (6 + 2) * 3 * 8 * 4}


def test_what_slices_send_each_other_goes_along_data():
    send = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %after = token[] after-all()
  %send = (f32[8]{0}, u32[]{:S(2)}, token[]) send(%a, %after), channel_id=4, is_host_transfer=true, FROM_TO
  ROOT %out = f32[8]{0} copy(%a)
}
"""
    way = 'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    found = costs.measure(send.replace('FROM_TO', way), {'data': 2, 'fsdp': 4})
    assert found['collectives'] == {('all-reduce', 'data'): 2 * 8 * 4 / 2}


@pytest.mark.parametrize('groups, axes', [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', ('fsdp',)),
    ('replica_groups={{0,4},{1,5}}', ('data',)),
    ('replica_groups=[2,4]<=[8]', ('fsdp',)),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', ('data',)),
    ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", ('data',)),
    ("replica_groups=mesh['axis_0'=8] {'axis_0'}", ('data', 'fsdp')),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", ('data',)),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", ('fsdp',)),
    ('replica_groups={}', ('data', 'fsdp')),
    ('source_target_pairs={{0,1},{1,2},{2,3},{3,0}}', ('fsdp',)),
    ('source_target_pairs={{0,0},{1,5}}', ('data',)),
])
def test_every_way_to_write_groups_is_read(groups, axes):
    line = f'  %x = f32[8]{{0}} all-reduce(%y), {groups}, to_apply=%add'
    program = hlo.parse(f'ENTRY %main (y: f32[8]) -> f32[8] {{\n{line}\n}}\n')
    assert costs.axes(program.computations['main']['x'], {'data': 2, 'fsdp': 4}) == axes


@pytest.mark.parametrize('line, flops', [
    ('convolution(%a, %b), dim_labels=bf_io->bf', 2 * 4096 * 768 * 3072),
    ('convolution(%c, %d), window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f',
     2 * 4 * 1024 * 12 * 64 * 768),
    ('convolution(%e, %f), window={size=4x12 stride=3x11 lhs_dilate=4x12}, dim_labels=01bf_01oi->01bf',
     2 * 4 * 12 * 128 * 128 * 64),
    ('dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}', 2 * 4096 * 768 * 3072),
    ('custom-call(%i, %q, %k, %q), custom_call_target="tpu_custom_call"', 0),
])
def test_products_are_counted_however_the_compiler_writes_them(line, flops):
    shapes = {'a': '4096,768', 'b': '768,3072', 'c': '4,1024,768,1', 'd': '12,64,768,1', 'e': '4,12,128,64',
              'f': '4,12,128,64', 'i': '1,2,2', 'q': '12,1024,128', 'k': '12,1024,128'}
    out = {'a': '4096,3072', 'c': '4,1024,12,64', 'e': '4,12,128,128'}.get(line.split('%')[1][0], '12,1024,128')
    given = [f'  %{name} = bf16[{shape}]{{0}} parameter({at})' for at, (name, shape) in enumerate(shapes.items())]
    text = '\n'.join(['ENTRY %main () -> f32[] {', *given, f'  ROOT %out = bf16[{out}]{{0}} {line}', '}'])
    assert costs.measure(text, {'data': 1})['flops'] == flops


def test_attention_kernels_are_counted_by_their_shapes():
    text = """ENTRY %main () -> f32[] {
  %mask = s8[1,2,2]{2,1,0} parameter(0)
  %q = bf16[12,1024,128]{2,1,0} parameter(1)
  %k = bf16[12,2048,128]{2,1,0} parameter(2)
  ROOT %splash_mha_dkv.1 = (bf16[12,2048,128]{2,1,0}) custom-call(%mask, %q, %k, %k), custom_call_target="tpu"
}"""
    measured = costs.measure(text, {'data': 1}, attended=0.5)
    assert measured['flops'] == 0.5 * 2 * 4 * 12 * 1024 * 2048 * 128
    assert measured['attention'] == {128: measured['flops']}


def test_slices_of_a_stack_and_updates_in_place_move_only_their_part():
    text = """%fused (p0: f32[10,100], p1: s32[], p2: f32[1,100]) -> f32[10,100] {
  %p0 = f32[10,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,100]{1,0} parameter(2)
  ROOT %dus = f32[10,100]{1,0} dynamic-update-slice(%p0, %p2, %p1, %p1)
}

%taken (p0: f32[10,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[10,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %ds = f32[1,100]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,100}
}

ENTRY %main () -> f32[10,100] {
  %stack = f32[10,100]{1,0} parameter(0)
  %at = s32[]{S(1)} parameter(1)
  %row = f32[1,100]{1,0} fusion(%stack, %at), kind=kLoop, calls=%taken
  ROOT %new = f32[10,100]{1,0} fusion(%stack, %at, %row), kind=kLoop, calls=%fused
}"""
    assert costs.measure(text, {'data': 1})['hbm_bytes'] == (400 + 400) + (400 + 400)


def test_what_another_fusion_only_reshapes_is_read_whole():
    text = """%view (p: bf16[8,64]) -> bf16[512] {
  %p = bf16[8,64]{1,0} parameter(0)
  ROOT %flat = bf16[512]{0} bitcast(%p)
}

%fused (p: bf16[8,64]) -> bf16[512] {
  %p = bf16[8,64]{1,0} parameter(0)
  %inner = bf16[512]{0} fusion(%p), kind=kLoop, calls=%view
  ROOT %sum = bf16[512]{0} add(%inner, %inner)
}

ENTRY %main (x: bf16[8,64]) -> bf16[512] {
  %x = bf16[8,64]{1,0} parameter(0)
  ROOT %out = bf16[512]{0} fusion(%x), kind=kOutput, calls=%fused
}"""
    assert costs.measure(text, {'data': 1})['hbm_bytes'] == 1024 + 1024


PLAN = {'on': 'v5e-8', 'chip': 'v5e', 'chips': 8, 'devices': 8, 'mesh': {'data': 8}, 'compile_seconds': 1.0,
        'cached': True, 'capacity': 15.75 * GIB, 'parameters': GIB, 'optimizer': 2 * GIB, 'formula': 19 * GIB,
        'arguments': 3.5 * GIB, 'temporaries': 16 * GIB, 'outputs': 0, 'peak': 19.5 * GIB, 'fits': False,
        'involuntary': 2, 'remedies': [{'changes': ['model.execution.remat=full'], 'peak': 9 * GIB, 'seconds': 1.5}]}


def test_what_does_not_fit_says_by_how_much_and_what_would():
    said = as_text(PLAN)
    assert 'DOES NOT FIT: it takes 19.50 GiB a device, 3.75 more' in said
    assert 'model.execution.remat=full: 9.00 GiB' in said
    assert 'warning: 2 involuntary full rematerialisations' in said
    assert '16xh100 is enough' in as_text(PLAN | {'remedies': [], 'enough': '16xh100'})


def test_times_are_called_predictions():
    def run(seconds):
        return {'step_seconds': seconds, 'tokens_per_second': 2 / seconds, 'mfu': 0.5 / seconds, 'hours': 10 * seconds,
                'dollars': 20 * seconds}
    found = PLAN | {'fits': True, 'flops': 1e12, 'memory_bytes': 1e9, 'collectives': {'all-reduce data': 5e9},
                    'prediction': {'parts': {'products': 1.5, 'memory': 0.5}, 'bound': 'products', 'about': run(2),
                                   'low': run(1.5), 'high': run(3), 'floor': run(1), 'efficiency': 0.88,
                                   'measured': False, 'tokens': 1e9, 'price': 1.2, 'listed': True}}
    said = as_text(found)
    assert 'a step takes about 2.000 s (1.500 to 3.000 s); its floor is 1.000 s' in said
    assert 'products 1.500, memory 0.500; most by products' in said and 'all-reduce data sent, GB' in said
    dollars = next(line.split() for line in said.splitlines() if 'dollars at 1.20' in line)
    assert dollars[-5:] == ['40', '30', '-', '60', '20']
    assert '88% of the peak, fitted' in said
    assert 'list prices' in said
    assert 'list prices' not in as_text(found | {'prediction': found['prediction'] | {'listed': False}})


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(config.Error, match='pip install libtpu'):
        topology.require_compiler(hardware.cluster('v5e-8'))
    with pytest.raises(config.Error, match='pip install --no-deps jax-cuda13-plugin'):
        topology.require_compiler(hardware.cluster('8xh100'))


@pytest.mark.parametrize('on, remedy', [('', 'v5e-256'), ('v5ee-8', 'v5e')])
def test_the_hardware_must_be_known(on, remedy):
    with pytest.raises(config.Error, match=remedy):
        command.main(str(ROOT / 'experiments' / 'tiny.py'), on=on)


def test_out_of_memory_is_read_from_what_the_compiler_says():
    said = ('RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries '
            '(106.60G) exceeds available HBM (15.75G).')
    assert compiler.OUT_OF_MEMORY.search(said).groups() == ('106.60', 'G')
