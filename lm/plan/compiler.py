"""The real training step, compiled by the real compiler for a cluster that is not here, in a process of its own."""
import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import zlib

from lm import backend, config, hardware
from lm.config import files
from lm.plan import topology

OUT_OF_MEMORY = re.compile(r'(?:Used |required[^(]*\()([\d.]+)([KMG])\b')
FIELDS = {'text': str, 'memory': {str: float | int}, 'needed': float | int, 'warnings': int, 'seconds': float | int}
UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30}
REMATERIALIZED = 'nvoluntary full rematerialization'  # XLA's partitioner writes it with and without a capital I
# A kernel that is partitioned in Python is lowered with the address of its callback, which each process has its own of.
POINTER = re.compile(r'backend_config = "\d+"')


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler reports of one step on one device.

    text: the optimised HLO, '' where it did not fit. memory: bytes of arguments, of outputs that are not donated
    arguments, and of temporaries. needed: where it did not fit, the bytes that it asked for. warnings: involuntary full
    rematerialisations, for each of which the partitioner gathers a whole array. seconds: of compiling; cached: whether
    that was an earlier time.
    """

    text: str
    memory: dict
    needed: float
    warnings: int
    seconds: float
    cached: bool

    @property
    def peak(self):
        """Bytes in use at once at most: arguments, outputs and temporaries."""
        return sum(self.memory.values()) if self.memory else self.needed


def compile_step(settings, cluster, file=None):
    """Returns the CompiledStep of a train.Config on a cluster, from the cache where it was compiled before.

    `file` is the experiment file, where it defines types of its own. Raises config.Error where the compiler is not
    installed or refuses for another reason than memory.
    """
    topology.require_compiler(cluster)
    request = {'settings': config.dump(settings), 'cluster': cluster.name, 'file': str(file) if file else None}
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    backend.tune(environ)
    backend.hide_accelerators(environ)
    child = subprocess.run([sys.executable, '-m', 'lm.plan.compiler'], input=json.dumps(request), capture_output=True,
                           text=True, errors='replace', env=environ)
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.strip()] or ['the compiler gave no reason']
        raise config.Error(f'compiling for {cluster.name} failed: {lines[-1][:500]}')
    response = json.loads(child.stdout.splitlines()[-1])
    if 'error' in response:
        raise config.Error(response['error'])
    if response['damaged']:
        files.warn(f'{response["damaged"]} it was compiled again.')
    return CompiledStep(**_kept(pathlib.Path(response['path'])), cached=response['cached'])


def _kept(path):
    """Returns the fields of a step in the cache, but for `cached`, None where it is not there.

    Raises config.Error where it is damaged, which the checksum of gzip tells.
    """
    try:
        fields = files.parse_json(gzip.decompress(files.content(path)), FIELDS)
        if fields.keys() == FIELDS.keys():
            return fields
        raise ValueError(f'it has {len(fields)} items, not {len(FIELDS)}')
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise config.Error(f'{path} is damaged ({config.first_line(error)});') from error


def lower_step(settings, devices, platform):
    """Returns the training step of a train.Config as JAX lowers it for devices of a platform, 'tpu' or 'cuda'."""
    import jax

    from lm import train
    from lm.parallel import sharding
    mesh = sharding.make_mesh(settings.mesh, devices)
    program = train.program(settings, mesh)

    def place(x):
        spec = sharding.spec(('batch',) + (None,) * (x.ndim - 1), x.shape, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))
    batch = jax.tree.map(place, settings.data.example())
    with jax.set_mesh(mesh):
        return program.step.trace(program.abstract, batch).lower(lowering_platforms=(platform,))


def cache_directory():
    """Returns the directory of compiled steps, made if need be; raises config.Error where nothing can be written."""
    path = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'lm' / 'plan'
    try:
        files.make_directory(path)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise config.Error(f'compiled steps cannot be kept in {path} ({error.strerror}); '
                           'choose another directory: XDG_CACHE_HOME=/tmp/cache.') from error
    return path


def cache_key(lowered, cluster):
    """Returns the name of a lowered step in the cache: a hash of its text, the chips, the versions and the flags."""
    names = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin')
    installed = {d.metadata['Name'] for d in importlib.metadata.distributions()}
    versions = [f'{name} {importlib.metadata.version(name)}' for name in names if name in installed]
    flags = [os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    program = [POINTER.sub('', lowered.as_text()), cluster.chip.name, str(cluster.shape), str(cluster.count)]
    return hashlib.sha256('\n'.join([*program, *versions, *flags]).encode()).hexdigest()


def _compile(lowered):
    """Returns the fields of CompiledStep, but for `cached`, of a lowered step."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log, _stderr_to(log):
        fields = _compile_or_out_of_memory(lowered)
        log.seek(0)
        return fields | {'warnings': log.read().decode(errors='replace').count(REMATERIALIZED),
                         'seconds': time.perf_counter() - begun}


def _compile_or_out_of_memory(lowered):
    import jax
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        match = OUT_OF_MEMORY.search(str(error))
        amount, unit = match.groups() if match else (0, 'G')
        return {'text': '', 'memory': {}, 'needed': float(amount) * UNITS[unit]}
    stats = compiled.memory_analysis()
    memory = {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes,
              'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes}
    return {'text': compiled.as_text(), 'memory': memory, 'needed': 0}


@contextlib.contextmanager
def _stderr_to(file):
    """Redirects file descriptor 2, to which the C++ of the compiler writes as well, to a file."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main():
    """Compiles the request on stdin, JSON, and prints {'path', 'cached', 'damaged'} of the result, or {'error'}.

    damaged: what was wrong with the step in the cache.
    """
    try:
        print(json.dumps(_answer(json.load(sys.stdin))))
    except config.Error as error:
        print(json.dumps({'error': str(error)}))


def _answer(request):
    cluster = hardware.cluster(request['cluster'])
    settings = config.build(request['settings'], request['file'])
    directory = cache_directory()
    lowered = lower_step(settings, topology.devices(cluster), cluster.chip.platform)
    path = directory / f'{cache_key(lowered, cluster)}.json.gz'
    try:
        cached, damaged = _kept(path) is not None, ''
    except config.Error as error:
        cached, damaged = False, str(error)
    if not cached:
        files.replace(path, gzip.compress(json.dumps(_compile(lowered)).encode()))  # others may compile the same step
    return {'path': str(path), 'cached': cached, 'damaged': damaged}


if __name__ == '__main__':
    main()
