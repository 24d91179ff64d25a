"""Damage to files and to JSON values, seeded: what a full disk, a power cut, a bad cable or an editor leaves."""
import copy
import os
import shutil

CUTS, FLIPS = 20, 50  # truncations and flipped bits of a file
# In place of any value: one of each type and sign, and what Python or JSON takes for a number or a text and a file
# system, a float, an encoding or a terminal does not.
VALUES = (None, True, False, 0, -1, 7, 2 ** 31, 2 ** 63, 10 ** 400, 0.5, -2.5, 1e308, float('nan'), float('inf'), '',
          'a', '0', 'nan', '²', '../..', 'a\nb', '\0', '\ud800', 'x' * 300, [], [None], ['a', 1], {}, {'a': 1},
          {'type': 'a:b'}, {'type': 'tuple', 'value': None}, {'type': 'lm.train:Config'})


def damaged(content, rng, cuts=CUTS, flips=FLIPS):
    """Yields (name of the damage, bytes) of a file's content: truncations, flipped bits, a block of zeros, parts twice,
    bytes that are no UTF-8, and other content. rng: a random.Random.
    """
    size = len(content)
    for place in sorted({0, 1, size - 1, *(rng.randrange(size) for _ in range(cuts - 3) if size)} & {*range(size)}):
        yield f'cut to {place} of {size} bytes', content[:place]
    for place in (rng.randrange(8 * size) for _ in range(flips) if size):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield f'bit {place % 8} of byte {place // 8} flipped', bytes(flipped)
    first, last = sorted(rng.randrange(size + 1) for _ in range(2))
    yield f'zeros in bytes {first} to {last}', content[:first] + bytes(last - first) + content[last:]
    yield f'bytes {first} to {last} twice', content[:last] + content[first:]
    yield 'the whole twice', content + content
    yield 'a byte order mark of UTF-16 before it', b'\xff\xfe' + content
    for other in (b'null\n', b'[]\n', b'{}\n', b'0', b'"text"', b'\n', bytes(100), b'[' * 100_000,
                  b'[' * 300 + b']' * 300, b'1' * 5000, b'{"a": NaN}'):
        yield f'{len(other)} bytes {other[:8]!r}... in its place', other


def garbled(value, rng, most=None):
    """Yields (name of the damage, JSON value): each value in it, itself included, replaced by each of VALUES, removed
    or renamed; of all those at most `most`, drawn by a random.Random.
    """
    cases = [(place, change) for place in places(value)
             for change in [*VALUES, *((remove, rename) if place and isinstance(place[-1], str) else ())]]
    for place, change in cases if most is None or most >= len(cases) else rng.sample(cases, most):
        name = change.__name__ if callable(change) else f'{type(change).__name__} {ascii(change)[:20]}'
        yield f'{".".join(map(str, place)) or "all"}: {name}', _changed(value, place, change)


def places(value, place=()):
    """Returns the path of every value in a JSON value, itself included: a tuple of names and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(inner for name, item in items for inner in places(item, (*place, name)))]


def remove(items, name):
    """Removes an item of an object."""
    del items[name]


def rename(items, name):
    """Gives an item of an object another name."""
    items[f'{name}_'] = items.pop(name)


def _changed(value, place, change):
    if not place:
        return change
    whole = copy.deepcopy(value)
    inside = whole
    for name in place[:-1]:
        inside = inside[name]
    if callable(change):
        change(inside, place[-1])
    else:
        inside[place[-1]] = change
    return whole


def absent(path):
    """Removes what is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def directory(path):
    """Makes a path a directory."""
    absent(path)
    path.mkdir()


def fifo(path):
    """Makes a path a FIFO, which nobody writes to."""
    absent(path)
    os.mkfifo(path)


def loop(path):
    """Makes a path a link to itself."""
    absent(path)
    path.symlink_to(path)


def dangling(path):
    """Makes a path a link to nothing."""
    absent(path)
    path.symlink_to(path.parent / 'nowhere')


OBSTACLES = (absent, directory, fifo, loop, dangling)  # in place of a file; a FIFO must not be waited for
