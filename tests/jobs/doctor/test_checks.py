"""Each planted fault is found, and nothing else is said; of a healthy site nothing but good."""

from dataclasses import replace

import pytest

from jobs.doctor.checks import OF_BOTH, OF_SLURM, check
from jobs.doctor.findings import GOOD, Finding
from jobs.doctor.place import Written
from jobs.doctor.software import Torch
from tests.jobs.doctor.cases import CASES, Case
from tests.jobs.doctor.healthy import TEXTS, Change, facts, local, wish


def bad(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.level != GOOD]


def test_there_are_many_cases_each_with_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 20


def test_a_healthy_site_is_all_good() -> None:
    found = check(wish(Change()), facts(Change()))
    assert bad(found) == []
    assert len(found) >= 20
    assert all(each.text and not each.remedy for each in found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_is_found_and_nothing_else(case: Case) -> None:
    found = bad(check(wish(case.change), facts(case.change)))
    assert [(each.level, each.about) for each in found] == [(case.level, case.about)], found
    assert case.text in found[0].text
    assert case.remedy in found[0].remedy


def test_every_check_finds_some_fault_or_has_none_to_find() -> None:
    finds = set()
    for case in CASES:
        asked = wish(case.change)
        finds |= {each.__name__ for each in (*OF_SLURM, *OF_BOTH) if bad(list(each(asked, facts(case.change))))}
    assert {each.__name__ for each in (*OF_SLURM, *OF_BOTH)} - finds == {"check_network"}


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_this_machine_is_all_good_where_it_is(cluster: str) -> None:
    found = check(*local(cluster))
    assert bad(found) == []
    assert {"cores", "shared memory", "disk", "store", "weights"} <= {each.about for each in found}


LOCAL = [
    ("shared memory", "warning", {"shared_memory": 64 << 20}),
    ("cores", "warning", {"cores": 1}),
    ("writing", "failure", {"written": Written("no")}),
    ("gpus", "failure", {"torch": Torch("2.9.0+cu126", "12.6", ("sm_70",), ("V100",)), "driver": "550.1"}),
    (
        "torch",
        "failure",
        {"torch": Torch("2.13.0", "13.0", ("sm_75",), ("Tesla V100",) * 2), "driver": "1"},
    ),
]


@pytest.mark.parametrize(("about", "level", "values"), LOCAL, ids=lambda value: value if isinstance(value, str) else "")
def test_a_fault_of_this_machine_is_found(about: str, level: str, values: dict[str, object]) -> None:
    found = bad(check(*local("local", **values)))
    assert [(each.level, each.about) for each in found] == [(level, about)]


def test_preemption_by_quality_of_service_goes_by_its_own_mode_and_grace() -> None:
    texts = (
        ("config", "preempt/partition_prio", "preempt/qos"),
        ("qos", "gres/gpu=16||cluster|00:00:00", "gres/gpu=16||cancel|00:05:00"),
    )
    found = check(wish(Change(texts)), facts(Change(texts)))
    (told,) = (each for each in found if each.about == "preemption")
    assert told.level == GOOD
    assert "CANCEL" in told.text
    assert "300 s" in told.text


def test_a_site_without_accounts_is_not_checked_for_them() -> None:
    change = Change((("qos", TEXTS["qos"], ""), ("associations", TEXTS["associations"], "")))
    found = check(wish(change), facts(change))
    assert bad(found) == []
    assert any("keeps no accounts" in each.text for each in found)


def test_what_lies_on_a_disk_is_seen_by_nodes_that_are_this_machine() -> None:
    (case,) = (case for case in CASES if case.name == "python on this machine's disk")
    change = replace(case.change, texts=(("nodes", "NodeAddr=10.0.0.1", "NodeAddr=127.0.0.1"),))
    assert bad(check(wish(change), facts(change))) == []


def test_drained_nodes_do_not_explain_another_refusal_of_sbatch() -> None:
    (case,) = (case for case in CASES if case.name == "nodes out of service")
    assert case.change.trial is not None
    change = replace(case.change, trial=replace(case.change.trial, text="Invalid qos specification"))
    found = bad(check(wish(change), facts(change)))
    assert [(each.level, each.about) for each in found] == [("warning", "nodes"), ("failure", "sbatch")]
