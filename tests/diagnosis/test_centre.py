"""Where the images sit, against numpy."""

import numpy as np
import pytest
import torch

from escnn_relax.diagnosis.centre import Centre


def offset(*batches):
    centre = Centre()
    for batch in batches:
        centre.add(batch)
    return centre.offset()


@pytest.mark.parametrize("size", [(5, 7), (4, 3, 5)])
def test_centre_of_few_images_far_from_zero(size):
    """Against numpy's variance: what is the same in all images has none."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 2, *size, generator=generator) + 30 * torch.rand(2, *size, generator=generator)
    variance = images.double().numpy().var(axis=0).sum(0)
    places = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    expected = [float((place * variance).sum() / variance.sum()) for place in places]
    assert offset(images[:2], images[2:]) == pytest.approx(expected, rel=1e-8)
    assert offset(images[:2], torch.ones(9, 2, *(n + 1 for n in size)), images[2:]) == pytest.approx(expected, rel=1e-8)


def test_no_centre_without_variance():
    assert offset() is None and offset(torch.ones(3, 1, 4, 4), torch.ones(2, 1, 4, 4)) is None
