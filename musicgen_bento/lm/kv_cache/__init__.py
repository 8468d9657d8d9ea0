"""KV caches: the keys and values of past positions, of one sequence or of a batch.

dense.py    float keys and values in one tensor, for torch
int8.py     8-bit keys and values, for torch on a CPU
paged.py    blocks of 64 positions, for the C kernel
batch.py    float keys and values of all batch slots in one tensor, for CUDA graphs
factory.py  creates the cache for a precision, and computes the bytes that a request needs

Public names: `factory.KVCache`, `factory.create_kv_cache`, `factory.request_kv_bytes`, `paged.BlockPool`,
`paged.PagedKVCache`, `batch.BatchKVCache`. They are imported from the modules: this package imports nothing.
"""
