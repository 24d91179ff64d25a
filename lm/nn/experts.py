"""A mixture of experts in place of an MLP: top-k routing that drops no token, experts over the mesh."""
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from lm import config
from lm.config import legacy
from lm.config.divisors import divisor_below
from lm.nn import expert_dispatch
from lm.nn.activations import Activation, Silu
from lm.nn.layers import INIT, MLP, FeedForward
from lm.nn.weights import Scope, einsum, fill, weight
from lm.parallel import reductions


@dataclass(frozen=True)
class Experts(FeedForward):
    """`count` experts of `ff` hidden units; each token uses `top_k` of them (Shazeer et al. 2017, arXiv:1701.06538).

    shared: how many more every token uses (Dai et al. 2024, arXiv:2401.06066). router: what turns its logits into
    scores. groups: a token chooses only in the `top_groups` of so many groups of experts whose two best scores have the
    largest sums (DeepSeek-AI 2024, arXiv:2412.19437). normalised: the weights of a token's experts sum to one, times
    `scale`. balance and z_loss: coefficients of the load-balance loss (Fedus et al. 2021, arXiv:2101.03961) and the
    router's z-loss (Zoph et al. 2022, arXiv:2202.08906). bias_rate: after each step the bias that joins the choice, not
    the weights, moves by this much towards even loads, without a loss (Wang et al. 2024, arXiv:2408.15664).
    capacity_factor: rows that a device can receive under expert parallelism over an even load; what exceeds it is
    dropped, 0 is dropless. bias: of the router and of every projection.
    """

    count: config.Size
    top_k: config.Size
    ff: config.Size
    activation: Activation = field(default_factory=Silu)
    gated: bool = True
    shared: config.Count = 0
    router: Literal['softmax', 'sigmoid'] = 'softmax'
    groups: config.Size = 1
    top_groups: config.Size = 1
    normalised: bool = True
    scale: config.Positive = 1.0
    balance: config.NonNegative = 0.01
    z_loss: config.NonNegative = 0.0
    bias_rate: config.NonNegative = 0.0
    capacity_factor: config.NonNegative = 0.0
    bias: bool = False

    MOVED: ClassVar[dict[str, str]] = legacy.EXPERTS

    def __post_init__(self):
        config.check(self)
        if self.top_k > self.count:
            raise config.Error(f'top_k={self.top_k} is more than count={self.count} experts; try top_k={self.count}.')
        if self.count % self.groups or self.top_groups > self.groups:
            raise config.Error(f'groups={self.groups} and top_groups={self.top_groups} do not cut count={self.count} '
                               f'experts; try groups={divisor_below(self.count, self.groups)} top_groups=1.')
        if self.top_k * self.groups > self.top_groups * self.count:
            raise config.Error(f'top_k={self.top_k} is more than the experts in top_groups={self.top_groups} groups; '
                               f'try top_groups={-(-self.top_k * self.groups // self.count)}.')
        if self.capacity_factor and self.capacity_factor < 1:
            raise config.Error(f'capacity_factor={self.capacity_factor} holds less than an even load of experts; '
                               'try capacity_factor=1.5.')

    def flops(self, width):
        return 2 * width * (self.count + (2 + self.gated) * self.ff * (self.top_k + self.shared))

    def __call__(self, x, norm, context, *, execution, init):
        """Returns (the experts' output for x [B T D], measurements); a Normaliser `norm` comes before, if any.

        Measurements: 'balance' and 'router_z', the losses before their coefficients, 'loss', their sum with them, and
        'load' [E], the share of tokens that each expert got. Padding counts in none. All average over micro-batches to
        those of the whole batch but 'balance', and with it its part of 'loss', which is a product of two means: each
        micro-batch, of `accumulate` or a pipeline, balances its own tokens. The loads of all before the first gradient
        would cost one more forward pass.
        """
        x = x if norm is None else norm(x)
        mix = Scope(partial(self._mix, execution=execution, init=init), name='experts')
        y, measured = mix(x, context.token_weights)
        if self.shared:
            shared = MLP(self.shared * self.ff, self.activation, self.gated)
            y = y + shared(x, None, context, execution=execution, init=init)[0]
        return y, measured

    def _mix(self, scope, x, token_weights, *, execution, init):
        gates, ids, measured = self._route(scope, x, token_weights)
        axes = {'experts': self.count, 'embed': x.shape[-1], 'ff': self.ff}
        down_axes = {'experts': self.count, 'ff': self.ff, 'embed': x.shape[-1]}
        weights = [weight(scope, name, axes, INIT, execution.dtype) for name in ('gate', 'up')[1 - self.gated:]]
        weights.append(weight(scope, 'down', down_axes, init, execution.dtype))
        shift = 0
        if self.bias:
            x, weights[:-1], shift = self._biased(scope, x, (ids, gates), weights[:-1])
        return shift + expert_dispatch.over_mesh(
            partial(expert_dispatch.apply, self), x, ids, gates.astype(x.dtype), weights), measured

    def _biased(self, scope, x, routes, ins):
        """Returns (x with a column of ones, the matrices of its projections with their biases as one more row, what the
        biases of the outputs add).
        """
        (ids, gates), names = routes, ('gate', 'up')[1 - self.gated:]
        biases = [weight(scope, f'{name}_bias', {'experts': self.count, 'ff': self.ff}, fill(0.0), x.dtype).value
                  for name in names]
        ins = [w.replace(value=jnp.concatenate([w.value, bias[:, None]], 1))
               for w, bias in zip(ins, biases, strict=True)]
        out = weight(scope, 'down_bias', {'experts': self.count, 'embed': x.shape[-1]}, fill(0.0), x.dtype).value
        share = jnp.einsum('BTkE,BTk->BTE', jax.nn.one_hot(ids, self.count), gates).astype(x.dtype)
        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        return jnp.concatenate([x, ones], -1), ins, jnp.einsum('BTE,ED->BTD', share, out)

    def activate(self, gate, up=None):
        """Returns the hidden units [m F] of what gate, if gated, and up give."""
        return self.activation(gate) if up is None else self.activation.gate(gate, up)

    def _route(self, scope, x, token_weights):
        """Returns (weights [B T top_k] in float32, experts [B T top_k], measurements) for tokens x [B T D]."""
        def mean(values):
            """Returns the mean over tokens of values [B T ...] by their weights."""
            if token_weights is not None:
                values = values * token_weights.reshape(*token_weights.shape, *[1] * (values.ndim - 2))
            return jnp.mean(values, (0, 1))
        table = weight(scope, 'router', {'embed': x.shape[-1], 'routes': self.count}, INIT)
        logits = einsum('BTD,DE->BTE', x.astype(jnp.float32), table)
        if self.bias:
            logits += weight(scope, 'routes_bias', {'routes': self.count}, fill(0.0)).value
        scores = jax.nn.sigmoid(logits) if self.router == 'sigmoid' else jax.nn.softmax(logits)
        choice = jax.lax.stop_gradient(scores)
        if self.bias_rate:
            bias = weight(scope, 'router_bias', {'routes': self.count}, fill(0.0))
            choice += jax.lax.stop_gradient(bias.value)
        ids = jax.lax.top_k(self._within_groups(choice), self.top_k)[1]
        gates = jnp.take_along_axis(scores, ids, -1)
        if self.normalised:
            gates = gates / jnp.maximum(jnp.sum(gates, -1, keepdims=True), 1e-9)
        load = reductions.pmean_data(mean(jnp.mean(jax.nn.one_hot(ids, self.count), 2)))
        share = mean(scores / jnp.sum(scores, -1, keepdims=True))
        balance = self.count * jnp.sum(load * share)
        if token_weights is not None:  # whose mean is not 1 in a micro-batch of a pipeline
            balance /= jnp.maximum(reductions.pmean_data(jnp.mean(token_weights)), 1e-9)
        router_z = mean(jnp.square(jax.nn.logsumexp(logits, -1)))
        return gates * self.scale, ids, {'balance': balance, 'router_z': router_z, 'load': load,
                                         'loss': self.balance * balance + self.z_loss * router_z}

    def _within_groups(self, choice):
        """Returns the scores of a choice [B T E], -inf in all but the best groups."""
        if self.groups == self.top_groups:
            return choice
        parts = choice.reshape(*choice.shape[:-1], self.groups, -1)
        best = jnp.sum(jax.lax.top_k(parts, min(2, parts.shape[-1]))[0], -1)
        chosen = jax.nn.one_hot(jax.lax.top_k(best, self.top_groups)[1], self.groups, dtype=bool).any(-2)
        return jnp.where(chosen[..., None], parts, -jnp.inf).reshape(choice.shape)

    def post_update(self, params, metrics):
        """Returns (params, metrics) after a step: the bias [L E] of the choice moved by `bias_rate` towards even loads
        [L E], the load as its largest share over an even one.
        """
        load = metrics['load']
        metrics = {**metrics, 'load': jnp.max(load) * self.count}
        if not self.bias_rate:
            return params, metrics
        towards_even = jnp.sign(jnp.mean(load, -1, keepdims=True) - load)
        routed = params['experts']
        routed = {**routed, 'router_bias': routed['router_bias'] + self.bias_rate * towards_even}
        return {**params, 'experts': routed}, metrics
