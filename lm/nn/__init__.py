"""What models are made of: attention, MLP, experts, norms, activations, positions, losses."""
from lm.nn.activations import Activation, ClampedSilu, Gelu, Relu, Relu2, Silu
from lm.nn.context import Context, Execution
from lm.nn.embedding import look_up
from lm.nn.experts import Experts
from lm.nn.hopfield import Hopfield
from lm.nn.latent_attention import LatentAttention
from lm.nn.layers import MLP, Attention, FeedForward
from lm.nn.norms import LayerNorm, NoNorm, Norm, RMSNorm
from lm.nn.positions import AbsolutePosition, Alibi, Learned, LongRope, NoPE, Position, Relative, Rope, Sinusoidal, Yarn
from lm.nn.weights import Scope, Weight, einsum, unbox, weight

__all__ = ['MLP', 'AbsolutePosition', 'Activation', 'Alibi', 'Attention', 'ClampedSilu', 'Context', 'Execution',
           'Experts', 'FeedForward', 'Gelu', 'Hopfield', 'LatentAttention', 'LayerNorm', 'Learned', 'LongRope',
           'NoNorm', 'NoPE', 'Norm', 'Position', 'RMSNorm', 'Relative', 'Relu', 'Relu2', 'Rope', 'Scope', 'Silu',
           'Sinusoidal', 'Weight', 'Yarn', 'einsum', 'look_up', 'unbox', 'weight']
