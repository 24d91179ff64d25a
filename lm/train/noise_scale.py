"""The gradient noise scale: the batch size, in tokens, past which larger batches hardly make steps better."""


class Scale:
    """The simple noise scale B = S / G2 of McCandlish et al. 2018 (arXiv:1812.06162), appendix A, in tokens.

    S is the trace of the covariance of one token's gradient, G2 the squared norm of the true gradient. A step of n
    micro-batches with W tokens estimates both, without bias: the mean of the squared norms of its micro-batches'
    gradients, weighted by their tokens, is G2 + S n / W in expectation, and the squared norm of the whole G2 + S / W.
    The scale is the ratio of their exponential moving averages, of decay DECAY. Tokens of one row are not independent:
    it is the noise of batches as they are drawn.
    """

    DECAY = 0.99

    def __init__(self, microbatches):
        self.microbatches, self.sums = microbatches, [0.0, 0.0]

    def take(self, square, whole, tokens):
        """Takes the mean squared norm of a step's micro-batches, the squared norm of their mean, and its tokens."""
        n = self.microbatches
        estimates = tokens * (square - whole) / (n - 1), (n * whole - square) / (n - 1)
        self.sums = [self.DECAY * old + (1 - self.DECAY) * new for old, new in zip(self.sums, estimates, strict=True)]

    def value(self):
        """Returns {'noise_scale': tokens}, or {} while noise hides the gradient."""
        noise, signal = self.sums
        return {'noise_scale': max(noise, 0.0) / signal} if signal > 0 else {}
