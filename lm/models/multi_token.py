"""Multi-token prediction with modules one after the other (DeepSeek-V3, 2024, arXiv:2412.19437, section 2.2)."""
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config
from lm.models.decoder import Decoder, batch_context
from lm.nn import memory
from lm.nn.context import Context
from lm.nn.experts import Experts
from lm.nn.layers import INIT
from lm.nn.taps import Tap
from lm.nn.weights import apply, declare, einsum, weight
from lm.parallel import pipeline, reductions


@dataclass(frozen=True)
class MultiTokenDecoder(Decoder):
    """A Decoder that also predicts the `ahead` tokens behind the next one, each by a module of one layer.

    Module k = 1, 2, ... reads of each token the state that module k - 1 has of it, the trunk's for the first, and the
    embedding of the token k places behind; both are normalised and multiplied by matrices whose sum enters a layer like
    the trunk's last. It predicts the token behind those by the trunk's head. Heads that all read the trunk (Gloeckle et
    al. 2024, arXiv:2404.19737) are as many layers, but guess a token without knowing those drafted before it.
    """

    ahead: config.Size = 2

    def declare(self, key):
        tokens = jnp.zeros((1, 1), jnp.int32)
        x, context = jnp.zeros((1, 1, self.width)), Context(tokens, rows=jnp.zeros(1, jnp.int32))
        keys = jax.random.split(jax.random.fold_in(key, 1), self.ahead)
        modules = {str(number): declare(self._module, key, x, x, context) for number, key in enumerate(keys, 1)}
        return {**super().declare(key), 'modules': modules}

    @property
    def _last(self):
        return self.stack.layer(self.depth - 1)

    def _module(self, scope, x, embedded, context):
        """Returns (x [B T D] after its norm, (cache, measurements)) of states and embeddings [B T D]."""
        def enter(name, part):
            matrix = weight(scope, name, {'embed': self.width, 'hidden': self.width}, INIT, part.dtype)
            return einsum('BTD,DE->BTE', self._last.norm(scope, f'{name}_norm', part), matrix)
        x = enter('state', x) + enter('token', embedded)
        x, extra = self._last(scope, x, context, tap=Tap(), execution=self.execution, depth=self.depth)
        return self._final_norm(scope, x), extra

    def module(self, params, number, x, tokens, context):
        """Returns (x [B T D] after the norm of module `number`, from 1, (cache, measurements)).

        x: the states [B T D] of the module before it. tokens [B T]: those `number` places behind those of x.
        """
        keys = (None,) * 2 if context.key is None else jax.random.split(context.key)
        embedded = apply(lambda scope: self._embed(scope, self._table(scope), tokens, context._replace(key=keys[0])),
                         params)
        attention, position = self._last.attention, self._last.attention.position
        table = apply(lambda scope: position.table(scope, attention.heads), params)
        angles = position.angles(context.positions, attention.head_size(self.width))
        context = context._replace(key=keys[1], types=None, angles=angles, table=table)
        step = memory.rematerialise(partial(apply, self._module), self.execution.remat, False)
        return step(params['modules'][str(number)], x, embedded, context)

    def later_losses(self, params, states, key=None, smoothing=0.0):
        """Returns (nll, log_z, measurements): of the batch's 'later' tokens [B T K], see States, and of each module.

        later [B T K]: the tokens behind the targets. Losses [B T K] are in nats, in the order of the text.
        """
        if pipeline.stages() > 1:
            raise config.Error('the modules of later tokens run in no pipeline; try a mesh without stage.')
        batch, x, losses, measured = states.batch, states.x, [], []
        tokens = [batch['targets'], *jnp.moveaxis(batch['later'], -1, 0)]
        context = batch_context(batch, states.zigzag)._replace(rows=reductions.row_numbers(len(x)))
        for number in range(1, self.ahead + 1):
            own = None if key is None else jax.random.fold_in(key, number)
            x, (_, extra) = self.module(params, number, x, tokens[number - 1], context._replace(key=own))
            losses.append(self._cross_entropy(params, x, tokens[number], smoothing))
            measured.append(extra)
        losses = tuple(jnp.stack(parts, -1) for parts in zip(*losses, strict=True))
        return *(states.zigzag.gather(losses) if states.zigzag else losses), measured

    def post_update(self, params, metrics):
        """Returns (params, metrics) after a step; loads of experts are [L E] of the layers and then of the modules."""
        routed = self.ahead if isinstance(self._last.mlp, Experts) else 0
        trunk = len(metrics['load']) - routed if 'load' in metrics else 0
        modules = {name: self._last.mlp.post_update(module, {'load': load})[0]
                   for (name, module), load in zip(params['modules'].items(), metrics['load'][trunk:], strict=True)
                   } if routed else {}
        own = {**metrics, 'load': metrics['load'][:trunk]} if trunk else metrics
        params, metrics = super().post_update(params, own)
        return {**params, 'modules': params['modules'] | modules}, metrics

    def flops(self, context):
        """Returns the model FLOPs of training on one token for all that it predicts, forward and backward."""
        module = 4 * self.width ** 2 + self._last.flops(self.width, context) + self.head.flops(self.width, self.vocab)
        return super().flops(context) + 3 * self.ahead * module

    def open(self, params, tokens, lengths, slots):
        """Returns the cache of prompts [B T] of lengths [B], from which `draft` and `verify` go on.

        Beside a Decoder's it has the trunk's 'states' [B S D] and the keys and values of the 'modules'.
        """
        x, cache = self.read(params, tokens, lengths, slots)
        states = jnp.zeros((len(tokens), slots, self.width), x.dtype).at[:, :tokens.shape[1]].set(x)
        context, modules = Context(jnp.arange(tokens.shape[1])[None]), []
        for number in range(1, self.ahead + 1):
            empty = self._last.cache(self.width, len(tokens), slots, self.execution.dtype)
            x, (filled, _) = self.module(params, number, x, jnp.roll(tokens, -number, 1), context._replace(cache=empty))
            modules.append(filled)
        return {**cache, 'states': states, 'modules': tuple(modules)}

    def draft(self, params, number, x, tokens, *, cache, index):
        """Returns (logits [B V] after the last of tokens [B T], x [B T D], cache) of a module; arguments as `module`'s.

        index [B T]: the slots of x.
        """
        own = cache['modules'][number - 1]
        x, (filled, _) = self.module(params, number, x, tokens, Context(index, index=index, cache=own))
        modules = (*cache['modules'][:number - 1], filled, *cache['modules'][number:])
        return self._scores(params, x[:, -1:])[:, 0], x, {**cache, 'modules': modules}

    def verify(self, params, tokens, cache):
        """Returns (logits [B T V], cache) of tokens [B T] written behind the cache's length, which stays as it is."""
        index = cache['length'][:, None] + jnp.arange(tokens.shape[1])
        x, outputs, _ = self.hidden(params, tokens, Context(index, index=index), cache=cache['entries'])
        states = cache['states'].at[jnp.arange(len(tokens))[:, None], index].set(x)
        return self._scores(params, x), {**cache, 'entries': outputs.cache, 'states': states}
