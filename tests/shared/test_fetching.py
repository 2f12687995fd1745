"""shared.fetching: 索引からの取得と、pip の設定の読み方。"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import certifi
import pytest

from shared import fetching
from shared.fetching import FetchError, fetch, pip_setting

NOWHERE = "http://127.0.0.1:9/simple/"  # 誰も聞いていない番号


def fetch_demo(index: Any) -> bytes:
    return fetch("demo", index.filename, index.sha256)


def test_file_arrives_as_it_is_on_the_server(index: Any):
    assert fetch_demo(index) == index.content


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("no project", "この索引にはありません"),
        ("no file", "索引に demo-1.0.tar.gz がありません"),
        ("error", "HTTP 503"),
        ("truncated", "受信の途中で切れました"),
        ("swapped", "SHA-256"),
    ],
)
def test_trouble_is_reported_with_what_was_tried(index: Any, trouble: str, words: str):
    index.trouble = trouble
    with pytest.raises(FetchError) as caught:
        fetch_demo(index)
    message = str(caught.value)
    assert words in message
    assert f"試したこと: {index.url} の demo から {index.filename}" in message


def test_swapped_file_shows_both_digests(index: Any):
    index.trouble = "swapped"
    with pytest.raises(FetchError, match=index.sha256[:16]) as caught:
        fetch_demo(index)
    assert len(re.findall(r"[0-9a-f]{16}\.\.\.", str(caught.value))) == 2
    assert f"{len(index.content):,} バイト" in str(caught.value)


def test_silent_server_times_out(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "_READ_S", 0.2)
    index.trouble = "silent"
    with pytest.raises(FetchError, match="時間内に応答がありません"):
        fetch_demo(index)


def test_no_network(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    with pytest.raises(FetchError, match="つながりません"):
        fetch_demo(index)


def test_next_index_is_tried(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///somewhere/simple {index.url}")
    assert fetching.indexes() == [NOWHERE, index.url]
    assert fetch_demo(index) == index.content


def test_every_failed_index_is_reported(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", NOWHERE)
    index.trouble = "no project"
    with pytest.raises(FetchError) as caught:
        fetch_demo(index)
    assert str(caught.value).count("試したこと") == 2


def test_password_reaches_the_server_and_no_message(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:s3cret@"))
    assert fetch_demo(index) == index.content
    assert index.passwords == ["Basic bWU6czNjcmV0"] * 2
    for index.trouble in ("no project", "error", "swapped"):
        with pytest.raises(FetchError) as caught:
            fetch_demo(index)
        assert "s3cret" not in str(caught.value)


def test_proxy_of_pip_is_used(index: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple/")
    monkeypatch.setenv("PIP_PROXY", f"http://127.0.0.1:{index.server_port}")
    assert fetch_demo(index) == index.content
    assert index.requests == ["/simple/demo/", f"/files/{index.filename}"]


def test_certificate_of_pip_is_used(index: Any, monkeypatch: pytest.MonkeyPatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CERT", "missing-certificate.pem")
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE.replace("http:", "https:"))
    with pytest.raises(FetchError, match=r"missing-certificate\.pem"):
        fetch_demo(index)


def test_certificates_of_the_system_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = Path(certifi.where()).read_text(encoding="utf-8")
    one = re.findall(r"-----BEGIN.*?END CERTIFICATE-----\n", bundle, flags=re.DOTALL)[0]
    (tmp_path / "system.pem").write_text(one, encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    adapter = fetching._SystemCertificates()
    context = adapter.poolmanager.connection_pool_kw["ssl_context"]
    assert context.check_hostname
    assert len(context.get_ca_certs()) >= 1


# ---- pip の設定 -------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """設定ファイルを置く、空の家。"""
    for name in list(os.environ):
        if name.startswith(("PIP_", "XDG_")) or name in ("APPDATA", "PROGRAMDATA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_later_settings_win(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert pip_setting("no-such-key") is None
    expected = "xdg/pip", ".pip", ".config/pip", "venv"
    for folder in expected:
        write(home / folder / "pip.conf", f"[global]\nindex-url = https://{folder}/\n")
        assert pip_setting("index-url") == f"https://{folder}/"
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment/")
    assert pip_setting("index-url") == "https://environment/"


def test_named_config_file_replaces_the_users(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    write(home / ".config/pip/pip.conf", "[global]\nproxy = http://user/\nindex-url = https://u/\n")
    named = write(home / "my.conf", "[global]\nindex_url = https://named/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    assert pip_setting("index-url") == "https://named/"
    assert pip_setting("proxy") is None
    write(home / "venv/pip.conf", "[global]\nproxy = http://venv/\n")
    assert pip_setting("proxy") == "http://venv/"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip_setting("index-url") is None
    assert pip_setting("proxy") is None


def test_unreadable_config_is_ignored(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    write(home / ".pip/pip.conf", "[global]\nindex-url = https://good/\n")
    write(home / ".config/pip/pip.conf", "index-url = 見出しのない行\n")
    (home / "venv").mkdir()
    (home / "venv/pip.conf").write_bytes(b"[global]\nindex-url = \x82\xa0\n")
    assert pip_setting("index-url") == "https://good/"
    assert fetching.indexes() == ["https://good/"]


def test_without_settings_the_public_index_is_used(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert fetching.indexes() == [fetching.PUBLIC_INDEX]
    monkeypatch.setenv("PIP_INDEX_URL", "file:///only/local")
    assert fetching.indexes() == [fetching.PUBLIC_INDEX]


@pytest.mark.parametrize(
    ("platform", "folder", "name"),
    [
        ("win32", "AppData/Roaming/pip", "pip.ini"),
        ("win32", "pip", "pip.ini"),
        ("darwin", "Library/Application Support/pip", "pip.conf"),
        ("darwin", ".config/pip", "pip.conf"),
    ],
)
def test_places_of_other_systems(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str, folder: str, name: str
):
    monkeypatch.setattr(sys, "platform", platform)
    write(home / folder / name, "[global]\nindex-url = https://there/\n")
    assert pip_setting("index-url") == "https://there/"


def test_agrees_with_pip_itself(home: Path, monkeypatch: pytest.MonkeyPatch):
    folder = {"win32": "pip", "darwin": ".pip"}.get(sys.platform, ".config/pip")
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    write(home / folder / name, "[global]\nindex-url = https://a/\nextra_index_url =\n  x\n  y\n")
    for key in ("index-url", "extra-index-url"):
        pip = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
        answer = subprocess.run(pip, capture_output=True, text=True, check=True)
        assert (pip_setting(key) or "").split() == answer.stdout.split()
