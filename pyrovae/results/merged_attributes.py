"""What several results that become one say together of their settings, their stages and their times."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

__all__ = ["group_attributes", "root_attributes"]

_OF_FILES: Final = ("block", "content_sha256")
_SECONDS: Final = re.compile(r"(^|_)seconds(_|$)")
_WORST: Final = ("failed", "skipped", "ok")
"""What a stage may come to, the worst first."""


def group_attributes(parts: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    """Attributes of a group: equal ones stay, seconds are summed, counts `num_*` the largest, words in a row.

    Other numbers that differ, such as the seeds of blocks, are left out.

    Examples:
        >>> group_attributes([{"seed": 1, "min_ess": 400.0, "seconds": 1.0}, {"seed": 2, "seconds": 2.0}])
        {'min_ess': 400.0, 'seconds': 3.0}
    """
    return _attributes(parts, max)


def root_attributes(parts: Sequence[tuple[Mapping[Any, Any], int]]) -> dict[str, Any]:
    """Attributes of the root, of blocks with their numbers of data: as of groups, but `num_data` is summed.

    A stage has the worst status of any block, and says why, and of how many blocks.

    Examples:
        >>> ok, failed = ({"stages": json.dumps({"weights": {"status": s, "reason": r}})} for s, r in
        ...               (("ok", ""), ("failed", "no memory")))
        >>> root_attributes([(ok, 256), (failed, 10)])["stages"]
        '{"weights": {"reason": "no memory (in 1 of 2 blocks)", "status": "failed"}}'
    """
    all_attrs = [{name: v for name, v in attrs.items() if name not in _OF_FILES} for attrs, _ in parts]
    found = _attributes(all_attrs, sum)
    for name, together in (("stages", _stages), ("stage_seconds", _seconds)):
        told = [json.loads(attrs[name]) for attrs in all_attrs if name in attrs]
        if told:
            found[name] = json.dumps(together(told), sort_keys=True)
    return found


def _attributes(parts: Sequence[Mapping[Any, Any]], count: Callable[[list[Any]], Any]) -> dict[str, Any]:
    names = dict.fromkeys(str(name) for attrs in parts for name in attrs)
    found = {}
    for name in names:
        values = [attrs[name] for attrs in parts if name in attrs]
        value = _value(name, values, count)
        if value is not None:
            found[name] = value
    return found


def _value(name: str, values: list[Any], count: Callable[[list[Any]], Any]) -> Any:
    is_word = isinstance(values[0], str)
    if _SECONDS.search(name) and not is_word:
        return sum(values)
    if name == "num_data":
        return count(values)
    if all(value == values[0] for value in values):
        return values[0]
    if name == "direction":
        return "none"
    if is_word:
        return (
            values[0] if values[0].startswith(("{", "[")) else "; ".join(dict.fromkeys(filter(None, values)))
        )
    return max(values) if name.startswith("num_") else None


def _stages(told: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    found = {}
    for stage in dict.fromkeys(name for stages in told for name in stages):
        records = [stages[stage] for stages in told if stage in stages]
        worst = min((record["status"] for record in records), key=_WORST.index)
        reasons = [record["reason"] for record in records if record["reason"]]
        found[stage] = {"status": worst, "reason": _reason(reasons, len(records))}
    return found


def _reason(reasons: Sequence[str], num_blocks: int) -> str:
    """Every reason once, with the number of blocks if that is not all."""
    counts = {reason: reasons.count(reason) for reason in reasons}
    return "; ".join(
        reason if count == num_blocks else f"{reason} (in {count} of {num_blocks} blocks)"
        for reason, count in counts.items()
    )


def _seconds(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for seconds in told for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in told) for name in names}
