"""演習の採点。ノートブックの終わりで、自分の書いた関数を渡して使う。"""

from chapter02.exercises.section_2_1 import check_context_overlap, check_sgns_gradient
from chapter02.exercises.section_2_2 import check_expected_types, check_vocabulary_for
from chapter02.exercises.section_2_3 import check_merge, check_segment
from chapter02.exercises.section_2_4 import check_expected_counts, check_viterbi
from chapter02.exercises.section_2_5 import check_detokenize, check_normalize
from chapter02.exercises.section_2_6 import check_stream, check_truncate
from chapter02.exercises.section_2_7 import check_bits_per_character, check_entropy_rate

__all__ = [
    "check_bits_per_character",
    "check_context_overlap",
    "check_detokenize",
    "check_entropy_rate",
    "check_expected_counts",
    "check_expected_types",
    "check_merge",
    "check_normalize",
    "check_segment",
    "check_sgns_gradient",
    "check_stream",
    "check_truncate",
    "check_viterbi",
    "check_vocabulary_for",
]
