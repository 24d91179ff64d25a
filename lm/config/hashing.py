"""Numbers that look random and depend on their argument alone."""


def fraction(number):
    """Returns a fraction in [0, 1) that looks random and depends on `number` alone (SplitMix64, top 53 bits)."""
    mask = 2 ** 64 - 1
    word = (number + 1) * 0x9E3779B97F4A7C15 & mask
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
    word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
    return ((word ^ word >> 31) >> 11) / 2 ** 53
