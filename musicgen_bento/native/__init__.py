"""The C kernel and what lies below torch. Nothing here knows what a language model is.

bindings.py     ctypes bindings of the C kernel, and the variant that fits this processor
fbgemm.py       FBGEMM's packed float16 products, torch's own for x86
mmap_tensor.py  tensors over anonymous memory maps, whose pages are returned to the system on demand
*.c, *.h        the kernel: one decoder step for a batch (decoder.c), the layers of the codec (codec.c)
"""
