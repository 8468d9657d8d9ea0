"""The language model: one step for a batch of sequences.

weights.py             tensors of the model by role (LMWeights) and its sizes (LMShape)
linear.py              linear layers, one class for each way that torch holds the matrix
delay_pattern.py       the delay pattern of the codebooks
sampling.py            logits to tokens: temperature, top-k, top-p, seeded Gumbel noise
decoder.py             the decoder interface, and the eager torch implementation
cpu_decoder.py         the decoder on the C kernel; packed_weights.py packs its matrices
cuda_graph_decoder.py  the decoder on CUDA graphs; cuda_graphs.py captures and replays them
factory.py             selects the decoder for given weights
kv_cache/              KV caches: dense, 8-bit, paged, batched

Public names: `factory.create_decoder`, `decoder.Decoder`, `decoder.SequenceState`, `sampling.SamplingParams`,
`weights.LMWeights`, `delay_pattern.DelayPattern`. They are imported from the modules: this package imports nothing, so
that `delay_pattern` needs no torch.
"""
