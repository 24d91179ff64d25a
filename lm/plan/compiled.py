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

from lm import backend, config, hardware
from lm.plan import topology

OUT_OF_MEMORY = re.compile(r'(?:Used |required[^(]*\()([\d.]+)([KMG])\b')
POINTER = re.compile(r'backend_config = "\d+"')  # of a kernel partitioned in Python: another one in every process
REMATERIALIZED = 'nvoluntary full rematerialization'
UNITS = {'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one step on one device.

    text: the compiled module, '' where it did not fit. memory: bytes of its arguments, of its outputs that are not
    arguments written over, and of its temporaries. needed: where it did not fit, the bytes that it asked for.
    warnings: how often the partitioner said that it had to rebuild a whole array. seconds: what compiling took, and
    cached whether that was before.
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
    """Returns the Compiled step of a train.Config on a cluster; what was compiled once is read from the cache.

    `file` is the experiment file, where it defines types of its own. Raises config.Error where the compiler cannot be
    had or refuses for another reason than memory.
    """
    topology.require(cluster)
    asked = {'settings': config.dump(settings), 'cluster': cluster.name, 'file': str(file) if file else None}
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    backend.tune(environ)
    backend.hide_accelerators(environ)
    child = subprocess.run([sys.executable, '-m', 'lm.plan.compiled'], input=json.dumps(asked), capture_output=True,
                           text=True, env=environ)
    if child.returncode:
        said = [line for line in child.stderr.splitlines() if line.strip()] or ['nothing said']
        raise config.Error(f'compiling for {cluster.name} failed: {said[-1][:500]}')
    answer = json.loads(child.stdout.splitlines()[-1])
    if 'error' in answer:
        raise config.Error(answer['error'])
    return Compiled(**json.loads(gzip.decompress(pathlib.Path(answer['path']).read_bytes())), cached=answer['cached'])


def lowered(settings, devices, platform):
    """Returns the training step of a train.Config as JAX lowers it for devices of a platform, 'tpu' or 'cuda'."""
    import jax

    from lm import train
    from lm.parallel import sharding
    mesh = sharding.make_mesh(settings.mesh, devices)
    program = train.program(settings, mesh)

    def place(x):
        names = ('batch',) + (None,) * (x.ndim - 1)
        placed = jax.sharding.NamedSharding(mesh, sharding.spec(names, x.shape, mesh))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    batch = jax.tree.map(place, settings.data.example())
    with jax.set_mesh(mesh):
        return program.step.trace(program.abstract, batch).lower(lowering_platforms=(platform,))


def folder():
    """Returns the directory in which compiled steps are kept."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'lm' / 'plan'


def writable(path):
    """Returns a directory, made if need be; raises config.Error where nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise config.Error(f'compiled steps cannot be kept in {path} ({error.strerror}); '
                           'name another folder: XDG_CACHE_HOME=/tmp/cache.') from error
    return path


def _key(step, cluster):
    names = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin')
    known = {d.metadata['Name'] for d in importlib.metadata.distributions()}
    versions = [f'{name} {importlib.metadata.version(name)}' for name in names if name in known]
    flags = [os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    said = [POINTER.sub('', step.as_text()), cluster.chip.name, str(cluster.shape), str(cluster.count)]
    return hashlib.sha256('\n'.join([*said, *versions, *flags]).encode()).hexdigest()


def _compile(step):
    """Returns the fields of Compiled that compiling gives."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said, _stderr_to(said):
        found = _compiled_or_refused(step)
        said.seek(0)
        return found | {'warnings': said.read().decode(errors='replace').count(REMATERIALIZED),
                        'seconds': time.perf_counter() - begun}


def _compiled_or_refused(step):
    import jax
    try:
        made = step.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        found = OUT_OF_MEMORY.search(str(error))
        amount, unit = found.groups() if found else (0, 'G')
        return {'text': '', 'memory': {}, 'needed': float(amount) * UNITS[unit]}
    stats = made.memory_analysis()
    memory = {'arguments': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes,
              'outputs': stats.output_size_in_bytes - stats.alias_size_in_bytes}
    return {'text': made.as_text(), 'memory': memory, 'needed': 0}


@contextlib.contextmanager
def _stderr_to(file):
    """Sends what this process writes to its standard error, the compiler's own lines too, to a file."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main():
    """Reads what to compile as JSON from stdin and prints where the answer is, or what is wrong with the settings."""
    try:
        print(json.dumps(_answered(json.load(sys.stdin))))
    except config.Error as error:
        print(json.dumps({'error': str(error)}))


def _answered(asked):
    """Returns {'path': of the file that holds the answer, 'cached': whether it was there}; compiles if it was not."""
    cluster = hardware.cluster(asked['cluster'])
    settings = config.build(asked['settings'], asked['file'])
    kept = writable(folder())
    step = lowered(settings, topology.devices(cluster), cluster.chip.platform)
    path = kept / f'{_key(step, cluster)}.json.gz'
    cached = path.exists()
    if not cached:
        packed = gzip.compress(json.dumps(_compile(step)).encode())
        part = path.with_suffix(f'.{os.getpid()}')
        part.write_bytes(packed)
        part.replace(path)
    return {'path': str(path), 'cached': cached}


if __name__ == '__main__':
    main()
