"""パッケージ索引からの取得。索引・証明書・プロキシーは pip の設定に従う。"""

import configparser
import hashlib
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import pypi_simple
import requests
from requests.adapters import HTTPAdapter

PUBLIC_INDEX = pypi_simple.PYPI_SIMPLE_ENDPOINT
_CONNECT_S, _READ_S = 10, 60  # 接続と、データが途切れてから待つ秒数


class FetchError(RuntimeError):
    """取得できない。索引ごとに、試したことと理由を述べる。"""


def fetch(project: str, filename: str, sha256: str) -> bytes:
    """索引にある `project` の `filename` を取得し、SHA-256 を確かめて中身を返す。

    索引は pip の index-url、続いて extra-index-url の順に試す。ファイルには何も書かない。

    Raises:
        FetchError: どの索引からも取得できないとき、届いた中身の SHA-256 が違うとき。
    """
    problems: list[str] = []
    for index in indexes():
        try:
            data = _get(index, project, filename)
        except Exception as error:  # requests と pypi_simple の例外に、共通の親はない
            reason = _reason(error)
        else:
            actual = hashlib.sha256(data).hexdigest()
            if actual == sha256:
                return data
            reason = (
                f"届いた {len(data):,} バイトの SHA-256 が {actual[:16]}... で、決めてある "
                f"{sha256[:16]}... と違います(壊れたか、別物にすりかわっています)"
            )
        problems.append(
            f"  試したこと: {_public(index)} の {project} から {filename} を取得\n  理由: {reason}"
        )
    raise FetchError("\n".join(problems))


class _SystemCertificates(HTTPAdapter):
    """certifi の証明書に加えて、OS に登録された証明書(社内のものなど)も信頼する。"""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **kwargs)


def _get(index: str, project: str, filename: str) -> bytes:
    with requests.Session() as session:
        session.mount("https://", _SystemCertificates(max_retries=2))
        session.verify = pip_setting("cert") or True
        if proxy := pip_setting("proxy"):
            session.proxies = {"http": proxy, "https": proxy}
        client = pypi_simple.PyPISimple(index, session=session)
        page = client.get_project_page(project, timeout=(_CONNECT_S, _READ_S))
        urls = [package.url for package in page.packages if package.filename == filename]
        if not urls:
            raise FetchError(f"索引に {filename} がありません")
        # 圧縮を断らないと、.tar.gz を途中で伸長して渡すサーバーがある(pip も同じにしている)。
        plain = {"Accept-Encoding": "identity"}
        response = session.get(urls[0], headers=plain, timeout=(_CONNECT_S, _READ_S))
        response.raise_for_status()
        return response.content


_REASONS: list[tuple[type[Exception], str]] = [  # 上から見て、最初に当てはまるもの
    (pypi_simple.NoSuchProjectError, "この索引にはありません"),
    (
        requests.exceptions.SSLError,
        "サーバーの証明書を確かめられません。社内の証明書を使う環境では、そのファイルを"
        "環境変数 PIP_CERT か REQUESTS_CA_BUNDLE で指定してください",
    ),
    (
        requests.exceptions.ProxyError,
        "プロキシーにつながりません。pip の proxy か環境変数 HTTPS_PROXY を見直してください",
    ),
    (requests.exceptions.Timeout, "時間内に応答がありません"),
    (requests.exceptions.ChunkedEncodingError, "受信の途中で切れました"),
    (
        requests.exceptions.ConnectionError,
        "つながりません(ネットワークがないか、サーバーが応じません)",
    ),
]


def _reason(error: Exception) -> str:
    """例外を、読者が次の手を選べる日本語にする。"""
    if isinstance(error, FetchError):
        return str(error)
    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return f"サーバーが HTTP {error.response.status_code} を返しました"
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return f"{type(error).__name__}: {_public(str(error))[:200]}"


def _public(text: str) -> str:
    """URL の中の利用者名とパスワードを除く。"""
    return re.sub(r"//[^/@\s]*@", "//", text)


# ---- pip の設定 -------------------------------------------------------------------------


def indexes() -> list[str]:
    """取得を試す索引。pip の index-url(なければ公開の索引)と extra-index-url。"""
    first = pip_setting("index-url") or PUBLIC_INDEX
    rest = (pip_setting("extra-index-url") or "").split()
    # file:// の索引は HTTP では読めない。
    web = [url for url in [first, *rest] if url.startswith(("https://", "http://"))]
    return list(dict.fromkeys(web)) or [PUBLIC_INDEX]


def pip_setting(key: str) -> str | None:
    """pip の設定 `key`("index-url" など)の値。環境変数 PIP_...、設定ファイルの順に探す。"""
    value = os.environ.get("PIP_" + key.upper().replace("-", "_"))
    if value:
        return value
    config = configparser.RawConfigParser()
    config.optionxform = lambda optionstr: optionstr.lower().replace("_", "-")
    for path in _pip_config_files():
        try:
            config.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # 読めない設定は、ないものとする
    return config.get("global", key, fallback=None) or None


def _pip_config_files() -> list[Path]:
    """pip の設定ファイルの候補。あとのものほど優先される(pip の文書 Configuration の順)。"""
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home, name = Path.home(), "pip.ini" if sys.platform == "win32" else "pip.conf"
    if sys.platform == "win32":
        everyone = [Path(os.environ.get("PROGRAMDATA") or "C:/ProgramData") / "pip"]
        user = [home / "pip", Path(os.environ.get("APPDATA") or home / "AppData/Roaming") / "pip"]
    elif sys.platform == "darwin":
        library = "Library/Application Support/pip"
        everyone = [Path("/") / library]
        user = [home / ".pip", home / ".config/pip", home / library]
    else:
        folders = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        everyone = [*(Path(folder) / "pip" for folder in folders), Path("/etc")]
        user = [home / ".pip", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"]
    if chosen and Path(chosen).exists():
        user = []
    files = [folder / name for folder in [*everyone, *user, Path(sys.prefix)]]
    return files + ([Path(chosen)] if chosen else [])
