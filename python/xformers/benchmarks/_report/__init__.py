"""Parts of xformers.benchmarks.report."""
