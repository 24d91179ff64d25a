import lzma

import numpy as np
import pytest

from lm.models import ngram


def oracle(train, held, order):
    """Interpolated Kneser-Ney by dictionaries, one probability at a time."""
    tables = {order: {}}
    for i in range(len(train) - order + 1):
        gram = train[i:i + order]
        tables[order][gram] = tables[order].get(gram, 0) + 1
    for size in range(order - 1, 0, -1):
        tables[size] = {}
        for gram in tables[size + 1]:
            tables[size][gram[1:]] = tables[size].get(gram[1:], 0) + 1

    def chance(gram):
        if not gram:
            return 1 / 256
        table, lower = tables[len(gram)], chance(gram[1:])
        counts = list(table.values())
        discount = counts.count(1) / (counts.count(1) + 2 * counts.count(2)) if {1, 2} <= set(counts) else 0.75
        followers = [count for other, count in table.items() if other[:-1] == gram[:-1]]
        if not followers:
            return lower
        kept, spread = max(table.get(gram, 0) - discount, 0), discount * len(followers) * lower
        return (kept + spread) / sum(followers)
    held = bytes(order - 1) + held
    return [-np.log2(chance(held[i:i + order])) for i in range(len(held) - order + 1)]


@pytest.mark.parametrize('order', [2, 3, 5])
def test_ngram_equals_the_textbook(order):
    train, held = b'abracadabra, a cadaver abroad; a bard abducted' * 2, b'a bard read abracadabra'
    np.testing.assert_allclose(ngram.ngram(train, held, order), oracle(train, held, order), rtol=1e-12)


def test_ngram_probabilities_add_up_to_one():
    train = b'she sells sea shells by the sea shore'
    total = sum(2 ** -ngram.ngram(train, b'she ' + bytes([last]), 5)[-1] for last in range(256))
    assert np.isclose(total, 1)


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
