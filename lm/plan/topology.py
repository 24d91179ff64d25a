"""Devices that are not here, for ahead-of-time compilation: described by libtpu or, for GPUs, by a target config."""
import importlib.util
import math

from lm import config, hardware

# NVIDIA chip -> what its driver reports: compute capability, streaming multiprocessors, float32 units of each, bytes of
# shared memory of each and of one block, of L2 cache, of memory, and clock in GHz.
GPUS = {
    'a100-40g': ((8, 0), 108, 64, 167936, 166912, 41943040, 42331013120, 1.41),
    'a100': ((8, 0), 108, 64, 167936, 166912, 41943040, 85100068864, 1.41),
    'h100': ((9, 0), 132, 128, 233472, 232448, 52428800, 84942979072, 1.98),
    'h200': ((9, 0), 132, 128, 233472, 232448, 52428800, 151397597184, 1.98),
    'b200': ((10, 0), 148, 128, 233472, 232448, 132644864, 191514411008, 1.965),
}
CUDA = '13.0.0'
CUDNN = '9.10.0'


def require_compiler(cluster):
    """Raises config.Error with the command that installs the compiler for a cluster, where it is missing."""
    import jax
    chip = cluster.chip
    if chip.platform == 'tpu':
        needed, installed, remedy = 'libtpu', importlib.util.find_spec('libtpu'), 'pip install libtpu'
    elif chip.name in GPUS:
        needed, installed = "JAX's CUDA plugin", has_cuda_plugin()
        remedy = (f'pip install --no-deps jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} '
                  'nvidia-cuda-nvcc nvidia-nvvm nvidia-cudnn-cu13')
    else:
        raise config.Error(f'{chip.name} has no target config for its compiler; try one of {", ".join(GPUS)}.')
    if not installed:
        raise config.Error(f'planning for {cluster.name} needs {needed}, which is not installed; try {remedy}')


def has_cuda_plugin():
    return importlib.util.find_spec('jax_plugins') is not None and (
        importlib.util.find_spec('jax_plugins.xla_cuda13') is not None)


def devices(cluster):
    """Returns the devices of a cluster, to make a mesh of and to compile for; none of them can run a program."""
    from jax.experimental import topologies
    require_compiler(cluster)
    chip = cluster.chip
    if chip.platform == 'cuda':
        nodes = f'1x{cluster.count}x{math.prod(cluster.shape)}'
        options = {'target_config': gpu_target(chip.name), 'topology': nodes}
        return topologies.get_topology_desc('', platform='cuda', **options).devices
    version = {'v7x': 'tpu7x'}.get(chip.name, chip.name)
    options = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}
    options |= {'num_slices': cluster.count} if cluster.count > 1 else {}
    name = f'{version}:{"x".join(map(str, cluster.shape))}'
    return topologies.get_topology_desc(name, platform='tpu', **options).devices


def gpu_target(name):
    """Returns XLA's target config of an NVIDIA chip, a protocol buffer as text."""
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
  memory_bandwidth: {int(hardware.CHIPS[name].bandwidth)} l2_cache_size: {cache} device_memory_size: {memory}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability {major}.{minor}" device_address_bits: 64
  driver_version: "{CUDA}" runtime_version: "{CUDA}" compile_time_toolkit_version: "{CUDA}" dnn_version: "{CUDNN}"
  name: "{shown}"
  device_interconnect_info {{ active_links: {12 if major == 8 else 18} }}
}}
platform_name: "CUDA"
device_description_str: "{shown}"
"""
