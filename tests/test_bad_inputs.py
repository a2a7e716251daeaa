"Two hundred random bad calls over the public functions of each chapter of part III: each ends in a named error, none in a number."
import importlib
import pytest
import torch
from discdiff_nb.core import DiscdiffError

CHAPTERS = 'nets', 'train', 'sampling', 'metrics'


def bad_calls(chapter, n):
    "n calls (function, arguments, keywords) from tests/bad_CHAPTER.py, of new random sizes in every round."
    make, generator, found = getattr(importlib.import_module(f'bad_{chapter}'), f'bad_{chapter}'), torch.Generator().manual_seed(0), []
    while len(found) < n: found += list(make(generator))
    return found[:n]


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_two_hundred_bad_calls_end_in_named_errors(chapter):
    calls = bad_calls(chapter, 200)
    assert len({getattr(f, '__name__', type(f).__name__) for f, _, _ in calls}) >= 5
    for f, args, kwargs in calls:
        with pytest.raises(DiscdiffError) as caught: f(*args, **kwargs)
        assert len(str(caught.value)) > 15, (f, str(caught.value))
