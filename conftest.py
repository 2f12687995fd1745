"""pytest 全体の前提: 回帰テストは CPU・1 スレッドで行い、主張の判定が変われば失敗させる。"""

import os

os.environ["GENAI_NOTES_STRICT"] = "1"
os.environ["GENAI_DEVICE"] = "cpu"
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
