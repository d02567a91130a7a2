"""What can hide scores from attention, or add to them: the bias classes, and what they all come down to.

A class of your own derives from one of these and says in `lower` what it hides (docs/ops/attention-biases.md). To add
one to the library: CONTRIBUTING.md.
"""

from typing import TYPE_CHECKING

from ._bias import base, block_diagonal, block_sparse, gappy, padded, paged, seqinfo, subtensor, whole
from ._bias.base import *  # noqa: F403
from ._bias.block_diagonal import *  # noqa: F403
from ._bias.block_sparse import *  # noqa: F403
from ._bias.gappy import *  # noqa: F403
from ._bias.padded import *  # noqa: F403
from ._bias.paged import *  # noqa: F403
from ._bias.seqinfo import *  # noqa: F403
from ._bias.subtensor import *  # noqa: F403
from ._bias.whole import *  # noqa: F403

# The families of biases for sequences that lie one after the other.
VARLEN_BIASES = (
    block_diagonal.BlockDiagonalMask,
    gappy.BlockDiagonalGappyKeysMask,
    padded.BlockDiagonalPaddedKeysMask,
    paged.PagedBlockDiagonalPaddedKeysMask,
    paged.PagedBlockDiagonalGappyKeysMask,
)

if not TYPE_CHECKING:  # checkers see what is imported above: they read no sums of lists
    __all__ = ["VARLEN_BIASES"]
    __all__ += base.__all__
    __all__ += block_diagonal.__all__
    __all__ += block_sparse.__all__
    __all__ += gappy.__all__
    __all__ += padded.__all__
    __all__ += paged.__all__
    __all__ += seqinfo.__all__
    __all__ += subtensor.__all__
    __all__ += whole.__all__

    for _name in __all__:  # pickles name the public address
        if _name != "VARLEN_BIASES":
            globals()[_name].__module__ = __name__
