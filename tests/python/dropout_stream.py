"""Which weights dropout keeps, by the documented stream (xformers/kernels/base/philox.h), written out once more.

    counter = (key / 4, query, sequence * heads + head, low half of the offset), word = key % 4
    key     = (low half of the seed, high half of the seed xor high half of the offset)
    kept iff draw >= p * 2^32, rounded down

Query and key count from the start of their own sequence.
"""

import torch

LOW = 0xFFFFFFFF


def philox4x32(counter, key0, key1):
    """Ten rounds on four int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64: both halves are right
        c0, c1, c2, c3 = (
            ((product1 >> 32) & LOW) ^ c1 ^ key0,
            product1 & LOW,
            ((product0 >> 32) & LOW) ^ c3 ^ key1,
            product0 & LOW,
        )
        key0, key1 = (key0 + 0x9E3779B9) & LOW, (key1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def kept_weights(problem, num_heads, p, state):
    """Booleans [batch, heads, nq, nk] for a Problem and the random state int64 [2]."""
    seed, offset = (int(x) for x in state)
    kept = torch.ones(problem.batch, num_heads, problem.nq, problem.nk, dtype=torch.bool)
    heads = torch.arange(num_heads)[:, None, None]
    for index, s in enumerate(problem.sequences):
        i, j = torch.arange(s.num_queries)[None, :, None], torch.arange(len(s.key_rows))[None, None, :]
        shape = (num_heads, s.num_queries, len(s.key_rows))
        counter = [j // 4, i, index * num_heads + heads, torch.tensor(offset & LOW)]
        words = philox4x32([x.expand(shape) for x in counter], seed & LOW, ((seed >> 32) ^ (offset >> 32)) & LOW)
        draw = torch.stack(words).gather(0, (j % 4).expand(shape)[None])[0]
        rows = slice(s.first_query, s.first_query + s.num_queries)
        kept[s.batch, :, rows, s.key_rows] = draw >= int(p * 2**32)
    return kept
