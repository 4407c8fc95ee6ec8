import torch

from rlhf_lightning.samplers import mix, uniforms

WORD = 1 << 64


def splitmix_hash(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def slow_uniform(seed: int, position: int) -> float:
    start = splitmix_hash(seed % WORD)
    return (splitmix_hash((start + (position + 1) * 0x9E3779B97F4A7C15) % WORD) >> 40) / 2**24


def test_mix_gives_the_published_splitmix64_stream():
    # First and second output of SplitMix64 seeded with 0, as published with the generator; int64 is their signed form.
    assert mix(0) % WORD == 0xE220A8397B1DCDAF
    assert mix(0x9E3779B97F4A7C15) % WORD == 0x6E789E6AA1B965F4
    assert mix(0) == 0xE220A8397B1DCDAF - WORD


def test_mix_depends_on_each_integer_and_their_order():
    seeds = {mix(a, b, c) for a in range(6) for b in range(6) for c in range(6)}
    assert len(seeds) == 6**3
    assert mix(1, 2) != mix(2, 1) and mix(1) != mix(1, 0)
    assert mix(-1) == mix(WORD - 1)


def test_uniforms_equal_big_integer_arithmetic():
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321012345]
    for position in (0, 1, 2, 63, 10_000):
        expected = [slow_uniform(seed, position) for seed in seeds]
        assert uniforms(torch.tensor(seeds), position).tolist() == expected


def test_uniforms_of_many_positions_are_those_of_each():
    seeds = torch.tensor([5, -7])
    table = uniforms(seeds.unsqueeze(1), torch.arange(9))
    assert table.shape == (2, 9)
    for position in range(9):
        assert torch.equal(table[:, position], uniforms(seeds, position))


def test_uniforms_look_uniform_along_seeds_and_along_positions():
    for sample in (uniforms(torch.arange(20_000), 3), uniforms(torch.tensor(11), torch.arange(20_000))):
        counts = torch.histc(sample, bins=20, min=0, max=1)
        statistic = float(((counts - 1000) ** 2 / 1000).sum())
        assert statistic < 43.8  # chi-square, 19 degrees of freedom, 99.9 %
        assert float(sample.min()) >= 0 and float(sample.max()) < 1


def test_neighbouring_seeds_do_not_share_a_shifted_stream():
    streams = uniforms(torch.arange(50).unsqueeze(1), torch.arange(50))
    assert streams.unique().numel() > 2490
