r"""
# Trainings that begin with the libraries imported

Each training of a chain is a process of its own, and a short one would spend most of its time on
the import of torch and its compiler. So one process imports the libraries once, and the trainings
begin as forks of it. Nothing of this project is imported there: a training runs the code that is
there when it begins.

This is for Linux without a GPU. Elsewhere each training is a new process, since neither CUDA nor
the frameworks of macOS survive a fork. The fork server of `multiprocessing` would do less: it
imports the parent's program into each fork, and hands on neither output, folder nor environment.
"""

import atexit
import contextlib
import gc
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
# What is sent to all processes of a terminal or a job, and is for the trainings
_TO_TRAININGS = {signal.SIGINT, signal.SIGTERM}


def start_training(module: str, arguments: list[str]) -> "NewProcess | Fork":
    """
    ## Begin `python -m module …`

    Its standard output is `lines`, all else is as of this process.
    """
    import torch

    if sys.platform == "linux" and not torch.cuda.is_available():
        try:
            return _server(*map(os.environ.get, _THREADS)).start(module, arguments)
        except OSError:
            # It was killed, or its message was too long: a new process is slower, and no worse
            _server.cache_clear()
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
    ### A training in a fork of the server
    """

    def __init__(self, server: "ForkServer", pid: int, output: int):
        self.server, self.pid = server, pid
        self.lines = os.fdopen(output)

    def terminate(self) -> None:
        """Ask it to end"""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> tuple[int, float]:
        """Exit code (negative: the signal that ended it), and CPU seconds"""
        try:
            code, used = self.server.ask({"wait": self.pid})
        except ChildProcessError as error:
            from distillation.errors import RunError

            raise RunError(
                f"{error}, so how its training ended is not known; `distill runs` says how far it "
                "is, and --resume goes on with it"
            ) from error
        self.lines.close()
        return code, used


class ForkServer:
    """
    ### The process whose forks the trainings are

    It ends with the process that has started it. `OSError` says that it is gone.
    """

    def __init__(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_TRAININGS)
            try:
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        atexit.register(self.close)
        # Nothing is asked before it is ready: Ctrl-C until then leaves no training behind
        self._answer()

    def close(self) -> None:
        """Let it end; what its trainings took counts as taken by this process then"""
        self.socket.close()
        # Without a wait for a training that goes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)

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
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(theirs)
        return Fork(self, pid, output)

    def ask(self, question: dict, descriptors: list[int] | None = None):
        """Send a question; returns the answer"""
        try:
            # One that is gone does not answer
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self.socket, [json.dumps(question).encode()], descriptors or [])
            return self._answer()
        except BaseException:
            # The answer to this must not be taken for that to another
            self.socket.close()
            raise

    def _answer(self):
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = self.socket.recv(_LONGEST)
        if not answer:
            raise ChildProcessError(
                f"process {self.process.pid}, which starts trainings, was killed"
            )
        return json.loads(answer)


@cache
def _server(*threads: str | None) -> ForkServer:
    # OpenMP reads the number of its threads when it is loaded
    return ForkServer()


def _serve(number: int) -> None:
    """
    ## The server

    Answers until nobody is left to ask; then, or as a fork that has a training to become, it goes
    on below.
    """
    for name in LIBRARIES:
        # One that cannot be imported is missed by the training, which says so
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # What is there stays: no fork need look through it
    gc.freeze()
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
    if not job:
        os._exit(0)
    _become(job, descriptors)


def _become(job: dict, descriptors: list[int]) -> None:
    """
    ### Be `python -m module …` from here on
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_TRAININGS)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A line at a time, for whoever reads along
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
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
