"""Word vectors, and their text format."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.models.model import Model
from lm.nn.weights import Weight


@dataclass(frozen=True)
class WordVectors(Model):
    """Two vectors for each of `vocab` words: its own, and that as a word near others (Mikolov et al. 2013,
    arXiv:1310.4546).

    bias: a number for each of them, for objectives that predict counts, as Glove does.
    """

    vocab: config.Size
    width: config.Size = 100
    bias: bool = False

    def __post_init__(self):
        config.check(self)

    def declare(self, key):
        words = (jax.random.uniform(key, (self.vocab, self.width)) - 0.5) / self.width
        tables = {'words': words, 'contexts': 0 * words}
        if self.bias:  # counts are predicted by both alike, so neither begins at 0
            tables['contexts'] = jnp.roll(words, 1, 0)
            tables |= {'word_bias': jnp.zeros((self.vocab, 1)), 'context_bias': jnp.zeros((self.vocab, 1))}
        return {name: Weight(table, ('vocab', 'embed' if table.shape[1] > 1 else 'bias'))
                for name, table in tables.items()}

    def vectors(self, params):
        """Returns the vectors [V D] to use: those of words, or their sums with those of contexts where there is a bias.

        The sum is Pennington et al.'s (2014), whose words and contexts differ by their initial values alone.
        """
        return params['words'] + params['contexts'] if self.bias else params['words']

    def flops(self, context):
        """Returns the FLOPs of training on one token of a row of `context`: its scores with that row and with another.
        """
        return 12 * context * self.width


def write(path, words, vectors):
    """Writes `vectors` [V D] of strings `words` in word2vec's text format: sizes, then a line for each word."""
    unfit = next((word for word in words if not word or any(letter.isspace() or '\ud800' <= letter <= '\udfff'
                                                            for letter in word)), None)
    if unfit is not None:
        raise config.Error(f'{unfit!r} is empty, has a space, which ends a word in this format, or is no text; give it '
                           'another name.')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(f'{len(words)} {np.shape(vectors)[1]}\n')
        for word, row in zip(words, np.asarray(vectors, np.float32), strict=True):
            file.write(f'{word} {" ".join(map(str, row))}\n')


def read(path):
    """Returns (words, vectors float32 [V D]) of a file in word2vec's text format; raises config.Error for another."""
    with open(path, encoding='utf-8', newline='\n') as file:
        try:
            count, width = map(int, file.readline().split())
            rows = [line.rstrip().split(' ') for line in file if line.strip()]
            words, vectors = [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32).reshape(
                len(rows), -1 if rows else width)
        except ValueError as error:
            raise config.Error(f"{path} is not in word2vec's text format ({error}); its first line has the number of "
                               'words and of dimensions, any other a word and its numbers.') from error
    if vectors.shape != (count, width):
        raise config.Error(f'{path} announces {count} words of {width} numbers and holds {len(words)} of '
                           f'{vectors.shape[-1]}; get it whole again.')
    return words, vectors
