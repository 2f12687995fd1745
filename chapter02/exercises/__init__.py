"""演習の採点。ノートブックの終わりで、自分の書いた関数を渡して使う。"""

from chapter02.exercises.section_2_3 import check_merge, check_segment
from chapter02.exercises.section_2_6 import check_stream, check_truncate

__all__ = [
    "check_merge",
    "check_segment",
    "check_stream",
    "check_truncate",
]
