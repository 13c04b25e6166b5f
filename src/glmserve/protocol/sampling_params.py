"""How one request is sampled.  Field names and defaults are vLLM's; the order of operations is in `runner/sampler.py`."""

from __future__ import annotations

import math
import operator

import msgspec

from glmserve.protocol.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 16, 1000
MAX_TOP_K = 2**31 - 1
LEAST_REPETITION_PENALTY = 0.01  # what is 0 in float32 makes scores that are not numbers
SEED_RANGE = range(-(2**63), 2**64)


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sampling parameters of one request.

    `temperature` 0 is greedy.  `top_k` 0 or -1 is off.  `max_tokens` counts generated tokens; None means up to the
    model's limit.  `logprobs=k` asks for the k best tokens of each step and the sampled one, over the raw
    distribution (before penalties, temperature and filters).  `seed` makes a request reproducible whatever shares its batch.

    Raises InvalidRequestError for a value outside its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # what people write: stop="\n"
            self.stop = [self.stop]
        try:
            self._take_whole_numbers()
            if self.top_k == -1:
                self.top_k = 0
            self._check()
        except TypeError as error:  # a value of another type: msgspec checks them on the wire, Python callers nobody
            raise InvalidRequestError(f"a sampling parameter has a value of the wrong type: {error}") from error

    def _take_whole_numbers(self) -> None:
        """Whatever counts as one, as NumPy's do.  Raises TypeError for what does not."""
        for name in ("n", "top_k", "min_tokens"):
            setattr(self, name, operator.index(getattr(self, name)))
        for name in ("seed", "max_tokens", "logprobs"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, operator.index(value))
        if self.stop_token_ids:
            self.stop_token_ids = list(map(operator.index, self.stop_token_ids))
        if self.logit_bias:
            self.logit_bias = {operator.index(token_id): float(bias) for token_id, bias in self.logit_bias.items()}

    def _check(self) -> None:
        def require(ok: bool, param: str, message: str) -> None:
            if not ok:
                raise InvalidRequestError(f"{param} {message}", param)

        def finite(param: str, low: float, high: float, hint: str) -> None:
            value = getattr(self, param)
            require(math.isfinite(value) and low <= value <= high, param, f"must be {hint}, got {value}")

        finite("temperature", 0.0, 100.0, "a number from 0 (greedy) to 100")
        finite("top_p", 0.0, 1.0, "above 0 and at most 1")
        require(self.top_p > 0.0, "top_p", f"must be above 0 and at most 1, got {self.top_p}")
        finite("min_p", 0.0, 1.0, "from 0 to 1")
        finite("repetition_penalty", LEAST_REPETITION_PENALTY, 100.0, f"from {LEAST_REPETITION_PENALTY} to 100")
        finite("presence_penalty", -2.0, 2.0, "from -2 to 2")
        finite("frequency_penalty", -2.0, 2.0, "from -2 to 2")
        require(0 <= self.top_k <= MAX_TOP_K, "top_k", f"must be 0 or -1 (off) or positive and at most {MAX_TOP_K}, got {self.top_k}")
        require(1 <= self.n <= MAX_CHOICES, "n", f"must be from 1 to {MAX_CHOICES}, got {self.n}")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", f"must be at least 1, got {self.max_tokens}")
        require(self.min_tokens >= 0, "min_tokens", f"must not be negative, got {self.min_tokens}")
        require(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"must not exceed max_tokens ({self.max_tokens}), got {self.min_tokens}",
        )
        require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"must be from 0 to {MAX_LOGPROBS}, got {self.logprobs}",
        )
        require(self.seed is None or self.seed in SEED_RANGE, "seed", "must fit in 64 bits")
        require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"takes at most {MAX_STOP_STRINGS} strings")
        require(all(self.stop), "stop", "must not contain an empty string")
        longest = max(map(len, self.stop), default=0)
        require(longest <= MAX_STOP_CHARACTERS, "stop", f"takes strings of at most {MAX_STOP_CHARACTERS} characters")
        require(len(self.logit_bias) <= MAX_LOGIT_BIAS, "logit_bias", f"takes at most {MAX_LOGIT_BIAS} tokens")
        require(
            all(math.isfinite(bias) and -100 <= bias <= 100 for bias in self.logit_bias.values()),
            "logit_bias",
            "values must be from -100 to 100",
        )

    @property
    def greedy(self) -> bool:
        """True where the most likely token is always taken."""
        return self.temperature < 1e-5


def seed_of_choice(seed: int | None, number: int) -> int | None:
    """The seed of choice `number` from 0 on, so that choices differ and yet can be repeated."""
    if seed is None or seed + number in SEED_RANGE:
        return None if seed is None else seed + number
    return seed + number - 2**64
