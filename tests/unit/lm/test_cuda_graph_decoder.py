"""What a CUDA graph replays, run eagerly on a CPU, against the plain decoder; on a GPU the graphs themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Finished, GenerationParams
from musicgen_bento.lm.cuda_graph_decoder import BATCH_SIZES, CudaGraphDecoder, _limit
from musicgen_bento.lm.decoder import KVCacheRequest
from musicgen_bento.precision import FLOAT32
from tests.support.decoder_variants import COMPANY, assert_same, graphed, plain
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, EventLog, folder, params, run_requests


def test_seats_are_given_back() -> None:
    model = graphed(MONO)
    run_requests(model, COMPANY)
    run_requests(model, {"one": params(duration=0.2)})
    assert model._decoder._seated == []
    assert model._decoder._slab.seats in BATCH_SIZES


def test_a_clip_that_went_to_infinity_spoils_none_after_it() -> None:
    model = graphed(MONO)
    model._decoder._slab.own.fill_(torch.nan)
    model._decoder._slab.cross.fill_(torch.nan)
    requests = {"one": params(duration=0.4, seed=1)}
    assert_same(run_requests(model, requests), run_requests(plain(MONO), requests))


def test_a_clip_that_went_to_infinity_spoils_none_that_takes_its_seat() -> None:
    """Also behind what that one has filled: what is masked is multiplied."""
    decoder = graphed(MONO)._decoder
    text = torch.zeros(5, decoder.shape.dim)
    broken, other = decoder.open(text, True, 30), decoder.open(text, True, 30)
    broken.cache.advance(20)
    decoder._slab.own[:, :, 0].fill_(torch.nan)
    decoder._slab.cross[:, :, 0].fill_(torch.nan)
    decoder.close(broken)
    assert decoder._seated == [other]
    assert decoder._slab.own[:, :, 0].isfinite().all()
    assert decoder._slab.cross[:, :, 0].isfinite().all()


def test_the_top_k_of_one_who_has_left_is_forgotten() -> None:
    model, stories = graphed(MONO), [EventLog() for _ in range(4)]
    for number in range(3):
        model.add_request(str(number), params(duration=0.6, seed=number, top_k=50), stories[number])
    for _ in range(4):
        model.step()
    model.add_request("wide", params(duration=0.1, seed=9, top_k=250), stories[3])  # in the last seat
    while model.step():
        pass
    assert all(isinstance(story.end, Finished) for story in stories)


def test_who_is_first_has_room_for_one_slab_and_needs_no_more() -> None:
    decoder = graphed(MONO)._decoder
    long = KVCacheRequest(2, 30, 80)
    alone = decoder.kv_cache_bytes([long])
    sequence = decoder.open(torch.zeros(80, decoder.shape.dim), True, 30)
    assert alone == decoder.kv_cache_bytes([long]) == _bytes_of(decoder)
    decoder.close(sequence)
    assert decoder._slab.seats == BATCH_SIZES[0]


def test_whoever_finds_no_memory_for_a_prompt_has_no_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphed(MONO)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(model._decoder, "_cross_keys", full)
        assert not isinstance(run_requests(model, {"one": params(duration=0.2)})["one"].events.end, Finished)
    assert model._decoder._seated == []
    assert isinstance(run_requests(model, {"one": params(duration=0.2)})["one"].events.end, Finished)


def test_clients_cannot_choose_how_many_graphs_there_are() -> None:
    assert [_limit(k, 2048) for k in (0, 1, 64, 65, 256, 257, 5_000)] == [0, 64, 64, 256, 256, 2048, 2048]
    assert _limit(64, 40) == 40


def test_what_it_remembers_is_counted_while_it_grows_and_given_back() -> None:
    decoder = graphed(MONO)._decoder
    text = torch.zeros(5, decoder.shape.dim)
    need = KVCacheRequest(2, 30, 5)
    small = decoder.kv_cache_bytes([need])
    assert small == _bytes_of(decoder)
    seated = [decoder.open(text, True, 30)]
    assert decoder.kv_cache_bytes([need]) == small
    joining = decoder.kv_cache_bytes([need, need])
    seated.append(decoder.open(text, True, 30))
    assert joining == small + _bytes_of(decoder)
    assert decoder.kv_cache_bytes([need, need]) == _bytes_of(decoder)
    for sequence in seated:
        decoder.close(sequence)
    assert _bytes_of(decoder) == small


def _bytes_of(decoder: CudaGraphDecoder) -> int:
    return decoder._slab.own.nbytes + decoder._slab.cross.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_a_graph_equals_eager(recipe: RandomModelConfig) -> None:
    """In float32, greedy: rounding may differ in sampled ones."""
    requests: dict[str, GenerationParams] = {
        name: replace(request, temperature=0.0, top_p=0.0) for name, request in COMPANY.items()
    }
    loaded = loading.load(Source("tiny", folder(recipe)), torch.device("cuda"), FLOAT32)
    graph, eager = (
        run_requests(Engine(loaded, max_slots=4, max_queue=16, deterministic=alone), requests)
        for alone in (False, True)
    )
    assert_same(graph, eager)
    for name, result in graph.items():
        assert np.isfinite(result.events.audio).all(), name
