"""演習の採点。ノートブックの終わりで、自分の書いた関数を渡して使う。"""

from chapter01.exercises.section_1_3a import check_rank, check_softmax
from chapter01.exercises.section_1_3b import check_dense_backward, check_softmax_backward
from chapter01.exercises.section_1_3c import check_gru_step, check_scores, check_training_loop

__all__ = [
    "check_dense_backward",
    "check_gru_step",
    "check_rank",
    "check_scores",
    "check_softmax",
    "check_softmax_backward",
    "check_training_loop",
]
