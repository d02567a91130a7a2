"""What microGPT.py is made of: texts, some with a known floor, and a run of a language model on them."""
