"""`--model exl2` with engine=exllamav2, its kernels simulated: the demo scores as with torch.

The same comparison runs on a card under the marker gpu.
"""

import json

import pytest
import simulated_exllamav2
from asking import roll, score, speak

from lm_eval_exl2.engines import exllamav2_import
from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.tasks import demo as loaders

# float16 against float32 on the demo: log-likelihoods of a few tokens.
TOLERANCE = 0.05


@pytest.fixture(params=["simulated", pytest.param("card", marks=pytest.mark.gpu)])
def card(request, monkeypatch):
    """A card, or something that passes for one."""
    if request.param == "simulated":
        simulated_exllamav2.install(monkeypatch)
        monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)


@pytest.fixture(scope="module")
def torch_lm():
    return Exl2LM(pretrained="demo", engine="torch", device="cpu")


def questions(count):
    """Pairs of (context, continuation) by question."""
    items = loaders.facts()["test"].select(range(count))
    return [[(item["question"], f" {choice}") for choice in item["choices"]] for item in items]


def test_accuracies_are_equal_or_every_flip_is_within_the_noise(card, torch_lm):
    lm = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0")
    asked = questions(40)
    pairs = [pair for question in asked for pair in question]
    found, expected = (score(model, *pairs) for model in (lm, torch_lm))
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], abs=TOLERANCE)
    for number in range(len(asked)):
        four = slice(4 * number, 4 * number + 4)
        ours, theirs = ([ll for ll, _ in answers[four]] for answers in (found, expected))
        chosen, right = ours.index(max(ours)), theirs.index(max(theirs))
        assert chosen == right or theirs[right] - theirs[chosen] < 2 * TOLERANCE


def test_documents_score_alike(card, torch_lm):
    lm = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0")
    texts = [item["text"] for item in loaders.stories()["test"].select(range(3))]
    for one, other in zip(roll(lm, *texts), roll(torch_lm, *texts), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_greedy_text_is_alike(card, torch_lm):
    lm = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0")
    problems = [item["problem"] for item in loaders.arithmetic()["test"].select(range(12))]
    ours, theirs = (speak(model, *problems, until=["\n"]) for model in (lm, torch_lm))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 11


@pytest.mark.parametrize("flash_attn", [False, True])
def test_a_stop_string_that_the_last_token_completes_is_cut(monkeypatch, flash_attn):
    """exllamav2's generator looks at its limit first and would leave it in."""
    simulated_exllamav2.install(monkeypatch, flash_attn=flash_attn)
    monkeypatch.setattr(exllamav2_import, "has_cuda", lambda: True)
    lm = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0")
    prompt = loaders.cloze()["test"][0]["text"]
    (whole,) = speak(lm, prompt, max_gen_toks=6)
    stop = whole[-2:]
    (cut,) = speak(lm, prompt, max_gen_toks=6, until=[stop])
    assert cut == whole[: whole.index(stop)]
    assert (lm.engine._paged is not None) == flash_attn


def test_the_best_engine_is_the_default_and_what_was_used_is_in_the_results(card, torch_lm):
    lm = Exl2LM(pretrained="demo", device="cuda:0", cache_mode="Q8", max_batch_tokens=512)
    score(lm, ("a", " b"))
    info = json.loads(json.dumps(lm.get_model_info()))
    assert (info["engine"], info["model_dtype"]) == ("exllamav2", "float16")
    assert info["engine_version"].startswith("0.3.2")
    assert info["attention"].startswith("tree (")
    assert (info["cache_mode"], info["max_batch_tokens"]) == ("Q8", 512)
    assert info["tokens_forwarded"] == 2  # BOS and the context
    assert lm.max_length == torch_lm.max_length


def test_a_response_cache_is_not_shared_between_engines(card, torch_lm):
    lm = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0")
    rounded = Exl2LM(pretrained="demo", engine="exllamav2", device="cuda:0", cache_mode="Q4")
    stamps = {repr(model._fingerprint()) for model in (lm, rounded, torch_lm)}
    assert len(stamps) == 3
