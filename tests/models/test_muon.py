"""Muon against the singular value decomposition and torch's own, and what it does with the inverse root it keeps."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reelwright.models.muon import ALWAYS_UNTIL, RMS, Muon, inverse_root

torch.set_num_threads(1)


def one_step(gradient: torch.Tensor, **settings) -> torch.Tensor:
    """What the first step takes away, divided by the learning rate."""
    matrix = nn.Parameter(torch.zeros_like(gradient))
    matrix.grad = gradient
    Muon([matrix], 0.5, dtype=gradient.dtype, **settings).step()
    return -matrix.detach() / 0.5


def test_the_inverse_root_inverts():
    rows = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root = inverse_root(rows @ rows.T)
    assert_close(root @ rows @ rows.T @ root, torch.eye(6, dtype=torch.float64), atol=1e-3, rtol=0)
    assert torch.isfinite(inverse_root(torch.zeros(4, 4))).all()


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (8, 8)])
def test_a_step_is_the_orthogonal_factor_at_adamws_size(shape):
    gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = one_step(gradient, weight_decay=0.0)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    wanted = left @ right  # all singular values 1
    wanted *= RMS * gradient.numel() ** 0.5 / wanted.norm()
    assert_close(moved.square().mean().sqrt(), torch.tensor(RMS, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(moved, wanted, atol=0.02, rtol=0)  # the damping's
    values = torch.linalg.svdvals(moved)
    assert values.min() > 0.95 * values.max()


def test_it_goes_where_torchs_goes():
    gradient = torch.randn(24, 60, generator=torch.Generator().manual_seed(2))
    matrix = nn.Parameter(torch.zeros_like(gradient))
    matrix.grad = gradient.clone()
    torch.optim.Muon([matrix], lr=0.5, weight_decay=0.0).step()
    ours, theirs = one_step(gradient, weight_decay=0.0), -matrix.detach()
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.97
    assert torch.cosine_similarity(gradient.flatten(), theirs.flatten(), dim=0) < 0.97, "not the gradient's own way"


def test_weight_decay_shrinks_what_has_no_gradient_left():
    matrix = nn.Parameter(torch.ones(3, 4))
    matrix.grad = torch.zeros(3, 4)
    Muon([matrix], 0.1, weight_decay=0.5).step()
    assert_close(matrix.detach(), torch.full((3, 4), 0.95))


def test_the_root_is_kept_for_so_many_steps():
    generator = torch.Generator().manual_seed(3)
    matrix = nn.Parameter(torch.zeros(4, 9))
    optimizer = Muon([matrix], 0.1, every=4)
    made, last = [], None
    for step in range(ALWAYS_UNTIL + 12):
        matrix.grad = torch.randn(4, 9, generator=generator)
        optimizer.step()
        root = optimizer.state[matrix]["root"]
        if root is not last:
            made.append(step)
        last = root
    assert made == [*range(ALWAYS_UNTIL), *range(ALWAYS_UNTIL, ALWAYS_UNTIL + 12, 4)]


def test_a_badly_scaled_problem_is_solved():
    """Directions that matter a thousand times less are learned too, which one rate for all would take for ever."""
    generator = torch.Generator().manual_seed(4)
    scales = torch.logspace(0, -1.5, 12)
    inputs, target = torch.randn(256, 12, generator=generator) * scales, torch.randn(8, 12, generator=generator)
    matrix = nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([matrix], 0.1, weight_decay=0.0)
    first = float((inputs @ target.T).square().mean())
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 300)
        loss = (inputs @ (matrix - target).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3 * first
    assert (matrix.detach() - target).abs().max() < 0.3


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"takes matrices, got a tensor of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)
