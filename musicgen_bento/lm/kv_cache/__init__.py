"""KV caches of one sequence.

dense.py    float keys and values in one tensor, for torch
int8.py     8-bit keys and values, for torch on a CPU
paged.py    blocks of 64 positions, for the C kernel
factory.py  the cache for a precision, and the bytes that a sequence takes
"""
