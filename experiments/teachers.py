"""
# The large model of a distillation, found by its run

It is named by its run UUID, loaded as it was saved, and checked before a student learns from it.
"""

import torch

from distillation import runs
from distillation.errors import TeacherError
from distillation.runs import Run
from distillation.runs.store import by_uuid
from distillation.teacher import FrozenTeacher, TeacherSource
from distillation.transfer import at_chance
from experiments.command_line import Options
from experiments.session import Session


def find_teacher(options: Options) -> Run:
    """
    ### Find the large model's run

    By `--teacher RUN[@step]`, a full UUID or its beginning; a student that is resumed knows its
    own. Another one is refused: a student has one teacher from its first step to its last.
    """
    if options.resume:
        # A student that goes on
        own = runs.find(options.resume, root=options.root)
        recorded = own.info.get("teacher") or {}
        spelled = recorded.get("run") or own.parent_uuid
        if spelled and by_uuid(spelled, options.root) is None:
            raise TeacherError(
                f"run {own.uuid} learns from run {spelled}, which is no longer in {options.root}; "
                "put it back, or start a new run with another teacher"
            )
        if recorded.get("step") is not None:
            spelled = f"{spelled}@{recorded['step']}"
        if options.teacher:
            asked = runs.find(options.teacher, root=options.root)
            other_step = asked.step is not None and recorded.get("step") is not None
            other_step = other_step and asked.resolve_step(asked.step) != recorded["step"]
            if asked.uuid != (recorded.get("run") or own.parent_uuid) or other_step:
                raise TeacherError(
                    f"run {own.uuid} learns from {spelled}; it cannot go on with "
                    f"{options.teacher if other_step else asked.uuid}. "
                    "Start a new run instead"
                )
    else:
        spelled = options.teacher
    run = runs.find(spelled, root=options.root)
    # A run without the checkpoint that is asked for is an error here, not after the data are read
    run.resolve_step(run.step)
    return run


def load_teacher(run: Run, session: Session, options: Options) -> TeacherSource:
    """
    ### Load the large model

    It is frozen, in evaluation mode, and never a part of what is trained or saved.
    """
    model = run.load_model(run.step)
    if options.config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    teacher = FrozenTeacher(model.to(session.device), run_uuid=run.uuid)
    recorded = session.recorder.run.info.get("teacher") if session.recorder else None
    if session.resumed and recorded and recorded["fingerprint"] != teacher.fingerprint:
        raise TeacherError(
            f"the teacher {run.uuid} has other weights than when run {session.uuid} began"
        )
    facts = {
        "run": run.uuid,
        "step": run.resolve_step(run.step),
        "fingerprint": teacher.fingerprint,
    }
    # Said once: a run that goes on has been allowed its teacher
    options.allow_weak_teacher |= bool(recorded and recorded.get("allowed_weak"))
    if options.allow_weak_teacher:
        facts["allowed_weak"] = True
    session.update(teacher=facts)
    return teacher


@torch.no_grad()
def check_teacher(conf, run: Run, options: Options) -> float:
    """
    ### Evaluate the large model before a student learns from it

    One at chance level has nothing to teach: an accuracy within three standard errors of $1/C$.
    """
    loader = conf.valid_loaders["test"]
    accelerator = conf.session.accelerator
    counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)
    for batch in loader:
        with accelerator.autocast():
            logits = conf.large["test"](batch.images, sample=batch.sample, view=batch.view)
        choice = logits.argmax(dim=-1)
        counts += torch.stack([(choice == batch.labels).sum(), counts.new_tensor(len(choice))])
    # Each process has seen its share
    correct, count = accelerator.reduce(counts).tolist()
    accuracy, chance = correct / count, 1 / len(conf.images[2].classes)
    if conf.session.is_main:
        print(f"teacher {run.uuid[:8]}: accuracy {accuracy:.4f} on {count} test images", flush=True)
    weak = at_chance(accuracy, count, len(conf.images[2].classes))
    if weak and not options.allow_weak_teacher:
        raise TeacherError(
            f"the teacher {run.uuid} is right for {accuracy:.1%} of the test images, where chance "
            f"is {chance:.1%}; train it first, or say --allow-weak-teacher"
        )
    return accuracy
