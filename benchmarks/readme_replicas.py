"""The README's generated parts about replicas and faults; `readme.py` puts them into place."""

from __future__ import annotations

from typing import Any

from readme_checks import read_result


def replicas_table() -> str:
    """Return what replicas bring, what dealing costs, and memory over a long run."""
    found = read_result("replicas.json")
    if found is None:
        return "Not measured yet."
    rows = found["rows"]
    said = _speeds([row for row in rows if "tokens_per_s" in row])
    for row in rows:
        name = f"{row['part'][0].upper()}{row['part'][1:]}"
        if "efficiency" in row:
            said += ["", f"{name}: {_simulated(row)}"]
        elif "resident_mib_after_each_round" in row:
            said += ["", f"{name}: {_soaked(row)}"]
    return "\n".join([*said, "", _measured(found)])


def _speeds(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = ["replicas of one thread", "requests", "units", "seconds", "tokens/s", "times one"]
    said = [f"| {' | '.join(head)} | bit-equal to one |", f"|{' ---: |' * len(head)} --- |"]
    for row in rows:
        equal = "yes" if row["bit_equal_to_one"] else "no"
        said.append(
            f"| {row['replicas']} | {row['requests']:,} | {row['units']} | {row['seconds']:.1f} | "
            f"{row['tokens_per_s']:,} | **{row['times_one']:.2f}** | {equal} |"
        )
    return said


def _simulated(row: dict[str, Any]) -> str:
    kib = row["cut_adds_mib"] / row["requests"] * 1024
    return (
        f"{row['replicas']} replicas, {row['requests']:,} requests in {row['units']:,} units: "
        f"efficiency **{row['efficiency']:.1%}** ({row['efficiency_with_cutting']:.1%} with the "
        f"{row['cut_s']:.0f} s of cutting), {row['repeated_share']:.2%} of the tokens repeated, "
        f"{row['wrong_answers']} wrong answers. The driver takes "
        f"{row['driver_us_per_request']:.0f} µs and, while it cuts, {kib:.1f} KiB per request; "
        f"dealing alone would fill it at {row['replicas_that_fill_the_driver']:,} such replicas."
    )


def _soaked(row: dict[str, Any]) -> str:
    memory = row["resident_mib_after_each_round"]
    pairs = zip(memory[1], memory[-1], strict=True)
    shown = ", ".join(f"{before:.0f} to {after:.0f}" for before, after in pairs)
    return (
        f"{row['requests']:,} requests in {len(memory)} rounds; MiB of each process after the "
        f"second round and the last: {shown}."
    )


def _measured(found: dict[str, Any]) -> str:
    """Return where a result comes from; rows may have been measured apart."""
    rows = found["rows"]
    dates, commits = ({row[key][:10] for row in rows} for key in ("date", "commit"))
    commands = "`, `".join(sorted({row["command"] for row in rows}))
    shown = ", ".join(sorted(commit[:8] for commit in commits))
    return f"Measured on {', '.join(sorted(dates))} at {shown}: {found['machine']}. `{commands}`"


def faults_table() -> str:
    """Return what became of runs in which something failed."""
    found = read_result("faults.json")
    if found is None:
        return "Not measured yet."
    said = [
        "| fault, at a random time | runs | lost | duplicated | changed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    said += [
        f"| {row['fault']} | {row['runs']} | {row['lost']} | {row['duplicated']} | "
        f"{row['changed']} |"
        for row in found["rows"]
    ]
    return "\n".join([*said, "", _measured(found)])
