"""What dropout keeps, by the documented stream (xformers/kernels/base/philox.h), written out once more.

Attention:

    counter   = (key / 32 * 8 + key % 8, query / 32 * 8 + query % 8, sequence * heads + head, low half of the offset)
    key       = (low half of the seed, high half of the seed xor high half of the offset)
    draw      = byte key % 32 / 8 of word query % 32 / 8
    threshold = floor(256 p), or one more where word 0 after five rounds < the fraction of 256 p, times 2^32
    kept iff draw >= threshold

Query and key count from the start of their own sequence.

Matrices:
    counter = (column / 8, low half of the row, high half of the row, low half of the offset)
    draw    = 16 bits of word column % 8 / 2: the low ones for even columns
    kept iff draw >= p * 2^16, rounded, at most 65535 where p < 1
"""

import math

import torch

LOW = 0xFFFFFFFF


def philox4x32(counter, key0, key1):
    """Four int64 tensors that hold 32-bit words: after seven rounds, and the first of them after five."""
    c0, c1, c2, c3 = counter
    for round_ in range(7):
        if round_ == 5:
            after_five = c0
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64: both halves are right
        c0, c1, c2, c3 = (
            ((product1 >> 32) & LOW) ^ c1 ^ key0,
            product1 & LOW,
            ((product0 >> 32) & LOW) ^ c3 ^ key1,
            product0 & LOW,
        )
        key0, key1 = (key0 + 0x9E3779B9) & LOW, (key1 + 0xBB67AE85) & LOW
    return (c0, c1, c2, c3), after_five


def kept_weights(problem, num_heads, p, state):
    """Booleans [batch, heads, nq, nk] for a Problem and the random state int64 [2]."""
    seed, offset = (int(x) for x in state)
    kept = torch.ones(problem.batch, num_heads, problem.nq, problem.nk, dtype=torch.bool)
    heads = torch.arange(num_heads)[:, None, None]
    for index, s in enumerate(problem.sequences):
        i, j = torch.arange(s.num_queries)[None, :, None], torch.arange(len(s.key_rows))[None, None, :]
        shape = (num_heads, s.num_queries, len(s.key_rows))
        counter = [j // 32 * 8 + j % 8, i // 32 * 8 + i % 8, index * num_heads + heads, torch.tensor(offset & LOW)]
        words, chooser = philox4x32(
            [x.expand(shape) for x in counter], seed & LOW, ((seed >> 32) ^ (offset >> 32)) & LOW
        )
        word = torch.stack(words).gather(0, (i % 32 // 8).expand(shape)[None])[0]
        draw = word >> j % 32 // 8 * 8 & 255
        lower = math.floor(256 * p)
        threshold = lower + (chooser < min(round((256 * p - lower) * 2**32), LOW))
        rows = slice(s.first_query, s.first_query + s.num_queries)
        kept[s.batch, :, rows, s.key_rows] = draw >= threshold
    return kept


def kept_elements(rows, width, p, state):
    """Booleans [rows, width] for the random state int64 [2]."""
    seed, offset = (int(x) for x in state)
    row, column = torch.arange(rows)[:, None], torch.arange(width)[None]
    counter = [column // 8, row & LOW, row >> 32, torch.tensor(offset & LOW)]
    words, _ = philox4x32([x.expand(rows, width) for x in counter], seed & LOW, ((seed >> 32) ^ (offset >> 32)) & LOW)
    word = torch.stack(words).gather(0, (column % 8 // 2).expand(rows, width)[None])[0]
    draw = torch.where(column % 2 == 1, word >> 16, word & 0xFFFF)
    return draw >= (min(round(p * 2**16), 65535) if p < 1 else 2**16)
