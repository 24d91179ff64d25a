"""Deterministic pseudo-random numbers: a hash of the argument."""


def fraction(number):
    """Returns the hash of an integer as a fraction in [0, 1): the top 53 bits of SplitMix64."""
    mask = 2 ** 64 - 1
    word = (number + 1) * 0x9E3779B97F4A7C15 & mask
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
    word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
    return ((word ^ word >> 31) >> 11) / 2 ** 53
