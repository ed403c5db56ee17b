"""Direct transfer: the student starts from the teacher's own weights, w_S = w_T + Δw."""

from keras_kd.transfer.blocks import every_kth_block
from keras_kd.transfer.weights import LayerTransfer, Transfer, transfer_weights

__all__ = ["LayerTransfer", "Transfer", "every_kth_block", "transfer_weights"]
