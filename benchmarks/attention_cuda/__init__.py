"""Attention on a GPU, measured: the parts of bench_attention_cuda.py, one idea each."""
