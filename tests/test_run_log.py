"""What stands in a run's train.log."""

from __future__ import annotations

from engine_case import digits_loader, images, make_engine

from distillation import runs


def _lines(recorder) -> list[str]:
    return (recorder.path / "train.log").read_text().splitlines()


def test_begin_epochs_and_end_are_logged(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        make_engine(
            digits_loader(64, 32),
            epochs=2,
            recorder=recorder,
            valid_loaders={"test": [images(32)]},
        ).fit()
    begin, first, second, end = _lines(recorder)
    assert begin.endswith("begins, 2 epochs, on cpu")
    assert "epoch 1/2" in first and "loss.test" in first
    assert "epoch 2/2" in second
    assert "ends after" in end


def test_a_run_that_is_resumed_goes_on_in_the_same_file(tmp_path):
    with runs.create("digits", root=tmp_path) as recorder:
        make_engine(digits_loader(64, 32), epochs=1, recorder=recorder).fit()
    with runs.resume(recorder.uuid, root=tmp_path) as again:
        make_engine(digits_loader(64, 32), epochs=2, recorder=again).fit(resume=True)
    lines = _lines(recorder)
    assert sum("epoch 1/" in line for line in lines) == 1
    assert any("goes on at epoch 2/2" in line for line in lines)


def test_what_is_not_recorded_leaves_no_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_engine(digits_loader(64, 32), epochs=1).fit()
    assert list(tmp_path.iterdir()) == []
