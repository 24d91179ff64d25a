"""The parts of models: attention, MLP, experts, norms, positions, losses."""
from lm.nn.experts import Experts
from lm.nn.positions import Alibi, Learned, NoPE, Position, Relative, Rope, Sinusoidal

__all__ = ['Alibi', 'Experts', 'Learned', 'NoPE', 'Position', 'Relative', 'Rope', 'Sinusoidal']
