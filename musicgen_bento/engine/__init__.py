"""Continuous batching of one model: requests join and leave the batch between steps.

types.py              parameters of a request and the events that it produces
engine.py             admit, prefill, decode, emit, retire
scheduler.py          the bounded queue in front of the slots
token_sequence.py     tokens of one request, beyond the window too
text_conditioner.py   prompt to T5 embeddings
audio_decoder.py      schedules the decoding of complete frames
compare_precision.py  the distance of a precision from float32
"""
