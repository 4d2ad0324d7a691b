"""Tables and plots over finished runs, from files as a run leaves them."""

import json

import numpy as np
import pytest

from dsbs_jax.experiments.compare import comparison_table, plot_fractions


def finished_run(folder, method, fraction, seed, correct, ids=None, labels="gold"):
    """What `train` leaves in a run's folder, as far as a comparison reads it."""
    folder.mkdir()
    result = {"method": method, "label_source": labels, "fraction": fraction, "seed": seed}
    result["test_accuracy"] = float(np.mean(correct))
    (folder / "summary.json").write_text(json.dumps({"result": result}))
    rows = [{"id": f"test/{i if ids is None else ids[i]}", "correct": bool(c)} for i, c in enumerate(correct)]
    (folder / "predictions_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, result


def test_table_has_means_errors_and_the_paired_test(tmp_path):
    folders = []
    for seed, (a, b) in enumerate([([1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]), ([0] * 8, [1] * 8)]):
        folders.append(finished_run(tmp_path / f"a{seed}", "standard", 0.5, seed, a)[0])
        folders.append(finished_run(tmp_path / f"b{seed}", "step_by_step", 0.5, seed, b)[0])
        # Other labels are another comparison.
        folders.append(finished_run(tmp_path / f"c{seed}", "standard", 0.5, seed, [0] * 8, labels="teacher")[0])
        folders.append(finished_run(tmp_path / f"d{seed}", "step_by_step", 0.5, seed, [0] * 8, labels="teacher")[0])
    rows = [line for line in comparison_table(folders, ("standard", "step_by_step")).splitlines() if "50%" in line]
    gold, teacher = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    assert (gold[0], teacher[0]) == ("gold", "teacher")
    assert teacher[2:4] == ["0.000 ± 0.000"] * 2
    cells = gold[1:]
    # Means of (1/8, 0) and (7/8, 1), errors |x1 - x2| / 2.
    assert cells[1:3] == ["0.062 ± 0.062", "0.938 ± 0.062"]
    assert cells[3].startswith("+0.875")
    # All eight seed-averaged differences are positive: two of the 2^8 sign assignments are as extreme.
    assert float(cells[4]) == pytest.approx(2 / 2**8, rel=0.05)


def test_runs_on_other_examples_are_not_paired(tmp_path):
    one, _ = finished_run(tmp_path / "a", "standard", 1.0, 0, [1, 0, 1])
    other, _ = finished_run(tmp_path / "b", "step_by_step", 1.0, 0, [1, 0, 1], ids=[3, 4, 5])
    with pytest.raises(ValueError, match="cannot be paired"):
        comparison_table([one, other], ("standard", "step_by_step"))


def test_plot_is_a_picture_with_both_methods(tmp_path):
    lines = []
    for method in ("standard", "step_by_step"):
        for fraction in (0.5, 1.0):
            for seed in (0, 1):
                name = f"{method}{fraction}{seed}"
                lines.append(finished_run(tmp_path / name, method, fraction, seed, [seed, 1, fraction == 1.0])[1])
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_fractions(results, tmp_path / "plot.png")
    from matplotlib import image

    pixels = image.imread(tmp_path / "plot.png")
    # Both lines' colours are there (blue #0072B2 and vermilion #D55E00), give or take anti-aliasing.
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        distance = np.abs(pixels[..., :3] - np.array(colour) / 255).max(axis=-1)
        assert (distance < 0.02).sum() > 50
