"""EnCodec's decoder for streams: tokens to samples, chunk by chunk.

decoder.py           CodecDecoder decodes streams, alone or in batches; CodecStream holds the state of one
composite_layers.py  sequences and residual blocks of layers; the streaming form of a SEANet module
layers.py            convolutions, LSTM and activations in streaming form
layer_state.py       what the layers keep of a stream between chunks
seanet_modules.py    weights of AudioCraft's and Hugging Face's convolutions
torch_ops.py         the operations of the layers in torch
native_ops.py        the same operations in the C kernel

Public names: CodecDecoder, CodecStream (decoder.py), create_ops (native_ops.py).
"""
