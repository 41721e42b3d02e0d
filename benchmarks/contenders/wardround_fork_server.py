"""The process that starts a simulation's workers, for workers that do not train."""

from __future__ import annotations

import sys

from benchmarks.contenders.wardround import leave_out_training
from wardround.server.engines.fork_server import run_fork_server

if __name__ == "__main__":
    leave_out_training()
    run_fork_server(int(sys.argv[1]))
