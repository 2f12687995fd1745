"""長い学習をする命令の、終わり方。"""

import json
import sys
from collections.abc import Callable

from shared.archives import DataError
from shared.checkpoints import CheckpointError

STOPPED = (
    "止めました。同じ命令をもう一度実行すると、最後に残した途中の状態"
    "({every} ステップごとに残します)から始まります"
)


def run(job: Callable[[], object], every: int, hint: str = "") -> int:
    """`job` を動かし、終了コードを返す。

    終われば、返り値を JSON で表示して 0(None なら何も表示しない)。Ctrl-C で止めれば続け方を、使う
    人が直せる誤りならそのわけを、一言で stderr に表示して 1。

    Args:
        job: 学習し、成績を返す関数。
        every: 途中の状態を残す間隔 [ステップ]。
        hint: 止めたときの言葉に書き足すこと。
    """
    try:
        result = job()
    except KeyboardInterrupt:
        print(STOPPED.format(every=every) + hint, file=sys.stderr)
        return 1
    except (CheckpointError, DataError, FloatingPointError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if result is not None:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    return 0
