r"""
# Trainings that begin with the libraries imported

Each training of a chain is a process of its own, and a short one would spend most of its time on
the import of torch and its compiler. So one process, the *nursery*, imports the libraries once, and
the trainings begin as forks of it. Nothing of this project is imported there: a training runs the
code that is there when it begins.

This is for Linux without a GPU. Elsewhere each training is a new process, since neither CUDA nor
the frameworks of macOS survive a fork.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

# What a training imports beside this project
LIBRARIES = ("torch", "torch._dynamo", "accelerate", "labml.experiment", "omegaconf", "PIL.Image")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Bytes of a message
_LONGEST = 1 << 20


def start(module: str, arguments: list[str]) -> "NewProcess | Fork":
    """
    ## Begin `python -m module …`

    Its standard output is `lines`, all else is as of this process.
    """
    import torch

    if sys.platform == "linux" and not torch.cuda.is_available():
        return _nursery(*map(os.environ.get, _THREADS)).start(module, arguments)
    return NewProcess(module, arguments)


class NewProcess:
    """
    ### A training in a new process
    """

    def __init__(self, module: str, arguments: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments], stdout=subprocess.PIPE, text=True
        )
        self.lines = self.process.stdout
        self.terminate = self.process.terminate

    def wait(self) -> tuple[int, float]:
        """Exit code (negative: the signal that ended it), and CPU seconds"""
        before, code, after = os.times(), self.process.wait(), os.times()
        used = (after.children_user, after.children_system)
        return code, sum(used) - before.children_user - before.children_system


class Fork:
    """
    ### A training in a fork of the nursery
    """

    def __init__(self, nursery: "Nursery", pid: int, output: int):
        self.nursery, self.pid = nursery, pid
        self.lines = os.fdopen(output)

    def terminate(self) -> None:
        """Ask it to end"""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> tuple[int, float]:
        """Exit code (negative: the signal that ended it), and CPU seconds"""
        code, used = self.nursery.ask({"wait": self.pid})
        self.lines.close()
        return code, used


class Nursery:
    """
    ### The process whose forks the trainings are

    It ends with the process that has started it.
    """

    def __init__(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self.process = subprocess.Popen([sys.executable, __file__, str(fd)], pass_fds=[fd])
        # Nothing is asked before it is ready: Ctrl-C until then leaves no training behind
        self._answer()

    def start(self, module: str, arguments: list[str]) -> Fork:
        """Begin a training"""
        output, theirs = os.pipe()
        job = {
            "command": [module, *arguments],
            "folder": str(Path.cwd()),
            "path": sys.path,
            "environment": dict(os.environ),
        }
        try:
            pid = self.ask(job, [theirs, 2])
        finally:
            os.close(theirs)
        return Fork(self, pid, output)

    def ask(self, question: dict, descriptors: list[int] | None = None):
        """Send a question; returns the answer"""
        # One that is gone does not answer
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self.socket, [json.dumps(question).encode()], descriptors or [])
        return self._answer()

    def _answer(self):
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = self.socket.recv(_LONGEST)
        if not answer:
            raise ChildProcessError(f"process {self.process.pid}, which starts trainings, is gone")
        return json.loads(answer)


@cache
def _nursery(*threads: str | None) -> Nursery:
    # OpenMP reads the number of its threads when it is loaded
    return Nursery()


def _serve(number: int) -> None:
    """
    ## The nursery

    Answers until nobody is left to ask; then, or as a fork that has a training to become, it goes
    on below.
    """
    # Ctrl-C is for the trainings
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in LIBRARIES:
        # One that is missing is missed by the training, which says so
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    job = {}
    with contextlib.suppress(ConnectionError), socket.socket(fileno=number) as asked:
        asked.send(b"true")
        while not job:
            text, descriptors, *_ = socket.recv_fds(asked, _LONGEST, 2)
            if not text:
                break
            question = json.loads(text)
            if "wait" in question:
                _, status, used = os.wait4(question["wait"], 0)
                answer = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]
            else:
                answer = os.fork()
                if answer == 0:
                    job = question
                    break
                for descriptor in descriptors:
                    os.close(descriptor)
            asked.send(json.dumps(answer).encode())
    if job:
        _become(job, descriptors)


def _become(job: dict, descriptors: list[int]) -> None:
    """
    ### Be `python -m module …` from here on
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A line at a time, for whoever reads along
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    module, *arguments = job["command"]
    sys.path[:] = [job["folder"], *job["path"]]
    sys.argv = ["-m", *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


#
if __name__ == "__main__":
    _serve(int(sys.argv[1]))
