"""Two distributions at the same position -> how far apart they are. In nats.

Inputs are float32 log-probabilities as engines give them, everything from there on is float64,
normalisation included. That is what makes float32 enough: the largest error of a float32
log-softmax is the same for all tokens of a position and cancels when the distribution is
normalised again; what is left are independent roundings e, which change KL by about
sqrt(KL) * e. Nothing is clamped; a KL of equal distributions may come out as -1e-16.

Shapes: T positions, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

_MODEL_DIFF_EPSILON: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValues:
    """What is known of each position of a piece; float64 on the CPU."""

    kl: torch.Tensor
    """Nats (T,)."""
    top_probability: torch.Tensor
    """Of the baseline's most likely token (T,)."""
    agreeing: torch.Tensor
    """How many of the most likely tokens are the same, in order, up to the first that is not (P,):
    P <= T, the first P positions are followed by a token."""
    baseline_logprob: torch.Tensor
    """Of that token (P,)."""
    candidate_logprob: torch.Tensor


class Distributions:
    """The distributions of a piece, normalised in float64."""

    def __init__(self, logprobs_TV: torch.Tensor) -> None:
        """Take log-probabilities, normalised or not; -inf is a probability of 0."""
        # MPS has no float64.
        device = "cpu" if logprobs_TV.device.type == "mps" else logprobs_TV.device
        raw_TV = logprobs_TV.to(device, torch.float64)
        self.log_norm_T = raw_TV.logsumexp(-1)
        self.log_TV = raw_TV - self.log_norm_T[:, None]

    def of_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of the tokens (P,) that follow the first P positions."""
        targets = targets.to(self.log_TV.device)
        return self.log_TV[: len(targets)].gather(-1, targets[:, None]).squeeze(-1)

    def top(self, count: int) -> torch.Tensor:
        """Return the most likely tokens, most likely first (T, count); of equals the first one."""
        if count == 1:
            return self.log_TV.argmax(-1, keepdim=True)
        return self.log_TV.topk(min(count, self.log_TV.shape[-1])).indices


def divergence(p: Distributions, q: Distributions) -> torch.Tensor:
    """Return KL(p || q) = sum p (log p - log q) at each position (T,).

    A token of probability 0 under p adds nothing; one of 0 under q alone makes it infinite.
    """
    q_TV = q.log_TV.to(p.log_TV.device)
    return _expected(p.log_TV, p.log_TV - q_TV)


def model_diff_divergence(baseline: Distributions, candidate: Distributions) -> torch.Tensor:
    """Return KL(candidate || baseline + 1e-10) at each position (T,), as exllamav2 reports it.

    The epsilon is added to each probability and not normalised away: equal distributions give
    down to -1e-10 times the vocabulary, and no value exceeds 23.03.
    """
    q_TV = (baseline.log_TV.exp() + _MODEL_DIFF_EPSILON).log()
    p_TV = candidate.log_TV.to(q_TV.device)
    return _expected(p_TV, p_TV - q_TV)


def _expected(log_p_TV: torch.Tensor, values_TV: torch.Tensor) -> torch.Tensor:
    p_TV = log_p_TV.exp()
    return torch.where(p_TV == 0, 0.0, p_TV * values_TV).sum(-1)


def compare(
    baseline_TV: torch.Tensor,
    candidate_TV: torch.Tensor,
    targets: torch.Tensor,
    *,
    top: int = 1,
    as_model_diff: bool = False,
) -> TokenValues:
    """Compare a piece of two models' distributions.

    Args:
        baseline_TV: Float32 log-probabilities.
        candidate_TV: Of the same positions and tokens.
        targets: Tokens that really follow the first P positions (P,).
        top: Most likely tokens whose order is compared.
        as_model_diff: The other direction, as `model_diff_divergence` has it.
    """
    baseline, candidate = Distributions(baseline_TV), Distributions(candidate_TV)
    kl = model_diff_divergence if as_model_diff else divergence
    best_PK = baseline.top(top)[: len(targets)]
    candidate_PK = candidate.top(top)[: len(targets)].to(best_PK.device)
    return TokenValues(
        kl=kl(baseline, candidate).cpu(),
        top_probability=baseline.log_TV.amax(-1).exp().cpu(),
        agreeing=count_agreeing(best_PK, candidate_PK).cpu(),
        baseline_logprob=baseline.of_targets(targets).cpu(),
        candidate_logprob=candidate.of_targets(targets).cpu(),
    )


def count_agreeing(first_TK: torch.Tensor, second_TK: torch.Tensor) -> torch.Tensor:
    """Return how many leading entries of each row are equal (T,)."""
    return (first_TK == second_TK).long().cumprod(-1).sum(-1)


# -- of the most likely tokens only ------------------------------------------------------------


def log_tail(distributions: Distributions, top_TK: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of all tokens but the given ones together (T,); -inf for none."""
    kept_TV = distributions.log_TV.scatter(-1, top_TK, -torch.inf)
    return kept_TV.logsumexp(-1)


def top_divergence(
    log_p_TK: torch.Tensor, log_tail_p_T: torch.Tensor, top_TK: torch.Tensor, q: Distributions
) -> torch.Tensor:
    """Return a lower bound of KL(p || q) from p's most likely tokens (T,).

    All other tokens are taken as one. By the log-sum inequality (Cover and Thomas, Elements of
    Information Theory, theorem 2.7.1) joining outcomes never makes KL larger; with all tokens kept
    the bound is KL itself.

    Args:
        log_p_TK: Log-probabilities of the kept tokens, normalised over the whole vocabulary.
        log_tail_p_T: Of all others together.
        top_TK: Which tokens are kept.
        q: The other distribution.
    """
    device = q.log_TV.device
    top_TK = top_TK.to(device)
    log_p = torch.cat([log_p_TK, log_tail_p_T[:, None]], -1).to(device)
    log_q = torch.cat([q.log_TV.gather(-1, top_TK), log_tail(q, top_TK)[:, None]], -1)
    return _expected(log_p, log_p - log_q)
