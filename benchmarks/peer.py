"""自分たちの実装と既存の実装を、1 スレッドの別プロセスで交互に走らせて比べる。

子プロセスは `measure(work)` を呼び、CPU 時間と最大常駐メモリーを JSON 1 行で標準出力に書く。
親は `compare(ours, peer)` で両者を交互に起動し、同じ回どうしの比を最小・中央・最大で返す。
CPU の速さや混み具合は回ごとに変わるので、秒数ではなく比を見る。
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# 相手が Rust や C++ で書かれていても 1 スレッドに揃える環境変数。
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
}


def peak_mib() -> float | None:
    """このプロセスの最大常駐メモリーを MiB で返す(測れない OS では None)。"""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage は起動元の値を引き継ぐことがあるので、Linux では使わない
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource  # noqa: PLC0415  Windows にはない
    except ImportError:
        return None
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(work: Callable[[], object], digest: Callable[[object], object] = repr) -> None:
    """`work()` の CPU 時間を測り、結果の要約とともに JSON 1 行で標準出力に書く。

    データの読み込みと import は、呼ぶ前に済ませておく。`digest(結果)` の文字列は、両者の結果が
    等しいことの確認に使う(時間には含めない)。メモリーは、読み込んだデータも含むプロセス全体の最大値。
    """
    start = time.process_time()
    result = work()
    seconds = time.process_time() - start
    peak = peak_mib()  # digest が使うメモリーを含めない
    summary = hashlib.sha256(str(digest(result)).encode()).hexdigest()[:16]
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "digest": summary}), flush=True)


def compare(ours: list[str], peer: list[str], runs: int = 5) -> dict:
    """2 つのコマンドを交互に `runs` 回ずつ走らせ、CPU 時間とメモリーの比(ours / peer)を返す。

    コマンドは `measure` を 1 度呼ぶプロセスの引数の並びで、先頭の "python" は今動いている Python を
    指す。
    返り値は {"runs", "seconds_ratio": {"min", "median", "max"}, "peak_ratio": 同じ形または None,
    "same_result": すべての回の結果が等しいか, "ours": 各回の測定値, "peer": 同じ}。

    Raises:
        RuntimeError: 子プロセスが失敗したとき。
    """
    measured: dict[str, list[dict]] = {"ours": [], "peer": []}
    for number in range(runs):
        order = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
        for side in order:
            measured[side].append(_run(ours if side == "ours" else peer))
    pairs = list(zip(measured["ours"], measured["peer"], strict=True))
    peaks = all(a["peak_mib"] and b["peak_mib"] for a, b in pairs)
    return {
        "runs": runs,
        "seconds_ratio": _spread([a["seconds"] / b["seconds"] for a, b in pairs]),
        "peak_ratio": _spread([a["peak_mib"] / b["peak_mib"] for a, b in pairs]) if peaks else None,
        "same_result": len({row["digest"] for rows in measured.values() for row in rows}) == 1,
        **measured,
    }


def _run(command: list[str]) -> dict:
    arguments = [sys.executable, *command[1:]] if command[0] == "python" else command
    done = subprocess.run(
        arguments,
        env={**os.environ, **ONE_THREAD},
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"測定に失敗しました: {' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }
