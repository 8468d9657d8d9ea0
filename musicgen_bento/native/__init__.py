"""The C kernel, and memory and products below torch. Nothing here depends on the language model.

bindings.py     ctypes bindings of the C kernel; they load the variant for this processor
fbgemm.py       FBGEMM's packed float16 products, which torch includes for x86
mmap_tensor.py  tensors in anonymous memory maps, whose pages are released on demand
decoder.c       one decoder step for a batch, on attention.h, gemm.h, prompt_fusion.h and sampling.h
codec.c         the layers of the codec
simd.h          vectors; thread_pool.h: threads and phases
"""

from musicgen_bento.native.bindings import ThreadPool, available, create_thread_pool, round_up

__all__ = ["ThreadPool", "available", "create_thread_pool", "round_up"]
