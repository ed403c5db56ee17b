"""Direct transfer: the student starts from the teacher's own weights, w_S = w_T + Δw.

transfer_weights ──► layers.py    the layers of a model that hold weights, as a tree
 (weights.py)    ├─► matching.py  which student layer gets which teacher layer: by name, then by shape and order
                 ├─► noise.py     Δw: Gaussian noise or given arrays
                 └─► Transfer     result.py: what each student layer got, or why not; a table
every_kth_block (blocks.py): the explicit map for a student with fewer blocks
"""

from keras_kd.transfer.blocks import every_kth_block
from keras_kd.transfer.transfer_table import LayerTransfer, Transfer
from keras_kd.transfer.weights import transfer_weights

__all__ = ["LayerTransfer", "Transfer", "every_kth_block", "transfer_weights"]
