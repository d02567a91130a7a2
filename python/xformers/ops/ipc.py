"""Pipes between the ranks of a group on one host, through which tensors go without being copied."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import tempfile
import threading
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import reduce_tensor

_TIMEOUT_S = 300.0


class _Pipe:
    """Both ends share the memory of what is sent: `recv` gives a tensor that sees what the sender writes later."""

    def __init__(self, connection: Connection, peer: int, device: torch.device):
        self._connection, self._peer, self._device = connection, peer, device
        self._sent: list[torch.Tensor] = []  # alive while the other end may use them

    def send(self, tensor: torch.Tensor) -> None:
        """Gives the other end a tensor on this pipe's device; its memory is shared (a CPU tensor moves to shared
        memory)."""
        if tensor.device != self._device:
            raise AssertionError(
                f"init_ipc: the tensor is on {tensor.device}, expected {self._device}.  "
                "Fix: move it to the pipe's device."
            )
        tensor = tensor.detach()
        layout = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        if tensor.is_cuda:
            handle: Any = reduce_tensor(tensor)[1]
        else:
            handle = tensor.untyped_storage()._share_filename_cpu_()
        self._sent.append(tensor)
        self._connection.send_bytes(pickle.dumps((layout, handle)))

    def recv(self) -> torch.Tensor:
        """The next tensor that rank `peer` sent, on this rank's device. RuntimeError where none comes in time."""
        if not self._connection.poll(_TIMEOUT_S):
            raise RuntimeError(
                f"init_ipc: nothing came from rank {self._peer} in {_TIMEOUT_S:.0f} s.  Fix: see whether it lives."
            )
        try:
            (dtype, shape, stride, offset), handle = pickle.loads(self._connection.recv_bytes())
        except EOFError:
            raise RuntimeError(f"init_ipc: rank {self._peer} is gone.  Fix: see its error.") from None
        if self._device.type == "cuda":
            from torch.multiprocessing.reductions import rebuild_cuda_tensor

            arguments = list(handle)
            arguments[6] = self._device.index  # the sender may count devices differently
            return rebuild_cuda_tensor(*arguments)
        storage = torch.UntypedStorage._new_shared_filename_cpu(*handle)
        return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def init_ipc(group: dist.ProcessGroup, device: torch.device | str = "cuda") -> list[_Pipe | None]:
    """A pipe to every rank of the group, None at this rank's own place: `send(tensor)`, `recv()`.

    device: where tensors are sent from and received on; one without an index is the current one. "cpu" shares memory.
    Collective: every rank of the group calls it, as often as it likes. RuntimeError where ranks are on several hosts.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rank, ranks = dist.get_rank(group), group.size()
    host = f"{socket.gethostname()} {_boot_id()}"
    with tempfile.TemporaryDirectory(prefix="xformers-ipc-") as folder:
        listener = Listener(
            os.path.join(folder, "socket"), "AF_UNIX", backlog=ranks, authkey=(key := secrets.token_bytes(16))
        )
        listener._listener._socket.settimeout(_TIMEOUT_S)  # type: ignore[attr-defined]
        everybody: list[Any] = [None] * ranks
        dist.all_gather_object(everybody, (host, listener.address, key), group=group)
        hosts = {entry[0] for entry in everybody}
        if len(hosts) > 1:
            listener.close()
            names = ", ".join(sorted(entry.split()[0] for entry in hosts))
            raise RuntimeError(
                f"init_ipc: the ranks are on {len(hosts)} hosts ({names}), expected one, since memory is shared.  "
                "Fix: make a group for each host."
            )
        pipes: list[_Pipe | None] = [None] * ranks

        def accept() -> None:
            for _ in range(ranks - rank - 1):
                connection = listener.accept()
                peer = int.from_bytes(connection.recv_bytes(), "little")
                pipes[peer] = _Pipe(connection, peer, device)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        for peer in range(rank):  # a rank connects to those before it
            _, address, peer_key = everybody[peer]
            connection = Client(address, "AF_UNIX", peer_key)
            connection.send_bytes(rank.to_bytes(4, "little"))
            pipes[peer] = _Pipe(connection, peer, device)
        accepting.join(_TIMEOUT_S)
        dist.barrier(group)
        listener.close()
    missing = [peer for peer, pipe in enumerate(pipes) if pipe is None and peer != rank]
    if missing:
        raise RuntimeError(
            f"init_ipc: ranks {missing} did not connect in {_TIMEOUT_S:.0f} s.  Fix: see whether they live."
        )
    return pipes


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


__all__ = ["init_ipc"]
