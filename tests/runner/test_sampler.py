"""From logits to tokens: each parameter does what its name says, and a seed decides alone, whatever shares the batch."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from glmserve.kernels.nucleus import pick
from glmserve.kernels.top_k import best_ids
from glmserve.runner.sampler import Sampler, uniform
from glmserve.scheduler.request import Request
from tests.runner.sampling import EOS, VOCAB, request_of, sampled_shares, spec_of

CPU = torch.device("cpu")


def noise(rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def sample(logits: torch.Tensor, requests: list[Request], family: str = "llama") -> list[int]:
    return Sampler(spec_of(family, logits.shape[1]), 64, CPU).sample(logits, requests).token_ids.tolist()


def probabilities(logits: list[float]) -> np.ndarray:
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


LOGITS = [3.0, 2.5, 2.0, 1.0, 0.0, -1.0, -20.0, -30.0]


# --- temperature and filters: the distribution itself -------------------------------------------------------------------------------


def test_temperature_divides_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    for temperature in (0.3, 1.0, 2.5):
        shares = sampled_shares(monkeypatch, LOGITS, [1], temperature=temperature)
        assert np.abs(shares - probabilities([x / temperature for x in LOGITS])).max() <= 1 / 2048


def test_temperature_0_takes_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled_shares(monkeypatch, LOGITS[::-1], [1], num_draws=8, temperature=0.0)[-1] == 1.0


@pytest.mark.parametrize("top_k", [1, 2, 5, 300, 0, -1])
def test_top_k_keeps_so_many(monkeypatch: pytest.MonkeyPatch, top_k: int) -> None:
    kept = top_k if top_k > 0 else len(LOGITS)
    expected = probabilities([x if i < kept else -math.inf for i, x in enumerate(LOGITS)])
    assert np.abs(sampled_shares(monkeypatch, LOGITS, [1], top_k=top_k) - expected).max() <= 1 / 2048


@pytest.mark.parametrize("top_p, kept", [(0.01, 1), (0.45, 1), (0.5, 2), (0.95, 4), (1.0, 8)])
@pytest.mark.parametrize("top_k", [0, 7])
def test_top_p_keeps_the_smallest_set_of_that_mass(monkeypatch: pytest.MonkeyPatch, top_p: float, kept: int, top_k: int) -> None:
    cumulated = probabilities(LOGITS).cumsum()
    assert kept == 8 or (cumulated[kept - 1] >= top_p and (kept == 1 or cumulated[kept - 2] < top_p))
    expected = probabilities([x if i < kept else -math.inf for i, x in enumerate(LOGITS)])
    shares = sampled_shares(monkeypatch, LOGITS, [1], top_p=top_p, top_k=top_k)
    assert np.abs(shares - expected).max() <= 1 / 2048


def test_min_p_keeps_what_comes_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = sampled_shares(monkeypatch, LOGITS, [1], min_p=0.3)  # e^-0.5 and e^-1 of the best, but not e^-2
    assert (shares > 0).tolist() == [True, True, True, *[False] * 5]
    assert np.abs(shares[:3] - probabilities(LOGITS[:3])).max() <= 1 / 2048


def test_a_neighbour_with_another_top_k_changes_nothing() -> None:
    """Also where scores are equal, of which 16 bits have many."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(200, 3000, generator=draw).mul(3).bfloat16()
    params = torch.tensor([[2.0], [1.0], [0.0], [0.0], [65.0]]).repeat(1, 200)
    params[3] = torch.rand(200, generator=draw)
    alone = best_ids(scores, params, 65, -1)
    params[4, ::2] = 2000.0
    beside = best_ids(scores, params, 2000, -1)
    assert torch.equal(alone[1::2], beside[1::2])


def test_equal_scores_do_not_break_the_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = sampled_shares(monkeypatch, [1.0] * 8, [1], top_k=4, top_p=0.6)
    assert np.count_nonzero(shares) == 3 and math.isclose(shares.sum(), 1.0)


# --- seeds ------------------------------------------------------------------------------------------------------------------------


def random_company(number: int, rng: random.Random) -> list[Request]:
    choices: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": rng.uniform(0.2, 2)},
        {"top_k": rng.randint(1, 70)},
        {"top_p": rng.uniform(0.1, 0.95), "top_k": rng.choice([0, 20, 400])},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"logit_bias": {rng.randrange(VOCAB): 20.0}},
        {"min_tokens": 5, "min_p": 0.1},
        {"logprobs": 3},
    ]
    return [request_of(row + 1, seed=rng.getrandbits(63), **rng.choice(choices)) for row in range(number)]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.7},
        {"top_p": 0.9},
        {"top_k": 400, "min_p": 0.01},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 30},
        {"min_tokens": 3, "logit_bias": {7: 3.0}},
    ],
)
def test_a_seed_gives_the_same_tokens_in_any_company(params: dict[str, Any]) -> None:
    rng, steps = random.Random(1), 30
    rows = noise(steps, seed=3)

    def play(with_company: bool) -> list[int]:
        sampler, tokens = Sampler(spec_of(), 64, CPU), []
        for step in range(steps):
            company = random_company(rng.randint(1, 20), rng) if with_company else []
            own = request_of(0, prompt=[1, 2, 3], outputs=tokens, seed=1234, **params)
            own.num_preemptions = step if with_company and step % 7 == 0 else 0  # pushed back now and then, too
            place = rng.randint(0, len(company))
            requests = [*company[:place], own, *company[place:]]
            logits = torch.cat((noise(place, seed=step), rows[step : step + 1], noise(len(company) - place, seed=step + 99)))
            tokens = [*tokens, sampler.sample(logits, requests).token_ids.tolist()[place]]
        return tokens

    alone = play(with_company=False)
    assert len(set(alone)) > 5
    assert play(with_company=True) == alone


def test_different_seeds_and_steps_give_different_draws() -> None:
    draws = {uniform(seed, step) for seed in range(-50, 50) for step in range(50)}
    assert len(draws) > 4990  # of 5000; in 24 bits a few may coincide
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert uniform(2**64 + 5, 3) == uniform(5, 3)


@pytest.mark.parametrize("by", ["seed", "step"])
def test_draws_are_uniform_and_independent(by: str) -> None:
    """Chi-square over 32 cells, and over pairs of neighbours in 8 x 8; deterministic, since the seeds are."""
    draws = np.array([uniform(i, 7) if by == "seed" else uniform(7, i) for i in range(32_000)])
    assert chi_square(np.histogram(draws, bins=32, range=(0, 1))[0]) < 62  # 31 degrees of freedom: 0.1 %
    pairs = np.histogram2d(draws[:-1], draws[1:], bins=8, range=((0, 1), (0, 1)))[0]
    assert chi_square(pairs) < 104  # 63 degrees of freedom: 0.1 %


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_tokens_follow_the_distribution_over_seeds() -> None:
    logits = [1.0, 0.5, 0.0, -0.5, -1.0, -1.5]
    count = 6000
    requests = [request_of(row, seed=row) for row in range(count)]
    token_ids = Sampler(spec_of(vocab_size=6), count, CPU).sample(torch.tensor([logits]).repeat(count, 1), requests).token_ids
    seen, expected = np.bincount(token_ids.numpy(), minlength=6), probabilities(logits) * count
    assert float(((seen - expected) ** 2 / expected).sum()) < 20.5  # 5 degrees of freedom: 0.1 %


def test_a_draw_never_picks_what_was_filtered_out() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.0, 0.0]])
    for draw, index in ((0.0, 0), (0.66, 0), (0.67, 1), (1 - 2**-24, 1), (1.0, 1)):
        assert pick(weights, torch.tensor([[draw]])).item() == index
    assert pick(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0]])).item() == 1


# --- penalties, bias, minimum length ------------------------------------------------------------------------------------------------


def penalised(
    logits: list[float], prompt: list[int], outputs: list[int], repetition: float, presence: float, frequency: float
) -> list[float]:
    """As OpenAI and transformers define them, token by token."""
    scores = list(logits)
    for token in range(len(scores)):
        if token in prompt or token in outputs:
            scores[token] = scores[token] * repetition if scores[token] < 0 else scores[token] / repetition
        scores[token] -= frequency * outputs.count(token) + presence * (token in outputs)
    return scores


def test_penalties_count_prompt_and_answer_as_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, outputs = [0, 0, 5], [1, 1, 1, 4]
    for repetition, presence, frequency in ((1.5, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, 0.3), (1.3, -0.5, 0.2)):
        params = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
        shares = sampled_shares(monkeypatch, LOGITS, prompt, outputs=outputs, **params)
        expected = probabilities(penalised(LOGITS, prompt, outputs, repetition, presence, frequency))
        assert np.abs(shares - expected).max() <= 1 / 2048


def test_penalties_see_tokens_that_the_host_has_not_read_yet() -> None:
    """On a GPU the host learns a token one step late; the penalty applies at once."""
    sampler = Sampler(spec_of(vocab_size=4), 4, CPU)
    request = request_of(0, prompt=[3], temperature=0.0, frequency_penalty=1.0)
    logits, tokens = torch.tensor([[2.0, 1.5, 0.0, -9.0]]), []
    for in_flight in range(1, 6):
        request.num_in_flight = in_flight  # token_ids never grows
        tokens += sampler.sample(logits.clone(), [request]).token_ids.tolist()
    assert tokens == [0, 1, 0, 1, 0]


def test_a_row_of_the_tables_starts_clean_for_the_next_request() -> None:
    sampler = Sampler(spec_of(vocab_size=4), 2, CPU)
    logits = torch.tensor([[2.0, 1.5, 0.0, 0.0]])
    for _ in range(2):  # a second request under the same id and in the same row
        request = request_of(0, prompt=[3], temperature=0.0, presence_penalty=2.0)
        assert sampler.sample(logits.clone(), [request]).token_ids.tolist() == [0]
        assert sampler.sample(logits.clone(), [request]).token_ids.tolist() == [1]


def test_counts_are_rebuilt_after_a_push_back() -> None:
    sampler = Sampler(spec_of(vocab_size=4), 4, CPU)
    logits = torch.tensor([[3.0, 2.5, 0.0, 0.0]])
    request = request_of(0, prompt=[3], outputs=[0, 0], temperature=0.0, frequency_penalty=0.4)
    assert sampler.sample(logits.clone(), [request]).token_ids.tolist() == [1]
    request.token_ids.append(1)
    request.num_preemptions, request.row = 1, 2
    assert sampler.sample(logits.clone(), [request]).token_ids.tolist() == [0]  # 3 - 0.8 against 2.5 - 0.4


def test_logit_bias_is_added_and_may_ban_or_force() -> None:
    requests = [
        request_of(row, temperature=0.0, logit_bias=bias) for row, bias in enumerate([{}, {0: -100.0}, {3: 100}, {0: -1.0, 1: 0.1}])
    ]
    assert sample(torch.tensor([[3.0, 2.5, 0.0, -5.0]]).repeat(4, 1), requests) == [0, 1, 3, 1]


def test_no_end_or_stop_token_before_min_tokens() -> None:
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, EOS], logits[0, 50], logits[0, 7] = 9.0, 8.0, 1.0
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [50]}
    tokens = [sample(logits.clone(), [request_of(0, outputs=[1] * count, **params)])[0] for count in range(4)]
    assert tokens == [7, 7, EOS, EOS]


def test_an_end_token_beyond_the_vocabulary_is_passed_over() -> None:
    """A config.json may name one; it can never be sampled, and must not break the step."""
    assert sample(noise(1, vocab=EOS), [request_of(0, temperature=0.0, min_tokens=2, stop_token_ids=[-3])]) == [
        int(noise(1, vocab=EOS).argmax())
    ]


# --- scores that are not numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.5}, {}, {"logprobs": 2}, {"min_tokens": 3}])
@pytest.mark.parametrize("family, token", [("llama", -1), ("chatglm", 5)])
def test_bad_scores_end_the_request_or_become_token_5(bad: float, params: dict[str, Any], family: str, token: int) -> None:
    logits = noise(3)
    logits[1, 8] = bad
    greedy_neighbour = request_of(2, temperature=0.0)
    good = sample(logits[2:].clone(), [greedy_neighbour], family)
    requests = [request_of(0, min_tokens=4), request_of(1, **params), greedy_neighbour]
    tokens = sample(logits, requests, family)
    assert tokens[1] == token
    assert tokens[2:] == good and tokens[0] >= 0, "neighbours are not touched"


def test_logprobs_of_bad_scores_are_still_numbers() -> None:
    logits = noise(1)
    logits[0, 3] = math.nan
    sampled = Sampler(spec_of("chatglm"), 4, CPU).sample(logits, [request_of(0, logprobs=3)])
    assert sampled.top_logprobs is not None and sampled.top_logprobs.isfinite().all()


# --- log probabilities --------------------------------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = noise(2, seed=5)
    raw = logits.log_softmax(-1)
    params = {"temperature": 0.1, "top_k": 3, "repetition_penalty": 2.0, "logit_bias": {60: 90.0}}
    sampled = Sampler(spec_of(), 4, CPU).sample(logits, [request_of(0, logprobs=4, **params), request_of(1, logprobs=1)])
    assert sampled.top_ids is not None and sampled.top_logprobs is not None and sampled.ranks is not None
    assert sampled.token_ids[0] == 60
    assert sampled.top_ids[0].tolist() == [60, *raw[0].topk(4).indices.tolist()]
    assert sampled.ranks[0] == int((raw[0] > raw[0, 60]).sum()) + 1
    assert torch.allclose(sampled.top_logprobs[0], raw[0, sampled.top_ids[0]])


def test_greedy_logprobs_have_rank_1() -> None:
    sampled = Sampler(spec_of(), 4, CPU).sample(noise(1), [request_of(0, temperature=0.0, logprobs=0)])
    assert sampled.ranks is not None and sampled.ranks.tolist() == [1]
    assert sampled.top_ids is not None and sampled.top_ids.tolist() == [sampled.token_ids.tolist()]


def test_warming_up_leaves_no_trace() -> None:
    sampler, logits = Sampler(spec_of(), 4, CPU), noise(3)
    sampler.warm_up(4, torch.float16)
    kinds: list[dict[str, Any]] = [{"top_p": 0.7}, {"top_k": 9}, {"repetition_penalty": 1.3}]
    requests = [request_of(row, seed=row, **kind) for row, kind in enumerate(kinds)]
    assert sampler.sample(logits.clone(), requests).token_ids.tolist() == sample(logits, requests)


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = noise(3).half()
    kinds: list[dict[str, Any]] = [{}, {"top_k": 9}, {"temperature": 0.0}]
    requests = [request_of(row, seed=row, **kind) for row, kind in enumerate(kinds)]
    assert sample(logits, requests) == sample(logits.float(), requests)
