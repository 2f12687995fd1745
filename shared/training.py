"""学習の繰り返し。どの章のモデルも、この一つの `train` で学習する。

    損失を求める → 逆伝播する → 勾配を切り詰める → 重みを動かす

この一巡を 1 ステップと呼ぶ。`train` の本文の for 文がそのままこの順で、中断と再開は
shared.checkpoints、複数のプロセスは shared.parallel、表示は shared.progress が受け持つ。
"""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from shared import parallel
from shared.checkpoints import RandomSource, Snapshot, Stream
from shared.checks import require_int, require_number, shown
from shared.files import write_atomically
from shared.progress import Progress

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
RATE, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8  # Kingma and Ba, Algorithm 1 が薦める値


@dataclass
class Result:
    """学習の結果。

    `model` は学習した重みを、`ema` は重みの移動平均を持つモデル。`history` は 1 ステップが 1 件の
    辞書で、step(1 から)・loss・rate と、損失の関数が返した値、評価したステップでは評価の値を持つ。
    """

    model: nn.Module
    ema: nn.Module | None
    history: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        """ステップごとの損失。"""
        return [record["loss"] for record in self.history]


def train(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor | tuple[Tensor, Mapping[str, float]]],
    *,
    steps: int,
    optimizer: str | torch.optim.Optimizer = "adam",
    rate: float | Callable[[int], float] | None = None,
    betas: tuple[float, float] = BETAS,
    eps: float = EPS,
    weight_decay: float = 0.0,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 0,
    generators: Sequence[RandomSource] = (),
    log: Path | str | None = None,
    plot: bool = False,
    progress: bool = True,
    shard: bool = False,
) -> Result:
    """`model` を `steps` ステップだけ学習する。

    同じ `checkpoint` を渡してもう一度呼ぶと、いつ・どのように止まった後でも、そこから続ける。CPU
    では重みも記録も、止まらなかった場合と 1 ビットも違わない。`steps` まで済んでいれば、結果を読む
    だけで返る。そのために、`batches` の並びは、回し始めの乱数(`generators` と、Python・NumPy・
    PyTorch の既定の乱数)だけで決まるようにする。ほかのものにもよるなら、`batches` に state_dict と
    load_state_dict を持たせる。

    torchrun で起動すると、1 ステップの `accumulate` 個のバッチを N プロセスで分け合う(k 番目は
    k % N 番のプロセスへ)。勾配はその全体の平均なので、1 プロセスで同じ `accumulate` としたときと
    同じ学習になる。どのプロセスも `batches` を読み、自分の分だけを使う。記録とチェックポイントは
    0 番のプロセスだけが書く。

    Args:
        model: 学習するモデル。機器は重みのある所。終わったら、学習用か評価用かの区別は元に戻す。
        batches: バッチ(テンソルか、その tuple・list・dict)の列。尽きたら初めから読み直す。
        loss: loss(model, batch) がスカラーの損失を返す。(損失, {名前: 数}) なら、数も記録する。
        steps: 重みを動かす回数。続きから始めるときは、前回までの分も含む。
        optimizer: "adam"・"adamw" か、自分で作った torch.optim.Optimizer。
        rate: 学習率。関数なら、重みを動かす前にステップ番号(1 から)を渡して求める。省くと 1e-3、
            optimizer を自分で作ったときはその学習率のまま。
        betas, eps, weight_decay: Adam と AdamW の係数。
        clip: 勾配全体の L2 ノルムの上限。
        autocast: 損失の計算に使う低い精度。torch.bfloat16 だけが使える。
        accumulate: 1 ステップに使うバッチの数。損失も勾配も、その(等しい重みの)平均とする。
        ema: 重みの移動平均の減衰率 a。ステップごとに 平均 ← a × 平均 + (1 - a) × 今の重み とする。
        evaluate: evaluate(model) が {名前: 数} を返す。eval() と no_grad() の下で、`ema` を使うなら
            移動平均のモデルを渡して呼ぶ(どのプロセスも同じ計算をする)。autocast は掛けない。
        evaluate_every: 評価する間隔(ステップ)。
        checkpoint: 途中の状態のファイル。なければ作る。終わったときにも書く。
        checkpoint_every: 途中の状態を書く間隔(ステップ)。0 なら終わったときだけ書く。
        generators: バッチの並びなどに使う乱数。再開するとき、その状態も元に戻す。
        log: 記録を 1 ステップ 1 行で書く JSONL のファイル。始めるときに、続きから始めるステップより
            後の行(続きでなければ、すべての行)を消す。
        plot: ノートブックで、損失の図を描きながら学習するか。
        progress: 端末とノートブックで、進み具合を表示するか。
        shard: 複数のプロセスで、重みも分けて持つか(FSDP2)。終わった後の `model` と `ema` の重みも
            分かれたままなので、全体は `checkpoint` から shared.checkpoints.load で読む。

    Raises:
        TypeError, ValueError: 引数が誤っている、`batches` が空、一度しか読めず途中で尽きたとき。
        FloatingPointError: 損失か勾配が NaN か無限大になったとき。重みは動かさずに止まる。
        CheckpointError: `checkpoint` が壊れている、または別のモデルや設定のもののとき。
        OSError: ファイルを読み書きできないとき。
    """
    _check(SimpleNamespace(**locals()))
    # 学習の部品: 機器、移動平均、複数のプロセスに配ったモデル、重みを動かす係、データの列。
    device = parallel.start(model, accumulate)
    averaged = copy.deepcopy(model).requires_grad_(False).eval() if ema is not None else None
    trained, judged = parallel.spread(model, averaged, shard)
    if isinstance(optimizer, str):
        weights = [p for p in model.parameters() if p.requires_grad]
        mover = OPTIMIZERS[optimizer](
            weights, RATE, betas, eps, weight_decay,
            fused=device.type in ("cpu", "cuda"),  # 全部の重みを一度に動かす、速い実装
        )  # fmt: skip
        rate = RATE if rate is None else rate
    else:
        mover = optimizer
        weights = [p for group in mover.param_groups for p in group["params"]]
    data = Stream(batches, generators, device)
    first = parallel.rank() == 0  # 記録と表示は 0 番のプロセスだけがする

    # 前回の続きがあれば、すべてをその時点に戻す。
    settings = {
        "optimizer": optimizer if isinstance(optimizer, str) else type(optimizer).__name__,
        "betas": [float(beta) for beta in betas], "eps": float(eps),
        "weight_decay": float(weight_decay), "clip": clip and float(clip),
        "accumulate": int(accumulate), "ema": ema and float(ema), "generators": len(generators),
    }  # fmt: skip
    snapshot = Snapshot(checkpoint, settings, model, averaged, mover, data, generators, device)
    history = snapshot.load(steps)
    share = accumulate // parallel.world()  # このプロセスが受け持つバッチの数
    with (
        _log_file(log if first else None, history) as write,
        Progress(steps, history, progress and first, plot and first) as display,
        _mode(model, training=True),
    ):
        mover.zero_grad()
        where = ""
        for step in range(len(history) + 1, steps + 1):
            if rate is not None:
                lr = require_number(rate(step) if callable(rate) else rate, "rate", 0)
                for group in mover.param_groups:
                    group["lr"] = lr

            # 損失と勾配。accumulate 個のバッチの勾配を足しこんで平均にする。
            means: dict[str, float] = {}
            for k in range(accumulate):
                batch = next(data)
                if k % parallel.world() != parallel.rank():
                    continue
                where = f"ステップ {step}、{data.epoch} 周目の {data.consumed} 番目のバッチ"
                with parallel.without_sync(trained, k < accumulate - parallel.world()):
                    with torch.autocast(device.type, autocast) if autocast else nullcontext():
                        value, numbers = _loss(trained(loss, to_device(batch, device)))
                    _stop_unless_finite(numbers["loss"], "損失", where)
                    (value / share).backward()
                for name, number in numbers.items():
                    means[name] = means.get(name, 0.0) + number / share

            # 勾配の切り詰めと、重みの更新。
            norm = get_total_norm([p.grad for p in weights if p.grad is not None])
            _stop_unless_finite(parallel.whole(norm).item(), "勾配の大きさ", where)
            if clip is not None:
                clip_grads_with_norm_(weights, clip, norm)
            mover.step()
            mover.zero_grad()
            if averaged is not None and ema is not None:
                update_ema(averaged, model, ema)

            # 記録・評価・保存。
            record = {"step": step, "loss": 0.0, "rate": float(mover.param_groups[0]["lr"])}
            record |= parallel.average(means)
            if evaluate and step % evaluate_every == 0:
                with _mode(judged, training=False), torch.no_grad():
                    record |= _numbers(judged(evaluate), "evaluate", record)
            history.append(record)
            write(record)
            if step == steps or (checkpoint_every and step % checkpoint_every == 0):
                snapshot.save(history)
            display.update()
    return Result(model, averaged, history)


def update_ema(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """重みの移動平均を一歩進める: 平均 ← decay × 平均 + (1 - decay) × 今の重み。

    学習しない値(バッチ正規化の統計など)は、今の値をそのまま写す。
    """
    with torch.no_grad():
        for mean, weight in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for mean, value in zip(averaged.buffers(), model.buffers(), strict=True):
            mean.copy_(value)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` の中のテンソルをすべて `device` に移したものを返す(tuple・list・dict の中も)。"""
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch.to(device) if hasattr(batch, "to") else batch


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """学習用か評価用の動作に替え、終わったら層ごとに元へ戻す。"""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def _log_file(
    log: Path | str | None, history: Sequence[Mapping[str, Any]]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """1 件を 1 行で書き足す関数。初めに、ファイルの内容を `history` に揃える。"""
    if log is None:
        yield lambda record: None
        return
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(log, "".join(map(_line, history)))
    with Path(log).open("a", encoding="utf-8", newline="\n") as file:
        yield lambda record: print(_line(record), file=file, end="", flush=True)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _loss(returned: Any) -> tuple[Tensor, dict[str, float]]:
    """損失の関数が返したものを確かめ、(損失, 記録する数) に分ける。"""
    pair = isinstance(returned, tuple) and len(returned) == 2
    value, more = returned if pair else (returned, {})
    if not isinstance(value, Tensor):
        raise TypeError(
            "loss はテンソルか、(テンソル, {名前: 数}) を返してください: "
            f"{shown(returned)} ({type(returned).__name__})"
        )
    if value.numel() != 1 or not value.requires_grad:
        raise ValueError(
            "loss が返すテンソルは、重みから計算したスカラーにしてください: 形は "
            f"{list(value.shape)}、requires_grad は {value.requires_grad}"
        )
    value = value.reshape(())
    return value, {"loss": value.item(), **_numbers(more, "loss", ("step", "loss", "rate"))}


def _numbers(values: Any, source: str, taken: Iterable[str]) -> dict[str, float]:
    """`source` の関数が返した辞書を、記録できる数の辞書にする。"""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{source} は {{名前: 数}} の辞書を返してください: "
            f"{shown(values)} ({type(values).__name__})"
        )
    if clash := set(values) & set(taken):
        raise ValueError(f"{source} が返した名前は、記録でもう使われています: {sorted(clash)}")
    return {str(name): float(number) for name, number in values.items()}


def _stop_unless_finite(value: float, name: str, where: str) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{name}が {value} になったので、重みを動かす前に学習を止めました({where})。学習率を"
            "下げる、clip を小さくする、データに異常な値がないか確かめる、などを試してください"
        )


def _check(given: Any) -> None:
    """`train` の引数を、学習を始める前に確かめる。"""
    if not isinstance(given.model, nn.Module):
        raise TypeError(f"model には nn.Module を渡してください: {shown(given.model)}")
    if not any(p.requires_grad for p in given.model.parameters()):
        raise ValueError("model に、学習する重み(requires_grad が True のもの)がありません")
    if not isinstance(given.batches, Iterable):
        raise TypeError(f"batches には繰り返せるものを渡してください: {shown(given.batches)}")
    if not callable(given.loss):
        raise TypeError(f"loss には関数を渡してください: {shown(given.loss)}")
    if given.evaluate is not None and not callable(given.evaluate):
        raise TypeError(f"evaluate には関数を渡してください: {shown(given.evaluate)}")
    for name, minimum in {
        "steps": 1,
        "accumulate": 1,
        "evaluate_every": 0,
        "checkpoint_every": 0,
    }.items():
        require_int(getattr(given, name), name, minimum)
    for what in ("evaluate", "checkpoint"):
        if getattr(given, f"{what}_every") and getattr(given, what) is None:
            raise ValueError(f"{what}_every を 1 以上にするなら、{what} も渡してください")
    if given.evaluate is not None and given.evaluate_every == 0:
        raise ValueError("evaluate を渡すなら、evaluate_every は 1 以上にしてください: 0")
    if given.rate is not None and not callable(given.rate):
        require_number(given.rate, "rate", 0)
    if not isinstance(given.betas, Sequence) or len(given.betas) != 2:
        raise TypeError(f"betas には 2 つの数を渡してください: {shown(given.betas)}")
    if not all(0 <= require_number(beta, "betas") < 1 for beta in given.betas):
        raise ValueError(f"betas は 0 以上 1 未満にしてください: {shown(given.betas)}")
    require_number(given.eps, "eps", 0)
    require_number(given.weight_decay, "weight_decay", 0)
    if given.clip is not None and require_number(given.clip, "clip") <= 0:
        raise ValueError(f"clip は 0 より大きくしてください: {given.clip}")
    if given.ema is not None and not 0 < require_number(given.ema, "ema") < 1:
        raise ValueError(f"ema は 0 より大きく 1 より小さくしてください: {given.ema}")
    if given.autocast not in (None, torch.bfloat16):
        raise ValueError(
            f"autocast に使えるのは None と torch.bfloat16 です: {given.autocast}"
            "(float16 では、小さな勾配が 0 に潰れます)"
        )
    listed = isinstance(given.generators, Sequence)
    if not listed or not all(isinstance(one, RandomSource) for one in given.generators):
        raise TypeError(
            "generators には torch.Generator・numpy.random.Generator・random.Random の list を"
            f"渡してください: {shown(given.generators)}"
        )
    if isinstance(given.optimizer, torch.optim.Optimizer):
        _check_own(given)
    elif not isinstance(given.optimizer, str) or given.optimizer not in OPTIMIZERS:
        raise ValueError(
            'optimizer には "adam"・"adamw"・torch.optim.Optimizer のどれかを渡してください: '
            f"{shown(given.optimizer)}"
        )


def _check_own(given: Any) -> None:
    """自分で作った optimizer が、model の重みだけを動かすことを確かめる。"""
    unused = {"betas": BETAS, "eps": EPS, "weight_decay": 0.0}
    if changed := [name for name, value in unused.items() if getattr(given, name) != value]:
        raise ValueError(
            f"{'・'.join(changed)} は、optimizer を作るときに渡してください"
            "(自分で作った optimizer を渡したときは使われません)"
        )
    known = {id(p) for p in given.model.parameters()}
    if any(id(p) not in known for group in given.optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer が、model にない重みを持っています。model の重みで作ってください"
        )
    if given.shard:
        raise ValueError('shard=True のとき、optimizer は "adam" か "adamw" にしてください')
