"""How the axes of a tensor in somebody else's checkpoint are arranged: one text, a numpy view, both directions.

A layout has a word for each axis of their tensor, of letters for our axes: 'NH D' is [N * H, D]. A digit pair picks:
in 'N1/3H D' the first axis is [N, 3, H], of which it takes the second. Words joined by + are side by side, and the one
in brackets is meant: '(NH)+KH+KH D' are the queries of fused queries, keys and values. Since a view shares the memory
of the array, what reads one tensor from another also writes it.
"""
import math
import re

# The letter of each logical axis of a parameter (nn.weights); B is the size of a bias or of a norm.
LETTERS = {'layers': 'L', 'embed': 'D', 'heads': 'N', 'kv_heads': 'K', 'head_dim': 'H', 'ff': 'F', 'vocab': 'V',
           'experts': 'E', 'routes': 'E', 'position': 'T', 'norm': 'B', 'bias': 'B',
           'types': 'Y', 'hidden': 'I', 'classes': 'C', 'rank': 'R', 'query_rank': 'Q', 'rotary': 'P'}
TOKEN = re.compile(r'\d+/\d+|[A-Z]')


def shape(layout, sizes):
    """Returns the shape of a tensor with a layout, by the sizes of letters."""
    return tuple(sum(_extent(part, sizes) for part in word.split('+')) for word in layout.split())


def view(array, layout, letters, sizes):
    """Returns a view of an array of that layout with the axes `letters`, in their order."""
    order = ''
    for word in layout.split():
        axis, parts = len(order), word.split('+')
        number = next((i for i, part in enumerate(parts) if '(' in part), 0)
        start = sum(_extent(part, sizes) for part in parts[:number])
        array = array[(slice(None),) * axis + (slice(start, start + _extent(parts[number], sizes)),)]
        tokens = TOKEN.findall(parts[number])
        array = array.reshape(*array.shape[:axis], *(_size(token, sizes) for token in tokens), *array.shape[axis + 1:])
        picks = tuple(int(token.split('/')[0]) if '/' in token else slice(None) for token in tokens)
        array = array[(slice(None),) * axis + picks]
        order += ''.join(token for token in tokens if '/' not in token)
    return array.transpose([order.index(letter) for letter in letters])


def _size(token, sizes):
    return int(token.split('/')[1]) if '/' in token else sizes[token]


def _extent(part, sizes):
    return math.prod(_size(token, sizes) for token in TOKEN.findall(part))
