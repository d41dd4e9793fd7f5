"""The samples that the console draws."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter

from streamer import virtual_time
from streamer.console import INTERVAL, KEPT, UNSEEN_INTERVAL, Console, Sample


def test_samples_have_what_the_metrics_showed_share_their_names_and_the_last_are_kept() -> None:
    registry = CollectorRegistry()
    calls = Counter("streamer_calls", "Calls", ["type", "outcome"], registry=registry)
    Counter("streamer_secret", "Not for the console", registry=registry)

    async def main() -> list[Sample]:
        console = Console(registry)
        sampling = asyncio.create_task(console.run())
        for number in range(KEPT + 10):
            if number == KEPT:
                calls.labels("page", "delivered").inc(2)
            calls.labels("track", "delivered").inc()
            await asyncio.sleep(UNSEEN_INTERVAL)
        sampling.cancel()
        return await console.since(0)

    samples = virtual_time.run(main())
    assert len(samples) == KEPT
    numbers = [sample.number for sample in samples]
    assert numbers == list(range(numbers[0], numbers[0] + KEPT))
    name = "streamer_calls_total{track,delivered}"
    tracks = [sample.values[sample.names.index(name)] for sample in samples]
    assert tracks == [float(number + 1) for number in numbers]
    assert len({id(sample.names) for sample in samples}) == 2, "until there is one more"
    last = dict(zip(samples[-1].names, samples[-1].values, strict=True))
    assert last["streamer_calls_total{page,delivered}"] == 2.0
    assert not any("secret" in name for name in last)


def test_who_looks_gets_a_sample_each_second_and_the_first_at_once() -> None:
    async def main() -> None:
        console = Console(CollectorRegistry())
        sampling = asyncio.create_task(console.run())
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(UNSEEN_INTERVAL * 1.5)
        begin, seen = clock(), len(await console.since(0))
        assert seen == 2
        for number in range(seen, seen + 5):
            (sample,) = await console.since(number)
            assert (sample.number, clock()) == (number, begin + (number - seen) * INTERVAL)
        await asyncio.sleep(UNSEEN_INTERVAL * 10.5)
        sampling.cancel()
        assert len(await console.since(0)) == seen + 5 + 10

    virtual_time.run(main())
