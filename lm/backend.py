"""Environment variables of XLA and JAX, to be set before JAX is imported: compiler flags, platform, GPU memory."""
import os

from lm.hardware import GPU_SHARE

# CPU: vectors of 512 bits, faster than XLA's default of 256 where there is AVX-512. TPU: lets libtpu change the layout
# of gradients in groups of any size, without which reductions over few devices are all-reduces, not reduce-scatters.
FLAGS = {'XLA_FLAGS': '--xla_cpu_prefer_vector_width=512',
         'LIBTPU_INIT_ARGS': '--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1'}


def tune(environ=os.environ):
    """Adds FLAGS to the environment, and JAX's share of a GPU's memory; what the user has set stays.

    A CPU counts as one device. With one per core small models train faster, but XLA's in-process all-reduce was seen to
    starve, with as few threads as cores, and to abort the run.
    """
    for name, flag in FLAGS.items():
        present = environ.get(name, '')
        if flag.partition('=')[0] not in present:
            environ[name] = f'{present} {flag}'.strip()
    environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', str(GPU_SHARE))


def hide_accelerators(environ=os.environ):
    """Hides this machine's accelerators from JAX and lets it compile for absent ones."""
    environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
