"""The benchmarks, ``make bench``: each beside a bare ceiling doing the same durable work, in the same run."""
