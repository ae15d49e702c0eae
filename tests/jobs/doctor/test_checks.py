"""Each planted fault is found, and nothing else is said; of a healthy site nothing but good."""

from dataclasses import replace

import pytest

from jobs.doctor.checks import OF_BOTH, OF_SLURM, check
from jobs.doctor.facts import RUNS
from jobs.doctor.findings import FAILURE, GOOD, WARNING, Finding
from jobs.doctor.measured import Measured
from jobs.doctor.place import Written
from jobs.doctor.site import Trial
from jobs.doctor.software import Torch
from jobs.doctor.wish import Wish, wish_to_predict, wish_to_train
from jobs.pipeline import REPORT, STAGE, JobSpec
from jobs.runs import Run
from tests.jobs.doctor.cases import CASES, UNUSUAL, Case, R
from tests.jobs.doctor.healthy import NFS, TEXTS, Change, facts, local, wish


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
    level = WARNING if case.level == R else case.level
    assert [(each.level, each.about) for each in found] == [(level, case.about)], found
    assert case.text in found[0].text
    assert case.remedy in found[0].remedy


@pytest.mark.parametrize("case", [case for case in CASES if case.level == R], ids=lambda case: case.name)
def test_what_the_site_forbids_fails_where_sbatch_does_not_take_it(case: Case) -> None:
    change = replace(case.change, trial=None)
    found = bad(check(wish(change), facts(change)))
    assert {(each.level, each.about) for each in found} == {(FAILURE, case.about), (WARNING, "sbatch")}, found
    change = replace(case.change, trial=Trial(False, "allocation failure: Invalid something"))
    found = bad(check(wish(change), facts(change)))
    assert (FAILURE, case.about) in {(each.level, each.about) for each in found}


@pytest.mark.parametrize("case", UNUSUAL, ids=lambda case: case.name)
@pytest.mark.parametrize("asked", [True, False], ids=["sbatch takes it", "sbatch is silent"])
def test_what_is_unusual_does_not_fail(case: Case, asked: bool) -> None:
    change = case.change if asked else replace(case.change, trial=None)
    assert [each for each in check(wish(change), facts(change)) if each.level == FAILURE] == []


def test_what_is_unusual_has_names_of_its_own() -> None:
    assert len({case.name for case in UNUSUAL}) == len(UNUSUAL) >= 30


def test_a_refusal_by_a_partition_is_none_where_there_is_another() -> None:
    change = Change((("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=INACTIVE"),
                     ("partitions", "PartitionName=cpu", "PartitionName=more"),
                     ("nodes", "Partitions=gpu", "Partitions=gpu,more")),
                    cluster={"partition": "gpu,more", "cpu_partition": ""}, trial=None)  # fmt: skip
    assert [each.about for each in bad(check(wish(change), facts(change)))] == ["sbatch"]
    alone = replace(change, cluster={"partition": "gpu", "cpu_partition": ""})
    assert FAILURE in {each.level for each in check(wish(alone), facts(alone))}


FOUR = (("qos", "gres/gpu=16", "gres/gpu=4"), ("qos", "|10|20|", "|10|1|"))


def test_a_prediction_asks_for_one_node_whatever_the_stages_have() -> None:
    change = Change(FOUR, trial=None)
    asked = wish_to_predict(wish(change).cluster, wish(change).runs)
    assert (asked.nodes, asked.gpus, asked.jobs, asked.cpus) == (1, 4, 1, 32)
    assert asked.parameters()["nodes"] == 1
    found = check(asked, replace(facts(change), weights={}, measured=Measured("own", 200.0, 100.0)))
    assert [each for each in found if each.level == FAILURE] == []


def left(*kinds: str) -> Wish:
    asked = wish(Change())
    run = Run(asked.runs / asked.configs[0].run)
    return wish_to_train(asked.configs, asked.cluster, jobs=[JobSpec(run, f"{kind} {n}", kind) for n, kind in
                                                             enumerate(kinds)])  # fmt: skip


def test_a_run_with_only_its_report_left_needs_neither_gpus_nor_their_partition_nor_room() -> None:
    change = Change((*FOUR, ("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=INACTIVE")),
                    facts={"folders": {RUNS: replace(NFS, free=1_000_000_000)}}, trial=None)  # fmt: skip
    asked = replace(left(REPORT), outside={})
    assert (asked.nodes, asked.gpus, asked.partition, asked.jobs, asked.cpu_partitions) == (1, 0, "cpu", 1, ())
    nodes = replace(facts(change).site.nodes[0], name="c0", partitions=("cpu",), gpus={})
    there = facts(change)
    there = replace(there, site=replace(there.site, nodes=(*there.site.nodes, nodes)), torch=Torch("2.9.0+cpu"))
    assert [each for each in check(asked, there) if each.level == FAILURE] == []


def test_jobs_that_are_done_are_not_counted() -> None:
    assert wish(Change()).jobs == 4
    asked = left(STAGE, REPORT)
    assert asked.jobs == 2
    assert asked.left(asked.configs[0]) == ("stage 0",)
    change = Change((("qos", "|10|20|", "|10|2|"),), trial=None)
    assert "limits" in {each.about for each in bad(check(wish(change), facts(change)))}
    assert "limits" not in {each.about for each in bad(check(replace(asked, outside={}), facts(change)))}


def test_one_checkpoint_is_always_written_before_an_old_one_goes() -> None:
    (name,) = (config.run for config in wish(Change()).configs)
    change = Change(facts={"folders": {RUNS: replace(NFS, free=700_000_000)}, "held": {name: 10**12}})
    assert (FAILURE, "disk") in {(each.level, each.about) for each in check(wish(change), facts(change))}


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
        ("qos", "gres/gpu=16||cluster|00:00:00|", "gres/gpu=16||cancel|00:05:00|"),
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
