"""How fast an experiment trains here: compile and step seconds, FLOP/s, memory, and the loader alone."""
import dataclasses
import resource
import tempfile
import time

import jax
import numpy as np

from lm import config, data, hardware, train, trees
from lm.data import loader
from lm.parallel import sharding
from lm.plan import calibration, costs, roofline
from lm.plan.shape import shape_of


def measure(settings, steps, warmup=3):
    """Returns {name: number} of `steps` timed steps of a train.Config on one batch of random tokens."""
    program = train.program(settings)
    batch = settings.data.example()
    generator = np.random.default_rng(0)
    batch |= {name: generator.integers(settings.model.vocab, size=batch[name].shape, dtype=np.int32)
              for name in ('inputs', 'targets', 'encoder_inputs') if name in batch}
    tokens, batch = batch['inputs'].size, sharding.put(batch, program.mesh)
    with jax.set_mesh(program.mesh):
        begun = time.perf_counter()
        step = program.step.lower(program.abstract, batch).compile()
        compile_seconds = time.perf_counter() - begun
        state = program.init()
    times, cpu_times = _times(step, state, batch, warmup + steps)[:, warmup:]
    seconds = float(np.median(times))
    rate = settings.model.flops(settings.data.context) * tokens / seconds
    return {'parameters': trees.count(program.abstract.params), 'tokens_per_step': tokens,
            'compile_seconds': round(compile_seconds, 3), 'step_seconds': round(seconds, 6),
            'step_seconds_spread': [round(float(q), 6) for q in np.quantile(times, [0.1, 0.9])],
            'host_cpu_seconds': round(float(np.median(cpu_times)), 6),
            'tokens_per_second': round(tokens / seconds, 1), 'model_tflops_per_second': round(rate / 1e12, 4),
            **_utilisation(settings, program.mesh, rate), **_prediction(settings, program.mesh, step, seconds),
            **_memory(step)}


def _times(step, state, batch, count):
    """Returns the wall and the CPU seconds [2 count] of successive steps, each until its loss is on the host."""
    stamps = [(time.perf_counter(), time.process_time())]
    for _ in range(count):
        state, metrics = step(state, batch)
        float(metrics['loss'])
        stamps.append((time.perf_counter(), time.process_time()))
    return np.diff(stamps, axis=0).T


def _utilisation(settings, mesh, rate):
    """Returns MFU and what it is of: the peak of the data sheet, or on a CPU what a large matrix product reaches."""
    device, dtype = mesh.devices.flat[0], settings.model.execution.dtype
    chip = hardware.find(device.device_kind)
    peak = chip.flops[dtype] * mesh.size if chip else hardware.measure_gemm(dtype)
    return {'device': device.device_kind, 'devices': mesh.size, 'peak_tflops_per_second': round(peak / 1e12, 4),
            'peak_from': 'data sheet' if chip else 'measured matrix product', 'mfu': round(rate / peak, 4)}


def _prediction(settings, mesh, step, seconds):
    """Returns what `lm plan` says of the compiled step, and the efficiency of products that its measured seconds show.

    The efficiency is kept, and `lm plan` uses it for this chip from now on.
    """
    cluster = hardware.here(mesh.devices.flat[0].device_kind, mesh.size)
    if cluster is None:
        return {}
    try:
        shape = shape_of(settings.model)
    except config.Error as error:
        return {'not_predicted': str(error)}
    cluster = calibration.calibrated(cluster)
    cost = costs.measure(step.as_text(), dict(mesh.shape), shape.attended(settings.data.context))
    roof = roofline.roofline(cluster, dict(mesh.shape), shape.dtype, cost)
    return {'predicted_step_seconds': round(roof.seconds, 6),
            'predicted_range_seconds': [round(bound, 6) for bound in roof.range],
            'predicted_floor_seconds': round(roof.floor, 6), 'predicted_bound': roof.bound,
            'product_efficiency': calibration.record(cluster.chip, roof, seconds)}


def _memory(step):
    """Returns the peak memory in GiB: of this process, and of a device by its allocator or else by the compiler."""
    host = {'host_peak_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 3)}
    peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if peak:
        return {**host, 'device_peak_gb': round(peak / 2 ** 30, 3)}
    stats = step.memory_analysis()
    return {**host, 'device_planned_gb': round((stats.argument_size_in_bytes + stats.temp_size_in_bytes) / 2 ** 30, 3)}


def measure_loader(corpus, steps):
    """Returns the tokens per second of the loader alone, on synthetic text packed as `corpus` packs its own."""
    rows = max(1000, 4 * corpus.batch)
    text = data.Synthetic(count=rows, length=max(2 * corpus.context, 20_000_000 // rows))
    if corpus.train.paired:
        short = data.Synthetic(count=4 * rows, length=max(1, corpus.context // 4))
        text = data.Parallel(short, short)
    with tempfile.TemporaryDirectory() as root:
        stream = dataclasses.replace(corpus, train=text, valid=None, tokenizer=data.Bytes()).open(root)
        return round(loader.measure(stream, steps))
