"""Ranks that are threads of this process, for numbers of ranks that would be too many processes."""

import os
import threading
import traceback

import torch.distributed as dist
from torch._C._distributed_c10d import _set_thread_isolation_mode
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    _install_threaded_pg,
    _uninstall_threaded_pg,
)

TIMEOUT_S = 120


def run_threads(ranks, function, *args, **kwargs):
    """Calls `function(group, ...)` on every rank."""
    _install_threaded_pg()
    _set_thread_isolation_mode(True)  # a group's name means each thread's own
    before = os.environ.get("XFORMERS_CHECK_RANKS")
    os.environ["XFORMERS_CHECK_RANKS"] = "1"  # what is remembered with a name is for one rank of a process
    store, errors = dist.HashStore(), []

    def serve(rank):
        try:
            dist.init_process_group("threaded", rank=rank, world_size=ranks, store=store)
            function(dist.group.WORLD, *args, **kwargs)
        except BaseException as error:
            errors.append(f"rank {rank}: {traceback.format_exc()}")
            ProcessLocalGroup.exception_handle(error)  # wakes the others

    threads = [threading.Thread(target=serve, args=(rank,), daemon=True) for rank in range(ranks)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads), f"no answer in {TIMEOUT_S} s\n" + "\n".join(errors)
        assert not errors, "\n".join(errors)
    finally:
        ProcessLocalGroup.reset()
        _set_thread_isolation_mode(False)  # the groups end with their threads
        _uninstall_threaded_pg()
        if before is None:
            del os.environ["XFORMERS_CHECK_RANKS"]
        else:
            os.environ["XFORMERS_CHECK_RANKS"] = before
