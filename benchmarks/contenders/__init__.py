"""Who is simulated in the simulation benchmark: `python -m benchmarks.contenders.NAME JOB`."""
