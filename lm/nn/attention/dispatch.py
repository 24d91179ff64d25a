"""Dispatch to an attention kernel: the platform's fast one, the one picked by hand, or plain XLA with a warning."""
import sys
from functools import cache

import jax
import jax.numpy as jnp

from lm import config
from lm.nn.attention import blocked, cudnn, ring, splash
from lm.parallel import sharding

KERNELS = {
    'blocked': (blocked.unsupported, blocked.attend),
    'reference': (blocked.unsupported, blocked.reference),
    'splash': (splash.unsupported, splash.attend),
    'cudnn': (cudnn.unsupported, cudnn.attend),
    'ring': (ring.unsupported, ring.attend),
}
PLAIN = ('blocked', 'reference')
FAST = {'tpu': 'splash', 'gpu': 'cudnn'}


def attend(query, key, value, spec):
    """Returns the values [B T N H] that queries [B T N H] gather from keys and values [B S K H], K dividing N.

    Values may be smaller than keys; kernels but the plain ones get them padded with zeros. The kernel is the platform's
    fast one if it can do the case; if not, a warning says why, once. Queries at an index and single ones, as in
    decoding, take the plain path. Raises config.Error where spec.kernel cannot do the case.
    """
    if spec.index is not None or query.shape[1] == 1:
        return blocked.attend(query, key, value, spec)
    name, size = pick(query, key, spec), value.shape[-1]
    if size < query.shape[-1] and name not in PLAIN:
        value = jnp.pad(value, [(0, 0)] * 3 + [(0, query.shape[-1] - size)])
    return KERNELS[name][1](query, key, value, spec)[..., :size]


def pick(query, key, spec):
    """Returns the name of the kernel for this case, and says so the first time."""
    platform = sharding.platform()
    if spec.kernel != 'auto':
        reason = KERNELS[spec.kernel][0](query, key, spec, platform)
        if reason:
            raise config.Error(f'kernel={spec.kernel} cannot compute this attention: {reason}; '
                               'try model.execution.kernel=auto.')
        say(f'attention: {spec.kernel} on {platform}, as asked')
        return spec.kernel
    plain = 'ring' if spec.zigzag else 'blocked'
    fast = FAST.get(platform, plain)
    reason = KERNELS[fast][0](query, key, spec, platform)
    if reason:
        if hindrance := KERNELS[plain][0](query, key, spec, platform):
            raise config.Error(f'no kernel computes this attention: {hindrance}; try a mesh without context.')
        say(f'warning: attention falls back from {fast} to {plain}, which is slower: {reason}')
    say(f'attention: {plain if reason else fast} on {platform}')
    return plain if reason else fast


@cache
def say(line):
    """Prints a line to stderr the first time it is said, on the first host."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
