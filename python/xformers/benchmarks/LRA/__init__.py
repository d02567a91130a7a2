"""Tasks on sequences of 1,024 to 4,096 tokens, for every attention of the registry ("Long Range Arena: A Benchmark for
Efficient Transformers", Tay et al., arXiv:2011.04006).

run_tasks trains and tests one attention on one task, run_grid_search several, batch_fetch_results prints the table.
"""
