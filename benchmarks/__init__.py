"""ほかの実装との比を測るプログラム。結果は benchmarks/results/ に JSON で書く。"""
