"""Every example of docs/cloud-config-guide.md is good and does what the page says it does."""

from __future__ import annotations

import pytest

from proa.machine.cloudconfig.changes import describe
from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.plan import Given, Plan, plan_for
from proa.machine.cloudconfig.sources import nocloud
from support.guide import Example, examples

EXAMPLES = examples()


def planned(example: Example) -> tuple[Plan, list[Problem]]:
    """What a machine plans that has this example on a disk of NoCloud."""
    problems: list[Problem] = []
    content = nocloud.Content(
        meta_data=example.files["meta-data"].encode(),
        user_data=example.files["user-data"].encode(),
        network_config=example.files.get("network-config", "").encode(),
    )
    source = nocloud.source("the guide", content, {}, problems)
    return plan_for(Given(source.user_data, metadata=source.metadata)), problems


def test_the_page_has_ten_examples() -> None:
    assert [example.number for example in EXAMPLES] == list(range(1, 11))
    assert all(example.makes and example.shown for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.number))
def test_an_example_is_good_and_makes_what_the_page_says(example: Example) -> None:
    plan, problems = planned(example)
    assert [str(problem) for problem in (*problems, *plan.problems)] == []
    assert not plan.refused
    assert tuple(describe(change) for change in plan.changes) == example.makes
