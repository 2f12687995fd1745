"""マージの表を使って、バイト列を BPE の記号列に分ける。

定義は `merge_step_by_step` のとおり「順位の最も高い(番号の小さい)対を、左から 1 つずつつなぐ」で
ある。`MergeTable.encode` は同じ結果を、つなぐ過程をたどらずに、長い記号から順に置いて求める。

鍵になる性質: BPE の結果で隣り合う 2 つの記号 (x, y) は、x と y をつないだバイト列だけを BPE に
かけても (x, y) に分かれる。逆に、隣どうしがすべてこの性質をもつ並びは、BPE の結果そのものである。
マージは境目をまたがない限り互いに影響しないからで、境目をまたぐ最初のマージがあるとすれば、それは
両側の 2 記号だけで決まる。この性質をもつ対を「両立する」と呼ぶ(`MergeTable.compatible`)。
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

_END = -1  # 前方一致木の節で、そこまでに読めた最長の記号を入れておく鍵
_NO_LIMIT = 2**62


def merge_step_by_step(data: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """`data` を 1 バイトずつに分け、つないだ結果の順位が最も小さい対から、左から順につなぐ。

    定義どおりの遅い実装で、`MergeTable.encode` の確認に使う。
    """
    parts = [data[i : i + 1] for i in range(len(data))]
    while True:
        candidates = [
            (ranks[left + right], place)
            for place, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not candidates:
            return parts
        _, place = min(candidates)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


class MergeTable:
    """マージの表。記号の番号は、256 個のバイトが 0-255、i 番目のマージの結果が 256 + i。

    Attributes:
        tokens: 記号のバイト列(番号順)。
        number: バイト列 → 記号の番号。
        left, right: マージでつないだ左右の記号(バイトでは -1)。
    """

    def __init__(self, alphabet: Sequence[bytes]) -> None:
        self.tokens = list(alphabet)
        self.number = {token: number for number, token in enumerate(self.tokens)}
        self.left = [-1] * 256
        self.right = [-1] * 256
        self._result: dict[int, int] = {}  # 対(左 << 32 | 右)→ 結果
        self._trie: dict[int, Any] = {}
        self._shorter: list[int] = []
        self._lengths: list[int] = []
        self._longest = 1

    def add(self, left: int, right: int) -> int:
        """マージ (left, right) を末尾に加え、結果の番号を返す。"""
        result = len(self.tokens)
        token = self.tokens[left] + self.tokens[right]
        self.tokens.append(token)
        self.number[token] = result
        self.left.append(left)
        self.right.append(right)
        self._result[left << 32 | right] = result
        self._trie = {}
        return result

    def add_token(self, token: bytes) -> bool:
        """これまでのマージで 2 つの記号に分かれる `token` なら、その 2 つのマージを加える。

        順位だけが公開された語彙から、マージの表を復元するのに使う。分かれないときは False。
        """
        number = self.number
        for cut in range(1, len(token)):
            left = number.get(token[:cut])
            if left is None:
                continue
            right = number.get(token[cut:])
            if right is not None and self.compatible(left, right):
                self.add(left, right)
                return True
        return False

    def compatible(self, left: int, right: int) -> bool:
        """2 つの記号をつないだバイト列が、BPE でちょうどその 2 つに分かれるか。

        両方を番号の大きいマージから順にほどいていき、境目に接する 2 記号の対が、ほどいたマージより
        先につながれるはずだったなら、両立しない。同じ番号のマージは左が先である。
        """
        result, lefts, rights = self._result, self.left, self.right
        limit = _NO_LIMIT
        while True:
            if result.get(left << 32 | right, _NO_LIMIT) < limit:
                return False
            if left > right:
                if left < 256:
                    return True
                limit, left = left, rights[left]
            else:
                if right < 256:
                    return True
                limit, right = right + 1, lefts[right]

    def encode(self, data: bytes, fitting: set[int] | None = None) -> list[int]:
        """`data` の BPE の結果を記号の番号で返す。

        左から、前方一致する最長の記号を置く。直前の記号と両立しなければ短い記号を試し、どれも
        だめなら直前の記号を置き直す。途中まで置いた並びは、いつもその部分の BPE の結果で、ただ
        1 通りに決まる。だから同じ位置に二度来ることはなく、手間は長さに比例する。

        `fitting` は両立するとわかった対の控えで、続けて符号化するときに同じものを渡すと速い。
        """
        trie, shorter, lengths = self.prepare()
        longest = self._longest
        fitting = set() if fitting is None else fitting
        symbols: list[int] = []
        position, size, last = 0, len(data), -1
        while position < size:
            node = trie
            for byte in data[position : position + longest]:
                child = node.get(byte)
                if child is None:
                    break
                node = child
            symbol = node[_END]
            while (last << 32 | symbol) not in fitting:
                if symbol < 0:  # どの記号も置けないので、直前の記号を短くする
                    symbol = symbols.pop()
                    position -= lengths[symbol]
                    last = symbols[-1] if symbols else -1
                elif last < 0 or self.compatible(last, symbol):
                    fitting.add(last << 32 | symbol)
                    break
                symbol = shorter[symbol]
            symbols.append(symbol)
            position += lengths[symbol]
            last = symbol
        return symbols

    def prepare(self) -> tuple[dict, list[int], list[int]]:
        """前方一致木、記号ごとの「次に短い接頭辞の記号」(なければ -1)、記号の長さを用意する。"""
        if not self._trie:
            self._shorter = [-1] * len(self.tokens)
            self._lengths = [len(token) for token in self.tokens]
            self._longest = max(self._lengths)
            trie: dict[int, Any] = {_END: -1}
            for token, symbol in sorted(self.number.items()):  # 接頭辞が先に来る
                node = trie
                for byte in token:
                    child = node.get(byte)
                    if child is None:
                        child = node[byte] = {_END: node[_END]}
                    node = child
                self._shorter[symbol] = node[_END]
                node[_END] = symbol
            self._trie = trie
        return self._trie, self._shorter, self._lengths
