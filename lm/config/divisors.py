"""The divisors of a number, in the time of its square root."""
import math


def divisors(number):
    """Returns the divisors of a positive int, ascending: [1, 2, 3, 4, 6, 12] of 12."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def divisor_below(number, most):
    """Returns the largest divisor of a positive int that is less than `most`, 1 where none is: what to try instead."""
    return max((n for n in divisors(number) if n < most), default=1)
