"""`lm bisect`: the first step and tensor in which two runs differ that should be equal."""
from lm.data.cache import root
from lm.debug.bisect import checkpoint_difference, search, trajectories
from lm.debug.sides import Side, compare_records, divergence, provenance


def main(a: str, b: str, *, cache: str = '', trust: bool = False):
    """Finds the first step, and the first tensor in it, in which two runs differ that should be equal.

    Args:
        a: the --workdir of an `lm train`
        b: another one; the exit code is 1 where the two differ, 0 where they are equal
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    sides = [Side(name, directory, trust) for name, directory in (('A', a), ('B', b))]
    for line in provenance(*sides):
        print(line, flush=True)
    last, first = divergence(*(side.records for side in sides))
    for line in compare_records(sides, last, first):
        print(line, flush=True)
    pair = trajectories(sides, root(cache))
    first = first or checkpoint_difference(pair)
    if first is None:
        print('equal.')
        return 0
    search(sides, pair, first)
    return 1
