"Which windows of a text a job reads."
import pytest
import torch
from discdiff_nb.core import DataError
from discdiff_nb.runs import Job, evenly, examples, source_bytes


def job(**changes):
    return Job(**dict(name='read', data='source', process='absorbing', K=256, net={}, steps=1,
                      batch_size=8, lr=1e-3) | changes)


def test_windows():
    "One after the other to train on; the first, the middle and the last of what is held out."
    data, text = examples(job(length=40, tested=3)), source_bytes()
    assert torch.equal(data.train[7], text.train[280:320].long())
    last = len(text.test) // 40 - 1
    starts = [40 * i for i in (0, round(last / 2), last)]
    assert torch.equal(data.test, torch.stack([text.test[i:i + 40] for i in starts]).long())


def test_evenly():
    assert torch.equal(evenly(30_011, None), torch.arange(30_011))
    assert torch.equal(evenly(3, 9), torch.arange(3))
    assert evenly(9, 3).tolist() == [0, 4, 8]


def test_no_length():
    with pytest.raises(DataError, match='read reads a text: give length'): examples(job())


def test_source():
    "Nothing of the source is lost or read twice."
    text = source_bytes()
    whole = bytes(torch.cat([text.train, text.valid, text.test]).tolist())
    assert whole.startswith(b'"""') or whole.startswith(b'__version__')
    assert len(text.valid) == len(text.test) == len(whole) // 20
