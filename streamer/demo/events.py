"""Made-up events in the shape in which Altis Analytics records them (one Amazon Pinpoint event, one JSON object).

Visitors come back, sessions overlap, page views add up, and the same seed gives the same events, byte for byte. No two
events are equal, since each has a RequestId of its own. Values are filled into a template: a run of
100,000 events shouldn't measure its generator.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GROUPS = [{"field": "endpoint.Attributes.AudienceId", "each": True}]
"""`groups`, for the audiences that the events name."""
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
_PAUSE_SECONDS = 4.0  # between two events of one session, on average

_EVENT = (
    '{"event_type":"%(event_type)s","event_timestamp":%(now)d,"arrival_timestamp":%(arrival)d,'
    '"event_version":"3.1","application":{"app_id":"5f0c3b7e1d9a4c52","cognito_identity_pool_id":'
    '"eu-west-1:2d1f6f0a-7c39-4b7e-9d0a-51f1c0b6a3e7","sdk":{},"version_name":""},'
    '"client":{"client_id":"%(id)s","cognito_id":"eu-west-1:%(id)s"},"device":%(device)s,'
    '"session":{"session_id":"%(session)s","start_timestamp":%(session_start)d%(session_stop)s},'
    '"attributes":{"date":"%(second)s+00:00","referer":"%(referer)s","session":"%(session)s",'
    '%(blog)s,%(page)s,"pageSession":"%(page_session)s",%(campaign)s"loggedIn":"%(logged_in)s",'
    '"hash":"%(hash)s"%(custom)s},'
    '"metrics":{"elapsed":%(elapsed)d,"scrollDepthNow":%(scroll_now)d,"hour":%(hour)d,'
    '"month":%(month)d,"year":%(year)d,"scrollDepthMax":%(scroll_max)d,"day":%(day)d},'
    '"endpoint":{"EndpointStatus":"ACTIVE","OptOut":"ALL","RequestId":"%(request)s",'
    '"Location":%(location)s,"Demographic":%(demographic)s,"EffectiveDate":"%(second)s.%(thousandth)03dZ",'
    '"Attributes":{%(endpoint_attributes)s"lastPageSession":["%(page_session)s"],"lastSession":["%(session)s"]},'
    '"Metrics":{"sessions":%(sessions)d.0,"pageViews":%(page_views)d.0},'
    '"ApplicationId":"5f0c3b7e1d9a4c52",%(endpoint_id)s"CohortId":"%(cohort)d",'
    '"CreationDate":"%(created)s"%(user)s},"awsAccountId":"123456789012"}'
)
_CUSTOM_EVENTS = ("scroll", "click", "videoPlay", "formSubmit", "share")
_LEVELS = ("Free", "Standard", "Premium")

# engine, browser, its version, platform, its version, make and model of the hardware, kind of device
_DEVICES = (
    ("Blink", "Chrome", "131.0.6778.86", "windows", "10", None, None, "desktop"),
    ("Blink", "Chrome", "131.0.6778.81", "android", "14", "Samsung", "Galaxy S23", "mobile"),
    ("WebKit", "Mobile Safari", "18.1.1", "ios", "18.1.1", "Apple", "iPhone", "mobile"),
    ("WebKit", "Safari", "18.1", "macos", "15.1", "Apple", "Macintosh", "desktop"),
    ("Gecko", "Firefox", "133.0", "linux", "6.8", None, None, "desktop"),
)
_PLACES = (
    ("GB", "London", "en_gb"),
    ("US", "Boston", "en_us"),
    ("DE", "Köln", "de_de"),
    ("RO", "Cluj-Napoca", "ro_ro"),
    ("JP", "京都", "ja_jp"),
)
_BLOGS = (
    ("1", "https://example.com"),
    ("2", "https://news.example.com"),
    ("3", "https://shop.example.com"),
)
_TITLES = (
    "Welcome",
    "How we measure what readers like",
    'The "quiet" office, revisited',
    "Prices & plans: from €5",
    "Über uns",
    "今日のニュース",
    "Ten small things 🎉 to try",
)
_REFERRERS = ("", "", "https://search.example/", "https://links.example/item?id=1")


class Event(NamedTuple):
    """One record to produce.

    Attributes:
        key: the visitor's `endpoint.Id`, so that a partition has all of one visitor; None for an event without ids.
        value: the event as JSON, about 2 KB; or what should have been one.
        timestamp_ms: its `event_timestamp`, of what is broken too: the timestamp to give the record in Kafka.
    """

    key: bytes | None
    value: bytes
    timestamp_ms: int


def everyday(seed: int, rate: int, clock: Callable[[], int]) -> Iterator[Event]:
    """Make the events of the demo: as many visitors as such a rate has, and now and then something broken.

    Args:
        seed: equal seeds give equal events.
        rate: events a second.
        clock: gives the time of each event when it is made, in milliseconds since 1970.
    """
    return generate(
        seed,
        users=min(max(20 * rate, 200), 20_000),
        broken=0.002,
        missing_ids=0.001,
        oversized=0.0005,
        rate=rate,
        clock=clock,
    )


def generate(
    seed: int,
    users: int = 2000,
    broken: float = 0.0,
    missing_ids: float = 0.0,
    oversized: float = 0.0,
    start_ms: int = START_MS,
    rate: float = 100.0,
    clock: Callable[[], int] | None = None,
) -> Iterator[Event]:
    """Make events without end.

    People read: some four seconds pass between two events of one session, so the more events a second there are, the
    more sessions are open side by side, up to a quarter of the users. What one loading of a page makes comes together.

    Args:
        seed: equal seeds (and equal other arguments) give equal events.
        users: how many visitors there are; some come far more often than others.
        broken: the share of values that aren't JSON: cut off, or with a key that lost its value.
        missing_ids: the share of events with neither `endpoint.Id` nor `endpoint.User.UserId`.
        oversized: the share of events with a text of 40,000 bytes, more than Segment takes in one call.
        start_ms: the time of the first event, in milliseconds since 1970.
        rate: events a second by their own timestamps, at most 1000 unless there is a clock.
        clock: gives the time of each event when it is made, in milliseconds since 1970, for events that are produced
            at once; `start_ms` then counts for nothing, and time may stand still between two events.

    Yields:
        Events in the order of `event_timestamp`, which rises with each.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    chance = rng.random
    crowd = _Crowd(rng, users, round(rate * _PAUSE_SECONDS))
    now = start_ms if clock is None else clock()
    second: dict[str, str | int] = {}
    while True:
        before = now
        if clock is None:
            now += max(1, round(rng.expovariate(rate) * 1000))
        else:
            now = max(now, clock())
        if not second or now // 1000 != before // 1000:
            second = _second(now // 1000)
        visitor, steps = crowd.choose(now)
        fields = visitor.fields
        fields.update(second)
        fields["now"] = now
        fields["thousandth"] = now % 1000
        fields["arrival"] = now + 40 + int(chance() * 1500)
        fields["request"] = f"{rng.getrandbits(64):016x}"
        event_type = next(steps, None)
        if event_type is None:
            crowd.leave()
            continue
        fields["event_type"] = event_type
        crowd.loading = event_type == "_session.start"

        key: bytes | None = visitor.key
        value = _EVENT % fields
        oddity = chance()
        if oddity < broken:
            half = value[: len(value) // 2]
            value = half if chance() < 0.5 else value.replace('"referer":', '"referer', 1)
        elif oddity < broken + missing_ids:
            key = None
            value = _EVENT % {**fields, "endpoint_id": "", "user": ""}
        elif oddity < broken + missing_ids + oversized:
            value = _EVENT % {**fields, "custom": ',"content":"' + "lorem " * 6667 + '"'}
        yield Event(key, value.encode(), now)


class _Crowd:
    """The sessions that are open side by side.

    Attributes:
        loading: whether the next event is of the same session as the last: both come from loading one page.
    """

    def __init__(self, rng: random.Random, users: int, size: int) -> None:
        self.loading = False
        self._rng = rng
        self._users = users
        self._size = max(1, min(users // 4, size))
        self._visitors: dict[int, _Visitor] = {}
        self._visits: list[tuple[_Visitor, Iterator[str]]] = []
        self._chosen = 0

    def choose(self, now: int) -> tuple[_Visitor, Iterator[str]]:
        """Choose the session of the next event, after letting in who comes."""
        for _ in range(min(2, self._size - len(self._visits))):  # one by one, also at the start
            self._come(now)
        while not self._visits:
            self._come(now)
        if not self.loading:
            self._chosen = int(self._rng.random() * len(self._visits))
        return self._visits[self._chosen]

    def leave(self) -> None:
        """End the session that was chosen."""
        self._visits[self._chosen][0].visiting = False
        self._visits[self._chosen] = self._visits[-1]
        self._visits.pop()

    def _come(self, now: int) -> None:
        number = int(self._users * self._rng.random() ** 2)
        visitor = self._visitors.get(number)
        if visitor is None:
            visitor = self._visitors[number] = _Visitor(number, now, self._rng)
        if not visitor.visiting:
            visitor.visiting = True
            self._visits.append((visitor, visitor.visit(self._rng)))


class _Visitor:
    """One browser: what stays the same of its events, what its sessions change, and the sessions themselves."""

    __slots__ = ("_country", "_level", "_page", "_pages", "_user_id", "fields", "key", "visiting")

    def __init__(self, number: int, now: int, rng: random.Random) -> None:
        engine, browser, version, platform, platform_version, make, model, kind = rng.choice(
            _DEVICES
        )
        self._country, city, locale = rng.choice(_PLACES)
        blog_id, blog = rng.choice(_BLOGS)
        self._pages = _PAGES[blog]
        identity = _uuid(rng)
        self.key = identity.encode()
        # A third is known by name. Nobody has two browsers: their records might go to two partitions, and then the
        # order of one user's traits would be anyone's guess.
        self._user_id = f"user-{number}" if number % 3 == 0 else None
        self._level = rng.randrange(len(_LEVELS))
        self._page = 0
        self.visiting = False
        attributes: dict[str, list[str]] = {"DeviceType": [kind]}
        if make and model:
            attributes |= {"DeviceMake": [make], "DeviceModel": [model]}
        if rng.random() < 0.4:
            attributes["AudienceId"] = [
                str(audience) for audience in rng.sample(range(10, 40), rng.randint(1, 3))
            ]
        created, created_thousandth = divmod(now - rng.randrange(90 * 86_400_000), 1000)
        self.fields: dict[str, str | int] = {
            "id": identity,
            "endpoint_id": f'"Id":"{identity}",',
            "device": _json(
                {
                    "locale": {"code": locale, "country": self._country, "language": locale[:2]},
                    "make": engine,
                    "model": browser,
                    "platform": {"name": platform, "version": platform_version},
                }
            ),
            "demographic": _json(
                {
                    "Make": engine,
                    "Model": browser,
                    "ModelVersion": version,
                    "Locale": locale,
                    "AppVersion": "",
                    "Platform": platform,
                    "PlatformVersion": platform_version,
                }
            ),
            "location": _json({"Country": self._country, "City": city}),
            "endpoint_attributes": _members(attributes) + ",",
            "blog": _members(
                {
                    "blog": blog,
                    "blogId": blog_id,
                    "network": "https://example.com/",
                    "networkId": "1",
                    "host": blog.partition("//")[2],
                }
            ),
            "logged_in": "true" if self._user_id else "false",
            "user": self._user(),
            "cohort": number % 100,
            "created": f"{_second(created)['second']}.{created_thousandth:03}Z",
            "sessions": 0,
            "page_views": 0,
        }

    def visit(self, rng: random.Random) -> Iterator[str]:
        """One session: yields the type of each event once `fields` says everything else; `now` is set before."""
        fields = self.fields
        session = _uuid(rng)
        session_start = int(fields["now"])
        fields["session"] = session
        fields["session_start"] = session_start
        fields["session_stop"] = fields["custom"] = fields["hash"] = ""
        fields["sessions"] = int(fields["sessions"]) + 1
        fields["referer"] = rng.choice(_REFERRERS)
        fields["campaign"] = rng.choice(_CAMPAIGNS)
        self._open_page(rng)
        yield "_session.start"
        for page in range(rng.randint(1, 6)):
            if page:
                self._open_page(rng)
            loaded = int(fields["now"])
            fields["page_views"] = int(fields["page_views"]) + 1
            yield "pageView"
            for _ in range(rng.randrange(4)):
                event_type = rng.choice(_CUSTOM_EVENTS)
                fields["custom"] = f',"element":"#{event_type}-{rng.randrange(9)}"'
                fields["elapsed"] = int(fields["now"]) - loaded
                fields["scroll_now"] = rng.randrange(101)
                fields["scroll_max"] = max(int(fields["scroll_max"]), int(fields["scroll_now"]))
                yield event_type
            fields["custom"] = ""
        if self._user_id and rng.random() < 0.1:
            self._level = (self._level + 1) % len(_LEVELS)
            fields["user"] = self._user()
            yield "subscriptionChange"
        now = int(fields["now"])
        fields["session_stop"] = f',"stop_timestamp":{now}'
        fields["elapsed"] = now - session_start
        yield "_session.stop"

    def _open_page(self, rng: random.Random) -> None:
        self._page += 1
        fields = self.fields
        fields["page"] = rng.choice(self._pages)
        fields["page_session"] = f"{fields['session']}-{self._page}"
        fields["elapsed"] = fields["scroll_now"] = fields["scroll_max"] = 0

    def _user(self) -> str:
        if self._user_id is None:
            return ""
        user = {
            "UserId": self._user_id,
            "UserAttributes": {
                "Email": [f"{self._user_id}@example.com"],
                "country": [self._country],
                "SubscriptionLevel": [_LEVELS[self._level]],
            },
        }
        return ',"User":' + _json(user)


def _members(fields: dict[str, str] | dict[str, list[str]]) -> str:
    """The inside of a JSON object, without its braces."""
    return _json(fields)[1:-1]


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _uuid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _second(second: int) -> dict[str, str | int]:
    """The fields that say what time it is, of seconds since 1970."""
    moment = datetime.fromtimestamp(second, UTC)
    return {
        "second": f"{moment:%Y-%m-%dT%H:%M:%S}",
        "hour": moment.hour,
        "day": moment.isoweekday(),
        "month": moment.month,
        "year": moment.year,
    }


_PAGES = {
    blog: tuple(
        _members(
            {
                "title": title,
                "url": f"{blog}/{number}/",
                "search": "?ref=list" if number % 3 == 0 else "",
                "postType": "article" if number % 2 else "page",
                "author": "Ada Example" if number % 2 else "Björn Beispiel",
                "postId": str(1000 + number),
                "authorId": str(number % 5),
            }
        )
        for number, title in enumerate(_TITLES)
    )
    for _, blog in _BLOGS
}
_CAMPAIGNS = (
    "",
    "",
    "",
    _members({"qv_utm_source": "newsletter", "qv_utm_medium": "email", "qv_utm_campaign": "spring"})
    + ",",
    _members({"qv_utm_source": "search", "qv_utm_medium": "cpc", "qv_utm_term": "analytics"}) + ",",
)
