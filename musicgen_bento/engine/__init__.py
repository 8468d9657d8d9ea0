"""Continuous batching of one loaded model: requests join and leave the batch between two steps.

types.py              parameters of a request, and the events that the engine reports
engine.py             one step: retire, admit, prefill, decode, emit
request.py            state of one request in the engine
scheduler.py          bounded queue in front of the slots
token_sequence.py     tokens of one request, across windows
text_conditioner.py   prompt to T5 embeddings
audio_decoder.py      complete frames to audio chunks
audio_assembler.py    audio chunks to one array
compare_precision.py  distance of a precision from float32

Public names: `types` (all), `engine.Engine`, `audio_assembler.AudioAssembler`, `compare_precision.measure_distances`.
They are imported from their modules, because `types`, `scheduler` and `audio_assembler` must load without torch.
"""
