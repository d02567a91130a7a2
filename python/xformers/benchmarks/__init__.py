"""Programs that measure the components: python -m xformers.benchmarks.benchmark_mlp, and so on; each has --help."""
