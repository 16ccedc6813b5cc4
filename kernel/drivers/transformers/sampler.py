"""Chooses the next token from logits.

The engine calls it after each step. The noise of a draw is a function of (seed, position) alone, so a sequence gets
the same tokens beside any neighbours and in any incarnation of the driver. The sampler never stores state.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import torch

from ipc.syscalls import Sampling

TINIEST = torch.finfo(torch.float32).tiny  # logits are divided in float32, where a lower temperature is zero
LIKELY = 1024  # how many tokens to sort first for `top_p`: a whole vocabulary takes milliseconds to sort


def uniform(seed: int, position: int) -> float:
    """The noise in [0, 1) for token `position` of a sequence with `seed`: 53 bits of a hash of both."""
    digest = blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def likeliest_of(logits: torch.Tensor) -> list[tuple[float, int]]:
    """The maximum of each row of `logits` [rows, vocabulary], and the first token that has it.

    The maximum of a row with a NaN is NaN.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        rows = logits.numpy()  # seven times as fast as torch's max
        found = rows.argmax(axis=1)
        return list(zip(rows[range(len(rows)), found].tolist(), found.tolist(), strict=True))
    values, indices = logits.max(dim=-1)
    return list(zip(values.tolist(), indices.tolist(), strict=True))


def is_greedy(sampling: Sampling) -> bool:
    """Whether `sample` would always take the likeliest token."""
    return not sampling.temperature or sampling.top_k == 1


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Draw the token at `position` from `logits`, one row [vocabulary] whose maximum is finite.

    Applies the temperature, then `top_k`, then `top_p` to the remaining tokens. Draws by inversion of the cumulative
    distribution, which is summed in float64.
    """
    if is_greedy(sampling):
        return int(logits.argmax())
    row = logits.float()
    weights = torch.exp((row - row.max()) / max(sampling.temperature or 0.0, TINIEST)).double()
    noise = uniform(sampling.seed or 0, position)
    if sampling.top_k is None and (sampling.top_p is None or sampling.top_p == 1):
        return _draw(weights, noise)
    weights, tokens = _likeliest(weights, sampling.top_k, sampling.top_p)
    return int(tokens[_draw(weights, noise)])


def logprob(logits: torch.Tensor, token: int) -> float:
    """The natural logarithm of the probability of `token` in one row of `logits`, at temperature 1."""
    return float(logits[token] - logits.logsumexp(0))


def _likeliest(weights: torch.Tensor, top_k: int | None, top_p: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids, likeliest first, of the nucleus (Holtzman et al. 2020, section 3.1) of the `top_k` tokens."""
    size = weights.shape[0]
    count = min(top_k or LIKELY, size)
    best, tokens = torch.topk(weights, count)
    if top_p is None:
        return best, tokens
    wanted = top_p * float(best.sum() if top_k else weights.sum())
    sums = best.cumsum(0)
    if float(sums[-1]) < wanted and top_k is None and count < size:
        best, tokens = torch.sort(weights, descending=True)
        sums = best.cumsum(0)
    size = min(int(torch.searchsorted(sums, wanted)) + 1, best.shape[0])
    return best[:size], tokens[:size]


def _draw(weights: torch.Tensor, noise: float) -> int:
    """The index whose interval of the cumulative `weights` contains `noise`. An index of weight 0 is never drawn."""
    sums = weights.cumsum(0)
    total = float(sums[-1])
    target = min(noise * total, math.nextafter(total, 0.0))  # the product may round up to the total
    return int(torch.searchsorted(sums, target, right=True))
