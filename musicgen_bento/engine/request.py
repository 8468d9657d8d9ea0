"""The state of one request in the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from musicgen_bento.engine.audio_decoder import AudioDecodeState
from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.engine.types import EventCallback, GenerationParams
from musicgen_bento.lm.decoder import KVCacheRequest, SequenceState


@dataclass(slots=True, eq=False)
class RequestState:
    """One request, from the queue to its last sample.

    Attributes:
        request_id: unique among the engine's requests.
        params: the parameters of the request.
        on_event: receives the request's events.
        prompt_ids: T5 token ids of the prompt [1, L].
        token_sequence: the tokens generated so far.
        kv_request: size of the KV cache that the request needs.
        queue_position: the position that was last reported; -1 before the first report.
        sequence_state: the decoder's state, while the request has a slot.
        audio_state: the audio decoder's state, while the request has a slot.
        prefill_chunks: inputs [rows, n, dim] that the model reads before it decodes the next position.
        aborted: whether the request was aborted; no further event is reported then.
    """

    request_id: str
    params: GenerationParams
    on_event: EventCallback
    prompt_ids: Tensor
    token_sequence: TokenSequence
    kv_request: KVCacheRequest
    queue_position: int = -1
    sequence_state: SequenceState | None = None
    audio_state: AudioDecodeState | None = None
    prefill_chunks: list[Tensor] = field(default_factory=list)
    aborted: bool = False

    @property
    def guided(self) -> bool:
        """Whether the request uses classifier-free guidance, which needs a second row."""
        return self.params.cfg_coef != 1.0
