"""study.py の中身: 環境を作り、ノートブックを走らせる。章と shared からは import しない。"""
