"""The decoder for CUDA graphs, run eagerly on a CPU and compared with the eager decoder; on a GPU with its graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Finished, GenerationParams
from musicgen_bento.lm.cuda_graph_decoder import BATCH_SIZES, CudaGraphDecoder, _top_k_limit
from musicgen_bento.lm.decoder import KVCacheRequest
from musicgen_bento.precision import FLOAT32
from tests.support.decoder_variants import MIXED_REQUESTS, assert_same_tokens, cuda_graph_engine, eager_engine
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, EventLog, folder, params, run_requests


def decoder_of(engine: Engine) -> CudaGraphDecoder:
    assert isinstance(engine._decoder, CudaGraphDecoder)
    return engine._decoder


def cache_bytes(decoder: CudaGraphDecoder) -> int:
    return decoder._batch_kv.self_kv.nbytes + decoder._batch_kv.cross_kv.nbytes


# ---- batch slots


def test_finished_requests_free_their_batch_slots() -> None:
    engine = cuda_graph_engine(MONO)
    run_requests(engine, MIXED_REQUESTS)
    run_requests(engine, {"one": params(duration=0.2)})
    assert decoder_of(engine)._sequences == []
    assert decoder_of(engine)._batch_kv.batch_size in BATCH_SIZES


def test_nonfinite_values_in_free_slots_do_not_change_tokens() -> None:
    engine = cuda_graph_engine(MONO)
    decoder_of(engine)._batch_kv.self_kv.fill_(torch.nan)
    decoder_of(engine)._batch_kv.cross_kv.fill_(torch.nan)
    requests = {"one": params(duration=0.4, seed=1)}
    assert_same_tokens(run_requests(engine, requests), run_requests(eager_engine(MONO), requests))


def test_a_sequence_that_moves_to_a_freed_slot_finds_no_nonfinite_values() -> None:
    """This includes the positions that the sequence has not filled: masked values are multiplied too."""
    decoder = decoder_of(cuda_graph_engine(MONO))
    prompt = torch.zeros(5, decoder.shape.dim)
    nonfinite, other = decoder.open_sequence(prompt, True, 30), decoder.open_sequence(prompt, True, 30)
    nonfinite.kv_cache.advance(20)
    decoder._batch_kv.self_kv[:, :, 0].fill_(torch.nan)
    decoder._batch_kv.cross_kv[:, :, 0].fill_(torch.nan)
    decoder.close_sequence(nonfinite)
    assert decoder._sequences == [other]
    assert decoder._batch_kv.self_kv[:, :, 0].isfinite().all()
    assert decoder._batch_kv.cross_kv[:, :, 0].isfinite().all()


def test_the_top_k_of_a_finished_request_is_reset() -> None:
    engine, logs = cuda_graph_engine(MONO), [EventLog() for _ in range(4)]
    for number in range(3):
        engine.add_request(str(number), params(duration=0.6, seed=number, top_k=50), logs[number])
    for _ in range(4):
        engine.step()
    engine.add_request("wide", params(duration=0.1, seed=9, top_k=250), logs[3])  # in the last slot
    while engine.step():
        pass
    assert all(isinstance(log.end, Finished) for log in logs)


def test_a_request_without_memory_for_its_prompt_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cuda_graph_engine(MONO)

    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine._decoder, "_cross_keys_values", run_out_of_memory)
        assert not isinstance(run_requests(engine, {"one": params(duration=0.2)})["one"].events.end, Finished)
    assert decoder_of(engine)._sequences == []
    assert isinstance(run_requests(engine, {"one": params(duration=0.2)})["one"].events.end, Finished)


# ---- memory


def test_the_first_sequence_needs_memory_for_one_cache_only() -> None:
    decoder = decoder_of(cuda_graph_engine(MONO))
    long_prompt = KVCacheRequest(2, 30, 80)
    alone = decoder.kv_cache_bytes([long_prompt])
    sequence = decoder.open_sequence(torch.zeros(80, decoder.shape.dim), True, 30)
    assert alone == decoder.kv_cache_bytes([long_prompt]) == cache_bytes(decoder)
    decoder.close_sequence(sequence)
    assert decoder._batch_kv.batch_size == BATCH_SIZES[0]


def test_memory_is_computed_for_the_growth_of_the_cache_and_freed_at_the_end() -> None:
    decoder = decoder_of(cuda_graph_engine(MONO))
    prompt = torch.zeros(5, decoder.shape.dim)
    request = KVCacheRequest(2, 30, 5)
    small = decoder.kv_cache_bytes([request])
    assert small == cache_bytes(decoder)
    sequences = [decoder.open_sequence(prompt, True, 30)]
    assert decoder.kv_cache_bytes([request]) == small
    while_growing = decoder.kv_cache_bytes([request, request])
    sequences.append(decoder.open_sequence(prompt, True, 30))
    assert while_growing == small + cache_bytes(decoder)
    assert decoder.kv_cache_bytes([request, request]) == cache_bytes(decoder)
    for sequence in sequences:
        decoder.close_sequence(sequence)
    assert cache_bytes(decoder) == small


# ---- graphs


def test_clients_cannot_choose_the_number_of_graphs() -> None:
    assert [_top_k_limit(k, 2048) for k in (0, 1, 64, 65, 256, 257, 5_000)] == [0, 64, 64, 256, 256, 2048, 2048]
    assert _top_k_limit(64, 40) == 40


@pytest.mark.gpu
@pytest.mark.parametrize("config", [MONO, STEREO, PREPEND])
def test_graphs_sample_the_tokens_of_the_eager_decoder(config: RandomModelConfig) -> None:
    """The requests are greedy, in float32: with sampling, rounding may change tokens."""
    requests: dict[str, GenerationParams] = {
        name: replace(request, temperature=0.0, top_p=0.0) for name, request in MIXED_REQUESTS.items()
    }
    loaded = loading.load(Source("tiny", folder(config)), torch.device("cuda"), FLOAT32)
    graph, eager = (
        run_requests(Engine(loaded, max_slots=4, max_queue=16, deterministic=deterministic), requests)
        for deterministic in (False, True)
    )
    assert_same_tokens(graph, eager)
    for name, result in graph.items():
        assert np.isfinite(result.events.audio).all(), name
