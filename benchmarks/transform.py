"""What a record's transform costs, in units of `orjson.loads` of the same record.

Both are measured in turns, in short stretches, of which the fastest counts: so a busy machine slows both or neither,
and the ratio can be held against that of another machine.

    python benchmarks/transform.py
"""

# ruff: noqa: T201 - a script, which prints

from __future__ import annotations

import random
from time import process_time

import orjson

from streamer.core.model import Formatted
from streamer.core.transform import Transform

EVENTS = 200
TURNS = 300
SEED = 20220201


def event(rng: random.Random) -> bytes:
    """Give one event as Altis Analytics records it, of about 2 KB."""

    def identifier() -> str:
        return f"{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-{rng.getrandbits(80):020x}"

    time_ms = 1_643_673_600_000 + rng.randrange(86_400_000)
    session, page_session, visitor = identifier(), identifier(), identifier()
    platform, version = rng.choice([("ios", "14.4.1"), ("windows", "10"), ("android", "12")])
    model = rng.choice(["Mobile Safari", "Chrome", "Firefox"])
    country = rng.choice(["GB", "US", "DE", "RO"])
    is_page_view = rng.random() < 0.4
    path = f"https://site.example/{rng.choice(['news', 'deals', 'guides'])}/{rng.randrange(10_000)}"
    attributes = {
        "date": "2022-01-31T15:47:25+00:00",
        "referer": "https://search.example/",
        "session": session,
        "pageSession": page_session,
        "blog": "https://site.example",
        "network": "https://site.example/",
        "blogId": "1",
        "networkId": "1",
        "url": path,
        "host": "site.example",
        "title": f"Some title of a page, number {rng.randrange(10_000)}",
        "search": "",
        "hash": "",
        "loggedIn": "true",
        "postType": "article",
        "postId": str(rng.randrange(10_000)),
        "author": "Some author",
        "authorId": str(rng.randrange(100)),
        "UserSubscriptionLevel": "Standard",
    }
    if rng.random() < 0.3:
        attributes |= {"qv_utm_source": "newsletter", "qv_utm_medium": "email"}
    endpoint = {
        "EndpointStatus": "ACTIVE",
        "OptOut": "ALL",
        "RequestId": identifier(),
        "Location": {"Country": country},
        "Demographic": {
            "Make": "WebKit",
            "Model": model,
            "ModelVersion": "14.0.3",
            "Locale": "en_gb",
            "AppVersion": "",
            "Platform": platform,
            "PlatformVersion": version,
        },
        "EffectiveDate": "2022-02-01T00:05:11.400Z",
        "Attributes": {
            "DeviceMake": ["Apple"],
            "DeviceModel": ["iPhone"],
            "DeviceType": ["mobile"],
            "lastSession": [session],
            "lastPageSession": [page_session],
            "utm_source": ["newsletter"],
            "utm_medium": ["email"],
        },
        "Metrics": {"sessions": float(rng.randrange(30)), "pageViews": float(rng.randrange(99))},
        "ApplicationId": identifier(),
        "Id": visitor,
        "CohortId": str(rng.randrange(100)),
        "CreationDate": "2022-01-18T10:18:45.756Z",
    }
    if rng.random() < 0.3:
        endpoint["User"] = {
            "UserId": f"user-{rng.randrange(10_000)}",
            "UserAttributes": {"country": [country], "plan": ["pro"]},
        }
    return orjson.dumps(
        {
            "event_type": "pageView" if is_page_view else "_session.stop",
            "event_timestamp": time_ms,
            "arrival_timestamp": time_ms + 900,
            "event_version": "3.1",
            "application": {"app_id": "site", "cognito_identity_pool_id": "eu:pool", "sdk": {}},
            "client": {"client_id": visitor, "cognito_id": "XX"},
            "device": {
                "locale": {"code": "en_gb", "country": country, "language": "en"},
                "make": "WebKit",
                "model": model,
                "platform": {"name": platform, "version": version},
            },
            "session": {"session_id": session, "start_timestamp": time_ms - 4000},
            "attributes": attributes,
            "metrics": {
                "elapsed": rng.randrange(9999),
                "scrollDepthMax": rng.randrange(100),
                "scrollDepthNow": 0,
                "hour": 0,
                "day": 3,
                "month": 2,
                "year": 2022,
            },
            "endpoint": endpoint,
            "awsAccountId": "00000",
        }
    )


def main() -> None:
    """Measure and print."""
    rng = random.Random(SEED)  # noqa: S311 - the same events each time is what is wanted
    records = [event(rng) for _ in range(EVENTS)]
    transform = Transform(write_key="benchmark")
    if not all(isinstance(transform.format(record, 0), Formatted) for record in records):
        raise SystemExit("an event was rejected: there is nothing to measure")

    best_loads = best_transform = float("inf")
    for _ in range(TURNS):
        begin = process_time()
        for record in records:
            orjson.loads(record)
        middle = process_time()
        for record in records:
            transform.format(record, 0)
        end = process_time()
        best_loads = min(best_loads, middle - begin)
        best_transform = min(best_transform, end - middle)

    size = sum(map(len, records)) / EVENTS
    loads_us, transform_us = (1e6 * best / EVENTS for best in (best_loads, best_transform))
    print(f"{EVENTS} events of {size:,.0f} bytes on average")
    print(f"orjson.loads  {loads_us:6.2f} µs an event")
    print(f"transform     {transform_us:6.2f} µs an event")
    print(f"ratio         {transform_us / loads_us:6.2f}")


if __name__ == "__main__":
    main()
