"""FLOPs of training on one token, counted from the shapes of a model's parameters."""
import math

from lm import trees


def flops_per_token(model, params, context):
    """Returns the model FLOPs of training on one token, forward and backward, without recomputation.

    6 for every weight of a matrix product that works on a token: of experts those that it is sent to; the output
    projection whether or not it is tied; not the embedding's gather and added positions. Causal attention adds
    6 * depth * heads * head_dim * context: half of the full square of scores, forward and backward (Chowdhery et al.
    2022, appendix B).
    """
    used = model.experts.top / model.experts.count if model.experts else 1
    weights = sum(math.prod(x.shape) * (used if name.startswith('blocks/experts/') and len(x.shape) == 4 else 1)
                  for name, x in trees.flatten(params).items() if name.startswith('blocks/') and len(x.shape) > 2)
    seen = sum(min(window or context, context) for window in
               (model.windows[i % len(model.windows)] for i in range(model.depth)))
    return 6 * (weights + model.vocab * model.width) + 6 * seen * model.heads * model.size
