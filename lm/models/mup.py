"""muP: the sizes of the base model whose learning rates another takes over (Yang et al. 2022, arXiv:2203.03466)."""
from dataclasses import dataclass, replace

from lm import config
from lm.nn.experts import Experts


@dataclass(frozen=True)
class MupBase:
    """Sizes of the muP base (proxy) model; 0 for the same as in this model. expert_ff: Experts.ff."""

    width: config.Count = 0
    heads: config.Count = 0
    kv_heads: config.Count = 0
    head_dim: config.Count = 0
    ff: config.Count = 0
    expert_ff: config.Count = 0

    def __post_init__(self):
        config.check(self)

    @property
    def sizes(self):
        """The sizes that are not 0, {name: size}."""
        return {name: size for name, size in vars(self).items() if size}


def base_model(model):
    """Returns the model with the sizes of its `base` and without dropout; itself where the base names none.

    Raises config.Error where the sizes do not go together.
    """
    if not model.base.sizes:
        return model
    try:
        return without_dropout(resized(replace(model, base=MupBase()), model.base.sizes))
    except config.Error as error:
        raise config.Error(f'the sizes in base make no model: {error}') from error


def resized(model, sizes):
    """Returns a model (with fields width, layer and pattern) of other sizes, {name as in MupBase: size}."""
    layers = model.pattern or (model.layer,)
    mixed = [isinstance(layer.mlp, Experts) for layer in layers]
    for name, present, what in (('expert_ff', any(mixed), 'experts'), ('ff', not all(mixed), 'an MLP')):
        if name in sizes and not present:
            other = 'ff' if name == 'expert_ff' else 'expert_ff'
            raise config.Error(f'base.{name}={sizes[name]} is for {what} and there is none; '
                               f'try base.{other}={sizes[name]}.')
    layers = [_resized_layer(layer, sizes) for layer in layers]
    return replace(model, width=sizes.get('width', model.width), pattern=tuple(layers) if model.pattern else (),
                   layer=model.layer if model.pattern else layers[0])


def _resized_layer(layer, sizes):
    of_attention = {name: sizes[name] for name in ('heads', 'kv_heads', 'head_dim') if name in sizes}
    key = 'expert_ff' if isinstance(layer.mlp, Experts) else 'ff'
    mlp = replace(layer.mlp, ff=sizes[key]) if key in sizes else layer.mlp
    return replace(layer, attention=replace(layer.attention, **of_attention), mlp=mlp)


def without_dropout(model):
    """Returns a model (with fields layer, pattern and embedding) that drops nothing."""
    pattern = tuple(replace(layer, dropout=0.0) for layer in model.pattern)
    return replace(model, pattern=pattern, layer=model.layer if pattern else replace(model.layer, dropout=0.0),
                   embedding=replace(model.embedding, dropout=0.0))


def scaled(layer, base, width, base_width):
    """Returns a layer whose attention scores are scaled for its size of heads: 1/sqrt(H), but 1/H past the base's."""
    size, base_size = layer.attention.head_size(width), base.attention.head_size(base_width)
    if size == base_size or layer.attention.scale is not None:
        return layer
    return replace(layer, attention=replace(layer.attention, scale=size ** -0.5 * (base_size / size) ** 0.5))
