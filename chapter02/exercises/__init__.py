"""演習の採点。ノートブックの終わりで、自分の書いた関数を渡して使う。"""

from chapter02.exercises.section_2_3 import check_merge, check_segment

__all__ = [
    "check_merge",
    "check_segment",
]
