"""What is read of rows before the first update: once each, on any number of ranks, by the rows' names."""

from dataclasses import dataclass, replace

import pytest
import torch

from conftest import tiny
from test_repnoise import _norms_in_float64  # noqa: F401  in float32 a row would depend on its batch
from test_step import same, step_for
from titer.data.batches import Encoded, collate
from titer.training import ranks
from titer.training.before import count_tokens, name_rows, read_before, recall
from titer.training.losses import answer_states, entropies
from trained import move


@pytest.mark.parametrize("read", [entropies, answer_states])
def test_what_is_recalled_in_any_batch_is_what_was_read(rows, accelerator, read):
    model = tiny()
    kept = read_before(step_for(model, rows, accelerator, 3), rows["rows"], read)
    part = collate([rows["rows"][i] for i in (8, 0, 8, 3)], 0)
    with torch.no_grad():
        wanted = read(model, part)
    move(model)
    found = recall(kept, part)
    assert found.shape == wanted.shape
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_rows_that_are_equal_are_read_once_and_without_a_gradient(rows, accelerator):
    """The shortest first, in batches as large as those of an update."""
    given = [*rows["rows"][:7], *rows["rows"][:3]]
    seen = []

    def read(model, part):
        assert not torch.is_grad_enabled()
        seen.append(part.mask.sum(1).tolist())
        return entropies(model, part)

    kept = read_before(step_for(tiny(), rows, accelerator, 3), iter(given), read)
    assert [len(lengths) for lengths in seen] == [3, 3, 1]
    assert [n for lengths in seen for n in lengths] == sorted(len(row.ids) for row in given[:7])
    assert len(kept) == 7


def test_passes_compute_in_the_dtype_of_the_updates(rows, accelerator):
    step = step_for(tiny(torch.float32), rows, accelerator)
    fine = read_before(step, rows["rows"], answer_states)
    step.autocast = torch.bfloat16
    coarse = read_before(step, rows["rows"], answer_states)
    assert fine.keys() == coarse.keys()
    assert not any(torch.equal(fine[name], coarse[name]) for name in fine)


@dataclass
class Rank:
    """What reading asks of an accelerator, as on one of several ranks."""

    process_index: int
    num_processes: int
    device: str = "cpu"


def test_ranks_share_the_reading_and_have_all_of_it(rows, accelerator, monkeypatch):
    """Each reads a part, the parts are all rows, and what it has afterwards is what all have read."""
    step = step_for(tiny(), rows, accelerator, 3)
    alone = read_before(step, rows["rows"], entropies)
    parts = []

    def gather(found):
        parts.append(found)
        return [entry for part in parts for entry in part]

    monkeypatch.setattr(ranks, "gather_object", gather)
    for rank in range(2):
        step.accelerator = Rank(rank, 2)
        together = read_before(step, rows["rows"], entropies)
    for _, of_row in parts[0] + parts[1]:  # what ranks send each other is no view of a whole batch
        assert of_row.untyped_storage().nbytes() == of_row.nbytes
    assert sum(len(part) for part in parts) == len(set(rows["rows"])) == len(alone)
    assert abs(len(parts[0]) - len(parts[1])) <= 3
    assert same(alone, together)


def test_a_row_has_a_name_of_its_own_in_any_batch(rows):
    a, b = rows["rows"][0], rows["rows"][-1]
    assert len(a.ids) < len(b.ids)
    [name] = name_rows(collate([a], 0))
    assert name_rows(collate([b, a, a], 0))[1:] == [name, name]
    later = replace(a, answer=a.answer + 1)
    longer = Encoded((*a.ids, 0), a.answer)  # a pad that is a token of the answer
    other = replace(a, ids=(*a.ids[:-1], a.ids[-1] + 1))
    assert len({name, *name_rows(collate([b, later, longer, other], 0))}) == 5
    assert count_tokens(collate([b, later, longer], 0)) == [
        len(row.ids) - row.answer for row in (b, later, longer)
    ]
