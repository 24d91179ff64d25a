"""Compiles a small Decoder's loss gradient for hardware that is not here, and prints what the compiler made of it.

    python tests/ahead.py '{"platform": "tpu", "topology": "v5e:2x2", "mesh": {"fsdp": 4}, "shape": [4, 1024], "model": {}}'

The JSON line that it prints has 'kernels' (names of custom calls) and 'gathered' (shapes that all-gathers make).
"""
import json
import os
import re
import sys

os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1'}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from lm import sharding
from lm.models.decoder import Decoder


def compiled(case):
    """Returns the compiled program's text for a case as in the module's docstring."""
    devices = topologies.get_topology_desc(case['topology'], platform=case['platform']).devices
    mesh = sharding.make_mesh(case['mesh'], devices)
    model = Decoder(**{'vocab': 2000, 'depth': 2, 'width': 256, 'heads': 4, 'kv_heads': 2, 'ff': 640,
                       'dtype': 'bfloat16', **case['model']})
    params, axes = jax.eval_shape(model.init, jax.random.key(0)), model.axes()
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params,
                              sharding.mirror(params, axes, mesh))
        place = jax.sharding.NamedSharding(mesh, sharding.spec(('batch', None), case['shape'], mesh))
        row = jax.ShapeDtypeStruct(tuple(case['shape']), jnp.int32, sharding=place)
        batch = dict.fromkeys(('inputs', 'targets', 'segments', 'positions'), row)
        step = jax.jit(jax.value_and_grad(lambda *given: model.loss(*given)[0]))
        return step.trace(params, batch).lower(lowering_platforms=(case['platform'],)).compile().as_text()


if __name__ == '__main__':
    text = compiled(json.loads(sys.argv[1]))
    shapes = re.findall(r'= \(?(\w+)\[([\d,]+)\]\S* all-gather', text)
    print(json.dumps({
        'kernels': sorted(set(re.findall(r'splash_m[hq]a_(?:fwd|dq|dkv)|__cudnn\$\w+', text))),
        'gathered': sorted({(kind, *map(int, shape.split(','))) for kind, shape in shapes})}))
