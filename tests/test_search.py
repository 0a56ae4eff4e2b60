"""The sensitivity scan against models changed and counted one by one."""

import pytest

import yolo_slim_lessons as slim


def test_scan_holds_the_accuracy_of_each_model(nano, data):
    few = data.val.take(60)
    layers, rates = ["model.1.conv", "model.9.linear"], [0.0, 0.95]
    scan = slim.sensitivity(nano, few, slim.prune_weights, layers, rates, progress=False)
    assert (scan.layers, scan.rates, scan.images) == (tuple(layers), tuple(rates), 60)
    assert scan.baseline == slim.evaluate(nano, few, progress=False).top1
    assert scan.top1.shape == (2, 2)
    assert (scan.top1[:, 0] == scan.baseline).all()
    for layer, top1 in zip(layers, scan.top1[:, 1], strict=True):
        assert top1 == slim.evaluate(slim.prune_weights(nano, {layer: 0.95}), few, progress=False).top1
    assert scan.top1[0, 1] < scan.baseline  # an early layer does not bear 95 %


def test_change_is_called_with_one_layer_and_rate_at_a_time(nano, data):
    calls = []
    slim.sensitivity(
        nano, data.val.take(10), lambda model, change: calls.append(change) or model, "ab", [0.1, 0.2], progress=False
    )
    assert calls == [{"a": 0.1}, {"a": 0.2}, {"b": 0.1}, {"b": 0.2}]


@pytest.mark.parametrize(("layers", "rates"), [([], [0.5]), (["model.0.conv"], [])])
def test_nothing_to_scan(nano, data, layers, rates):
    with pytest.raises(ValueError, match="expected at least one of each"):
        slim.sensitivity(nano, data.val.take(10), slim.prune_weights, layers, rates)


def test_a_wrong_layer_is_named(nano, data):
    with pytest.raises(ValueError, match="'conv7'"):
        slim.sensitivity(nano, data.val.take(10), slim.prune_weights, ["conv7"], [0.5], progress=False)
