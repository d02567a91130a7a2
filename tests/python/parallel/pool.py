"""Processes that are ranks: started once for each number of ranks, given functions to run, ended with the session.

Every wait has an end: what a rank does not answer in time is an error, and its pool is ended with its processes.
"""

import datetime
import functools
import importlib
import multiprocessing
import os
import tempfile
import traceback

TIMEOUT_S = 120  # of a function on a loaded machine
GROUP_TIMEOUT_S = 60


def _serve(rank, ranks, folder, commands, backend, timeout_s):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if backend == "nccl":
        torch.set_default_device(torch.device("cuda", rank))
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    while True:
        try:
            command = commands.recv()
        except EOFError:  # the tests have ended
            os._exit(0)
        module, name, args, kwargs = command
        try:
            torch.manual_seed(0)
            function = getattr(importlib.import_module(module), name)
            commands.send(("done", function(dist.group.WORLD, *args, **kwargs)))
        except BaseException:
            commands.send(("failed", traceback.format_exc()))


class Pool:
    """`run(function, ...)` calls `function(group, ...)` on every rank and returns what each gave."""

    def __init__(self, ranks, backend="gloo", timeout_s=GROUP_TIMEOUT_S):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "xformers.ops"])
        self.ranks, self.alive = ranks, True
        self._folder = tempfile.TemporaryDirectory()
        self.processes, self._pipes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, ranks, self._folder.name, theirs, backend, timeout_s), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)

    def start(self, function, *args, **kwargs):
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__name__, args, kwargs))

    def result(self, rank, timeout_s=TIMEOUT_S):
        """("done", value), ("failed", traceback), or ("gone", "") of a process that has ended."""
        try:
            if self._pipes[rank].poll(timeout_s):
                return self._pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            return "gone", ""
        self.end()
        raise AssertionError(f"rank {rank} of {self.ranks} gave no answer in {timeout_s} s")

    def run(self, function, *args, **kwargs):
        self.start(function, *args, **kwargs)
        results = [self.result(rank) for rank in range(self.ranks)]
        failed = [f"rank {rank}: {what} {text}" for rank, (what, text) in enumerate(results) if what != "done"]
        if failed:
            self.end()  # a group in which a rank failed is not used again
            raise AssertionError("\n".join(failed))
        return [value for _, value in results]

    def end(self):
        self.alive = False
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join(10)
        self._folder.cleanup()


@functools.cache
def _pools():
    return {}


def pool(ranks):
    """The one of this size; a new one after a failure."""
    pools = _pools()
    if ranks not in pools or not pools[ranks].alive:
        pools[ranks] = Pool(ranks)
    return pools[ranks]


def end_all():
    for each in _pools().values():
        if each.alive:
            each.end()
    _pools().clear()
