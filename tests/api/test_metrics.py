"""The instruments, and what Prometheus reads of them."""

from prometheus_client.parser import text_string_to_metric_families

from infra.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_counter_counts_each_set_of_labels() -> None:
    metrics = Metrics("x")
    counter = metrics.counter("requests_total", "Requests.", ("model", "code"))

    counter.add("a", "200")
    counter.add("a", "200", by=2)
    counter.add('b"\n', "500")

    assert samples(metrics) == {
        ("x_requests_total", (("code", "200"), ("model", "a"))): 3.0,
        ("x_requests_total", (("code", "500"), ("model", 'b"\n'))): 1.0,
    }


def test_counts_are_found_and_dropped_by_how_their_labels_begin() -> None:
    counter = Metrics("x").counter("requests_total", "Requests.", ("model", "revision", "code"))
    counter.add("a", "a@1", "200", by=3)
    counter.add("a", "a@1", "500")
    counter.add("a", "a@11", "200")

    assert counter.matching("a", "a@1") == {("a", "a@1", "200"): 3, ("a", "a@1", "500"): 1}
    counter.forget("a", "a@1")
    assert counter.matching("a") == {("a", "a@11", "200"): 1}


def test_what_was_counted_of_something_that_is_gone_is_dropped() -> None:
    metrics = Metrics("x")
    requests = metrics.counter("requests_total", "Requests.", ("code", "model"))
    webhooks = metrics.counter("webhooks_total", "Calls.", ("outcome",))
    waits = metrics.histogram("wait_seconds", "Wait.", ("model",), buckets=(1,))
    for model in ("kept", "gone"):
        requests.add("200", model)
        waits.observe(model, value=1)
    webhooks.add("delivered")

    metrics.retain("model", lambda model: model == "kept")

    assert {labels for _, labels in samples(metrics) if ("model", "gone") in labels} == set()
    assert requests.value("200", "kept") == waits.count("kept") == webhooks.value("delivered") == 1


def test_a_histogram_counts_up_to_each_bound() -> None:
    metrics = Metrics("x")
    histogram = metrics.histogram("wait_seconds", "Wait.", ("stage",), buckets=(0.1, 1))

    for value in (0.1, 0.5, 7.0):
        histogram.observe("queue", value=value)

    stage = ("stage", "queue")
    assert samples(metrics) == {
        ("x_wait_seconds_bucket", (("le", "0.1"), stage)): 1.0,
        ("x_wait_seconds_bucket", (("le", "1.0"), stage)): 2.0,
        ("x_wait_seconds_bucket", (("le", "+Inf"), stage)): 3.0,
        ("x_wait_seconds_count", (stage,)): 3.0,
        ("x_wait_seconds_sum", (stage,)): 7.6,
    }


def test_a_gauge_shows_the_state_of_the_moment() -> None:
    metrics = Metrics("x")
    state = {"a": 1.0}
    metrics.gauge(
        "load", "Load.", ("model",), lambda: (((name,), it) for name, it in state.items())
    )

    first = samples(metrics)
    state["a"] = 0.0
    state["b"] = 2.0

    assert first == {("x_load", (("model", "a"),)): 1.0}
    assert samples(metrics) == {
        ("x_load", (("model", "a"),)): 0.0,
        ("x_load", (("model", "b"),)): 2.0,
    }
