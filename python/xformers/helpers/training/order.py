"""Which items a batch has."""

import torch


class EpochOrder:
    """Numbers of the items of a batch, by the batch's number in the whole run: every item once per epoch, in an order
    that depends on the seed and the epoch alone. What an epoch leaves short of a batch is left out."""

    def __init__(self, items: int, batch: int, seed: int):
        self.items, self.batch, self.seed = items, min(batch, items), seed
        self.per_epoch = items // self.batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, number: int) -> torch.Tensor:
        """int64 `[batch]`."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.items, generator=generator)
        return self._order[place * self.batch : (place + 1) * self.batch]
