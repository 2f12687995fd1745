"""演習の採点。ノートブックの終わりで、自分の書いた関数を渡して使う。"""

from chapter04.exercises.section_4_1_1 import check_combined_loss, check_windows
from chapter04.exercises.section_4_1_2 import check_generation_flops, check_nucleus
from chapter04.exercises.section_4_2_1 import check_noise_scale, check_strided_mask
from chapter04.exercises.section_4_2_2 import check_fit_given_b, check_three_points
from chapter04.exercises.section_4_3_1a import check_induction, check_prefix_matching
from chapter04.exercises.section_4_3_1b import check_dual_form, check_layers
from chapter04.exercises.section_4_3_2a import check_chat_targets, check_lora_gradients
from chapter04.exercises.section_4_3_2b import check_advantages, check_best_of_n
from chapter04.exercises.section_4_3_2c import check_dpo_gradient, check_dpo_loss

__all__ = [
    "check_advantages",
    "check_best_of_n",
    "check_chat_targets",
    "check_combined_loss",
    "check_dpo_gradient",
    "check_dpo_loss",
    "check_dual_form",
    "check_fit_given_b",
    "check_generation_flops",
    "check_induction",
    "check_layers",
    "check_lora_gradients",
    "check_noise_scale",
    "check_nucleus",
    "check_prefix_matching",
    "check_strided_mask",
    "check_three_points",
    "check_windows",
]
