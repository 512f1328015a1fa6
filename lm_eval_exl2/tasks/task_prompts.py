"""The prompts of a harness task, as its own run would ask them, for measurements of speed.

Builds requests with the harness's task classes and takes their contexts; asks no model, scores
nothing.
"""
# The harness ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

from lm_eval.tasks import TaskManager

from lm_eval_exl2.errors import OptionError


def task_prompts(name: str, *, limit: int | None) -> list[str]:
    """Return what a task that generates text asks, document by document.

    Args:
        name: One task of the harness or of this package.
        limit: Only the first so many documents.

    Raises:
        OptionError: there is no such task, it is a group, or it does not generate text.
    """
    from lm_eval_exl2.plugin import task_configs_path

    manager = TaskManager(include_path=str(task_configs_path()))
    if name not in manager.all_tasks:
        raise OptionError(f"--task {name!r}: the harness has no task of that name; see lm_eval ls")
    if name not in manager.all_subtasks:
        raise OptionError(f"--task {name!r} is a group of tasks; give one of its tasks")
    task: Any = manager.load([name])["tasks"][name]
    if task.OUTPUT_TYPE != "generate_until":
        raise OptionError(
            f"--task {name!r} asks for {task.OUTPUT_TYPE}, not for text; give a task that generates"
        )
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [str(instance.args[0]) for instance in task.instances if instance.idx == 0]
