"""A decoder in float64 numpy, written from the papers' formulas, one row and one head at a time where it can be.

It reads the fields of a lm.models.decoder.Decoder and its parameters by name, and shares no code with it.
"""
import cmath
import math

import numpy as np


def double(params):
    """Returns a tree of dicts with its arrays as float64 numpy."""
    if isinstance(params, dict):
        return {name: double(value) for name, value in params.items()}
    return np.asarray(params, np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(logits, targets, smoothing=0.0):
    """Returns (nll, log_z) [...] of logits [... V]; the target is mixed with `smoothing` of 1 / V."""
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    wanted = (1 - smoothing) * np.eye(logits.shape[-1])[targets] + smoothing / logits.shape[-1]
    return -(wanted * (logits - log_z[..., None])).sum(-1), log_z


def attend(query, key, value, visible, bias=None, softcap=0.0):
    """Returns values [B T N H] gathered from key and value [B S K H] by queries that see visible [B T S]."""
    out = np.zeros(query.shape)
    batch, _, heads, size = query.shape
    for b in range(batch):
        for n in range(heads):
            k = n * key.shape[2] // heads
            scores = query[b, :, n] @ key[b, :, k].T / math.sqrt(size)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[n]
            out[b, :, n] = softmax(np.where(visible[b], scores, -np.inf)) @ value[b, :, k]
    return out


def sees(length, window=0, segments=None, causal=True):
    """Returns which keys [S] each query [T] sees, [B T S]; B is 1 without segments [B T]."""
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    seen = (distance >= 0) if causal else np.ones((length, length), bool)
    if window:
        seen = seen & (abs(distance) < window)
    if segments is None:
        return seen[None]
    return seen & (segments[:, :, None] == segments[:, None, :])


def alibi_slopes(heads):
    """Returns the slopes of `heads` heads, as the code published with the paper picks them."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start ** i for i in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(closest) + alibi_slopes(2 * closest)[0::2][:heads - closest]


def relative_bucket(distance, buckets, longest):
    """Returns the bucket of a key `distance` >= 0 tokens back in a causal T5: half are exact, the rest logarithmic."""
    exact = buckets // 2
    if distance < exact:
        return distance
    steps = math.log(distance / exact) / math.log(longest / exact)
    return min(buckets - 1, exact + int(steps * (buckets - exact)))


def rope_frequencies(position, size, window):
    """Returns the radians per position of each turned pair, scaled as the position says."""
    turned = int(size * position.fraction)
    local = window > 0 and position.local_base > 0
    base = position.local_base if local else position.base
    frequencies = [base ** (-2 * i / turned) for i in range(turned // 2)]
    if local or position.factor == 1:
        return frequencies
    if position.original == 0:
        return [f / position.factor for f in frequencies]
    scaled = []
    for f in frequencies:
        wavelength = 2 * math.pi / f
        if wavelength < position.original / position.high:
            scaled.append(f)
        elif wavelength > position.original / position.low:
            scaled.append(f / position.factor)
        else:
            smooth = (position.original / wavelength - position.low) / (position.high - position.low)
            scaled.append((1 - smooth) * f / position.factor + smooth * f)
    return scaled


def rotate(x, at, frequencies):
    """Returns x [B T N H] with the complex numbers x[i] + j x[i + h/2] turned by positions `at` [B T]."""
    out, half = x.copy(), len(frequencies)
    for i, frequency in enumerate(frequencies):
        turn = np.vectorize(lambda t, f=frequency: cmath.exp(1j * t * f))(at)[:, :, None]
        turned = (x[..., i] + 1j * x[..., i + half]) * turn
        out[..., i], out[..., i + half] = turned.real, turned.imag
    return out


def activate(kind, up, gate):
    """Returns the hidden units from the up projection and, where the kind has one, the gate's."""
    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    return {'gelu': lambda: gelu(up), 'relu': lambda: np.maximum(up, 0), 'relu2': lambda: np.maximum(up, 0) ** 2,
            'swiglu': lambda: gate / (1 + np.exp(-gate)) * up, 'geglu': lambda: gelu(gate) * up}[kind]()


class Decoder:
    """The forward pass of `model` (read for its fields alone) with `params` in float64."""

    def __init__(self, model, params):
        self.model, self.params = model, params
        self.groups = model.kv_heads or model.heads
        self.size = model.head_dim or model.width // model.heads

    def norm(self, params, name, x, kind):
        if kind != 'rms':
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + self.model.norm_epsilon) * params[f'{name}_scale']
        return x + params[f'{name}_bias'] if kind == 'layer_bias' else x

    def bias(self, length):
        """Returns the bias on scores [N T S], or None."""
        model, kind = self.model, type(self.model.position).__name__
        back = [[max(0, t - s) for s in range(length)] for t in range(length)]
        if kind == 'Alibi':
            return -np.array(alibi_slopes(model.heads))[:, None, None] * np.array(back)
        if kind == 'Relative':
            scheme = model.position
            buckets = [[relative_bucket(d, scheme.buckets, scheme.distance) for d in row] for row in back]
            return np.moveaxis(self.params['relative'][np.array(buckets)], -1, 0)
        return None

    def attention(self, params, x, layer, at, segments):
        model = self.model
        window = model.windows[layer % len(model.windows)]

        def project(name):
            y = np.tensordot(x, params[name], 1)
            return y if model.bias == 'none' else y + params[f'{name}_bias']
        query, key, value = project('query'), project('key'), project('value')
        if model.qk_norm:
            query, key = self.norm(params, 'query_norm', query, 'rms'), self.norm(params, 'key_norm', key, 'rms')
        if type(model.position).__name__ == 'Rope':
            frequencies = rope_frequencies(model.position, self.size, window)
            query, key = rotate(query, at, frequencies), rotate(key, at, frequencies)
        visible = np.broadcast_to(sees(x.shape[1], window, segments), (x.shape[0], x.shape[1], x.shape[1]))
        mixed = attend(query, key, value, visible, self.bias(x.shape[1]), model.attention_softcap)
        y = np.tensordot(mixed, params['out'], 2)
        return y + params['out_bias'] if model.bias == 'all' else y

    def mlp(self, params, x):
        def project(name, x):
            y = x @ params[name]
            return y + params[f'{name}_bias'] if self.model.bias == 'all' else y
        gate = project('gate', x) if 'gate' in params else None
        return project('down', activate(self.model.activation, project('up', x), gate))

    def block(self, params, x, layer, at, segments):
        model = self.model
        pre, post = model.norm_place in ('pre', 'both'), model.norm_place in ('post', 'both')

        def sublayer(name, apply, x):
            y = apply(self.norm(params, f'{name}_norm', x, model.norm) if pre else x)
            return self.norm(params, f'{name}_post_norm', y, model.norm) if post else y
        attended = sublayer('attention', lambda y: self.attention(params['attention'], y, layer, at, segments), x)
        fed = sublayer('mlp', lambda y: self.mlp(params['mlp'], y), x if model.parallel else x + attended)
        return x + attended + fed

    def embed(self, tokens, at):
        model, kind = self.model, type(self.model.position).__name__
        x = self.params['tokens'][tokens] * (math.sqrt(model.width) if model.scaled_embedding else 1)
        if kind == 'Learned':
            x = x + self.params['positions'][at]
        if kind == 'Sinusoidal':
            angle = at[..., None] / model.position.base ** (2 * np.arange(model.width // 2) / model.width)
            x = x + np.concatenate([np.sin(angle), np.cos(angle)], -1)
        return x

    def logits(self, tokens, segments=None, positions=None):
        """Returns logits [B T V] over the real vocabulary."""
        model = self.model
        at = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
        x = self.embed(tokens, at)
        for layer in range(model.depth):
            x = self.block(_at(self.params['blocks'], layer), x, layer, at, segments)
        x = self.norm(self.params, 'final_norm', x, model.norm)
        logits = (x @ (self.params['tokens'].T if model.tied else self.params['output']))[..., :model.vocab]
        cap = model.logit_softcap
        return cap * np.tanh(logits / cap) if cap else logits

    def loss(self, batch):
        """Returns the mean of nll + z_loss * log_z^2 over the weights of a batch."""
        logits = self.logits(batch['inputs'], batch.get('segments'), batch.get('positions'))
        nll, log_z = cross_entropy(logits, batch['targets'], self.model.smoothing)
        weights = batch.get('weights', np.ones(nll.shape))
        return ((nll + self.model.z_loss * log_z ** 2) * weights).sum() / weights.sum()


def _at(tree, layer):
    return {name: _at(value, layer) for name, value in tree.items()} if isinstance(tree, dict) else tree[layer]
