"""Environment variables of XLA and JAX, to be set before JAX is imported: compiler flags, platform, GPU memory."""
import os
import resource

from lm.config.annotations import Error
from lm.hardware import GPU_SHARE

# CPU: vectors of 512 bits, faster than XLA's default of 256 where there is AVX-512. TPU: lets libtpu change the layout
# of gradients in groups of any size, without which reductions over few devices are all-reduces, not reduce-scatters.
FLAGS = {'XLA_FLAGS': '--xla_cpu_prefer_vector_width=512',
         'LIBTPU_INIT_ARGS': '--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1'}
ADDRESS_SPACE = 2 * 10 ** 9  # bytes; a toy model's training ended in a segmentation fault at 1.2e9 and ran at 2.0e9


def tune(environ=os.environ):
    """Adds FLAGS to the environment, and JAX's share of a GPU's memory; what the user has set stays.

    A CPU counts as one device. With one per core small models train faster, but XLA's in-process all-reduce was seen to
    starve, with as few threads as cores, and to abort the run.
    """
    for name, flag in FLAGS.items():
        present = environ.get(name, '')
        is_file = present.strip() and not present.lstrip().startswith('-')  # XLA reads its flags from a file then
        if flag.partition('=')[0] not in present and not is_file:
            environ[name] = f'{present} {flag}'.strip()
    environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', str(GPU_SHARE))


def check_limits(limit=None):
    """Raises Error where `ulimit -v` leaves too little address space: XLA then ends the process without a word.

    limit: in bytes, by default this process's own.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if limit is None else limit
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        raise Error(f'ulimit -v {limit // 1024} is too little address space for XLA; try ulimit -v unlimited.')


def hide_accelerators(environ=os.environ):
    """Hides this machine's accelerators from JAX and lets it compile for absent ones."""
    environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
