"""Devices that are not here: what JAX compiles for, described to it by libtpu or by the CUDA plugin."""
import importlib.util
import math

from lm import config

# NVIDIA chip -> what its driver reports and the compiler asks for: compute capability, multiprocessors, float32 units
# in each, bytes of shared memory in each and of it for one block, of the second-level cache, of memory, and GHz.
GPUS = {
    'a100-40g': ((8, 0), 108, 64, 167936, 166912, 41943040, 42331013120, 1.41),
    'a100': ((8, 0), 108, 64, 167936, 166912, 41943040, 85100068864, 1.41),
    'h100': ((9, 0), 132, 128, 233472, 232448, 52428800, 84942979072, 1.98),
    'h200': ((9, 0), 132, 128, 233472, 232448, 52428800, 151397597184, 1.98),
    'b200': ((10, 0), 148, 128, 233472, 232448, 132644864, 191514411008, 1.965),
}
CUDA = '13.0.0'
CUDNN = '9.10.0'


def require(cluster):
    """Raises config.Error with the command that installs what compiling for the cluster needs, where it is missing."""
    import jax
    chip = cluster.chip
    if chip.platform == 'tpu':
        needed, found, remedy = 'libtpu', importlib.util.find_spec('libtpu'), 'pip install libtpu'
    elif chip.name in GPUS:
        needed, found = 'the CUDA plugin', _has_cuda()
        remedy = (f'pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} '
                  'nvidia-cuda-nvcc nvidia-nvvm nvidia-cudnn-cu13')
    else:
        raise config.Error(f'{chip.name} cannot be compiled for from here; there are {", ".join(GPUS)}.')
    if not found:
        raise config.Error(f'planning for {cluster.name} needs {needed}, which is not here; try {remedy}')


def _has_cuda():
    return importlib.util.find_spec('jax_plugins') is not None and (
        importlib.util.find_spec('jax_plugins.xla_cuda13') is not None)


def devices(cluster):
    """Returns the abstract devices of a cluster, to make a mesh of and compile for; none of them can run anything."""
    from jax.experimental import topologies
    require(cluster)
    chip = cluster.chip
    if chip.platform == 'cuda':
        nodes = f'1x{cluster.count}x{math.prod(cluster.shape)}'
        options = {'target_config': target(chip.name), 'topology': nodes}
        return topologies.get_topology_desc('', platform='cuda', **options).devices
    version = {'v7x': 'tpu7x'}.get(chip.name, chip.name)
    options = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}
    options |= {'num_slices': cluster.count} if cluster.count > 1 else {}
    name = f'{version}:{"x".join(map(str, cluster.shape))}'
    return topologies.get_topology_desc(name, platform='tpu', **options).devices


def target(name):
    """Returns the description of an NVIDIA chip that XLA compiles for, as the text of a protocol buffer."""
    (major, minor), cores, units, shared, block, cache, memory, clock = GPUS[name]
    feature = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
    shown = f'NVIDIA {name.upper()}'
    return f"""gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock} max_blocks_per_multiprocessor: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {block}
  reserved_shared_memory_per_block: 1024
  memory_bandwidth: {int(_bandwidth(name))} l2_cache_size: {cache} device_memory_size: {memory}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability {major}.{minor}" device_address_bits: 64
  driver_version: "{CUDA}" runtime_version: "{CUDA}" compile_time_toolkit_version: "{CUDA}" dnn_version: "{CUDNN}"
  name: "{shown}"
  device_interconnect_info {{ active_links: {12 if major == 8 else 18} }}
}}
platform_name: "CUDA"
device_description_str: "{shown}"
"""


def _bandwidth(name):
    from lm import hardware
    return hardware.CHIPS[name].bandwidth
