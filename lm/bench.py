"""How fast an experiment trains here: compile and step seconds, FLOP/s, memory, the loader alone; and `lm bench`."""
import dataclasses
import resource
import tempfile
import time

import jax
import numpy as np

from lm import data, hardware, train, trees
from lm.data import loader
from lm.models import flops
from lm.parallel import sharding
from lm.plan import analytic, costs, roofline


def compiled(program, batch):
    """Returns (the compiled step, state, seconds that compiling took)."""
    with jax.set_mesh(program.mesh):
        begun = time.perf_counter()
        step = program.step.lower(program.abstract, batch).compile()
        seconds = time.perf_counter() - begun
        return step, program.init(), seconds


def measure(settings, steps, warmup=3):
    """Returns {name: number} of `steps` timed steps on one batch of random tokens."""
    program = train.program(settings)
    example = settings.data.example()
    generator = np.random.default_rng(0)
    example |= {name: generator.integers(settings.model.vocab, size=example[name].shape, dtype=np.int32)
                for name in ('inputs', 'targets')}
    batch = sharding.put(example, program.mesh)
    step, state, compile_seconds = compiled(program, batch)
    times = []
    for _ in range(warmup + steps):
        begun = time.perf_counter()
        state, measured = step(state, batch)
        float(measured['loss'])
        times.append(time.perf_counter() - begun)
    times = np.array(times[warmup:])
    seconds = float(np.median(times))
    tokens = example['inputs'].size
    rate = flops.flops_per_token(settings.model, program.abstract.params, settings.data.context) * tokens / seconds
    return {'parameters': trees.count(program.abstract.params), 'tokens_per_step': tokens,
            'compile_seconds': round(compile_seconds, 3), 'step_seconds': round(seconds, 6),
            'step_seconds_spread': [round(float(q), 6) for q in np.quantile(times, [0.1, 0.9])],
            'tokens_per_second': round(tokens / seconds, 1), 'model_tflops_per_second': round(rate / 1e12, 4),
            **_utilisation(settings, program.mesh, rate), **_prediction(settings, program.mesh, step), **_memory(step)}


def _utilisation(settings, mesh, rate):
    """Returns the share of the devices' peak FLOP/s: the data sheet's, or on a CPU what a large product reaches."""
    device, dtype = mesh.devices.flat[0], settings.model.dtype
    chip = hardware.find(device.device_kind)
    if chip:
        peak = chip.flops[dtype] * mesh.size
    else:
        peak = hardware.measure_gemm(dtype)
    return {'device': device.device_kind, 'devices': mesh.size, 'peak_tflops_per_second': round(peak / 1e12, 4),
            'peak_from': 'data sheet' if chip else 'measured matrix product', 'mfu': round(rate / peak, 4)}


def _prediction(settings, mesh, step):
    """Returns the seconds a step should take by its compiled text and the data sheet: all overlapping, and no link."""
    cluster = hardware.here(mesh.devices.flat[0].device_kind, mesh.size)
    if cluster is None:
        return {}
    measured = costs.measure(step.as_text(), dict(mesh.shape), analytic.seen_share(settings))
    roof = roofline.roofline(cluster, dict(mesh.shape), settings.model.dtype, measured)
    return {'predicted_step_seconds': [round(roof.least, 6), round(roof.most, 6)], 'predicted_bound': roof.bound}


def _memory(step):
    """Returns the peak memory: of the process, and of a device by its own count or the compiler's."""
    found = {'host_peak_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 3)}
    counted = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if counted:
        return {**found, 'device_peak_gb': round(counted / 2 ** 30, 3)}
    planned = step.memory_analysis()
    planned = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    return {**found, 'device_planned_gb': round(planned / 2 ** 30, 3)}


def measure_loader(corpus, steps):
    """Returns the tokens per second of the loader alone, on synthetic text cut as `corpus` cuts its own."""
    rows = max(1000, 4 * corpus.batch)
    text = data.Synthetic(count=rows, length=max(2 * corpus.context, 20_000_000 // rows))
    with tempfile.TemporaryDirectory() as root:
        stream = dataclasses.replace(corpus, train=text, valid=None, tokenizer=data.Bytes()).open(root)
        return round(loader.measure(stream, steps))
