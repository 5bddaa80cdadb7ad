"""The benchmarks, ``make bench``: each with a bare ceiling that does the same durable work in the same run."""
