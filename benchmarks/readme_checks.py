"""The READMEs' generated parts about what was checked; `readme.py` puts them into place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval_exl2.compare.render.from_json import from_json
from lm_eval_exl2.compare.render.markdown import step_summary

RESULTS = Path(__file__).parent / "results"


def read_result(name: str) -> dict[str, Any] | None:
    """Return a committed result; None if it has not been measured."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def _measured(found: dict[str, Any], machine: str = "") -> str:
    return f"Measured on {found['date']} at {found['commit'][:8]}: {machine}`{found['command']}`"


def sandbox_table() -> str:
    """Return what became of the corpus and of HumanEval's solutions at each level."""
    found = read_result("sandbox.json")
    if found is None:
        return "Not measured yet."
    rows = [
        "| level | as | corpus | fakes | effects | hangs | canonical passed | wrong failed "
        "| mutants as `code_eval` | programs/s |",
        "| --- | --- |" + " ---: |" * 8,
    ]
    for row in found["rows"]:
        user = row["user"] + (", in a container" if row["container"] else "")
        rows.append(
            f"| {row['level']} | {user} | {row['programs']} | {row['fakes']} | {row['effects']} "
            f"| {row['hangs']} | {row['canonical_passed']} of {row['canonical']} "
            f"| {row['wrong_failed']} of {row['wrong']} "
            f"| {row['mutants_agreeing']} of {row['mutants']} | {row['programs_per_second']} |"
        )
    if peer := found["code_eval"]:
        rows += [
            "",
            f"HF's `code_eval`: {peer['canonical_passed']} canonical solutions passed, "
            f"{peer['programs_per_second']} programs/s.",
        ]
    if mbpp := found.get("mbpp"):
        failing = ", ".join(map(str, mbpp["failing"])) or "none"
        rows += [
            "",
            f"MBPP: {mbpp['passed']} of {mbpp['problems']} reference solutions pass their tests at "
            f"level {mbpp['level']} (failing: {failing}).",
        ]
        if "mutants_agreeing" in mbpp:
            agreeing = f"{mbpp['mutants_agreeing']} of {mbpp['mutants']}"
            rows[-1] += f" {agreeing} mutants get `code_eval`'s verdict."
    rows += ["", _measured(found, f"{found['machine']}. ")]
    return "\n".join(rows)


def wikitext2_table() -> str:
    """Return perplexities measured three ways."""
    found = read_result("wikitext2_ppl.json")
    if found is None:
        return "Not measured yet."
    rows = [
        "| checkpoint | protocol | window | targets | `exl2` | `hf`, decoded | plain loop "
        "| largest relative difference |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    for row in found["rows"]:
        rows.append(
            f"| {row['checkpoint']} | {row['protocol']} | {row['window']} | {row['targets'][0]:,} "
            f"| {row['ours']:.4f} ± {row['stderr']:.4f} | {row['hf']:.4f} "
            f"| {row['reference_loop']:.4f} | {row['largest_relative_difference']:.1e} |"
        )
    rows += ["", _measured(found, f"{found['machine']}. ")]
    return "\n".join(rows)


def anchors_text() -> str:
    """Return which published scores have been run again, and what came out."""
    found = read_result("anchors.json")
    if found is None:
        return "Not measured yet."
    counts = found["counts"]
    total = len(found["rows"])
    lines = [
        f"{counts['ran']} of {total} have run, {counts['within']} of them within their tolerance; "
        f"{counts['failed']} failed, {counts['not run']} could not run where it was tried last."
    ]
    if reasons := {row["reason"].partition(":")[0] for row in found["rows"] if "reason" in row}:
        lines[0] += f" Reasons: {', '.join(sorted(reasons))}."
    if ran := [row for row in found["rows"] if row["status"] == "ran"]:
        lines += [
            "",
            "| score | published | measured | tolerance |",
            "| --- | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['name']} | {row['published']:g} | {row['measured']:.4f} "
            f"| {row['tolerance']:.3g}{'' if row['within'] else ', **outside**'} |"
            for row in ran
        ]
    return "\n".join([*lines, "", f"Last tried on {found['date']}: `{found['command']}`"])


def coverage_table() -> str:
    """Return coverage and wrong support of each statistic, over all cells of its grid."""
    found = read_result("statistics.json")
    if found is None:
        return "Not measured yet."
    rows = [
        "| statistic | cells | coverage of 95 % | wrongly supported, most | cells outside |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(row["statistic"] for row in found["rows"]):
        cells = [row for row in found["rows"] if row["statistic"] == name]
        covered = [row["coverage"] for row in cells]
        wrong = max(row["false_supported"] for row in cells)
        outside = sum(not row["within"] for row in cells)
        rows.append(
            f"| {name} | {len(cells)} | {min(covered):.1%} to {max(covered):.1%} "
            f"| {wrong:.1%} | {outside} |"
        )
    where = found["environment"]
    rows += [
        "",
        f"{found['cells_within_limits']} of {found['cells']} cells are within the limits. Measured "
        f"on {where['date']} at {where['commit'][:8]}: `python benchmarks/check_statistics.py`",
    ]
    return "\n".join(rows)


def decisions_table() -> str:
    """Return how often each state comes out, by true average drop."""
    found = read_result("decisions.json")
    if found is None:
        return "Not measured yet."
    states = list(dict.fromkeys(state for row in found["rows"] for state in row["states"]))
    rows = [
        f"| true average drop | {' | '.join(states)} |",
        "| ---: |" + " ---: |" * len(states),
    ]
    for row in found["rows"]:
        cells = " | ".join(f"{row['states'].get(state, 0):.1%}" for state in states)
        rows.append(f"| {row['true_drop']:g} % | {cells} |")
    rows += [
        "",
        f"At a true drop of {found['accepts']:g} %, which the profile does not accept, "
        f"{found['false_support']:.1%} come out as ship or acceptable; {found['allowed']:.1%} are "
        f"allowed (5 % and three standard errors of {found['draws']:,} draws).",
        "",
        _measured(found),
    ]
    return "\n".join(rows)


def divergence_table() -> str:
    """Return KL divergence against brute force, on the same logits and on transformers' own."""
    found = read_result("divergence.json")
    if found is None:
        return "Not measured yet."
    rows = [
        "| from | to | tokens | mean KL (nats) | same logits, brute force "
        "| transformers' own logits |",
        "| --- | --- |" + " ---: |" * 4,
    ]
    for row in found["rows"]:
        first, second = row["pair"]
        shares = [
            f"{row[way]['largest_share_of_tolerance']:.1%}, mean "
            f"{row[way]['mean_relative_difference']:.0e}"
            for way in ("same_logits", "transformers")
        ]
        mean = row["same_logits"]["mean"]
        rows.append(
            f"| {first} | {second} | {row['tokens']:,} | {mean:.6f} | {' | '.join(shares)} |"
        )
    rows += [
        "",
        "Largest difference of a token as a share of 1e-7 + 1e-3 x KL, and relative difference of "
        "the mean (1e-4 is allowed).",
        "",
        _measured(found),
    ]
    return "\n".join(rows)


def bench_accuracy_table() -> str:
    """Return what the accuracy gate says of the demo, and how right its numbers are."""
    found = read_result("bench_accuracy.json")
    if found is None:
        return "Not measured yet."
    rows = [
        "| | ROUGE-1 | ROUGE-2 | ROUGE-L | tokens | mlperf-99 | same answers | BLEU "
        "| agreement-99 |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for row in found["rows"]:
        gate, agreement = row["found"]["gate"], row["found"]["agreement"]
        shares = " | ".join(f"{each['ratio']:.2%}" for each in gate["demands"])
        rows.append(
            f"| {row['name']} | {shares} | {gate['state']} | {agreement['identical_share'][0]:.1%} "
            f"| {agreement['bleu']['score']:.1f} | {agreement['state']} |"
        )
    documents = found["rows"][0]["found"]["gate"]["documents"]
    rows += [
        "",
        f"Shares of float16's scores on {documents} stories whose last sentence is to be told; "
        "same answers, BLEU and agreement are against float16's own. Counted once more from their "
        f"definitions, ROUGE and BLEU differ by at most {found['largest_difference']:.0e} points "
        "(scores have 4 digits).",
        "",
        _measured(found),
    ]
    return "\n".join(rows)


def report_table() -> str:
    """Return the worked example's first lines and decisions."""
    found = read_result("report.json")
    if found is None:
        return "Not measured yet."
    summary, *_ = step_summary(from_json(found["comparison"])).partition("\n### ")
    return "\n".join([summary.strip(), "", _measured(found)])


def planning_text() -> str:
    """Return what planning costs, how cost grows, what bfloat16 and other plans do."""
    found = read_result("loglikelihood_cpu.json") or {}
    lines: list[str] = []
    if plan := found.get("planning"):
        lines.append(
            f"- **Planning** all {plan['requests']:,} MMLU requests there are "
            f"({million(plan['tokens_requested'])} tokens): tree {plan['tree_seconds']:.2f} s, "
            f"{plan['chunks']} chunks and their tiles {plan['plan_seconds']:.2f} s; tokenizing "
            f"{plan['tokenization_seconds']:.1f} s, `hf` {plan['peer_tokenization_seconds']:.1f} s."
        )
    if growth := found.get("growth"):
        lines.append(
            f"- **Growth:** HellaSwag with {growth['requests'][1]:,} requests takes "
            f"{growth['seconds_ratio']:.2f} times as long as with {growth['requests'][0]:,}, for "
            f"{growth['tokens_ratio']:.2f} times the tokens."
        )
    lines += [
        f"- **bfloat16**, {row['title']}: {row['ratio']:.2f} times the speed of float32; "
        f"log-likelihoods move by {row['mean_difference']:.3f} on average, "
        f"{row['largest_difference']:.3f} at most; "
        f"{row['greedy_flags_differ']} greedy flags differ."
        for row in found.get("bfloat16", [])
    ]
    if profiled := found.get("profile"):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in profiled["shares"].items())
        rest = 1 - sum(profiled["shares"].values())
        bare = ", ".join(
            f"{rate:.0f} ({shape})" for shape, rate in profiled["bare_product_gflops"].items()
        )
        lines.append(
            f"- **Where time goes**, {profiled['workload']}, {profiled['requests']} documents, "
            f"{profiled['seconds']:.1f} s, by PyTorch's profiler: {shares}, all else {rest:.0%}. "
            f"Products run at {profiled['products_gflops']:.0f} GFLOP/s; bare ones reach {bare}."
        )
    if costs := found.get("plan_cost"):
        shown = "; ".join(
            f"{row['workload']}, calls x {row['call']:g}, {row['tokens']} tokens: "
            f"{row['seconds_ratio']:.2f}"
            for row in costs
        )
        lines.append(f"- **Other plans**, seconds relative to the built-in one: {shown}.")
    return "\n".join(lines) or "Not measured yet."


def million(count: int) -> str:
    """Return a number of tokens as a table shows it."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def resume_table() -> str:
    """Return what became of runs that were killed and of caches that were damaged."""
    found = read_result("resume.json")
    if found is None:
        return "Not measured yet."
    rows = ["| fault | runs | lost | duplicated | changed |", "| --- |" + " ---: |" * 4]
    for row in found["rows"]:
        rows.append(
            f"| {row['fault']} | {row['runs']} | {row['lost']} | {row['duplicated']} "
            f"| {row['changed']} |"
        )
    rows.append("")
    for name, part in found["cost"].items():
        keeping = part["keeping_seconds"] / part["answers"] * 1e6
        harness = part["harness_seconds"] / part["answers"] * 1e6
        rows.append(
            f"Keeping {part['answers']:,} answers of {name}: {keeping:.0f} µs each, "
            f"{part['keeping_share_of_model']:.2%} of the model's calls; the harness's own file "
            f"takes {harness:.0f} µs each.  "
        )
    rows += ["", f"Measured on {found['date']} at {found['commit'][:8]}: `{found['command']}`."]
    return "\n".join(rows)
