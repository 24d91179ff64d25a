"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): a generator of replaced tokens and a discriminator that finds them."""
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lm import config
from lm.models.encoder import Encoder, MaskedHead
from lm.models.model import Model
from lm.models.transformer import refuse_experts
from lm.nn.layers import INIT
from lm.nn.norms import NoNorm, Norm
from lm.nn.weights import Weight, fill, weight

SHARED = ('tokens', 'positions', 'types')  # the generator reads the discriminator's, projected to its own width


@dataclass(frozen=True)
class Detector(MaskedHead):
    """One logit [B T 1] for each token, whether it was replaced, by a dense layer and an activation."""

    norm: Norm = field(default_factory=NoNorm)

    def __call__(self, scope, x, matrix, shrink=1.0):
        row = weight(scope, 'detector', {'embed': x.shape[-1]}, INIT).value
        shift = weight(scope, 'detector_bias', {'bias': 1}, fill(0.0)).value
        x = self.transform(scope, x).astype(jnp.float32)
        return jnp.einsum('BTD,D->BT', x, row)[..., None] + shift

    def flops(self, width, vocab):
        return 2 * width ** 2 + 2 * width


@dataclass(frozen=True)
class Electra(Model):
    """Two encoders of one vocabulary: a small `generator`, and a `discriminator` with the head Detector.

    They share their embeddings, which have the discriminator's width; a matrix takes them to the generator's where that
    is another. The discriminator is what training is for.
    """

    generator: Encoder
    discriminator: Encoder

    causal = False

    def __post_init__(self):
        config.check(self)
        if self.generator.padded_vocab != self.discriminator.padded_vocab or self.generator.vocab != self.vocab:
            raise config.Error(f'generator.vocab={self.generator.vocab} and discriminator.vocab={self.vocab} differ, '
                               'or their vocab_chunks; give both the same.')
        if self.generator.embedding != self.discriminator.embedding:
            raise config.Error('generator.embedding and discriminator.embedding are shared and differ; give both the '
                               'same.')
        if not isinstance(self.discriminator.head, Detector):
            raise config.Error('the discriminator scores tokens as replaced or not; try discriminator.head=Detector.')
        for encoder in (self.generator, self.discriminator):
            refuse_experts(self, encoder.layers)
        if self.generator.base.sizes or self.discriminator.base.sizes:
            raise config.Error('muP has no rule for two models that share embeddings; leave base out of both.')

    @property
    def vocab(self):
        """The number of tokens."""
        return self.discriminator.vocab

    @property
    def limit(self):
        """The most tokens a text may have, 0 for any number."""
        return min(filter(None, (self.generator.limit, self.discriminator.limit)), default=0)

    def declare(self, key):
        keys = jax.random.split(key, 3)
        discriminator, generator = self.discriminator.declare(keys[0]), self.generator.declare(keys[1])
        params = {'discriminator': discriminator,
                  'generator': {name: value for name, value in generator.items() if name not in SHARED}}
        sizes = self.discriminator.width, self.generator.width
        if sizes[0] != sizes[1]:
            params['projection'] = Weight(INIT(keys[2], sizes), ('embed', 'hidden'))
        return params

    def of_generator(self, params):
        """Returns the parameters of the generator, embeddings among them."""
        tables = {name: params['discriminator'][name] for name in SHARED if name in params['discriminator']}
        if 'projection' in params:
            tables = {name: table @ params['projection'] for name, table in tables.items()}
        return {**params['generator'], **tables}

    def flops(self, context):
        """Returns the model FLOPs of training on one token, forward and backward, without recomputation."""
        return self.generator.flops(context) + self.discriminator.flops(context)
