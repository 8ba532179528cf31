"""Neither the caller's data nor the caller's cache plays a part in these tests."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTILLATION_DATA", raising=False)
    monkeypatch.setenv("DISTILLATION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
