"""Batches: pure in the step, the same examples on any number of hosts, arrays that hold exactly the stored pairs."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.data.batches import BatchPlan, eval_batches, prefetch
from dsbs_jax.data.store import Split, StoreMeta, StoreWriter, Stream, TokenStore

TASKS = ("label", "rationale")


def write(root, rows, tasks=TASKS, streams=(), feature_lengths=(40, 30), key="k"):
    meta = StoreMeta("made", "exact", tasks, "f", 1000, feature_lengths, streams=streams)
    with StoreWriter(root, key) as writer:
        split = writer.split("train", tasks, 1000)
        for i, pairs in enumerate(rows):
            split.add(pairs, {"id": f"train/{i}", "input": "", "label": ""})
        return TokenStore.open(writer.commit(meta)).split("train")


def random_rows(count, seed=0, missing=0.2, tasks=2):
    """Every token sequence starts with its row's and task's own number, so that batches can be read back."""
    rng = np.random.default_rng(seed)

    def ids(first, longest):
        return [first, *rng.integers(3, 1000, rng.integers(0, longest - 1)).tolist(), 1]

    rows = []
    for i in range(count):
        pairs = [(ids(3 + i, 40), ids(3 + i, 6 if task == 0 else 30)) for task in range(tasks)]
        rows.append([pair if task == 0 or rng.random() > missing else None for task, pair in enumerate(pairs)])
    return rows


@pytest.fixture(scope="module")
def rows():
    return random_rows(50)


@pytest.fixture(scope="module")
def split(rows, tmp_path_factory):
    return write(tmp_path_factory.mktemp("stores"), rows)


def unpack(batch):
    """(task id, inputs, targets) of every segment, in the order of rows and segments."""
    found = []
    for row in range(len(batch["encoder_segment_ids"])):
        for segment in range(1, batch["encoder_segment_ids"][row].max(initial=0) + 1):
            encoder = batch["encoder_segment_ids"][row] == segment
            decoder = batch["decoder_segment_ids"][row] == segment
            inputs, targets = batch["encoder_input_tokens"][row][encoder], batch["decoder_target_tokens"][row][decoder]
            (task,) = set(batch["decoder_task_ids"][row][decoder].tolist())
            assert batch["encoder_positions"][row][encoder].tolist() == list(range(len(inputs)))
            assert batch["decoder_positions"][row][decoder].tolist() == list(range(len(targets)))
            assert batch["decoder_input_tokens"][row][decoder].tolist() == [0, *targets[:-1]]
            found.append((task, inputs.tolist(), targets.tolist()))
    return found


def expected(rows, indices):
    return [(task, *pair) for i in indices for task, pair in enumerate(rows[i]) if pair is not None]


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_holds_exactly_its_examples_pairs(rows, split, packed):
    plan = BatchPlan(split, batch_size=7, steps=30, packed=packed)
    for step in range(30):
        batch, indices = plan.batch(step), plan.indices(step)
        assert sorted(unpack(batch)) == sorted(expected(rows, indices.tolist()))
        for name, array in batch.items():
            length = plan.shape[1] if name.startswith("encoder") else plan.shape[2]
            assert array.shape == (plan.shape[0], length)
            assert array.dtype == (np.float32 if name == "decoder_loss_weights" else np.int32)
        for name, array in batch.items():
            side = name.split("_")[0]
            assert not array[batch[f"{side}_segment_ids"] == 0].any()
        assert (batch["decoder_loss_weights"] == (batch["decoder_target_tokens"] > 0)).all()
        stats = plan.stats(step)
        assert (stats.indices == indices).all()
        assert stats.encoder_tokens == (batch["encoder_input_tokens"] > 0).sum()
        assert stats.decoder_tokens == batch["decoder_loss_weights"].sum()
        assert stats.sequences == len(unpack(batch))
        assert stats.encoder_utilisation == (batch["encoder_segment_ids"] > 0).mean()
        assert stats.decoder_utilisation == (batch["decoder_segment_ids"] > 0).mean()


def test_unpacked_has_one_sequence_per_row(split):
    plan = BatchPlan(split, batch_size=7, steps=3, packed=False, row_multiple=4)
    assert plan.shape == (16, 48, 32)
    assert plan.batch(0)["encoder_segment_ids"].max() == 1


@settings(max_examples=25, deadline=None)
@given(hosts=st.sampled_from([1, 2, 4, 64]), interleaved=st.booleans(), step=st.integers(0, 99), seed=st.integers(0, 5))
def test_hosts_rows_make_up_the_global_batch(split, hosts, interleaved, step, seed):
    plan = BatchPlan(split, batch_size=8, steps=100, seed=seed, row_multiple=hosts)
    whole = plan.batch(step)
    everything = np.arange(plan.shape[0])
    # On a TPU torus a host's rows need not be neighbours.
    rows = [everything[host::hosts] for host in range(hosts)] if interleaved else np.split(everything, hosts)
    parts = [plan.batch(step, own) for own in rows]
    for name, array in whole.items():
        for own, part in zip(rows, parts, strict=True):
            np.testing.assert_array_equal(part[name], array[own])
    alone = BatchPlan(split, batch_size=8, steps=100, seed=seed)
    assert (alone.indices(step) == plan.indices(step)).all()
    assert sorted(unpack(alone.batch(step))) == sorted(unpack(whole))


def test_a_host_reads_the_tokens_of_its_own_rows_alone(split, monkeypatch):
    read = []

    class Recorded(np.ndarray):
        def __getitem__(self, key):
            read.append(np.size(key))
            return np.asarray(self)[key]

    ragged = Split.ragged

    def recorded(self, task, feature):
        tokens, offsets = ragged(self, task, feature)
        return tokens.view(Recorded), offsets

    monkeypatch.setattr(Split, "ragged", recorded)
    plan = BatchPlan(split, batch_size=16, steps=10)
    half = plan.batch(0, np.arange(plan.shape[0] // 2))
    own = sum(np.count_nonzero(half[f"{side}_segment_ids"]) for side in ("encoder", "decoder"))
    assert sum(read) == own
    plan.batch(0)
    assert sum(read) > 2 * own


def test_resuming_at_a_step_equals_running_to_it(split):
    running = BatchPlan(split, batch_size=8, steps=90, seed=3)
    seen = [running.batch(step) for step in range(90)]
    for step in (0, 1, 31, 32, 89):
        resumed = BatchPlan(split, batch_size=8, steps=90, seed=3)
        assert all((array == seen[step][name]).all() for name, array in resumed.batch(step).items())


def test_batches_cross_epochs_cleanly(split):
    plan = BatchPlan(split, batch_size=8, steps=100)
    slots = np.concatenate([plan.indices(step) for step in range(100)])
    assert (np.sort(slots.reshape(16, 50), axis=1) == np.arange(50)).all()


def test_a_batch_may_be_larger_than_the_data(split):
    plan = BatchPlan(split, batch_size=64, steps=3, fraction=0.1)
    assert plan.report["rows_used"] == 5
    slots = np.concatenate([plan.indices(step) for step in range(3)])[:190].reshape(38, 5)
    assert len(np.unique(np.sort(slots, axis=1), axis=0)) == 1
    assert plan.stats(2).sequences == len(unpack(plan.batch(2))) >= 64


def test_rows_divide_by_mesh_and_microbatches(split):
    plan = BatchPlan(split, batch_size=8, steps=10, row_multiple=4, microbatches=2)
    assert plan.shape[0] % 8 == 0
    assert (plan.indices(3) == BatchPlan(split, batch_size=8, steps=10).indices(3)).all()


@pytest.mark.parametrize("policy", ["label_only", "drop"])
def test_seeds_share_a_shape_and_fractions_its_row_lengths(split, policy):
    def plan(seed, fraction=1.0):
        return BatchPlan(split, batch_size=8, steps=60, seed=seed, fraction=fraction, rationale_policy=policy)

    (shape,) = {plan(seed).shape for seed in range(4)}
    for seed, fraction in ((0, 0.2), (3, 0.5), (11, 0.5), (12, 1.0)):
        other = plan(seed, fraction)
        assert other.shape[1:] == shape[1:]
        # Whatever needs more rows has them, and is another shape.
        assert other.shape[0] >= shape[0]
        for step in range(60):
            assert other.stats(step).sequences == len(unpack(other.batch(step)))


def test_a_fraction_without_gaps_is_not_refused_for_the_rows_outside_of_it(tmp_path):
    rows = [[([5, 1], [6, 1]), ([5, 1], [6, 1])] for _ in range(20)]
    full = BatchPlan(write(tmp_path / "full", rows), batch_size=2, steps=5, fraction=0.5)
    outside = next(i for i in range(20) if i not in {i for step in range(5) for i in full.indices(step).tolist()})
    rows[outside][1] = None
    split = write(tmp_path / "gap", rows)
    plan = BatchPlan(split, batch_size=2, steps=5, fraction=0.5, rationale_policy="error")
    assert plan.report["rows_used"] == 10
    with pytest.raises(ValueError, match=r"1 rows of .* lack a pair"):
        BatchPlan(split, batch_size=2, steps=5, rationale_policy="error")


def test_row_lengths_can_be_given(split):
    plan = BatchPlan(split, batch_size=8, steps=10, row_lengths=(100, 64))
    assert plan.shape[1:] == (100, 64)
    with pytest.raises(ValueError, match=r"pack_lengths is \(20, 64\).*sequences of \(40, \d+\)"):
        BatchPlan(split, batch_size=8, steps=10, row_lengths=(20, 64))


def test_steps_beyond_the_plan_are_refused_when_they_do_not_fit(tmp_path):
    rows = [[([5] * (40 if i == 63 else 2), [6, 1])] for i in range(64)]
    split = write(tmp_path, rows, tasks=("label",))
    plan = BatchPlan(split, batch_size=1, steps=64, row_lengths=(40, 2))
    assert plan.shape[0] == 1
    short = BatchPlan(split, batch_size=2, steps=1, row_lengths=(40, 40))
    long = next(step for step in range(32) if 63 in short.indices(step))
    assert long > 0
    with pytest.raises(ValueError, match=f"Step {long} needs more than 1 rows: this plan was made for 1 steps"):
        short.batch(long)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    rows = random_rows(20)
    rows[3] = [None, rows[3][1] or ([3, 1], [3, 1])]
    rows[4] = [None, None]
    rows[5] = [([8, 1], []), None]
    split = write(tmp_path, rows)
    plan = BatchPlan(split, batch_size=4, steps=5)
    assert plan.report["rows_excluded"] == {"no label pair": 3}
    assert plan.report["rows_used"] == 17
    assert not {3, 4, 5} & set(np.concatenate([plan.indices(step) for step in range(20)]).tolist())
    with pytest.raises(ValueError, match=r"lack a pair: train/\d+ \(no (label|rationale)"):
        BatchPlan(split, batch_size=4, steps=5, rationale_policy="error")


def test_drop_trains_only_on_complete_rows(rows, split):
    plan = BatchPlan(split, batch_size=4, steps=20, rationale_policy="drop")
    complete = {i for i, pairs in enumerate(rows) if pairs[1] is not None}
    assert set(np.concatenate([plan.indices(step) for step in range(20)]).tolist()) <= complete
    assert plan.report["rows_used"] == len(complete)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, r"fraction is 0\.0; it must lie in \(0, 1\]"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"microbatches": 0}, "microbatches is 0"),
    ],
)
def test_impossible_arguments(split, arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchPlan(split, **{"batch_size": 4, "steps": 5} | arguments)


def test_foreign_mixtures_draw_by_rate_and_feed_one_loss(tmp_path):
    streams = (Stream("a", 3.0, {"train": 10}), Stream("b", 1.0, {"train": 30}))
    split = write(tmp_path, random_rows(40, tasks=1), tasks=("target",), streams=streams)
    plan = BatchPlan(split, batch_size=8, steps=1024)
    drawn = np.concatenate([plan.indices(step) for step in range(1024)])
    # Two whole periods of the pattern: exact.
    assert (drawn < 10).mean() == 0.75
    assert plan.batch(5)["decoder_task_ids"].max() == 0


def test_plan_and_batch_are_quick(tmp_path):
    rng = np.random.default_rng(0)
    pool = [[3] * n + [1] for n in range(100)]
    rows = [[(pool[a], pool[2]), (pool[a], pool[b])] for a, b in rng.integers(20, 100, (2000, 2)) // np.array([1, 3])]
    split = write(tmp_path, rows, feature_lengths=(128, 64))
    started = time.perf_counter()
    plan = BatchPlan(split, batch_size=64, steps=2000)
    planned = time.perf_counter()
    for step in range(64):
        plan.batch(step)
    # Bounds are some ten times what an idle machine takes.
    assert planned - started < 6
    assert (time.perf_counter() - planned) / 64 < 0.02
    assert plan.report["encoder_utilisation"] > 0.7


def test_prefetch_yields_what_the_plan_gives(split):
    plan = BatchPlan(split, batch_size=8, steps=20)
    rows = np.arange(plan.shape[0] // 2)
    steps = []
    for step, batch, stats in prefetch(plan, 3, 12, rows):
        steps.append(step)
        assert all((array == plan.batch(step, rows)[name]).all() for name, array in batch.items())
        assert (stats.indices == plan.indices(step)).all()
    assert steps == list(range(3, 12))


def test_prefetch_hands_on_errors_and_ends_its_thread(split):
    plan = BatchPlan(split, batch_size=8, steps=20)
    before = threading.active_count()
    batches = prefetch(plan, 0, 10**6, depth=1)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before

    def fail(step, rows=None):
        raise ValueError(f"step {step} is broken")

    plan.batch = fail
    with pytest.raises(ValueError, match="step 4 is broken"):
        list(prefetch(plan, 4, 10))
    assert threading.active_count() == before


@pytest.mark.parametrize(("batch_size", "buckets"), [(8, 1), (8, 2), (64, 3), (50, 2)])
def test_eval_batches_hold_every_row_once(rows, split, batch_size, buckets):
    seen = []
    shapes = []
    for batch in eval_batches(split, "label", batch_size, buckets=buckets):
        shapes.append(batch.tokens.shape)
        assert len(batch.indices) == len(batch.valid) == batch_size
        for tokens, index in zip(batch.tokens, batch.indices, strict=True):
            assert tokens[tokens > 0].tolist() == rows[index][0][0]
        seen += batch.indices[batch.valid].tolist()
    assert sorted(seen) == list(range(50))
    assert len(set(shapes)) <= buckets
    assert shapes[0] == (batch_size, 40)  # 48 is beyond the feature length
    assert shapes == sorted(shapes, reverse=True)


def test_eval_batches_of_hosts_make_up_the_global_ones(split):
    rows = np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])
    for whole, *parts in zip(*(eval_batches(split, "label", 8, rows=own) for own in (None, *rows)), strict=True):
        for own, part in zip(rows, parts, strict=True):
            np.testing.assert_array_equal(part.tokens, whole.tokens[own])
            np.testing.assert_array_equal(part.indices, whole.indices)


def test_feeding_needs_no_tensorflow_and_no_jax():
    code = (
        "import sys; import dsbs_jax.data.batches, dsbs_jax.data.prepare; "
        "assert not {'tensorflow', 'seqio', 'jax', 'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
