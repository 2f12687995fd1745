"""ファイルの書き込み。途中で止まっても、書きかけのファイルを残さない。"""

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """`data` を同じフォルダーの一時ファイルに書き、`path` に改名する。

    文字列は UTF-8 で、改行を変えずに書く。途中で失敗したときは一時ファイルを消すので、`path` には
    元の内容か新しい内容の全体のどちらかだけが見える。

    Raises:
        OSError: フォルダーがない、書き込めない、空き容量がないとき。
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
