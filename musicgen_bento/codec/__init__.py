"""EnCodec's decoder as a stream: tokens to samples, chunk by chunk.

decoder.py     CodecDecoder decodes many streams together; CodecStream holds the state of one
layers.py      SEANet's layers in streaming form
torch_ops.py   the operations of the layers in torch
native_ops.py  the same operations in the C kernel
"""
