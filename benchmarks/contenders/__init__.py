"""The programs of the simulation benchmark: `python -m benchmarks.contenders.NAME JOB`."""
