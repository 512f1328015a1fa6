"""EXL2 files: what they hold and how to decode them bit-exactly.

`decode` turns the stored tensors of one layer into a weight; `Checkpoint` opens a directory.
"""

from lm_eval_exl2.checkpoint.format import decode
from lm_eval_exl2.checkpoint.reader import Checkpoint, Linear, Weight

__all__ = ["Checkpoint", "Linear", "Weight", "decode"]
