"""A rank that dies or hangs is an error on the others, soon, that says what, where and who; results are NaN."""

import context_ranks
import parallel_ranks as ranks
import pytest
from pool import Pool


@pytest.mark.parametrize("how", ["exit", "hang"])
def test_a_rank_that(how):
    workers = Pool(3)
    try:
        workers.start(ranks.die, how)
        for rank in range(2):
            what, value = workers.result(rank, 60)
            assert what == "done", value
            text, seconds = value
            assert "fused_allgather_and_linear: gathering the input failed on rank" in text and "of 3 (group" in text
            assert seconds < 7, seconds
    finally:
        workers.end()
    assert not any(process.is_alive() for process in workers.processes)


def test_a_rank_that_leaves_a_ring():
    workers = Pool(3)
    try:
        workers.start(context_ranks.die_in_a_ring)
        for rank in range(2):
            what, value = workers.result(rank, 60)
            assert what == "done", value
            text, seconds = value
            assert "context_parallel_attention: sending keys and values failed on rank" in text
            assert seconds < 7, seconds
    finally:
        workers.end()
    assert not any(process.is_alive() for process in workers.processes)
