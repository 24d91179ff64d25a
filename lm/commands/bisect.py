"""`lm bisect`: where two runs that should be equal part."""
from lm.data.cache import root
from lm.debug.bisect import pasts, search, unlike_at
from lm.debug.sides import Side, parted, records_told, told


def main(a: str, b: str, *, cache: str = ''):
    """Says where two runs that should be equal part: the first step, and the first tensor of it, that differ.

    Args:
        a: the --workdir of an `lm train`
        b: another one; the exit code is 1 where the two differ, 0 where they are equal
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
    """
    sides = [Side(name, directory) for name, directory in (('A', a), ('B', b))]
    for line in told(*sides):
        print(line, flush=True)
    last, first = parted(*(side.records for side in sides))
    for line in records_told(sides, last, first):
        print(line, flush=True)
    pair = pasts(sides, root(cache))
    first = first or unlike_at(pair)
    if first is None:
        print('equal.')
        return 0
    search(sides, pair, first)
    return 1
