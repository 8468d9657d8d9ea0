"""Checkpoint files to a model: AudioCraft's released format, from a folder, the hub's cache or the hub.

resolve.py        the name of a model to its source
source.py         the files of one model: a folder, the hub's cache, or the hub
download.py       progress of a download
lm_state_dict.py  the language model's tensors out of `state_dict.bin`
loading.py        files to a Checkpoint; the only module that imports audiocraft
"""
