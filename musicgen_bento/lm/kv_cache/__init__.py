"""KV caches: the keys and values of one sequence's past positions.

dense.py    float keys and values in one tensor, for torch
int8.py     8-bit keys and values, for torch on a CPU
paged.py    blocks of 64 positions, for the C kernel
factory.py  creates the cache for a precision, and computes the bytes that a request needs

Public names: `factory.KVCache`, `factory.create_kv_cache`, `factory.request_kv_bytes`, `paged.BlockPool`,
`paged.PagedKVCache`. They are imported from the modules, since torch must not be imported with `lm.delay_pattern`.
"""
