"""The gradient noise scale: at about which batch size more data a step stops making steps better."""


class Scale:
    """The simple noise scale B = S / G2 of McCandlish et al. 2018 (arXiv:1812.06162), appendix A, in tokens.

    S is the trace of the covariance of one token's gradient, G2 the squared norm of the true gradient. A step of n
    micro-batches with W tokens estimates both, without bias: the mean of the squared norms of its micro-batches'
    gradients, weighted by their tokens, is G2 + S n / W in expectation, and the squared norm of the whole G2 + S / W.
    The scale is the ratio of the two running means, which forget all but KEPT of what they hold a step. Tokens of one
    row are not independent: it is the noise of batches as they are drawn.
    """

    KEPT = 0.99

    def __init__(self, parts):
        self.parts, self.sums = parts, [0.0, 0.0]

    def take(self, square, whole, tokens):
        """Takes the mean squared norm of a step's micro-batches, the squared norm of their mean, and its tokens."""
        found = tokens * (square - whole) / (self.parts - 1), (self.parts * whole - square) / (self.parts - 1)
        self.sums = [self.KEPT * kept + (1 - self.KEPT) * new for kept, new in zip(self.sums, found, strict=True)]

    def value(self):
        """Returns {'noise_scale': tokens}, or {} while the gradient is lost in the noise."""
        noise, signal = self.sums
        return {'noise_scale': max(noise, 0.0) / signal} if signal > 0 else {}
