"""The parts of the benchmarks that need no cluster."""

import math

import orjson
import pytest
from scale import etcd, objects
from scale.metrics import parse_metrics, total, within
from scale.report import Report, Row, number, percentile
from scale.sizes import Sizes


class TestRows:
    @pytest.mark.parametrize(
        ("bound", "measured", "ok"),
        [("<=", 5.0, True), ("<=", 5.1, False), (">=", 5.0, True), (">=", 4.9, False), ("", 99.0, None)],
    )
    def test_verdict(self, bound: str, measured: float, ok: bool | None) -> None:
        assert Row("g", "n", measured, "s", bound, 5.0).ok is ok  # type: ignore[arg-type]

    def test_a_report_is_good_if_nothing_failed_and_nothing_was_missed(self) -> None:
        good, bad = Row("g", "n", 1, "s", "<=", 2), Row("g", "n", 3, "s", "<=", 2)
        assert Report({}, [good, Row("g", "n", 3, "s")]).ok
        assert not Report({}, [good, bad]).ok
        assert not Report({}, [good], {"cold": "TimeoutError: "}).ok

    def test_json_has_no_nan(self) -> None:
        written = orjson.loads(orjson.dumps(Report({"cores": 2}, [Row("g", "n", 1.5, "s")]).to_json()))
        assert written["rows"] == [
            {
                "group": "g", "name": "n", "measured": 1.5, "unit": "s", "bound": "", "target": None, "note": "",
                "ok": None,
            }
        ]  # fmt: skip

    def test_the_table_names_a_group_once_and_failures_below(self) -> None:
        rows = [Row("one", "a", 1, "s", "<=", 2), Row("one", "b", 3, "s", "<=", 2), Row("two", "c", 4, "s")]
        lines = Report({}, rows, {"burst": "OSError: no"}).table().splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:5]] == ["one", "", "two"]
        assert [line.split("|")[5].strip() for line in lines[2:5]] == ["yes", "**no**", ""]
        assert lines[-1] == "burst failed: OSError: no"

    @pytest.mark.parametrize(
        ("value", "text"), [(10000.0, "10 000"), (0.4321, "0.432"), (123.4, "123"), (7.0, "7"), (math.nan, "-")]
    )
    def test_numbers(self, value: float, text: str) -> None:
        assert number(value) == text


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (99.5, 100), (100, 100), (0, 1)])
def test_percentile(percent: float, expected: float) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


@pytest.mark.parametrize(("percent", "bound"), [(50, 0.1), (75, 0.1), (90, 1.0), (99, math.inf)])
def test_a_histogram_tells_a_bound_for_what_came_between_two_readings(percent: float, bound: float) -> None:
    def reading(*counts: int) -> str:
        bounds = ("0.1", "1.0", "+Inf")
        named = zip(bounds, counts, strict=True)
        lines = [f'wait_bucket{{name="a",le="{le}"}} {count}' for le, count in named]
        return "\n".join([*lines, 'wait_bucket{name="b",le="+Inf"} 1000', f"wait_count{{}} {counts[-1]}"])

    before, after = parse_metrics(reading(50, 50, 50)), parse_metrics(reading(125, 145, 150))
    assert within(before, after, "wait", percent, name="a") == bound
    assert within(after, after, "wait", percent, name="a") == 0


def test_metrics_are_read_by_name_and_labels() -> None:
    text = (
        "# HELP a_total x\n# TYPE a_total counter\n"
        'a_total{controller="M",result="ok"} 3.0\na_total{controller="M",result="bad"} 1.0\n'
        'a_total{controller="B",result="ok"} 7.0\nplain 1e-05\n'
    )
    samples = parse_metrics(text)
    assert total(samples, "a_total", controller="M") == 4
    assert total(samples, "a_total", result="ok") == 10
    assert total(samples, "plain") == 1e-05
    assert total(samples, "absent") == 0


def test_a_transaction_is_what_protobuf_makes_of_it() -> None:
    # Field 2 (success) of TxnRequest holds field 2 (request_put) of RequestOp with key 1 and value 2.
    assert etcd.transaction([("/k", b"v")]) == bytes.fromhex("12091207" + "0a022f6b" + "120176")
    long = etcd.transaction([("/k", b"v" * 300)])
    assert long.endswith(bytes.fromhex("12ac02") + b"v" * 300)
    assert etcd.transaction([("/a", b"1"), ("/b", b"2")]).count(b"\x12") == 6


class TestObjects:
    def test_keys_in_etcd(self) -> None:
        from rm_operator.kube import resources as r

        def key(resource: r.Resource, namespace: str = "ns") -> str:
            metadata = {"name": "n", "uid": "u"} | ({"namespace": namespace} if namespace else {})
            return objects.entry(resource, {"metadata": metadata})[0]

        assert key(r.MODEL_DEPLOYMENTS) == "/registry/rm-abstract.io/modeldeployments/ns/n"
        assert key(r.ACCELERATOR_RESOURCES, "") == "/registry/rm-abstract.io/acceleratorresources/n"
        assert key(r.DEPLOYMENTS) == "/registry/deployments/ns/n"
        assert key(r.SERVICES) == "/registry/services/specs/ns/n"
        assert key(r.NODES, "") == "/registry/minions/n"
        assert key(r.ENDPOINTSLICES) == "/registry/endpointslices/ns/n"

    def test_what_is_kept_has_no_version_of_its_own(self) -> None:
        from rm_operator.kube.resources import PODS

        obj = {"metadata": {"namespace": "ns", "name": "n", "uid": "u", "resourceVersion": "5"}}
        assert "resourceVersion" not in orjson.loads(objects.entry(PODS, obj)[1])["metadata"]

    def test_a_large_cluster_has_one_pod_in_a_hundred_with_a_device(self) -> None:
        entries = list(objects.foreign_entries(10, 1000))
        assert len(entries) == len({key for key, _ in entries}) == 1010
        assert (
            sum(objects.RESOURCE_NAME.encode() in value and b"/pods/" in key.encode() for key, value in entries) == 10
        )


def test_a_smaller_run_has_smaller_sizes_and_the_same_rate() -> None:
    small = Sizes().scaled(0.1)
    assert (small.deployments, small.foreign_pods, small.burst) == (1000, 15_000, 100)
    assert small.changes_per_second == Sizes().changes_per_second
