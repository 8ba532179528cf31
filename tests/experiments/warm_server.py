"""Reads jobs from stdin, one JSON object a line, and starts each in a fork. See `Warm`."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

for name in ("digits.large", "digits.small", "digits.distill", "cifar10.small"):
    importlib.import_module(f"experiments.{name}")
from experiments.command_line import run_main  # noqa: E402


def child(job: dict) -> None:
    """The fork: its own files and limits, then the experiment."""
    import torch

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, key in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[key], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(job.get("environment", {}))
    if "largest_file" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    torch.set_num_threads(1)
    code = 1
    try:
        run_main(importlib.import_module(f"experiments.{job['name']}").main, job["arguments"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        _, status = os.waitpid(job["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        child(job)
    print(pid, flush=True)
