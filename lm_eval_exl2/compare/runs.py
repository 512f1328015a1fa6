"""A folder that the harness wrote -> a run: for each task its newest results and samples.

Reads results files and names samples files; opens no samples. Knows nothing of other runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lm_eval_exl2.errors import ComparisonError

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What one results file says of one task."""

    name: str
    time: str
    results: dict[str, Any]
    """The task's entry under `results`: values by "metric,filter"."""
    config: dict[str, Any]
    higher_is_better: dict[str, bool]
    documents: int | None
    """Documents in the split."""
    limited: bool
    """Whether --limit or --samples left documents out."""
    version: Any
    shots: Any
    file: Path
    samples: Path | None

    @property
    def delimiter(self) -> str:
        """What stands between a question and its answer."""
        return str(self.config.get("target_delimiter", " "))


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of one model."""

    label: str
    folder: Path
    tasks: dict[str, TaskRun]
    groups: dict[str, list[str]]
    """Members by group, groups within groups included."""
    group_results: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    """By time of a results file that was used, the newest first: all but its scores, such as model,
    engine and versions."""

    @property
    def newest(self) -> dict[str, Any]:
        """The settings of the newest results file."""
        return next(iter(self.settings.values()))


def read_run(folder: Path, *, label: str | None = None, time: str | None = None) -> Run:
    """Collect the newest results per task in a folder, or those of one time.

    Args:
        folder: What was given to the harness as --output_path, or a folder inside of it, or one
            results file.
        label: How reports call it; by default the end of the model's name in the results.
        time: Only results files whose time begins with this.

    Raises:
        ComparisonError: There are no results, those of several models, or damaged files.
    """
    files = _find(folder, time)
    tasks: dict[str, TaskRun] = {}
    groups: dict[str, list[str]] = {}
    group_results: dict[str, dict[str, Any]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for when, file in files:
        content = _load(file)
        before = len(tasks) + len(groups)
        for name, members in content.get("group_subtasks", {}).items():
            if members and name not in groups:
                groups[name] = list(members)
                group_results[name] = content.get("groups", content["results"]).get(name, {})
        for name in content["configs"]:
            if name in content["results"] and name not in tasks:
                tasks[name] = _task(name, content, file, when)
        if len(tasks) + len(groups) > before:
            settings[when] = {key: each for key, each in content.items() if key not in _SCORES}
    if not tasks:
        raise ComparisonError(f"{folder} holds results files, but no task's scores")
    _check_one_checkpoint(folder, settings)
    run = Run(label or "", folder, tasks, groups, group_results, settings)
    named = str(run.newest.get("model_name") or folder.name).rstrip("/")
    return replace(run, label=label or named.rpartition("/")[2])


def _check_one_checkpoint(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    configs: dict[str, dict[str, Any]] = {
        when: each.get("config") or {} for when, each in settings.items()
    }
    for key in ("checkpoint_digest", "model_sha", "quantization_config"):
        found = {when: str(config[key]) for when, config in configs.items() if config.get(key)}
        if len(set(found.values())) > 1:
            raise ComparisonError(
                f"{folder} holds results of several checkpoints ({key} differs between "
                f"{', '.join(found)}); choose one with --run TIME, or separate the folders"
            )


_SCORES = {
    *("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better"),
    *("n-samples", "task_hashes", "pretty_env_info"),
}


def _find(folder: Path, time: str | None) -> list[tuple[str, Path]]:
    if folder.is_file():
        return [(_time_of(folder), folder)]
    if not folder.is_dir():
        raise ComparisonError(f"{folder} is neither a folder nor a results file")
    found = sorted(
        ((_time_of(file), file) for file in folder.rglob("*.json") if _TIME.search(file.name)),
        reverse=True,
    )
    if not found:
        raise ComparisonError(
            f"no results_*.json in {folder}; run lm_eval with --output_path {folder} --log_samples"
        )
    if time is not None:
        chosen = [each for each in found if each[0].startswith(time)]
        if not chosen:
            times = ", ".join(when for when, _ in found)
            raise ComparisonError(f"no results of {time} in {folder}, there are {times}")
        found = chosen
    models = {file.parent for _, file in found}
    if len(models) > 1:
        names = ", ".join(sorted(str(each.relative_to(folder)) for each in models))
        raise ComparisonError(f"{folder} holds the results of several models, name one: {names}")
    return found


def _time_of(file: Path) -> str:
    found = _TIME.search(file.name)
    return found[1] if found else ""


def _load(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not {"results", "configs"} <= content.keys():
        raise ComparisonError(f"{file} is no results file of lm-evaluation-harness")
    return cast("dict[str, Any]", content)


def _task(name: str, content: dict[str, Any], file: Path, when: str) -> TaskRun:
    counts = content.get("n-samples", {}).get(name, {})
    samples = file.with_name(_samples_name(file, name, when))
    return TaskRun(
        name=name,
        time=when,
        results=content["results"][name],
        config=content["configs"][name],
        higher_is_better=content.get("higher_is_better", {}).get(name, {}),
        documents=counts.get("original"),
        limited=counts.get("effective") != counts.get("original"),
        version=content.get("versions", {}).get(name),
        shots=content.get("n-shot", {}).get(name),
        file=file,
        samples=samples if samples.is_file() else None,
    )


def _samples_name(file: Path, task: str, when: str) -> str:
    """As the harness names it beside `results_<time>.json` or `<stem>_<time>.json`."""
    return f"samples_{task}_{when}.jsonl"


def leaves(run: Run, group: str) -> list[str]:
    """The tasks of a group and of the groups in it, in order."""
    found: list[str] = []
    for member in run.groups.get(group, ()):
        for name in leaves(run, member) if member in run.groups else [member]:
            if name not in found:
                found.append(name)
    return found


def top_groups(run: Run) -> Sequence[str]:
    """Groups that are in no other group."""
    inner = {member for members in run.groups.values() for member in members}
    return [group for group in run.groups if group not in inner]
