"""The environment of XLA: compiler flags and the platform; set before JAX is imported."""
import os

from lm.hardware import GPU_SHARE

FLAGS = {'XLA_FLAGS': '--xla_cpu_prefer_vector_width=512',
         'LIBTPU_INIT_ARGS': '--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1'}


def tune(environ=os.environ):
    """Adds FLAGS to what the compilers are told, and gives JAX GPU_SHARE of a GPU; what is set stays.

    512-bit vectors make a CPU faster. TPUs turn gradients so that a sum of them over few devices can be scattered too.
    A device on each core would be faster still for small models, but with as few threads as cores XLA's in-process
    all-reduce was seen to starve and abort a run, so that a machine counts as one device unless XLA_FLAGS says more.
    """
    for name, flag in FLAGS.items():
        given = environ.get(name, '')
        if flag.partition('=')[0] not in given:
            environ[name] = f'{given} {flag}'.strip()
    environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', str(GPU_SHARE))


def hide_accelerators(environ=os.environ):
    """Sets what lets JAX compile for chips that are not here; must come before JAX is imported."""
    environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
