"""Named activations of a layer, observed and edited while it is traced."""
import jax.numpy as jnp


class Tap:
    """Called as tap(name, x) -> x wherever a layer names an activation; without captures or edits it adds nothing.

    captured: those of the wanted names that were seen. edits: {name: (mask, value)}, both broadcasting to the
    activation: where the mask is true the value takes its place.
    """

    def __init__(self, wanted=(), edits=None):
        self.wanted, self.edits, self.captured = wanted, edits or {}, {}

    def __call__(self, name, x):
        if name in self.edits:
            mask, value = self.edits[name]
            x = jnp.where(mask, value.astype(x.dtype), x)
        if name in self.wanted:
            self.captured[name] = x
        return x
