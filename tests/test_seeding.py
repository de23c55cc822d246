import torch

from del_lightning.seeding import stream, stream_seed


def test_a_stream_depends_on_its_whole_name() -> None:
    names = [(0, "train", 1), (1, "train", 1), (0, "validation", 1), (0, "train", 2), (0, "train", 1, 0), (0, "train")]
    seeds = {stream_seed(*name) for name in names}
    assert len(seeds) == len(names)


def test_the_border_between_parts_counts() -> None:
    assert stream_seed(1, 23) != stream_seed(12, 3)


def test_seeds_are_the_same_in_every_process_and_fit_a_generator() -> None:
    # A fixed value: python's own hash() would differ from one process to the next.
    assert stream_seed(0, "noise", 7) == 4578217800377160657
    assert all(0 <= stream_seed("x", i) < 2**63 for i in range(1000))


def test_the_same_name_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = torch.rand(8, generator=stream(0, "a"))
    torch.rand(100)
    torch.rand(5, generator=stream(0, "b"))
    assert torch.equal(torch.rand(8, generator=stream(0, "a")), first)
    assert not torch.equal(torch.rand(8, generator=stream(0, "b")), first)


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = torch.stack([torch.rand(20_000, generator=stream(0, "train", step)) for step in range(6)])
    correlations = torch.corrcoef(draws) - torch.eye(6)
    assert correlations.abs().max() < 4.5 / 20_000**0.5


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    torch.rand(4, generator=stream(0, "a"))
    assert torch.equal(torch.rand(4), expected)
