"""Compiles a small Decoder's loss gradient for hardware that is not here, and prints what the compiler made of it.

    python tests/ahead.py '{"topology": "v5e:2x2", "mesh": {"fsdp": 4}, "shape": [4, 1024], "model": {}}'

A topology of NVIDIA H100s is written '1x1x4': nodes, processes in each, devices in each. The JSON line that it prints
has 'kernels' (names of custom calls) and 'gathered': the shapes that all-gathers make, beside that of the embedding's
rows, whose width tensor parallelism brings together once a step.
"""
import json
import os
import re
import sys

os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1'}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Execution
from lm.parallel import sharding
from lm.train import NextToken

H100 = """gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 max_blocks_per_multiprocessor: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  name: "NVIDIA H100"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100"
"""


def devices(topology):
    """Returns the abstract devices of a topology, and the platform that programs are lowered for."""
    if topology.startswith('v'):
        return topologies.get_topology_desc(topology, platform='tpu').devices, 'tpu'
    found = topologies.get_topology_desc('', platform='cuda', target_config=H100, topology=topology)
    return found.devices, 'cuda'


def model_of(windows=(0,), depth=2, remat='none', **attention):
    """Returns a Decoder whose layers repeat sliding windows; attention: other fields of an Attention."""
    pattern = tuple(Layer(Attention(heads=4, kv_heads=2, window=window, **attention), MLP(640)) for window in windows)
    return Decoder(vocab=1500, depth=depth, width=256, pattern=pattern, execution=Execution('bfloat16', remat=remat))


def compiled(case):
    """Returns the compiled program's text for a case as in the module's docstring."""
    found, platform = devices(case['topology'])
    mesh = sharding.make_mesh(case['mesh'], found)
    model = model_of(**case['model'])
    params, axes = jax.eval_shape(model.init, jax.random.key(0)), model.axes()
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params,
                              sharding.mirror(params, axes, mesh))
        place = jax.sharding.NamedSharding(mesh, sharding.spec(('batch', None), case['shape'], mesh))
        row = jax.ShapeDtypeStruct(tuple(case['shape']), jnp.int32, sharding=place)
        batch = dict.fromkeys(('inputs', 'targets', 'segments', 'positions'), row)
        step = jax.jit(jax.value_and_grad(lambda *arrays: NextToken().loss(model, *arrays)[0]))
        return step.trace(params, batch).lower(lowering_platforms=(platform,)).compile().as_text()


if __name__ == '__main__':
    text = compiled(json.loads(sys.argv[1]))
    lines = [line for line in text.splitlines() if ' all-gather' in line and 'jit(_take)' not in line]
    shapes = [shape for line in lines for shape in re.findall(r'(\w+)\[([\d,]+)\]', line.split(' all-gather')[0])]
    print(json.dumps({
        'kernels': sorted(set(re.findall(r'splash_m[hq]a_(?:fwd|dq|dkv)|__cudnn\$\w+', text))),
        'gathered': sorted({(kind, *map(int, shape.split(','))) for kind, shape in shapes})}))
