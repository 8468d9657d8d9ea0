"""Model files: where they are, how they are fetched and checked, and how they are read into memory.

resolve.py            the name of a model to its source
source.py             the files of one model: in a folder, in the hub's cache, or on the hub
download.py           progress of a download
loading.py            open_files fetches and checks the files, build reads them into a Checkpoint
file_format.py        one file in AudioCraft's released format: tensors and configuration
lm_state_dict.py      the language model's sizes and tensors out of `state_dict.bin`
t5.py                 the text encoder and its tokenizer
audiocraft_codec.py   the codec out of `compression_state_dict.bin`; the only module that imports audiocraft
transformers_lock.py  the lock for building models of the transformers library

Public names: resolve_model (resolve.py), Source (source.py), DownloadProgress (download.py), and from loading.py
Checkpoint, CheckpointFiles, open_files, build, load, load_weights, check_text_encoder. The first three modules do not
import torch.
"""
