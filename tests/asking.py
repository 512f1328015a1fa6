"""Asks a model of the harness, in as few words as possible."""

from lm_eval.api.instance import Instance


def ask(kind, *arguments):
    """Return a request."""
    return Instance(kind, {}, arguments, 0)


def score(lm, *pairs):
    """Return the log-likelihoods of (context, continuation) pairs."""
    return lm.loglikelihood([ask("loglikelihood", *p) for p in pairs], disable_tqdm=True)


def roll(lm, *documents):
    """Return the log-likelihoods of documents."""
    requests = [ask("loglikelihood_rolling", document) for document in documents]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def speak(lm, *prompts, **arguments):
    """Return the continuations of prompts, all with the same arguments; 8 tokens by default."""
    arguments = {"until": [], "max_gen_toks": 8} | arguments
    requests = [ask("generate_until", prompt, arguments) for prompt in prompts]
    return lm.generate_until(requests, disable_tqdm=True)
