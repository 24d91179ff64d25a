"""A decoder or encoder in float64 numpy, from the papers' formulas, one row and one head at a time where it can be.

It reads the fields of a lm.models.Decoder, the classes of its components and its parameters by name, and shares no code
with it.
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


def attend(query, key, value, visible, bias=None, softcap=0.0, scale=None, sink=None):
    """Returns values [B T N H] gathered from key and value [B S K H] by queries that see visible [B T S].

    sink [N]: exp(sink) is one more term of what each head divides by.
    """
    out = np.zeros(query.shape)
    batch, _, heads, size = query.shape
    scale = 1 / math.sqrt(size) if scale is None else scale
    for b in range(batch):
        for n in range(heads):
            k = n * key.shape[2] // heads
            scores = query[b, :, n] @ key[b, :, k].T * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[n]
            terms = np.exp(np.where(visible[b], scores, -np.inf))
            total = terms.sum(-1, keepdims=True) + (0 if sink is None else math.exp(sink[n]))
            out[b, :, n] = terms / total @ value[b, :, k]
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


def relative_bucket(distance, buckets, longest, causal=True):
    """Returns T5's bucket of a key `distance` tokens back, half of them exact and the rest logarithmic.

    Where not causal, keys ahead have the second half of the buckets; where causal, they are as the token itself.
    """
    if not causal:
        return relative_bucket(abs(distance), buckets // 2, longest) + (buckets // 2 if distance < 0 else 0)
    distance = max(0, distance)
    exact = buckets // 2
    if distance < exact:
        return distance
    steps = math.log(distance / exact) / math.log(longest / exact)
    return min(buckets - 1, exact + int(steps * (buckets - exact)))


def rope_frequencies(position, size):
    """Returns the radians per position of each turned pair, scaled as the position says."""
    turned = int(size * position.fraction)
    frequencies = [position.base ** (-2 * i / turned) for i in range(turned // 2)]
    if position.factor == 1:
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


def yarn_frequencies(position, size):
    """Returns the radians per position: of turned pair i, between turning as it did and `factor` times slower."""
    size = int(size * position.fraction)

    def pair(turns):
        return size * math.log(position.original / (turns * 2 * math.pi)) / (2 * math.log(position.base))
    first, last = pair(position.fast), pair(position.slow)
    if position.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    frequencies = []
    for i in range(size // 2):
        slower = min(1, max(0, (i - first) / (last - first)))
        frequency = position.base ** (-2 * i / size)
        frequencies.append(slower * frequency / position.factor + (1 - slower) * frequency)
    return frequencies


def rotate(x, at, frequencies):
    """Returns x [B T N H] with the complex numbers x[i] + j x[i + h/2] turned by positions `at` [B T]."""
    out, half = x.copy(), len(frequencies)
    for i, frequency in enumerate(frequencies):
        turn = np.vectorize(lambda t, f=frequency: cmath.exp(1j * t * f))(at)[:, :, None]
        turned = (x[..., i] + 1j * x[..., i + half]) * turn
        out[..., i], out[..., i + half] = turned.real, turned.imag
    return out


def turn(position, x, at):
    """Returns queries or keys x [B T N H] as a position, told by the name of its class, turns them at `at` [B T]."""
    kind, size = type(position).__name__, x.shape[-1]
    if kind == 'Rope':
        return rotate(x, at, rope_frequencies(position, size))
    if kind == 'Yarn':
        growth, turning = position.growth or 0.1 * math.log(position.factor) + 1, int(size * position.fraction)
        turned = rotate(x, at, yarn_frequencies(position, size))
        return np.concatenate([growth * turned[..., :turning], x[..., turning:]], -1)
    if kind != 'LongRope':
        return x
    rows, turning = [], 2 * len(position.short)
    for row, places in zip(x, at, strict=True):
        factors = position.long if max(places) + 1 > position.original else position.short
        frequencies = [position.base ** (-2 * i / turning) / factor for i, factor in enumerate(factors)]
        rows.append(rotate(row[None], places[None], frequencies)[0])
    return np.concatenate([position.growth * np.stack(rows)[..., :turning], x[..., turning:]], -1)


def activate(activation, x):
    """Returns the activation of x, told by the name of its class."""
    kind = type(activation).__name__
    if kind == 'Gelu' and activation.exact:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if kind == 'Gelu':
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    return {'Silu': lambda: x / (1 + np.exp(-x)), 'Relu': lambda: np.maximum(x, 0),
            'Relu2': lambda: np.maximum(x, 0) ** 2, 'ClampedSilu': lambda: gate(activation, x, 0)}[kind]()


def gate(activation, x, up):
    """Returns what a gated sublayer makes of its two projections."""
    if type(activation).__name__ == 'ClampedSilu':
        x, up = np.minimum(x, activation.limit), np.minimum(np.maximum(up, -activation.limit), activation.limit)
        return x / (1 + np.exp(-activation.steepness * x)) * (up + 1)
    return activate(activation, x) * up


def normalise(norm, params, name, x):
    """Returns x [... D] under a norm, told by the name of its class, with the parameters called `name`."""
    kind = type(norm).__name__
    if kind == 'NoNorm':
        return x
    if kind == 'LayerNorm':
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + norm.epsilon) * params[f'{name}_scale']
    return x + params[f'{name}_bias'] if kind == 'LayerNorm' and norm.bias else x


class Decoder:
    """The forward pass of `model` (read for its fields alone) with `params` in float64."""

    def __init__(self, model, params):
        self.model, self.params = model, params
        self.pattern = model.pattern or (model.layer,)

    def bias(self, attention, length):
        """Returns the bias on scores [N T S], or None."""
        position, kind = attention.position, type(attention.position).__name__
        back = [[t - s for s in range(length)] for t in range(length)]
        if kind == 'Alibi':
            return -np.array(alibi_slopes(attention.heads))[:, None, None] * np.abs(back)
        if kind == 'Relative':
            buckets = [[relative_bucket(d, position.buckets, position.distance, position.causal) for d in row]
                       for row in back]
            return np.moveaxis(self.params['relative'][np.array(buckets)], -1, 0)
        return None

    def attend(self, attention, params, x, at, segments):
        def project(name):
            y = np.tensordot(x, params[name], 1)
            return y if attention.bias == 'none' else y + params[f'{name}_bias']

        def norm(name, y):
            shape = y.shape if attention.qk_norm_over == 'head' else (*y.shape[:2], -1)
            return normalise(attention.qk_norm, params, name, y.reshape(shape)).reshape(y.shape)
        query, key, value = project('query'), project('key'), project('value')
        query, key = norm('query_norm', query), norm('key_norm', key)
        query, key = turn(attention.position, query, at), turn(attention.position, key, at)
        length = x.shape[1]
        visible = np.broadcast_to(sees(length, attention.window, segments, attention.causal), (len(x), length, length))
        mixed = attend(query, key, value, visible, self.bias(attention, length), attention.softcap, attention.scale,
                       params['sink'] if attention.sink else None)
        y = np.tensordot(mixed, params['out'], 2)
        return y + params['out_bias'] if attention.bias == 'all' else y

    def feed(self, mlp, params, x):
        def project(name, x):
            y = x @ params[name]
            return y + params[f'{name}_bias'] if mlp.bias else y
        up = project('up', x)
        hidden = gate(mlp.activation, project('gate', x), up) if mlp.gated else activate(mlp.activation, up)
        return project('down', hidden)

    def block(self, layer, params, x, at, segments):
        kind = type(layer.residual).__name__

        def norm(name, x):
            if type(layer).__name__ == 'FirstLayer' and name == 'attention_norm':
                return x
            return normalise(layer.norm, params, name, x)

        def add(stream, name, sublayer, source):
            """Returns the stream with what a sublayer gives for its source, as the residual wires it."""
            if kind == 'PostNorm':
                return norm(f'{name}_norm', stream + sublayer(source))
            y = sublayer(norm(f'{name}_norm', source) if kind in ('PreNorm', 'SandwichNorm') else source)
            return stream + (norm(f'{name}_post_norm', y) if kind in ('OutputNorm', 'SandwichNorm') else y)
        middle = add(x, 'attention', lambda y: self.attend(layer.attention, params['attention'], y, at, segments), x)
        return add(middle, 'mlp', lambda y: self.feed(layer.mlp, params['mlp'], y), x if layer.parallel else middle)

    def embed(self, tokens, at, types):
        embedding, width = self.model.embedding, self.model.width
        x = self.params['tokens'][tokens] * (math.sqrt(width) if embedding.scaled else 1)
        kind = type(embedding.position).__name__
        if kind == 'Learned':
            x = x + self.params['positions'][at]
        if kind == 'Sinusoidal':
            angle = at[..., None] / embedding.position.base ** (2 * np.arange(width // 2) / width)
            x = x + np.concatenate([np.sin(angle), np.cos(angle)], -1)
        if type(embedding).__name__ == 'TypedEmbedding':
            x = x + self.params['types'][np.zeros_like(tokens) if types is None else types]
        return normalise(embedding.norm, self.params, 'embedding_norm', x)

    def states(self, tokens, segments=None, positions=None, types=None):
        """Returns x [B T D] after the final norm."""
        at = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
        x = self.embed(tokens, at, types)
        for number in range(self.model.depth):
            layer = self.pattern[number % len(self.pattern)]
            x = self.block(layer, _at(self.params['blocks'], number), x, at, segments)
        return x if type(layer.residual).__name__ == 'PostNorm' else normalise(layer.norm, self.params, 'final_norm', x)

    def logits(self, *batch):
        """Returns logits [B T V] over the real vocabulary."""
        x, head = self.states(*batch), self.model.head
        table, bias = self.params['tokens'].T if head.tied else self.params['output'], 0.0
        if type(head).__name__ == 'MaskedHead':
            x = x @ self.params['dense'] + (self.params['dense_bias'] if head.dense_bias else 0)
            x = normalise(head.norm, self.params, 'dense_norm', activate(head.activation, x))
            bias = self.params['output_bias']
        logits, cap = (x @ table + bias)[..., :self.model.vocab], head.softcap
        return cap * np.tanh(logits / cap) if cap else logits

    def loss(self, batch, z_loss=0.0, smoothing=0.0):
        """Returns the mean of nll + z_loss * log_z^2 over the weights of a batch."""
        logits = self.logits(batch['inputs'], batch.get('segments'), batch.get('positions'), batch.get('types'))
        nll, log_z = cross_entropy(logits, batch['targets'], smoothing)
        weights = batch.get('weights', np.ones(nll.shape))
        return ((nll + z_loss * log_z ** 2) * weights).sum() / weights.sum()


def _at(tree, layer):
    return {name: _at(value, layer) for name, value in tree.items()} if isinstance(tree, dict) else tree[layer]
