"""Wrong input is refused with its message, before anything is built or recorded."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from experiment_case import command, last_weights, rows

from distillation import runs

# experiment, what stands on its command line, what the message says
REFUSED = [
    ("small", "--foo", "unknown command-line option '--foo'"),
    ("small", "--epoch=3", "unknown command-line option '--epoch'; did you mean '--epochs'"),
    ("small", "extra", "unknown command-line option 'extra'"),
    ("small", "--epochs", "argument --epochs: expected one argument"),
    ("small", "--set epochs", "--set takes KEY=VALUE, got 'epochs'"),
    ("small", "--epochs 3 --epochs 4", "--epochs is given twice, as '3' and as '4'"),
    ("small", "--epochs 3 --set epochs=4", "epochs is given twice, as '3' and as '4'"),
    ("small", "--data x", "'data' cannot be set here: the digits come with scikit-learn"),
    ("small", "--set epoch=3", "unknown configuration key 'epoch'; did you mean 'epochs'"),
    ("small", "--set epoch=3", "--help lists them"),
    (
        "small",
        "--set optimizer.learning_rat=1",
        "unknown configuration key 'optimizer.learning_rat'; did you mean "
        "'optimizer.learning_rate'",
    ),
    ("small", "--set optimizer.sgd.momentum=1", "'optimizer.sgd.momentum'; did you mean"),
    ("small", "--set temperature=4", "unknown configuration key 'temperature'"),
    ("small", "--set optimizer.optimizer=sgd", "'sgd'; did you mean 'SGD'? Valid: 'Adam', 'SGD'"),
    ("small", "--set schedule=onecycle", "'onecycle'; did you mean 'one_cycle'"),
    ("small", "--set recipe=lablm", "unknown value for 'recipe': 'lablm'; did you mean 'labml'"),
    ("small", "--device gpu", "unknown value for 'device': 'gpu'"),
    ("small", "--precision fp23", "did you mean 'fp32'"),
    ("small", "--set session=1", "unknown configuration key 'session'"),
    ("small", "--epochs many", "epochs='many' is of the wrong type: it must be int"),
    ("small", "--epochs 1.5", "it must be int"),
    ("small", "--set compile=1", "it must be bool"),
    ("small", "--set optimizer.learning_rate=fast", "it must be float"),
    ("small", "--set optimizer.betas=high", "it must be list"),
    ("small", "--set optimizer.betas=['a',1]", "'a' must be float"),
    ("small", "--set optimizer.betas=[0.9]", "has 1 items; it must have 2"),
    ("small", "--set without_classes=[0.5]", "0.5 must be int"),
    ("small", "--set without_classes={[]:1}", "it must be list"),
    ("small", "--epochs -1", "epochs=-1 is out of range: it must be at least 0"),
    ("small", "--batch-size 0", "must be at least 1"),
    ("small", "--set label_smoothing=1.5", "must be from 0.0 to 1.0"),
    ("small", "--set optimizer.learning_rate=1e999", "must be finite"),
    ("small", "--seed 9223372036854775808", "below 2^63"),
    # Only the data can tell
    ("small", "--subset 1438", "subset=1438 is more than the 1437 training images"),
    ("small", "--holdout 1437", "holdout=1437 leaves none"),
    ("small", "--set without_classes=[12]", "unknown class '12'"),
    (
        "small",
        "--set without_classes=[0,1,2,3,4,5,6,7,8,9]",
        "without_classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] leaves no training images",
    ),
    ("small", "--set views_per_image=10", "crop_flip"),
    ("small", "--resume 123abc", "unknown run '123abc'"),
    ("small", "--resume LARGE", "made by experiments.digits.large; experiments.digits.small"),
    ("distill", "", "a student needs a teacher: --teacher RUN"),
    ("distill", "--teacher zzzz", "unknown run 'zzzz'"),
    ("distill", "--teacher LARGE@77", "has no checkpoint at step 77; there are: 2874"),
    ("distill", "--teacher LARGE@end", "'end' in"),
    ("distill", "--teacher LARGE@best", "has no best checkpoint"),
    ("distill", "--teacher LARGE --set temperature=0", "temperature=0.0 is out of range"),
    ("distill", "--teacher LARGE --set loss=kll", "'kll'; did you mean 'kl'"),
    ("distill", "--teacher LARGE --set large=1", "unknown configuration key 'large'"),
    ("distill", "--resume LARGE", "experiments.digits.distill cannot go on with it"),
]


def contents(root):
    return sorted(
        (str(p.relative_to(root)), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()
    )


@pytest.mark.parametrize(("name", "line", "says"), REFUSED, ids=[f"{n} {w}" for n, w, _ in REFUSED])
def test_it_is_refused_and_nothing_is_left(trained, name, line, says):
    root = trained.path.parent.parent
    before = contents(root)
    done = command(f"digits.{name}", *line.replace("LARGE", trained.uuid).split(), root=root)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    _, *others = done.err.splitlines()
    assert all(re.match(r"  [0-9a-f]{32}  digits", other) for other in others), (
        "only runs are listed"
    )
    assert contents(root) == before


def test_an_ambiguous_prefix_lists_the_runs(store, trained):
    other = store / "digits" / (trained.uuid[:6] + "0" * 26)
    shutil.copytree(trained.path, other)
    info = (other / "run.json").read_text().replace(trained.uuid, other.name)
    (other / "run.json").write_text(info)
    done = command("digits.distill", "--teacher", trained.uuid[:6], root=store)
    assert done.code == 2
    assert "begins 2 runs; give more of it" in done.err
    assert trained.uuid in done.err
    assert other.name in done.err


def test_a_run_without_a_checkpoint_cannot_teach(store):
    empty = command("digits.large", "--epochs", "0", root=store).uuid
    done = command("digits.distill", "--teacher", empty, root=store)
    assert done.code == 2
    assert f"run {empty[:8]}" in done.err
    assert "has no checkpoint" in done.err
    assert len(runs.list(store)) == 2


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_one_flipped_byte_in_a_teacher_is_found(store, trained, name):
    flip_a_byte(store / "digits" / trained.uuid / "checkpoints" / "2874" / name)
    done = command("digits.distill", "--teacher", trained.uuid, root=store)
    assert done.code == 2
    assert name in done.err
    assert "is damaged" in done.err
    assert len(runs.list(store)) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_run_with_a_damaged_checkpoint_is_not_resumed_and_not_changed(store, trained, name):
    flip_a_byte(store / "digits" / trained.uuid / "checkpoints" / "2874" / name)
    done = command("digits.large", "--resume", trained.uuid, "--epochs", "3", root=store)
    assert done.code == 2
    assert name in done.err
    run = runs.find(trained.uuid, root=store)
    assert run.status == "completed"
    assert run.config == trained.config
    assert rows(run) == rows(trained)


def test_another_optimizer_is_refused_on_resume_and_the_run_is_not_changed(store, trained):
    done = command(
        "digits.large",
        "--resume",
        trained.uuid,
        "--set",
        "recipe=labml",
        "--epochs",
        "3",
        root=store,
    )
    assert done.code == 2
    assert "trained with SGD and cannot go on with Adam" in done.err
    assert runs.find(trained.uuid, root=store).config == trained.config
    assert runs.find(trained.uuid, root=store).info == trained.info
    # So it can still be resumed without a word about it
    assert command("digits.large", "--resume", trained.uuid, root=store).code == 0


def test_a_teacher_at_chance_level_is_refused_unless_allowed(store):
    # Its rate is so small that it stays what it was at random
    weak = command(
        "digits.large", "--epochs", "1", "--set", "optimizer.learning_rate=1e-9", root=store
    ).uuid
    refused = command("digits.distill", "--teacher", weak, "--epochs", "1", root=store)
    assert refused.code == 2
    assert "of the test images, where chance is 10.0%" in refused.err
    assert "--allow-weak-teacher" in refused.err
    assert len(runs.list(store)) == 2
    line = ["--teacher", weak, "--epochs", "1", "--allow-weak-teacher", "--comment", "first"]
    allowed = command("digits.distill", *line, root=store)
    assert allowed.code == 0
    # It was allowed once, and goes on; what is said of it then is kept
    line = ["--resume", allowed.uuid, "--epochs", "2", "--comment", "second"]
    assert command("digits.distill", *line, root=store).code == 0
    assert runs.find(allowed.uuid, root=store).info["comment"] == "second"


def test_the_accuracy_of_the_teacher_is_printed_first(store, trained):
    done = command("digits.distill", "--teacher", trained.uuid, "--epochs", "1", root=store)
    lines = [line for line in done.out.splitlines() if not line.startswith("recording")]
    wanted = trained.summary["accuracy.test"]
    assert lines[0] == f"teacher {trained.uuid[:8]}: accuracy {wanted:.4f} on 360 test images"


def test_a_student_keeps_its_teacher(store, trained):
    other = command("digits.large", "--epochs", "1", root=store).uuid
    student = command("digits.distill", "--teacher", trained.uuid, "--epochs", "1", root=store).uuid
    done = command("digits.distill", "--resume", student, "--teacher", other, root=store)
    assert done.code == 2
    assert f"learns from {trained.uuid}" in done.err
    assert other in done.err
    own = ["--resume", student, "--teacher", trained.uuid, "--epochs", "2"]
    assert command("digits.distill", *own, root=store).code == 0
    run = runs.find(student, root=store)
    assert run.parent.uuid == trained.uuid
    # Nor is another checkpoint of the same teacher the same
    earlier = {**run.info, "teacher": {**run.info["teacher"], "step": 1437}}
    (run.path / "run.json").write_text(json.dumps(earlier))
    last = f"{trained.uuid}@last"
    done = command("digits.distill", "--resume", student, "--teacher", last, root=store)
    assert done.code == 2
    assert f"learns from {trained.uuid}@1437; it cannot go on with {last}" in done.err


def test_a_student_whose_teacher_is_gone_says_so(store, trained):
    student = command("digits.distill", "--teacher", trained.uuid, "--epochs", "1", root=store).uuid
    runs.remove(trained.uuid, force=True, root=store)
    done = command("digits.distill", "--resume", student, "--epochs", "2", root=store)
    assert done.code == 2
    assert f"run {student} learns from run {trained.uuid}, which is no longer in" in done.err
    assert runs.find(student, root=store).status == "completed"


def test_a_run_that_is_running_is_not_resumed(store, trained):
    with runs.resume(trained.uuid, root=store):
        done = command("digits.large", "--resume", trained.uuid, root=store)
    assert done.code == 2
    assert f"run {trained.uuid[:8]} is running" in done.err


def test_data_that_are_not_there_or_not_readable_are_named(tmp_path):
    broken = tmp_path / "images.tar.xz"
    broken.write_bytes(b"\xfd7zXZ\x00 and then nothing that it should be")
    for path in (tmp_path / "nowhere", broken):
        done = command("cifar10.small", "--data", str(path), root=tmp_path / "runs")
        assert done.code == 2
        assert str(path) in done.err
        assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1  # though tarfile says a line for each compression
    assert runs.list(tmp_path / "runs") == []


def test_a_root_that_can_hold_no_runs_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("no folder")
    done = command("digits.small", "--epochs", "1", root=tmp_path / "file")
    assert done.code == 2
    assert f"no runs can be kept in {tmp_path / 'file'}" in done.err
    assert "--runs ROOT or DISTILLATION_RUNS" in done.err


def test_a_warning_is_one_line(warm, store):
    done = warm.run("digits.small", "--epochs", "0", "--precision", "fp16", root=store)
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines[0] == "warning: fp16 needs a GPU; bf16 is used on the CPU instead"
    # A second one where the processor is slow at it
    assert all(line.startswith("warning: torch has no fast bf16") for line in lines[1:])


def test_a_full_disk_keeps_the_older_checkpoint(warm, store, trained):
    # No file may grow beyond 40 kB: the weights alone are larger
    small = warm.run("digits.small", "--epochs", "1", root=store).uuid
    before = {k: v.clone() for k, v in last_weights(runs.find(small, root=store)).items()}
    done = warm.run(
        "digits.small", "--resume", small, "--epochs", "2", root=store, largest_file=40_000
    )
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: cannot save")
    assert "Free some space" in done.err
    run = runs.find(small, root=store)
    assert (run.status, run.checkpoints) == ("crashed", [1437])
    assert all(bool((v == before[k]).all()) for k, v in last_weights(run).items())
    # With space again it goes on
    assert warm.run("digits.small", "--resume", small, root=store).code == 0
    assert runs.find(small, root=store).checkpoints == [2874]
