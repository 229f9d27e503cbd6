"""`ladder reward check`: does a reward of one's own keep the contract, before a run depends on it?

What holds: its code runs in killable processes only; everything found is reported, with what to do; exit code 0 when the
contract is kept, 1 when a fault was found, 2 (`RewardRefused`) when the check cannot begin.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.reward import reward_limits, reward_specs
from configs.load import load_config
from configs.schema import RewardConfig
from launch.places import with_absolute_paths
from launch.progress import Progress, Say
from launch.reward_cases import Case, judged_cases, read_cases
from launch.reward_exam import examine, printing_kept, started
from launch.reward_findings import Finding, RewardRefused, findings_of, report
from launch.reward_replay import read_traces, replay, replay_findings, replay_report, trace_file
from launch.reward_texts import PICTURE_SIZE, PICTURES, RIGHT, example_rows, texts_of
from rewards.errors import RewardContractError
from rewards.loading import check_names
from rewards.rows import RewardRow
from rewards.settings import RewardSpec
from rewards.worker import Failure, Limits

#: Rows of cases that are asked with every text beside the built-in ones.
MOST_CASE_ROWS = 16


@dataclass(frozen=True)
class Inquiry:
    """What is checked against what: the reward, its limits, and the files that were given."""

    spec: RewardSpec
    limits: Limits
    cases: Path | None = None
    traces: Path | None = None


def inquiry(
    source: str,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    params: Sequence[str] = (),
    batched: bool = False,
    timeout: float | None = None,
    cases: Path | None = None,
    traces: str | None = None,
) -> Inquiry:
    """The arguments of the command, understood. RewardRefused or ConfigError for what makes no sense.

    With `config` the entry of reward.custom whose source or component is `source` counts, and its limits; `params`
    (NAME=JSON), `batched` and `timeout` go before what it says. A failed call is never tried again.
    """
    if overrides and config is None:
        raise RewardRefused("--set changes a configuration: give it with --config, or use --param")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise RewardRefused(f"--timeout {timeout:g}: must be a number of seconds above 0")
    spec, limits = RewardSpec(source), reward_limits(RewardConfig())
    if config is not None:
        own = load_config(config, overrides)
        spec = _declared(source, reward_specs(own.reward), reward_specs(with_absolute_paths(own).reward), config)
        limits = reward_limits(own.reward)
    spec = replace(spec, params={**spec.params, **_params(params)}, batched=spec.batched or batched)
    limits = replace(limits, retries=0, timeout_seconds=limits.timeout_seconds if timeout is None else timeout)
    return Inquiry(spec, limits, cases, None if traces is None else trace_file(traces))


def _declared(source: str, given: Sequence[RewardSpec], found: Sequence[RewardSpec], config: Path) -> RewardSpec:
    """The one spec of `given` that `source` names, as `found` has it: with absolute paths."""
    places = [place for place, spec in enumerate(given) if source in (spec.source, spec.component, found[place].source)]
    if len(places) == 1:
        return found[places[0]]
    names = ", ".join(f"{spec.component} ({spec.source})" for spec in given) or "none"
    what = "none of its rewards" if not places else "more than one of its rewards: give the component"
    raise RewardRefused(f"--config {config}: {source!r} is {what}; reward.custom has: {names}")


def _params(given: Sequence[str]) -> dict[str, object]:
    params = {}
    for text in given:
        name, equals, raw = text.partition("=")
        if not equals or not name.isidentifier():
            raise RewardRefused(f"--param {text}: must be written NAME=JSON, for example tolerance=0.1")
        try:
            params[name] = json.loads(raw)
        except ValueError:
            raise RewardRefused(f"--param {text}: the value is not JSON; a text needs quotes: '{name}=\"{raw}\"'") from None
    return params


def check(asked: Inquiry, tell: Callable[[str], None] = print) -> int:
    """Asks the reward everything and tells the report; 0 or 1. RewardRefused when it cannot be loaded, or changes."""
    cases = read_cases(asked.cases) if asked.cases is not None else []
    say = Progress(sys.stderr)
    try:
        check_names([asked.spec])
        findings = _contract(asked, cases, say)
        tell(f"reward {asked.spec.component!r} of {asked.spec.source}{_written(asked.spec.params)}\n")
        tell(report(findings))
        if cases:
            with printing_kept(), started(asked.spec, asked.limits) as process:
                judged = list(judged_cases(process, asked.spec, cases))
            tell(f"\n{asked.cases}\n{report(judged)}")
            findings += judged
        if asked.traces is not None:
            say(f"replaying {asked.traces}")
            with printing_kept(), started(asked.spec, asked.limits) as process:
                seen = replay(process, asked.spec, read_traces(asked.traces), say)
            judged = list(replay_findings(seen))
            tell(f"\n{replay_report(seen, asked.traces)}\n{report(judged)}")
            findings += judged
    except RewardContractError as error:
        raise RewardRefused(str(error)) from error
    faults = sum(finding.status == "FAIL" for finding in findings)
    tell("\nthe contract is kept" if not faults else f"\n{faults} fault{'s' if faults > 1 else ''} found")
    return 1 if faults else 0


def _contract(asked: Inquiry, cases: Sequence[Case], say: Say) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="ladder-reward-check-") as folder:
        rows, remarks = _rows(asked, example_rows(_pictures(Path(folder))), cases)
        say(f"asking {asked.spec.component!r} about {len(rows)} rows with {len(texts_of(rows[0]))} texts each")
        return [*findings_of(examine(asked.spec, asked.limits, rows, say)), *remarks]


def _rows(
    asked: Inquiry, built_in: Sequence[RewardRow], cases: Sequence[Case]
) -> tuple[Sequence[RewardRow], list[Finding]]:
    """The rows to ask about: the built-in ones and those of the cases.

    A reward that reads what only its own rows hold (metadata) has a value on no built-in row; when it has one in a
    case, it is asked about the rows of the cases alone.
    """
    # Cases of one row differ in its id, where they do not give one.
    own = list({repr(replace(case.row, id="")): case.row for case in reversed(cases)}.values())[::-1][:MOST_CASE_ROWS]
    if not own:
        return built_in, []
    with printing_kept(), started(asked.spec, asked.limits) as process:
        for row in built_in:
            (result,) = process.custom(0, row, [texts_of(row)[RIGHT]])
            if not isinstance(result, Failure) or result.outcome == "timeout":
                return [*built_in, *own], []
        if isinstance(process.custom(0, cases[0].row, [cases[0].text])[0], Failure):
            return [*built_in, *own], []
    remark = "asked about the rows of the cases only: it has no value on any built-in row, which hold no metadata"
    return own, [Finding("NOTE", "rows", remark, "give a case of every question type that a run will have")]


def _pictures(folder: Path) -> list[str]:
    """Pictures for rewards that look at them: plain ones."""
    from PIL import Image

    paths = [folder / f"view-{index}.png" for index in range(PICTURES)]
    for index, path in enumerate(paths):
        Image.new("RGB", PICTURE_SIZE, (90 + 40 * index, 120, 160)).save(path)
    return [str(path) for path in paths]


def _written(params: Mapping[str, object]) -> str:
    return f", params {json.dumps(params, ensure_ascii=False, default=str)}" if params else ""
