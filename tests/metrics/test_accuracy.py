import json

import numpy as np
import pytest

from dsbs_jax.metrics.accuracy import score


def test_exact_ignores_spaces_but_not_case():
    result = score("exact", [" the  bank\n", "Bank", "", "banks"], ["the bank", "bank", "", "bank"])
    assert result.dtype == np.bool_
    assert result.tolist() == [True, False, True, False]


def test_equation_compares_values():
    references = ["( 84.0 / 2.0 )"] * 5
    predictions = ["42", "(84 / 2).", "( 84.0 / 2.0 ) )", "many", ""]
    assert score("equation", predictions, references).tolist() == [True, True, False, False, False]


def test_equation_compares_texts_where_the_reference_has_no_value():
    assert score("equation", ["They are  equal", "9:30", "9"], ["They are equal", "9:30", "9:30"]).tolist() == [
        True,
        True,
        False,
    ]


def test_empty():
    assert score("exact", [], []).shape == (0,)


def test_unknown_metric_and_unequal_lengths():
    with pytest.raises(ValueError, match="There is no metric 'f1'; the metrics are exact, equation"):
        score("f1", [], [])
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score("exact", ["a"], ["a", "b"])


def test_every_svamp_label_has_a_value(shared_data):
    for split in ("train", "test"):
        path = shared_data / "dss" / "svamp" / f"svamp_{split}.json"
        labels = [json.loads(line)["label"] for line in path.read_text().splitlines()]
        assert score("equation", labels, labels).all()
        assert not score("equation", ["some"] * len(labels), labels).any()
