import lzma

import numpy as np

from lm.models import ngram


def test_xz_is_measured_on_the_held_out_bytes_alone():
    held = [b'to be or not to be, that is the question. ' * 20, b'whether']
    measured = ngram.bits_per_byte([b'something else entirely'], held)
    packed = lzma.compress(b''.join(text + b'\0' for text in held), preset=9)
    assert measured['xz -9'] == 8 * len(packed) / sum(map(len, held))


def test_baselines_pay_for_the_first_byte_of_each_document_and_count_no_separator():
    """A letter of 26 and zzz: log2(26) bits over four bytes."""
    train, held = ([bytes([letter]) + b'zzz' for letter in np.random.default_rng(seed).integers(97, 123, 3000)]
                   for seed in (0, 1))
    assert np.isclose(ngram.bits_per_byte(train, held)['order-5 n-gram'], np.log2(26) / 4, rtol=0.005)


def test_the_ngram_of_bytes_is_that_of_documents_with_their_ends():
    """Three documents of one byte: the chance of each byte and end, from counts alone, as the discounts fall back."""
    train, held = [b'ab', b'ab', b'b'], [b'ab']
    one, end = 1 / 257, {1: 0.5, 2: 1.0}
    a1, b1, end1 = 1, 2, 1  # distinct bytes before each: a after the start, b after a and the start, the end after b
    total = a1 + b1 + end1
    gamma = (end[1] + end[2] + end[1]) / total
    unigram = {name: (count - end[count]) / total + gamma * one
               for name, count in (('a', a1), ('b', b1), ('end', end1))}
    a = (2 - 1) / 3 + (1 + 0.5) / 3 * unigram['a']  # after the start: a twice, b once
    b2 = (1 - 0.5) / 1 + 0.5 * unigram['b']  # ab follows the start alone
    b = (2 - 1) / 2 + 1 / 2 * b2
    end2 = (2 - 1) / 2 + 1 / 2 * unigram['end']  # after b: seen behind a, and behind the start
    end3 = (1 - 0.5) / 1 + 0.5 * end2
    end4 = (2 - 1) / 2 + 1 / 2 * end3
    expected = -np.log2([a, b, end4]).sum() / 2
    assert np.isclose(ngram.bits_per_byte(train, held)['order-5 n-gram'], expected, rtol=1e-12)
